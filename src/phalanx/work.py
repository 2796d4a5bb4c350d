# SPDX-License-Identifier: Apache-2.0
"""What a worker computes in a round: one row for each unit of work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phalanx.allocation import Allocation
from phalanx.data.augment import Augment
from phalanx.data.dataset import Dataset
from phalanx.expression import Expression, method, require
from phalanx.layout import Layout
from phalanx.round import stream
from phalanx.score import cross_entropy
from phalanx.tables import empty_rows


@dataclass
class Site:
    """What every worker has: the model as of this round, the data, and how to compute.

    Args:
        key: what the random numbers of this round depend on, besides the unit.
    """

    model: nn.Module
    layout: Layout
    data: Dataset
    augment: Augment | None
    precision: str
    channels_last: bool
    key: tuple[object, ...] = ()

    def batch(self, samples: Tensor, unit: int) -> tuple[Tensor, Tensor]:
        """The examples and labels of a unit, as `Dataset.train` gives them, augmented under its own stream."""
        device = next(self.model.parameters()).device
        draws = stream("augment", *self.key, unit)
        crops = None if self.augment is None else self.augment.crops(len(samples), draws)
        x, y = (t.to(device) for t in self.data.train(samples, crops))
        if self.augment is not None:
            x = self.augment(x, draws)
        # a copy even where one channel makes both formats one: the strides tell the convolution which kernel to take
        return x.to(memory_format=torch.channels_last, copy=True) if self.channels_last else x, y

    def loss(self, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy, mean over the labels of the batch, in the run's precision; smoothing as in `gradient`."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            scores = self.model(x)
        return cross_entropy(scores, y, smoothing=smoothing)

    def buffers(self) -> dict[str, Tensor]:
        """The installed entries of the layout: floating-point buffers."""
        have = dict(self.model.named_buffers())
        return {name: have[name] for name in self.layout.installed}


class Work(Expression, ABC):
    """Turns a unit's samples into a row."""

    batch: int

    @abstractmethod
    def row(self, site: Site, unit: int, samples: Tensor, out: Tensor) -> float:
        """Writes the row of a unit into out (d,), zeros before, and returns the loss; leaves the model as it was."""


@method("gradient", "work")
class Gradient(Work):
    """The gradient of the mean loss over the unit's share of the batch; BatchNorm statistics as they become.

    Args:
        batch: examples a round over ALL units of work, so that redundancy does not change the effective batch.
        smoothing: share of a label in [0, 1) that the other classes have in equal parts; the test is never smoothed.
    Source: of smoothing: Szegedy et al., Rethinking the Inception Architecture, 2015, arXiv:1512.00567, section 7.
        Differs: the label's own class gets no part of the share, as in the dissertation (section 4.5).
    """

    batch: int = 480
    smoothing: float = 0.0

    def validate(self) -> None:
        require(self.batch >= 1, f"gradient needs batch >= 1, got batch={self.batch}")
        require(0 <= self.smoothing < 1, f"gradient needs smoothing in [0, 1), got smoothing={self.smoothing}")

    def row(self, site: Site, unit: int, samples: Tensor, out: Tensor) -> float:
        parts = site.layout.split(out)
        for name, parameter in site.model.named_parameters():
            # backward adds into the row itself; a parameter that the loss does not reach keeps its zeros
            parameter.grad = parts[name].view_as(parameter) if parameter.requires_grad else None
        before = {name: buffer.clone() for name, buffer in site.model.named_buffers()}
        x, y = site.batch(samples, unit)
        site.model.train()
        seed = stream("dropout", *site.key, unit).initial_seed()
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            # torch.manual_seed would also queue a call, with its traceback, for every GPU that is not in use yet
            torch.default_generator.manual_seed(seed)
            if x.is_cuda:
                torch.cuda.manual_seed(seed)
            loss = site.loss(x, y, self.smoothing)
            loss.backward()
        for name, buffer in site.buffers().items():
            parts[name].copy_(buffer)
        for name, buffer in site.model.named_buffers():
            buffer.copy_(before[name])
        for parameter in site.model.parameters():
            parameter.grad = None
        return float(loss.detach())


def rows_of(
    work: Work, site: Site, allocation: Allocation, samples: Sequence[Tensor], ids: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, mean losses and numbers of examples of some workers; a unit that several have is computed once.

    Shapes: -> (k, d) in the layout's dtype, (k,) and (k,) float64.
    Args:
        samples: of each unit.
        ids: the k workers.
    """
    device = next(site.model.parameters()).device
    like = torch.empty(0, dtype=site.layout.dtype, device=device)
    rows = empty_rows(len(ids), site.layout.d, like).zero_()
    losses, weights = (torch.zeros(len(ids), dtype=torch.float64) for _ in range(2))
    users: dict[int, list[tuple[int, float]]] = {}
    for i, worker in enumerate(ids):
        for unit, share in zip(allocation.units[worker], allocation.shares[worker], strict=True):
            users.setdefault(unit, []).append((i, share))
    scratch = torch.empty_like(rows[0]) if allocation.coded and users else None
    batch = sum(map(len, samples))
    # every row adds up its units in one order, so that the bits are the same in every world
    for unit in sorted(users):
        first = users[unit][0][0]
        row = rows[first] if scratch is None else scratch.zero_()
        loss, count = work.row(site, unit, samples[unit], row), len(samples[unit])
        for i, share in users[unit]:
            if scratch is not None:
                # the decoder gives the plain mean over units, whose sizes may differ by an example
                rows[i].add_(row, alpha=share * count * allocation.num_units / batch)
            elif i != first:
                rows[i] = row
            losses[i] += loss / len(allocation.units[ids[i]])
            weights[i] += count
    return rows, losses, weights
