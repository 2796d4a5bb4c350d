# SPDX-License-Identifier: Apache-2.0
"""The workers' half of a run, in a process that computes for some workers of a server elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from phalanx.core.payload import Payload
from phalanx.core.round import Round
from phalanx.core.stage import memory_key
from phalanx.core.trees import State, copy_tree, from_payload
from phalanx.core.wire_stage import Upload, worker_half
from phalanx.core.world import LocalCollective
from phalanx.training.client_work import MultiRoundWork
from phalanx.training.model_state import PhaseModels
from phalanx.training.phase import Position, Run
from phalanx.training.run_state import RunState


class WorkerRuntime:
    """A process's part of a run: it computes the rows of its workers and prepares their uploads.

    Args:
        workers: the workers of this process.
    """

    def __init__(self, run: Run, workers: tuple[int, ...]) -> None:
        run.check()
        self.run, self.workers = run, workers
        self.state = RunState(run)
        self.state.check_phases()
        self._initial_model = copy_tree(self.state.model_state.model.state_dict())
        self._last_round = -1

    def reassign(self, workers: tuple[int, ...]) -> None:
        """Computes for other workers from now on, as a new runtime would; the data stay loaded."""
        self.workers, self._last_round = workers, -1
        self.state.replies = {}
        self.state.load_memories({})
        self.state.model_state.load_from_server({}, self._initial_model)

    def run_round(self, round_index: int, request: Payload) -> tuple[dict[int, Upload], Tensor]:
        """The uploads of the workers that a round chose, and the metrics of all workers of this process.

        Shapes: metrics (k, 2) float64, the loss and zero.
        Args:
            request: what `RoundRequest.payload` wrote.
        """
        run, state = self.run, self.state
        tree, position = from_payload(request), run.position(round_index)
        shape_changed = state.model_state.load_from_server(tree.get("shapes", {}), tree.get("model", {}))
        state.replies = {int(worker): reply for worker, reply in tree.get("answers", {}).items()}
        state.announced = tree.get("announced", {})
        phase = run.phases[position.phase_index]
        if self._last_round >= 0:
            phase_changed = position.phase_index != run.position(self._last_round).phase_index
            if phase_changed or (shape_changed and phase.surgery is not None):
                state.load_memories({})
        clients = [worker for worker in tree["clients"].tolist() if self._can_take_part(worker, position)]
        stack, losses = state.compute_rows(position, self.workers, clients)
        round = Round(
            index=round_index,
            seed=run.seed,
            byzantine=run.byzantine.at(round_index, run.workers, run.seed),
            world=LocalCollective(run.workers, self.workers),
            is_first=position.round_in_phase == 0 or shape_changed,
            announced=state.announced,
        )
        self._last_round = round_index
        uploads, state.scheme_state = worker_half(phase.scheme, stack, state.scheme_state, round)
        return dict(zip(stack.workers, uploads, strict=True)), torch.stack([losses, torch.zeros_like(losses)], dim=1)

    def evaluate(self, round_index: int, request: Payload) -> dict[int, dict[str, float]]:
        """What each worker of this process measures on test examples of its own: "examples", "loss" and the metrics.

        The model is as it was afterwards.

        Args:
            request: what `RoundRequest.payload` wrote, with the model to test.
        """
        model_state, tree = self.state.model_state, from_payload(request)
        before = model_state.shapes, copy_tree(model_state.model.state_dict())
        try:
            model_state.load_from_server(tree.get("shapes", {}), tree.get("model", {}))
            return {worker: self.state.evaluate_client(worker, round_index) for worker in self.workers}
        finally:
            model_state.load_from_server(*before)

    def _can_take_part(self, worker: int, position: Position) -> bool:
        """Whether a worker is one of this process and remembers what the round needs."""
        if worker not in self.workers:
            return False
        work = self.run.phases[position.phase_index].work
        memory = self.state.work_memories.get(memory_key(worker, received=False), {})
        return not isinstance(work, MultiRoundWork) or work.can_continue(position.round_in_phase, memory)

    @property
    def memories(self) -> State:
        """What the workers remember; `load_memories` is the inverse."""
        return self.state.memories

    def load_memories(self, memories: Mapping[str, Any]) -> None:
        """Replaces what the workers remember."""
        self.state.load_memories(memories)

    def to_tree(self) -> State:
        """All that another runtime needs to compute the next round for these workers; `load` is the inverse."""
        run, model_state, next_round = self.run, self.state.model_state, self._last_round + 1
        required = None
        if next_round < run.rounds:
            position = run.position(next_round)
            models = PhaseModels(model_state, position.phase_index, next_round)
            required = run.phases[position.phase_index].work.required_tensors(models, position.round_in_phase)
        # what the server sends with the next request need not be kept
        model = {}
        if required is not None:
            model = {name: t for name, t in model_state.model.state_dict().items() if name not in set(required)}
        return {**self.memories, "shapes": model_state.shapes, "model": model, "index": self._last_round}

    def load(self, tree: Mapping[str, Any]) -> None:
        """Continues from the tree of another runtime."""
        self.load_memories(tree)
        self._last_round = tree.get("index", -1)
        if self._last_round >= 0:
            self.state.model_state.load_from_server(tree.get("shapes", {}), tree.get("model", {}))
