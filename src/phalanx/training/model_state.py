# SPDX-License-Identifier: Apache-2.0
"""The model of a run, its optimizer, and the memories of its surgeries: all that an update changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from phalanx.core.expression import require
from phalanx.core.layout import Layout
from phalanx.core.round import make_generator
from phalanx.core.seeding import seeded_globally
from phalanx.core.stack import Stack
from phalanx.core.surgery import Surgery
from phalanx.core.trees import State
from phalanx.core.world import World
from phalanx.data.examples import Examples
from phalanx.data.shape import example
from phalanx.models.custom import Custom
from phalanx.training.optim import moments, set_moments
from phalanx.training.phase import Phase, Position, Run

if TYPE_CHECKING:
    from phalanx.matching.graph import Graph

WIDTHS = "widths"  # in the shape of a phase whose rows let the model grow: neurons of each group


class ModelState:
    """A model in training; the same in every process of a job.

    Args:
        data: the data of the run, for the shape of an example and the number of outputs.
    """

    def __init__(self, run: Run, data: Examples) -> None:
        self.phases, self._run, self._data = run.phases, run, data
        self.memories: State = {}  # of what changes the model's shape, by the index of its phase
        # both by the shapes that earlier phases have given the model
        self._originals: dict[str, nn.Module] = {}
        self._graphs: dict[str, Graph] = {}
        self._take(self._built("model"))
        if isinstance(run.model, Custom):
            same = fingerprint(self._built("model")) == fingerprint(self.model)
            sentence = "makes other weights each time with equal seeds; draw them from torch's global generator"
            require(same, f"{run.model!r} {sentence}")
        self.optimizer = self._optimizer(run.position(0).phase_index)

    @property
    def shapes(self) -> State:
        """What a process needs to have a model of the same shape."""
        return {number: memory["shape"] for number, memory in self.memories.items() if "shape" in memory}

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def num_parameters(self) -> int:
        """The number of parameters that are trained and not held at zero by a surgery."""
        held = [surgery.zeros(self.model, memory) for surgery, memory in self._surgeries()]
        return self.layout.stepped - max(held, default=0)

    @property
    def widths(self) -> list[tuple[str, int, int]]:
        """The name of each group of neurons, and its width before and after a phase that lets it grow."""
        grown = [int(number) for number, shape in self.shapes.items() if WIDTHS in shape]
        if not grown:
            return []
        graph, now = self.graph(max(grown)), self.shapes[str(max(grown))][WIDTHS]
        named = zip(graph.names, graph.sizes, strict=True)
        return [(name, size, now.get(str(group), size)) for group, (name, size) in enumerate(named)]

    def enter_phase(self, phase_index: int) -> None:
        """Makes the optimizer of a phase that begins."""
        self.optimizer = self._optimizer(phase_index)

    def apply_surgery(self, position: Position, world: World) -> str:
        """Lets the phase's surgery change the model before a round; every process calls it alike.

        Returns: what it did, in a sentence; an empty one where the model is the same as before.
        """
        number, index = position.phase_index, position.round_in_phase
        phase, key = self.phases[number], str(number)
        if phase.surgery is None or not phase.surgery.watches(index, phase.rounds):
            return ""
        network, tree, before = None, {}, self.num_parameters
        if world.rank == 0:
            rng = make_generator("surgery", self._run.seed, number, index)
            network, memory = phase.surgery.operate(self.model, index, phase.rounds, self.memories.get(key, {}), rng)
            tree = {"memory": memory, "model": {} if network is None else dict(network.state_dict())}
        tree = world.broadcast(tree)
        self.memories[key] = self._here(tree.get("memory", {}))
        if not tree.get("model"):
            return ""
        if network is None:
            network = self._shaped(self.shapes)
            network.load_state_dict(tree["model"])
        old, optimizer = self.model, self.optimizer
        self._take(network)
        carried = phase.surgery.carried(optimizer, old, network, self.memories[key])
        self.optimizer = self._optimizer(number)
        self.optimizer.state.update(carried)
        return f"{phase.surgery.expression_name}: {before:,} trained parameters become {self.num_parameters:,}"

    def load_from_server(self, shapes: State, weights: dict[str, Tensor]) -> bool:
        """Loads the tensors that the server sent of its model; returns whether the model's shape has changed."""
        changed = shapes != self.shapes
        if changed:
            self.memories = {number: {"shape": shape} for number, shape in shapes.items()}
            self._replace(self._shaped(shapes))
        self.model.load_state_dict(weights, strict=False)
        return changed

    def update(self, position: Position, aggregate: Stack) -> None:
        """Updates the model by the single row of a round: new values, or a direction for the optimizer's step."""
        if self.phases[position.phase_index].optimizer.installs:
            self._install(position.phase_index, aggregate.layout, aggregate.rows[0])
        else:
            self._step(position.phase_index, position.round_in_phase, aggregate.rows[0])

    def _install(self, number: int, layout: Layout, row: Tensor) -> None:
        """Copies a row's tensors into the model, whose layers change their widths where those of the row differ."""
        parts, memory = layout.split(row), dict(self.memories.get(str(number), {}))
        widths = {
            str(axis.group): axis.neurons(parts[name])
            for name, axes in zip(layout.names, layout.annotations, strict=bool(layout.annotations))
            for axis in axes
            if axis.makes and axis.group >= 0
        }
        if widths:
            # the first layer of all begins a new pass
            before = {} if "0" in widths else memory.get("shape", {}).get(WIDTHS, {})
            memory["shape"] = {WIDTHS: {**before, **widths}}
            self.memories[str(number)] = memory
            self._replace(self._shaped(self.shapes))
            self.optimizer = self._optimizer(number)
        with torch.no_grad():
            for name, tensor in layout.tensors(self.model).items():
                tensor.copy_(parts[name])

    def _step(self, number: int, index: int, row: Tensor) -> None:
        """Takes an optimizer step along a row's directions; copies its installed entries into buffers."""
        phase = self.phases[number]
        clock = phase.surgery.clock(index, phase.rounds) if phase.surgery is not None else (index, phase.rounds)
        for group in self.optimizer.param_groups:
            group["lr"] = phase.optimizer.rate(*clock)
        named, buffers = dict(self.model.named_parameters()), dict(self.model.named_buffers())
        for name, part in self.layout.split(row).items():
            if name in named:
                named[name].grad = part.view_as(named[name])
            else:
                buffers[name].copy_(part)
        if phase.surgery is not None:
            phase.surgery.before_step(self.model, self.memories.get(str(number), {}), phase.optimizer.weight_decay)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for surgery, memory in self._surgeries():
            surgery.after_step(self.model, memory)

    def to_tree(self) -> dict[str, Any]:
        """The state as a tree for a checkpoint; `load` is the inverse."""
        model = dict(self.model.state_dict())
        return {"model": model, "optimizer": moments(self.optimizer), "surgery": self.memories}

    def load(self, tree: dict[str, Any], phase_index: int) -> None:
        """Loads a tree that `to_tree` made within a phase."""
        self.memories = self._here(tree.get("surgery", {}))
        self._take(self._shaped(self.shapes))
        self.model.load_state_dict(tree["model"])
        self.optimizer = self._optimizer(phase_index)
        set_moments(self.optimizer, tree.get("optimizer", {}))

    def _here(self, tree: State) -> State:
        """The memory with its tensors on the device of the run."""
        device = self._run.device
        return {
            key: self._here(x) if isinstance(x, dict) else x.to(device) if isinstance(x, Tensor) else x
            for key, x in tree.items()
        }

    def _take(self, model: nn.Module) -> None:
        self.model, self.layout = model, Layout.of(model)

    def _replace(self, model: nn.Module) -> None:
        """Replaces the model by another, which takes the current tensors where their shapes are equal."""
        now = self.model.state_dict()
        same = {name: now[name] for name, t in model.state_dict().items() if name in now and now[name].shape == t.shape}
        model.load_state_dict(same, strict=False)
        self._take(model)

    def _built(self, *key: object) -> nn.Module:
        with seeded_globally(make_generator(*key[:1], self._run.seed, *key[1:]).initial_seed()):
            model = self._run.model.build_for(self._data)
        return model.to(self._run.device)

    def _shaped(self, shapes: State) -> nn.Module:
        """The run's model in the shape that these phases have given it; its weights are to be loaded."""
        model = self._built("model")
        for number in sorted(shapes, key=int):
            shape = shapes[number]
            if WIDTHS in shape:
                from phalanx.matching.graph import resized

                model = resized(model, self.graph(int(number)), {int(g): w for g, w in shape[WIDTHS].items()})
            else:
                model = self._surgery(number).rebuild(model, shape)
        return model

    def original(self, number: int) -> nn.Module:
        """A model in the shape before a phase; all callers share one model and load their weights first."""
        past = self._before(number)
        key = repr(past)
        if key not in self._originals:
            self._originals[key] = self._shaped(past)
        return self._originals[key]

    def initial_model(self, unit: int) -> nn.Module:
        """A model with an initialization of a client's own."""
        return self._built("model", "client", unit)

    def graph(self, number: int) -> Graph:
        """The graph of a phase's original model: which of its neurons can be permuted."""
        from phalanx.matching.graph import Graph

        key = repr(self._before(number))
        if key not in self._graphs:
            self._graphs[key] = Graph.of(self.original(number), example(self._data.shape).to(self._run.device))
        return self._graphs[key]

    def _before(self, number: int) -> State:
        """The shapes that earlier phases have given the model, in the order of the phases."""
        shapes = self.shapes
        return {past: shapes[past] for past in sorted(shapes, key=int) if int(past) < number}

    def _surgeries(self) -> Iterator[tuple[Surgery, State]]:
        for number, memory in self.memories.items():
            if self.phases[int(number)].surgery is not None:
                yield self._surgery(number), memory

    def _surgery(self, number: str) -> Surgery:
        surgery = self.phases[int(number)].surgery
        assert surgery is not None
        return surgery

    def _optimizer(self, number: int) -> torch.optim.Optimizer:
        phase: Phase = self.phases[number]
        parameters = self.trained if phase.surgery is None else phase.surgery.groups(self.model)
        return phase.optimizer.build(parameters)


class PhaseModels:
    """The models for the workers of one phase, in one round of the run."""

    def __init__(self, model_state: ModelState, phase_index: int, round_index: int = 0) -> None:
        self._model_state, self._phase_index, self.is_first_round = model_state, phase_index, round_index == 0

    @property
    def layout(self) -> Layout:
        """The layout of the current model."""
        return self._model_state.layout

    @property
    def model(self) -> nn.Module:
        """The current model."""
        return self._model_state.model

    @property
    def graph(self) -> Graph:
        """The graph of the original model: which of its neurons can be permuted."""
        return self._model_state.graph(self._phase_index)

    def original(self) -> nn.Module:
        """A model in the size that clients' own networks have, whose weights the caller loads."""
        return self._model_state.original(self._phase_index)

    def initial_weights(self, unit: int) -> dict[str, Tensor]:
        """The weights of an initialization of a client's own."""
        return dict(self._model_state.initial_model(unit).state_dict())


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers; equal for models that are equal to the bit."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        if tensor.numel():
            buffer: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(buffer)
    return digest.hexdigest()
