# SPDX-License-Identifier: Apache-2.0
"""What a worker computes in a round: one row for each unit of work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from phalanx.core.allocation import Allocation
from phalanx.core.buffers import empty_rows
from phalanx.core.expression import Expression, method, require
from phalanx.core.layout import Layout
from phalanx.core.stack import Stack
from phalanx.core.stage import memory_key
from phalanx.core.trees import State
from phalanx.data.examples import Examples
from phalanx.data.partition import Partition
from phalanx.training.context import ModelProvider, WorkerContext, seeded
from phalanx.training.task import Task


class ClientWork(Expression, ABC):
    """Turns a unit's samples into a row."""

    @abstractmethod
    def compute_row(
        self, context: WorkerContext, unit: int, samples: Tensor, out: Tensor, memory: State
    ) -> tuple[float, State]:
        """Writes the row of a unit into out (d,), which is zero before; leaves the model as it was.

        Args:
            memory: what the worker remembers of its last round; {} before its first.
        Returns:
            The loss, and the worker's next memory.
        """

    @abstractmethod
    def samples(self, partition: Partition, data: Examples, units: int, index: int, seed: int) -> Sequence[Tensor]:
        """The samples of each unit in round `index` of the run."""

    def layout(self, models: ModelProvider, round_in_phase: int) -> Layout:
        """The layout of the rows of a round; the model's, unless the work sends something else."""
        return models.layout

    def check(self, models: ModelProvider, rounds: int) -> None:
        """Raises ValueError for a network or a number of rounds that it cannot work with."""
        return

    def check_task(self, task: Task) -> None:
        """Raises ValueError for a task that it cannot work for."""
        return

    @property
    def stateful(self) -> bool:
        """Whether a worker remembers something from round to round; then no other worker can compute its row."""
        return False

    @property
    def matched(self) -> bool:
        """Whether its rows are weights of networks whose neurons are in an order of the worker's own."""
        return False

    def required_tensors(self, models: ModelProvider, round_in_phase: int) -> Sequence[str] | None:
        """Names of the tensors of the model that a worker needs for a round; None for all."""
        return None

    def num_epochs(self, round_in_phase: int) -> float | None:
        """The number of epochs that a worker trains for in a round; None for work that is not measured in epochs."""
        return None


class MultiRoundWork(ClientWork):
    """Work whose passes span several rounds of a phase; between them the model is not whole.

    The clients that are chosen for the first round of a pass take part in all of its rounds, as long as their messages
    arrive. The model is restored if a round of the pass is lost.
    """

    @property
    def stateful(self) -> bool:
        return True

    @abstractmethod
    def pass_start(self, round_in_phase: int) -> int:
        """The first round of the pass that a round belongs to, counted in the phase as well."""

    @abstractmethod
    def can_continue(self, round_in_phase: int, memory: State) -> bool:
        """Whether a worker with this memory can do its part of a round; one that has lost its memory may not."""

    @abstractmethod
    def is_complete(self, round_in_phase: int) -> bool:
        """Whether a round is the last one of its pass, so that the model behind it is whole."""


@method("gradient", "client_work")
class Gradient(ClientWork):
    """The gradient of the mean loss over the unit's share of the batch; BatchNorm statistics as they become.

    Args:
        batch: examples a round over ALL units of work, so that redundancy does not change the effective batch.
        smoothing: share of a label in [0, 1) that the other classes have in equal parts; the test is never smoothed.
    Source: of smoothing: Szegedy et al., Rethinking the Inception Architecture, 2015, arXiv:1512.00567, section 7.
        Differs: the label's own class gets no part of the share, as in the code of the dissertation (4.5.9).
    """

    batch: int = 480
    smoothing: float = 0.0

    def validate(self) -> None:
        require(self.batch >= 1, f"gradient needs batch >= 1, got batch={self.batch}")
        require(0 <= self.smoothing < 1, f"gradient needs smoothing in [0, 1), got smoothing={self.smoothing}")

    def check_task(self, task: Task) -> None:
        require(
            self.smoothing == 0 or task.has_classes,
            f"smoothing={self.smoothing} is for labels that are classes, and {task!r} has none; leave it out",
        )

    def samples(self, partition: Partition, data: Examples, units: int, index: int, seed: int) -> Sequence[Tensor]:
        return partition.draw(data, units, self.batch, index, seed)

    def compute_row(
        self, context: WorkerContext, unit: int, samples: Tensor, out: Tensor, memory: State
    ) -> tuple[float, State]:
        parts = context.layout.split(out)
        for name, parameter in context.parameters.items():
            # backward adds into the row itself; a parameter that the loss does not reach keeps its zeros
            parameter.grad = parts[name].view_as(parameter) if parameter.requires_grad else None
        before = {name: buffer.clone() for name, buffer in context.buffers.items()}
        batch = context.batch(samples, unit)
        context.set_training_mode()
        with seeded(context.device, "dropout", *context.key, unit):
            loss = context.loss(batch, unit, self.smoothing)
            loss.backward()
        for name in context.layout.installed:
            parts[name].copy_(context.buffers[name] if name in before else context.parameters[name])
        for name, buffer in context.buffers.items():
            buffer.copy_(before[name])
        for parameter in context.parameters.values():
            parameter.grad = None
        return float(loss.detach()), {}


def compute_rows(
    works: Mapping[int, ClientWork],
    context: WorkerContext,
    allocation: Allocation,
    samples: Sequence[Tensor],
    ids: Sequence[int],
    memories: State | None = None,
) -> tuple[Tensor, Tensor, Tensor, State]:
    """Computes the rows of some workers; a unit that several workers have is computed once.

    Shapes: -> (k, d) in the layout's dtype, (k,) and (k,) float64.
    Args:
        works: the work of each unit.
        samples: the samples of each unit.
        ids: the k workers.
        memories: the workers' memories, where the work is stateful.
    Returns:
        Rows, mean losses, numbers of examples, and the next memories; memories of other workers stay as they are.
    """
    memories = dict(memories or {})
    like = torch.empty(0, dtype=context.layout.dtype, device=context.device)
    rows = empty_rows(len(ids), context.layout.d, like).zero_()
    losses, weights = [0.0] * len(ids), [0.0] * len(ids)
    users: dict[int, list[tuple[int, float]]] = {}
    for i, worker in enumerate(ids):
        for unit, share in zip(allocation.units[worker], allocation.shares[worker], strict=True):
            users.setdefault(unit, []).append((i, share))
    scratch = torch.empty_like(rows[0]) if allocation.coded and users else None
    batch = sum(map(len, samples)) if scratch is not None else 0
    # every row adds up its units in one order, so that the bits are the same in every world
    for unit in sorted(users):
        first = users[unit][0][0]
        row = rows[first] if scratch is None else scratch.zero_()
        key = memory_key(unit, received=False)
        loss, memory = works[unit].compute_row(context, unit, samples[unit], row, memories.get(key, {}))
        if memory:
            memories[key] = memory
        count = len(samples[unit])
        weight = context.trained_on.get(unit, count)
        for i, share in users[unit]:
            if scratch is not None:
                # the decoder gives the plain mean over units, whose sizes may differ by an example
                rows[i].add_(row, alpha=share * count * allocation.num_units / batch)
            elif i != first:
                rows[i] = row
            losses[i] += loss / len(allocation.units[ids[i]])
            weights[i] += weight
    return rows, torch.tensor(losses, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64), memories


def compute_units(
    work: ClientWork,
    context: WorkerContext,
    allocation: Allocation,
    samples: Sequence[Tensor],
    ids: Sequence[int],
    byzantine: Collection[int],
) -> tuple[Stack, Tensor]:
    """Computes the rows of all units that some workers have, for a wire stage that adds them up itself.

    Every unit is computed once. Its row stands for all honest workers that have it; a Byzantine worker has a copy of
    its own, for an attack to rewrite. Rows are scaled so that their plain mean is that over the examples.

    Returns:
        The rows, and the mean loss of each of the workers.
    """
    places: list[tuple[int, tuple[int, ...]]] = []
    for unit in range(allocation.num_units):
        holders = [worker for worker in ids if unit in allocation.units[worker]]
        honest = tuple(worker for worker in holders if worker not in byzantine)
        places += [(unit, honest)] if honest else []
        places += [(unit, (worker,)) for worker in holders if worker in byzantine]
    like = torch.empty(0, dtype=context.layout.dtype, device=context.device)
    rows = empty_rows(len(places), context.layout.d, like).zero_()
    batch, losses = sum(map(len, samples)), dict[int, float]()
    for i, (unit, _) in enumerate(places):
        if unit in losses:
            rows[i] = rows[i - 1]
            continue
        losses[unit], _ = work.compute_row(context, unit, samples[unit], rows[i], {})
        rows[i] *= len(samples[unit]) * allocation.num_units / batch
    stack = Stack(
        rows,
        context.layout,
        tuple(holders for _, holders in places),
        torch.tensor([float(len(samples[unit])) for unit, _ in places], dtype=torch.float64),
        units=tuple(unit for unit, _ in places),
    )
    means = [sum(losses[unit] for unit in allocation.units[worker]) / len(allocation.units[worker]) for worker in ids]
    return stack, torch.tensor(means, dtype=torch.float64)
