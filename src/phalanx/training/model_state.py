# SPDX-License-Identifier: Apache-2.0
"""What an update changes: the model of a run, its optimizer, and what its surgeries remember."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from phalanx.core.layout import Layout
from phalanx.core.round import make_generator
from phalanx.core.stack import Stack
from phalanx.core.surgery import Surgery
from phalanx.core.trees import State
from phalanx.core.world import World
from phalanx.data.shape import Shape, example
from phalanx.training.optim import moments, set_moments
from phalanx.training.phase import Phase, Run

if TYPE_CHECKING:
    from phalanx.matching.graph import Graph

WIDTHS = "widths"  # in the shape of a phase whose rows let the model grow: neurons of each group


class ModelState:
    """A model in training; the same in every process of a job.

    Args:
        shape, num_classes: of the data.
    """

    def __init__(self, run: Run, shape: Shape, num_classes: int) -> None:
        self.phases, self._run, self._data = run.phases, run, (shape, num_classes)
        self.memories: State = {}  # of what changes the model's shape, by the number of its phase
        # by the shapes that earlier phases have given the model
        self._originals: dict[str, nn.Module] = {}
        self._graphs: dict[str, Graph] = {}
        self._take(self._built("model"))
        self.optimizer = self._optimizer(run.phase_at(0)[0])

    @property
    def shapes(self) -> State:
        """What a process needs to have a model of the same shape."""
        return {number: memory["shape"] for number, memory in self.memories.items() if "shape" in memory}

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def parameters(self) -> int:
        """How many are trained and not held at zero by a surgery."""
        held = [surgery.zeros(self.model, memory) for surgery, memory in self._surgeries()]
        return self.layout.stepped - max(held, default=0)

    @property
    def widths(self) -> list[tuple[str, int, int]]:
        """The name of each group of neurons, and how many it had before and has after a phase that lets it grow."""
        grown = [int(number) for number, shape in self.shapes.items() if WIDTHS in shape]
        if not grown:
            return []
        graph, now = self.graph(max(grown)), self.shapes[str(max(grown))][WIDTHS]
        named = zip(graph.names, graph.sizes, strict=True)
        return [(name, size, now.get(str(group), size)) for group, (name, size) in enumerate(named)]

    def enter(self, number: int) -> None:
        """A phase begins, with an optimizer of its own."""
        self.optimizer = self._optimizer(number)

    def operate(self, number: int, at: int, world: World) -> str:
        """Lets the phase's surgery look at the model before round `at`; every process calls it alike.

        Returns: what it did, in a sentence; nothing where the model is the same as before.
        """
        phase, key = self.phases[number], str(number)
        if phase.surgery is None or not phase.surgery.watches(at, phase.rounds):
            return ""
        made, tree, before = None, {}, self.parameters
        if world.rank == 0:
            rng = make_generator("surgery", self._run.seed, number, at)
            made, memory = phase.surgery.operate(self.model, at, phase.rounds, self.memories.get(key, {}), rng)
            tree = {"memory": memory, "model": {} if made is None else dict(made.state_dict())}
        tree = world.share(tree)
        self.memories[key] = self._here(tree.get("memory", {}))
        if not tree.get("model"):
            return ""
        if made is None:
            made = self._shaped(self.shapes)
            made.load_state_dict(tree["model"])
        old, optimizer = self.model, self.optimizer
        self._take(made)
        carried = phase.surgery.carried(optimizer, old, made, self.memories[key])
        self.optimizer = self._optimizer(number)
        self.optimizer.state.update(carried)
        return f"{phase.surgery.expression_name}: {before:,} trained parameters become {self.parameters:,}"

    def follow(self, shapes: State, weights: dict[str, Tensor]) -> bool:
        """Takes over the tensors of the server's model that are given; returns whether its shape has changed."""
        changed = shapes != self.shapes
        if changed:
            self.memories = {number: {"shape": shape} for number, shape in shapes.items()}
            self._replace(self._shaped(shapes))
        self.model.load_state_dict(weights, strict=False)
        return changed

    def update(self, number: int, at: int, result: Stack) -> None:
        """Applies the single row of a round: values to assign, or directions for the phase's optimizer."""
        if self.phases[number].optimizer.installs:
            self._install(number, result.layout, result.rows[0])
        else:
            self._step(number, at, result.rows[0])

    def _install(self, number: int, layout: Layout, row: Tensor) -> None:
        """Puts a row's tensors in the model; where their layers have other widths than before, the model gets them."""
        parts, memory = layout.split(row), dict(self.memories.get(str(number), {}))
        made = {
            str(axis.group): axis.neurons(parts[name])
            for name, axes in zip(layout.names, layout.axes, strict=bool(layout.axes))
            for axis in axes
            if axis.makes and axis.group >= 0
        }
        if made:
            # the first layer of all begins a new pass
            before = {} if "0" in made else memory.get("shape", {}).get(WIDTHS, {})
            memory["shape"] = {WIDTHS: {**before, **made}}
            self.memories[str(number)] = memory
            self._replace(self._shaped(self.shapes))
            self.optimizer = self._optimizer(number)
        with torch.no_grad():
            for name, tensor in layout.tensors(self.model).items():
                tensor.copy_(parts[name])

    def _step(self, number: int, at: int, row: Tensor) -> None:
        """One step along a row's directions; its installed entries become buffers."""
        phase = self.phases[number]
        clock = phase.surgery.clock(at, phase.rounds) if phase.surgery is not None else (at, phase.rounds)
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
        """For a checkpoint; `load` is the inverse."""
        model = dict(self.model.state_dict())
        return {"model": model, "optimizer": moments(self.optimizer), "surgery": self.memories}

    def load(self, tree: dict[str, Any], number: int) -> None:
        """Goes on from a checkpoint within a phase."""
        self.memories = self._here(tree.get("surgery", {}))
        self._take(self._shaped(self.shapes))
        self.model.load_state_dict(tree["model"])
        self.optimizer = self._optimizer(number)
        set_moments(self.optimizer, tree.get("optimizer", {}))

    def _here(self, tree: State) -> State:
        """The tensors of a memory on the device of the run."""
        device = self._run.device
        return {
            key: self._here(x) if isinstance(x, dict) else x.to(device) if isinstance(x, Tensor) else x
            for key, x in tree.items()
        }

    def _take(self, model: nn.Module) -> None:
        self.model, self.layout = model, Layout.of(model)

    def _replace(self, model: nn.Module) -> None:
        """Another model, with the tensors of the present one whose shapes are the same."""
        now = self.model.state_dict()
        same = {name: now[name] for name, t in model.state_dict().items() if name in now and now[name].shape == t.shape}
        model.load_state_dict(same, strict=False)
        self._take(model)

    def _built(self, *key: object) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(make_generator(*key[:1], self._run.seed, *key[1:]).initial_seed())
            model = self._run.model.build(*self._data)
        return model.to(self._run.device)

    def _shaped(self, shapes: State) -> nn.Module:
        """The run's model in the shape that these phases have given it, weights to be filled in."""
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
        """A model as it was shaped before a phase, one for all who fill it and use it."""
        past = self._before(number)
        key = repr(past)
        if key not in self._originals:
            self._originals[key] = self._shaped(past)
        return self._originals[key]

    def first(self, unit: int) -> nn.Module:
        """The model that a client would begin a run with by itself."""
        return self._built("model", "client", unit)

    def graph(self, number: int) -> Graph:
        """Which neurons of a phase's original model can change places."""
        from phalanx.matching.graph import Graph

        key = repr(self._before(number))
        if key not in self._graphs:
            self._graphs[key] = Graph.of(self.original(number), example(self._data[0]).to(self._run.device))
        return self._graphs[key]

    def _before(self, number: int) -> State:
        """The shapes that phases before this one have given the model, in their order."""
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
    """The models that a learner has for the workers of one phase, in round `index` of the run."""

    def __init__(self, learner: ModelState, number: int, index: int = 0) -> None:
        self._learner, self._number, self.begins = learner, number, index == 0

    @property
    def layout(self) -> Layout:
        """Of the present model."""
        return self._learner.layout

    @property
    def model(self) -> nn.Module:
        """The present one."""
        return self._learner.model

    @property
    def graph(self) -> Graph:
        """Which neurons of the original model can change places."""
        return self._learner.graph(self._number)

    def original(self) -> nn.Module:
        """A model in the size that the clients' own ones have, for the caller to fill."""
        return self._learner.original(self._number)

    def first(self, unit: int) -> dict[str, Tensor]:
        """The weights that a client would begin with by itself."""
        return dict(self._learner.first(unit).state_dict())
