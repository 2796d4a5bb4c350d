# SPDX-License-Identifier: Apache-2.0
"""Client work of federated matched averaging: layer after layer becomes everybody's, and the layers behind go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.trees import State, copy_tree
from phalanx.data.examples import Examples
from phalanx.data.partition import Partition
from phalanx.federated.local_training import LocalTraining, check_levels, examples_of, wired
from phalanx.matching.match_stage import EXAMPLES, MatchReply
from phalanx.matching.neuron_axes import OUTPUTS, Axes, scatter, take
from phalanx.matching.neuron_features import presence
from phalanx.training.client_work import MultiRoundWork
from phalanx.training.context import ModelProvider, WorkerContext


@dataclass(frozen=True)
class PassMemory:
    """What a client remembers from one round of a pass to the next.

    Args:
        pass_index: number of the pass in the phase.
        layer: the layer that the client sent last.
        places: for each matched group of neurons, the places of the client's neurons in it.
        weights: the tensors of its network that are not sent yet.
    """

    pass_index: int
    layer: int
    places: Mapping[int, Tensor]
    weights: Mapping[str, Tensor]

    def to_state(self) -> State:
        """The memory as a tree; `from_state` is the inverse."""
        places = {str(group): places for group, places in self.places.items()}
        return {"pass": self.pass_index, "step": self.layer, "places": places, "model": dict(self.weights)}

    @staticmethod
    def from_state(state: State) -> PassMemory | None:
        """Reads a tree that `to_state` wrote; None for an empty one."""
        if not state:
            return None
        places = {int(group): places for group, places in state.get("places", {}).items()}
        return PassMemory(state["pass"], state["step"], places, state.get("model", {}))


@method("layerwise", "client_work")
class Layerwise(MultiRoundWork):
    """A pass of as many rounds as the network has layers; in each the clients send one layer's weights.

    In the first round of a pass a client trains its whole network. In every later one it receives the matched layer and
    its own neurons' places in it, moves the inputs of its next layer there, and trains the layers that are not matched
    yet, while those before stand still. A later pass begins from the neurons of the global network that the client's
    own became, in the size of its own network: FedMA with communication.

    A tensor is sent as soon as its outputs and, a round before, its inputs have been matched; BatchNorm's statistics in
    the last round, when they have been estimated anew behind layers that are everybody's.

    Args:
        local: how a client trains its whole network; its `own` says whether clients begin the run alike.
        layers: with weights: groups of neurons and the last layer; the rounds are a multiple.
        retrain: how it trains between two layers; None is as local, epochs=0 is PFNM layer by layer.
        last: how it trains the last layer; None is as retrain.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, Algorithm 1 (Algorithm 3 of
        the dissertation) and its "FedMA with communication". Differs: any network whose neurons can be traced; a client
        that missed a round goes on with the next pass, from the first neurons of the layers whose places it lacks.
    """

    local: LocalTraining
    layers: int
    retrain: LocalTraining | None = None
    last: LocalTraining | None = None

    def validate(self) -> None:
        require(self.layers >= 2, f"layerwise needs layers >= 2, got layers={self.layers}")
        for name in ("local", "retrain", "last"):
            part = getattr(self, name)
            plain = part is None or (part.sends == "change" and not part.keep)
            require(plain, f"layerwise: {name} sends nothing by itself and keeps no optimizer, got {part!r}")

    @property
    def matched(self) -> bool:
        return True

    def pass_start(self, round_in_phase: int) -> int:
        return round_in_phase - round_in_phase % self.layers

    def is_complete(self, round_in_phase: int) -> bool:
        return round_in_phase % self.layers == self.layers - 1

    def can_continue(self, round_in_phase: int, memory: State) -> bool:
        pass_index, layer = divmod(round_in_phase, self.layers)
        last = PassMemory.from_state(memory)
        return layer == 0 or (last is not None and (last.pass_index, last.layer) == (pass_index, layer - 1))

    def training(self, layer: int) -> LocalTraining:
        """How a client trains in the round of a pass that sends a layer."""
        retrain = self.retrain or self.local
        return self.local if layer == 0 else (self.last or retrain) if layer == self.layers - 1 else retrain

    def num_epochs(self, round_in_phase: int) -> float | None:
        return self.training(round_in_phase % self.layers).num_epochs(round_in_phase)

    def samples(self, partition: Partition, data: Examples, units: int, index: int, seed: int) -> Sequence[Tensor]:
        return self.local.samples(partition, data, units, index, seed)

    def check(self, models: ModelProvider, rounds: int) -> None:
        check_levels(models)
        count = len(models.graph.sizes) + 1
        names = ", ".join(models.graph.names)
        require(
            count == self.layers,
            f"this network has {count} layers to match and average, {names} and the last one, got layers={self.layers}",
        )
        require(
            rounds % self.layers == 0,
            f"a pass over {self.layers} layers takes as many rounds, got rounds={rounds}; use a multiple",
        )

    def required_tensors(self, models: ModelProvider, round_in_phase: int) -> Sequence[str] | None:
        layer = round_in_phase % self.layers
        if layer == 0:
            return () if models.is_first_round and self.local.own else None
        return [name for name, sent_with in turns(models).items() if sent_with == layer - 1]

    def layout(self, models: ModelProvider, round_in_phase: int) -> Layout:
        layer = round_in_phase % self.layers
        whole, sent_with = models.layout if layer else Layout.of(models.original()), turns(models)
        shapes = dict(zip(whole.names, whole.shapes, strict=True))
        names = tuple(name for name in whole.names if sent_with[name] == layer)
        installed = sum(name in whole.installed for name in names)
        part = Layout(names, tuple(shapes[name] for name in names), installed, whole.dtype)
        return wired(part, models.graph.axes, {layer})

    def compute_row(
        self, context: WorkerContext, unit: int, samples: Tensor, out: Tensor, memory: State
    ) -> tuple[float, State]:
        models, (pass_index, layer) = context.models, divmod(context.round_in_phase, self.layers)
        assert models is not None
        last = PassMemory.from_state(memory)
        axes, sent_with = models.graph.axes, turns(models)
        model = context.model if layer else models.original()
        before = copy_tree(model.state_dict()) if layer else {}
        known_places: dict[int, Tensor] = {}
        if layer:
            assert last is not None
            group = layer - 1
            places = MatchReply.from_payload(context.replies[unit]).places[group]
            known_places = {**last.places, group: places}
            width = _width(before, axes, group)
            weights = {n: scatter(t, axes.get(n, ()), group, places, width) for n, t in last.weights.items()}
        else:
            recent = last is not None and last.pass_index == pass_index - 1
            weights = self._start(context, unit, last.places if last is not None and recent else {})
        model.load_state_dict(weights, strict=False)
        settled = [name for name, turn in sent_with.items() if turn < layer]
        loss, _ = self.training(layer).train(replace(context, model=model), unit, samples, {}, settled)
        after = model.state_dict()
        for name, part in context.layout.split(out).items():
            part.copy_(examples_of(context, samples, part) if name == EXAMPLES else after[name])
        unsent = copy_tree({n: t for n, t in after.items() if sent_with.get(n, self.layers) > layer})
        if layer:
            model.load_state_dict(before)
        return loss, PassMemory(pass_index, layer, known_places, unsent).to_state()

    def _start(self, context: WorkerContext, unit: int, known_places: Mapping[int, Tensor]) -> Mapping[str, Tensor]:
        """The weights with which a client begins a pass.

        Args:
            known_places: the places of the client's neurons in the layers that the last pass matched.
        """
        models = context.models
        assert models is not None
        if models.is_first_round and self.local.own:
            return models.initial_weights(unit)
        state, graph = dict(context.model.state_dict()), models.graph
        places = {
            group: _taken(known_places.get(group, torch.arange(size)), _width(state, graph.axes, group))
            for group, size in enumerate(graph.sizes)
        }
        for group, group_places in places.items():
            state = {n: take(t, graph.axes.get(n, ()), group, group_places.clamp(min=0)) for n, t in state.items()}
        if all(bool((group_places >= 0).all()) for group_places in places.values()):
            return state
        # neurons without a place start from the client's own initialization
        fresh = models.initial_weights(unit)
        kept = {group: (group_places >= 0).nonzero().flatten() for group, group_places in places.items()}
        has = {n: presence(t, graph.axes.get(n, ()), kept) for n, t in state.items()}
        return {n: torch.where(has[n] > 0, t, fresh[n]) for n, t in state.items()}


def _taken(places: Tensor, size: int) -> Tensor:
    """The places below `size`; neurons without one get free places, as long as there are some, and else -1."""
    places = torch.where(places < size, places, -1)
    free = sorted(set(range(size)) - set(places.tolist()))
    lost = (places < 0).nonzero().flatten()[: len(free)]
    places[lost] = torch.tensor(free[: len(lost)], dtype=places.dtype)
    return places


def turns(models: ModelProvider) -> dict[str, int]:
    """The round of a pass in which each tensor of the layout is sent."""
    layout, axes, last = models.layout, models.graph.axes, len(models.graph.sizes)
    return {n: last if n in layout.installed else _turn(axes.get(n, ()), last) for n in layout.names}


def _turn(axes: Axes, last: int) -> int:
    """When the neurons that come out of it are matched, and not before it was trained on inputs that are."""
    produced = {a.group for a in axes if a.makes}
    if OUTPUTS in produced or not axes:
        return last
    used = {a.group for a in axes if not a.makes} - produced
    return max([*produced, *(group + 1 for group in used)])


def _width(state: Mapping[str, Tensor], axes: Mapping[str, Axes], group: int) -> int:
    return next(
        a.neurons(state[name]) for name, mine in axes.items() for a in mine if a.group == group and name in state
    )
