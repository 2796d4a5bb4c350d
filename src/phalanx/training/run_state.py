# SPDX-License-Identifier: Apache-2.0
"""What the trainer and a worker's process both hold of a run, and how they compute rows from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from phalanx.core.allocation import Allocation
from phalanx.core.expression import require
from phalanx.core.payload import Payload
from phalanx.core.stack import Stack
from phalanx.core.trees import State
from phalanx.data.dataset import Dataset
from phalanx.data.examples import map_tensors
from phalanx.training.client_work import compute_rows, compute_units
from phalanx.training.context import WorkerContext
from phalanx.training.evaluator import measure_on
from phalanx.training.model_state import ModelState, PhaseModels
from phalanx.training.phase import Position, Run
from phalanx.training.task import EXAMPLES, TaskContext, try_task
from phalanx.training.tasks import Classification


class RunState:
    """A run in one process: its data, its model, and what stages and workers remember from round to round.

    Attributes:
        scheme_state: state of the scheme's stages.
        work_memories: what each worker's work remembers, by worker.
        replies: what the server replied to the messages that single workers sent in the last round.
        announced: what the scheme's wire stage announced in the last round that it decoded.
    """

    def __init__(self, run: Run) -> None:
        torch.set_num_threads(run.threads)
        self.run, self.data = run, run.data.load()
        if run.augment is not None:
            run.augment.check(self.data.shape)
            require(
                isinstance(self.data, Dataset),
                f"{run.augment!r} changes normalised images of a phalanx.data.Dataset, and {self.data.name} is a "
                "dataset of your own; leave augment=None, and change the images in its __getitem__",
            )
        if self.data.has_clients:
            self._check_clients()
        self.model_state = ModelState(run, self.data)
        self.tried: set[str] = set()  # forms of batches on which the task was tried
        for batch in self._first_batches():
            batch = map_tensors(batch, lambda t: t.to(run.device))
            context = TaskContext(torch.device(run.device), run.precision)
            try_task(run.task, self.model_state.model, batch, context, self.tried)
        self.scheme_state: State = {}
        self.work_memories: State = {}
        self.replies: dict[int, Payload] = {}
        self.announced: Payload = {}

    def _check_clients(self) -> None:
        """Raises ValueError if clients' own examples would be mixed, or given to other workers."""
        run = self.run
        for phase in run.phases:
            require(
                phase.scheme.assign(run.workers) is None,
                f"{phase.scheme!r} has several workers compute the same, and {self.data.name} has the examples of each "
                "client with that client alone; choose a scheme without redundancy",
            )
        run.partition.parts(self.data, run.workers, run.seed)

    def _first_batches(self) -> list[Any]:
        """Some training and test examples on which the task is tried; none if it needs no trial or none is loaded."""
        if isinstance(self.data, Dataset) and isinstance(self.run.task, Classification):
            return []
        batches = [self.data.test(slice(0, 2))] if self.data.num_test else []
        if not self.data.has_clients:
            batches = [self.data.train(slice(0, 2)), *batches]
        return batches

    @property
    def memories(self) -> State:
        """What stages and workers remember; `load_memories` is the inverse."""
        return {"scheme": self.scheme_state, "work": self.work_memories}

    def load_memories(self, memories: Mapping[str, Any]) -> None:
        """Replaces what stages and workers remember; with an empty tree they remember nothing."""
        self.scheme_state, self.work_memories = memories.get("scheme", {}), memories.get("work", {})

    def check_phases(self) -> None:
        """Raises ValueError for a phase that does not fit the network; a phase behind a change of shape is left out."""
        for phase_index, phase in enumerate(self.run.phases):
            self.check_phase(phase_index)
            if phase.surgery is not None or phase.optimizer.installs:
                break  # nobody knows yet which shape the next phase will find

    def check_phase(self, phase_index: int) -> None:
        """Raises ValueError for a phase that does not fit the network as it is, or whose adversary does not."""
        run, phase = self.run, self.run.phases[phase_index]
        for work in (phase.work, phase.adversary):
            if work is not None:
                work.check(PhaseModels(self.model_state, phase_index), phase.rounds)
        if phase.adversary is not None:
            phase.adversary.samples(run.partition, self.data, run.workers, 0, run.seed)

    def compute_rows(
        self, position: Position, local_workers: tuple[int, ...], clients: Collection[int]
    ) -> tuple[Stack, Tensor]:
        """The rows of the local workers that are among the clients of a round, and the losses of all local workers.

        Honest workers do the phase's work, Byzantine ones that of the adversary if it has its own. The loss of a worker
        that is not among the clients is NaN.

        Shapes: -> k rows, (number of local workers,) float64.
        """
        run, round_index = self.run, position.round_index
        phase = run.phases[position.phase_index]
        context = self._context(position)
        allocation = phase.scheme.assign(run.workers, run.seed, round_index) or Allocation.single(range(run.workers))
        units = allocation.num_units
        samples = phase.work.samples(run.partition, self.data, units, round_index, run.seed)
        works = dict.fromkeys(range(units), phase.work)
        if phase.adversary is not None:
            samples = list(samples)
            adversary_samples = phase.adversary.samples(run.partition, self.data, units, round_index, run.seed)
            for worker in run.byzantine.at(round_index, run.workers, run.seed):
                works[worker], samples[worker] = phase.adversary, adversary_samples[worker]
        workers = [worker for worker in local_workers if worker in clients]
        if allocation.separate:
            byzantine = run.byzantine.at(round_index, run.workers, run.seed)
            return compute_units(phase.work, context, allocation, samples, workers, byzantine)
        rows, worker_losses, weights, self.work_memories = compute_rows(
            works, context, allocation, samples, workers, self.work_memories
        )
        losses = torch.full((len(local_workers),), float("nan"), dtype=torch.float64)
        losses[[local_workers.index(worker) for worker in workers]] = worker_losses
        return Stack(rows, context.layout, tuple((worker,) for worker in workers), weights), losses

    def evaluate_client(self, worker: int, round_index: int) -> dict[str, float]:
        """The loss and the metrics of the model on the test examples of a client's own, and "examples", their number.

        The number is 0, and nothing else is measured, where the client has none.
        """
        samples = self.data.client_test(worker)
        if not len(samples):
            return {EXAMPLES: 0.0}
        run, device = self.run, torch.device(self.run.device)
        context = TaskContext(
            device=device, precision=run.precision, client=worker, round_index=round_index, seed=run.seed
        )
        found = measure_on(run.task, self.model_state.model, self.data, samples, True, context, self.tried)
        return {EXAMPLES: float(len(samples)), **found}

    def _context(self, position: Position) -> WorkerContext:
        run, phase = self.run, self.run.phases[position.phase_index]
        models = PhaseModels(self.model_state, position.phase_index, position.round_index)
        return WorkerContext(
            model=models.model,
            layout=phase.work.layout(models, position.round_in_phase),
            data=self.data,
            augment=run.augment,
            precision=run.precision,
            channels_last=run.model.channels_last,
            key=(run.seed, position.round_index),
            seed=run.seed,
            round_index=position.round_index,
            models=models,
            round_in_phase=position.round_in_phase,
            rounds=phase.rounds,
            replies=self.replies,
            task=run.task,
            tried=self.tried,
        )
