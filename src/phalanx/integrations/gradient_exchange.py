# SPDX-License-Identifier: Apache-2.0
"""A scheme in the user's own training loop: after `backward()`, before `optimizer.step()`.

exchange = phalanx.exchange(model, "chain(gather(dense()), krum(f=2))")
for x, y in batches:
    loss_function(model(x), y).backward()
    exchange()                      # p.grad of every process becomes the aggregate of all
    optimizer.step()
    optimizer.zero_grad()

A scheme with redundancy says which share of the samples a process computes, and with what factor:

    for unit, share in exchange.units:
        x, y = batch_of(step, unit)                 # the same in every process that has the unit
        (share * loss_function(model(x), y)).backward()
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from phalanx.attacks.adversary import NoAdversary, Threat
from phalanx.codecs.dense import Dense
from phalanx.core.allocation import Allocation
from phalanx.core.codec import Reduce
from phalanx.core.expression import require, require_entries
from phalanx.core.layout import Layout
from phalanx.core.parser import parse
from phalanx.core.precision import finite
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Stage, TooFewRows, check_scheme
from phalanx.core.trees import State, merge
from phalanx.core.world import Collective
from phalanx.training.worker_stats import WorkerStats

_PLAIN = Reduce(Dense())


class SchemeSession:
    """A scheme that runs over several processes, one worker each, with its memories, counters and accusations.

    Args:
        scheme: a stage or its expression.
        world: the process group; every process holds one of its workers.
        byzantine: processes that misbehave on purpose, for drills.
        seed: of the scheme's random numbers; equal on every process.
        warmup: first rounds that are plain weighted means, by `reduce(dense())`; memories begin behind them, and no
            attack or rule acts in them.
    Raises:
        ValueError: the scheme does not end in one row, does not cross the wire exactly once, or needs more workers.
    """

    def __init__(
        self, scheme: Stage | str, world: Collective, byzantine: Threat | None = None, seed: int = 0, warmup: int = 0
    ) -> None:
        self.scheme, self.world = as_scheme(scheme), world
        if len(world.local_workers) != 1:
            raise ValueError(f"each process plays one worker here, and this one plays {len(world.local_workers)}")
        check_scheme(self.scheme, world.size)
        require(warmup >= 0, f"a scheme begins after warmup >= 0 rounds, got warmup={warmup}")
        self.byzantine, self.seed, self.warmup = byzantine or NoAdversary(), seed, warmup
        self.index = 0
        self.state: State = {}
        self.ledger = WorkerStats(world.size)

    def aggregate(
        self, row: Tensor, layout: Layout, *, index: int, weight: float = 1.0
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Returns the aggregate (d,) of the rows of all processes, None when the round is lost, and the measurements.

        A round's row may be exchanged in pieces: memories and random numbers go by the names of the tensors.

        Args:
            row: (d,), the row of this process.
            index: number of the round.
        """
        warm = index < self.warmup
        scheme, state = (_PLAIN, {}) if warm else (self.scheme, self.state)
        byzantine = frozenset() if warm else self.byzantine.at(index, self.world.size, self.seed)
        weights = torch.tensor([weight], dtype=torch.float64)
        stack = Stack(row.reshape(1, -1), layout, (self.world.local_workers,), weights)
        result, lost, notes = None, "", ()
        try:
            begins = index == self.warmup
            result, state = scheme(stack, state, Round(index, self.seed, byzantine, self.world, is_first=begins))
            # memories of the names in other pieces stay
            self.state = merge([state, self.state])
            notes = result.notes
            lost = "" if finite(result.rows) else "the aggregate is not finite"
        except TooFewRows as error:
            lost, notes = str(error), error.notes
            self.state = merge([error.state or {}, self.state])
        self.ledger.lost_rounds += bool(lost)
        measured = self.ledger.add_round(notes, byzantine, log_notices=self.world.rank == 0)
        return (None if result is None or lost else result.rows[0]), {**measured, "lost": lost}

    def state_dict(self) -> dict[str, Any]:
        """This process's memories and counters, for the user's checkpoint: every process saves its own.

        Nested dictionaries of tensors and plain values: `torch.load(..., weights_only=True)` reads them.
        """
        return {**self._identity(), "index": self.index, "state": self.state, "ledger": self.ledger.to_json()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises:
            ValueError: it was taken from another scheme or seed, by another worker, or among more or fewer of them.
        """
        require_entries(saved, (*self._identity(), "index", "ledger"))
        for name, here in self._identity().items():
            if saved[name] != here:
                raise ValueError(
                    f"the state is of {name} {saved[name]!r} and here is {here!r}; every process loads "
                    "the state that it saved, into the same scheme, or begins without"
                )
        self.index, self.state = saved["index"], saved.get("state", {})
        self.ledger = WorkerStats.from_json(saved["ledger"])

    def _identity(self) -> dict[str, Any]:
        (worker,) = self.world.local_workers
        return {"scheme": repr(self.scheme), "seed": self.seed, "worker": worker, "workers": self.world.size}


class GradientExchange:
    """Replaces the gradients of a model by a scheme's aggregate over all processes.

    The whole row crosses at once, so every scheme fits, Krum and DETOX included; floating-point buffers travel in the
    row and are installed. Parameters without a gradient count as zero.

    Args:
        model: a plain module, the same on every process (not wrapped in DistributedDataParallel).
        scheme: a stage or its expression.
        world: a ProcessGroupCollective over the default process group when None.
        byzantine, seed, warmup: as for `SchemeSession`, which is the attribute `session` and holds the state.
    """

    def __init__(
        self,
        model: nn.Module,
        scheme: Stage | str,
        *,
        world: Collective | None = None,
        byzantine: Threat | None = None,
        seed: int = 0,
        warmup: int = 0,
    ) -> None:
        self.session = SchemeSession(scheme, world or default_world(), byzantine, seed, warmup)
        self.model, self.layout = model, Layout.of(model)

    @torch.no_grad()
    def __call__(self, weight: float = 1.0) -> dict[str, Any]:
        """Exchanges the gradients in place and returns the round's measurements.

        Args:
            weight: examples behind this process's gradient.
        Returns:
            bytes_up, excluded (worker -> reason), outvoted, lost_groups, undecided, and two sentences or empty strings:
            notice, which rank 0 logs as a warning, and lost, why the gradients were set to zero.
        """
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        have = self.layout.tensors(self.model)
        buffers = {name: have[name] for name in self.layout.installed}
        parts = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
        joined = self.layout.join({**parts, **buffers})
        row, measured = self.session.aggregate(joined, self.layout, index=self.session.index, weight=weight)
        self.session.index += 1
        for name, part in self.layout.split(torch.zeros(self.layout.d) if row is None else row).items():
            if name in named:
                named[name].grad = part.to(named[name]).reshape_as(named[name]).clone()
            elif row is not None:
                buffers[name].copy_(part)
        return measured

    @property
    def units(self) -> tuple[tuple[int, float], ...]:
        """The units of a round's samples that this process computes, each with the factor on its gradient.

        Without redundancy the process's own one, (rank, 1.0). With it, every process that has a unit computes the same
        gradient from the same samples, order, augmentation and dropout; give them seeds that depend on the unit.
        """
        (worker,) = self.session.world.local_workers
        return tuple(zip(self._allocation.units[worker], self._allocation.shares[worker], strict=True))

    @property
    def num_units(self) -> int:
        """How many units a round's samples are cut into."""
        return self._allocation.num_units

    @property
    def _allocation(self) -> Allocation:
        session, n = self.session, self.session.world.size
        return session.scheme.assign(n, session.seed, session.index) or Allocation.single(range(n))

    def state_dict(self) -> dict[str, Any]:
        """This process's memories and counters, for the user's checkpoint."""
        return self.session.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken; ValueError if it was taken from another scheme."""
        self.session.load_state_dict(saved)


def as_scheme(scheme: Stage | str) -> Stage:
    """A stage from its expression, or as it is."""
    made = parse(scheme) if isinstance(scheme, str) else scheme
    if not isinstance(made, Stage):
        raise ValueError(f"{made!r} is no scheme; write a chain such as chain(gather(dense()), median())")
    return made


def default_world() -> Collective:
    """The processes of the default process group, one worker each."""
    from phalanx.distributed.process_group import ProcessGroupCollective

    return ProcessGroupCollective()
