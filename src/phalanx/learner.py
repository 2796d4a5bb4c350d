# SPDX-License-Identifier: Apache-2.0
"""What an update changes: the model of a run, its optimizer, and what its surgeries remember."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from phalanx.data.shape import Shape
from phalanx.layout import Layout
from phalanx.phase import Phase, Run
from phalanx.round import stream
from phalanx.stage import State
from phalanx.surgery import Surgery
from phalanx.world import World


class Learner:
    """A model in training; the same in every process of a job.

    Args:
        shape, num_classes: of the data.
    """

    def __init__(self, run: Run, shape: Shape, num_classes: int) -> None:
        self.phases, self._run, self._data = run.phases, run, (shape, num_classes)
        self.memories: State = {}  # of the surgeries, by the number of their phase
        self._take(self._built())
        self.optimizer = self._optimizer(0)

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
        held = [self._surgery(past).zeros(self.model, memory) for past, memory in self.memories.items()]
        return self.layout.stepped - max(held, default=0)

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
            rng = stream("surgery", self._run.seed, number, at)
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
        """Takes over the server's model; returns whether its shape has changed."""
        changed = shapes != self.shapes
        if changed:
            self.memories = {number: {"shape": shape} for number, shape in shapes.items()}
            self._take(self._shaped(shapes))
        self.model.load_state_dict(weights)
        return changed

    def update(self, number: int, at: int, row: Tensor) -> None:
        """One step along a row's directions; its installed entries become buffers."""
        phase = self.phases[number]
        clock = phase.surgery.clock(at, phase.rounds) if phase.surgery is not None else (at, phase.rounds)
        for group in self.optimizer.param_groups:
            group["lr"] = phase.finish.rate(*clock)
        named, buffers = dict(self.model.named_parameters()), dict(self.model.named_buffers())
        for name, part in self.layout.split(row).items():
            if name in named:
                named[name].grad = part.view_as(named[name])
            else:
                buffers[name].copy_(part)
        if phase.surgery is not None:
            phase.surgery.before_step(self.model, self.memories.get(str(number), {}), phase.finish.weight_decay)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for past, memory in self.memories.items():
            self._surgery(past).after_step(self.model, memory)

    def to_tree(self) -> dict[str, Any]:
        """For a checkpoint; `load` is the inverse."""
        optimizer = {str(k): v for k, v in self.optimizer.state_dict()["state"].items()}
        return {"model": dict(self.model.state_dict()), "optimizer": optimizer, "surgery": self.memories}

    def load(self, tree: dict[str, Any], number: int) -> None:
        """Goes on from a checkpoint within a phase."""
        self.memories = self._here(tree.get("surgery", {}))
        self._take(self._shaped(self.shapes))
        self.model.load_state_dict(tree["model"])
        self.optimizer = self._optimizer(number)
        now = self.optimizer.state_dict()
        now["state"] = {int(k): v for k, v in tree.get("optimizer", {}).items()}
        self.optimizer.load_state_dict(now)

    def _here(self, tree: State) -> State:
        """The tensors of a memory on the device of the run."""
        device = self._run.device
        return {
            key: self._here(x) if isinstance(x, dict) else x.to(device) if isinstance(x, Tensor) else x
            for key, x in tree.items()
        }

    def _take(self, model: nn.Module) -> None:
        self.model, self.layout = model, Layout.of(model)

    def _built(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream("model", self._run.seed).initial_seed())
            model = self._run.model.build(*self._data)
        return model.to(self._run.device)

    def _shaped(self, shapes: State) -> nn.Module:
        """The run's model after the surgeries that made these shapes, weights to be filled in."""
        model = self._built()
        for number in sorted(shapes, key=int):
            model = self._surgery(number).rebuild(model, shapes[number])
        return model

    def _surgery(self, number: str) -> Surgery:
        surgery = self.phases[int(number)].surgery
        assert surgery is not None
        return surgery

    def _optimizer(self, number: int) -> torch.optim.Optimizer:
        phase: Phase = self.phases[number]
        parameters = self.trained if phase.surgery is None else phase.surgery.groups(self.model)
        return phase.finish.optimizer(parameters)
