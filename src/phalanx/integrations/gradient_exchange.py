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
        exchange.hold(unit)         # under cyclic(...) only, which adds the units up itself
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from phalanx.attacks.adversary import NoAdversary, Threat
from phalanx.codecs.dense import Dense
from phalanx.core.allocation import Allocation
from phalanx.core.codec import Reduce
from phalanx.core.expression import require, require_entries
from phalanx.core.gate import UNUSABLE
from phalanx.core.layout import Layout, plain_name
from phalanx.core.parser import parse
from phalanx.core.payload import Payload
from phalanx.core.precision import finite
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Stage, TooFewRows, check_row, check_scheme
from phalanx.core.trees import State, merge
from phalanx.core.wire_stage import WireStage, stages_of
from phalanx.core.world import Collective
from phalanx.distributed.determinism import ranks_in_words
from phalanx.distributed.subset import LeavingOut
from phalanx.integrations.handshake import Weights, agree, agree_on_weights, plain_module, same_parameters, twin
from phalanx.training.accusation import Evidence, Sizes, add_sizes, row_sizes
from phalanx.training.worker_stats import WorkerStats

_PLAIN = Reduce(Dense())
Listener = Callable[[Evidence], None]
_log = logging.getLogger(__name__)


class SchemeSession:
    """A scheme that runs over several processes, one worker each, with its memories, counters and accusations.

    A scheme is robust here if one of its rules tolerates a Byzantine worker. Any other scheme keeps numbers that are
    not finite: if a worker's row has one, the aggregate is NaN on every rank, as with a plain mean, and memories stay
    as they were. A robust scheme excludes such a row, and counts a round as lost that has too few others.

    Args:
        scheme: a stage or its expression.
        world: the process group; every process holds one of its workers.
        byzantine: processes that misbehave on purpose, for drills.
        seed: of the scheme's random numbers; equal on every process.
        warmup: first rounds that are plain weighted means, by `reduce(dense())`; memories begin behind them, and no
            attack or rule acts in them.
        on_excluded: called on every process for each row that took no part in a round, with the reason.
        on_accused: called on every process for each worker that a round accuses, with the evidence.
        exclude_after: leaves out, for good, who was accused in so many rounds; its rows count towards f. None leaves
            nobody out.
    Raises:
        ValueError: the scheme does not end in one row, does not cross the wire exactly once, or needs more workers; or
            it shows no single rows, and somebody is to be left out.
    """

    def __init__(
        self,
        scheme: Stage | str,
        world: Collective,
        byzantine: Threat | None = None,
        seed: int = 0,
        warmup: int = 0,
        on_excluded: Listener | None = None,
        on_accused: Listener | None = None,
        exclude_after: int | None = None,
    ) -> None:
        self.scheme, self.world = as_scheme(scheme), world
        if len(world.local_workers) != 1:
            raise ValueError(f"each process plays one worker here, and this one plays {len(world.local_workers)}")
        check_scheme(self.scheme, world.size)
        require(warmup >= 0, f"a scheme begins after warmup >= 0 rounds, got warmup={warmup}")
        require(
            isinstance(seed, int) and not isinstance(seed, bool),
            f"a seed is a whole number, the same on every rank, got {seed!r}",
        )
        self.byzantine, self.seed, self.warmup = byzantine or NoAdversary(), seed, warmup
        self.robust, rows = False, world.size
        for stage in stages_of(self.scheme):
            self.robust, rows = self.robust or stage.tolerates(rows) > 0, stage.rows_out(rows)
        require(exclude_after is None or exclude_after >= 1, f"exclude_after is >= 1 or None, got {exclude_after}")
        require(
            exclude_after is None or any(isinstance(stage, WireStage) for stage in stages_of(self.scheme)),
            f"{self.scheme!r} shows the sum of all rows, so nobody is accused or left out; write gather(...) and a "
            "rule in place of reduce(...), or exclude_after=None",
        )
        self._on_excluded, self._on_accused, self.exclude_after = on_excluded, on_accused, exclude_after
        self._sizes: tuple[int, Sizes | None] | None = None  # number of a round, and the sizes of its pieces so far
        self.failure = ""  # why nothing is exchanged any more
        self._end: weakref.finalize[Any, SchemeSession] | None = None
        self.index = 0
        self.state: State = {}
        self.announced: Payload = {}
        self.ledger = WorkerStats(world.size)

    def aggregate(
        self,
        row: Tensor,
        layout: Layout,
        *,
        index: int,
        weight: float = 1.0,
        units: tuple[int, ...] = (),
        last: bool = True,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Returns the aggregate (d,) of the rows of all processes, and the measurements.

        The aggregate of a lost round is None, or NaN where a scheme that is not robust has met NaN or Inf.

        A round's row may be exchanged in pieces: memories and random numbers go by the names of the tensors.

        Args:
            row: (d,), the row of this process, or (number of units, d) where the scheme adds units up itself.
            index: number of the round.
            units: those of the rows.
            last: whether the row is the last piece of its round; workers are judged by their whole rows.
        """
        self.check()
        warm = index < self.warmup
        scheme, state = (_PLAIN, {}) if warm else (self.scheme, self.state)
        byzantine = frozenset() if warm else self.byzantine.at(index, self.world.size, self.seed)
        robust = self.robust and not warm
        # a codec may hide that a row is not finite; a weight that is no number tells it to every rank
        usable = robust or finite(row)
        rows = row.reshape(max(len(units), 1), -1)
        weights = torch.full((len(rows),), weight / len(rows) if usable else torch.nan, dtype=torch.float64)
        stack = Stack(rows, layout, (self.world.local_workers,) * len(rows), weights, units=units or None)
        stack = stack.by_worker() if warm else stack
        result, lost, notes = None, "", ()
        try:
            begins, world = index == self.warmup, self.world if warm else self._without_excluded()
            round = Round(index, self.seed, byzantine, world, is_first=begins, announced=self.announced)
            result, state = scheme(stack, state, round)
            check_row(result)
            self.announced = result.announcement
            notes = result.notes
            lost = "" if finite(result.rows) else "the aggregate is not finite"
        except TooFewRows as error:
            result, lost, notes, state = None, str(error), error.notes, error.state or {}
        except Exception as error:
            self.fail(error)
            if isinstance(error, RuntimeError) and _is_broken_connection(error):
                raise RuntimeError(
                    f"round {index} of {self.scheme!r} broke off because another rank or the network failed; the error "
                    "of the rank that failed first says why"
                ) from error
            raise
        unusable = [n.worker for n in notes if n.reason == UNUSABLE and n.worker is not None]
        spoilt = not robust and bool(unusable or (result is not None and lost))
        if spoilt:
            lost = lost or f"{ranks_in_words(unusable, 'rank')} computed NaN or Inf"
        else:
            # memories of the names in other pieces stay
            self.state = merge([state, self.state])
        self.ledger.lost_rounds += bool(lost)
        sizes = row_sizes(scheme, self.world.size, result)
        so_far, self._sizes = self._sizes, None
        if so_far is not None and so_far[0] == index:
            sizes = add_sizes(so_far[1], sizes)
        if not last:
            self._sizes, sizes = (index, sizes), None
        logs = self.world.rank == 0
        measured, evidence = self.ledger.add_round(notes, byzantine, index=index, sizes=sizes, log_notices=logs)
        self._tell(index, measured["excluded"], evidence)
        if lost and not spoilt and self.ledger.lost_rounds == 1 and self.world.rank == 0:
            _log.warning("round %d is lost, and later ones are only counted, in lost_rounds: %s", index, lost)
        if lost or result is None:
            return (torch.full_like(rows[0], torch.nan) if spoilt else None), {**measured, "lost": lost}
        return result.rows[0], {**measured, "lost": ""}

    def _without_excluded(self) -> Collective:
        """The world, without the messages of workers that were accused too often."""
        counts = self.ledger.accused.items() if self.exclude_after is not None else ()
        reasons = {w: f"left out: accused in {k} rounds" for w, k in counts if k >= (self.exclude_after or 0)}
        return LeavingOut(self.world, reasons) if reasons else self.world

    def _tell(self, index: int, excluded: dict[str, str], evidence: list[Evidence]) -> None:
        """Calls the user's functions with what a round brought to light."""
        if self._on_excluded is not None:
            for worker, reason in excluded.items():
                self._on_excluded(Evidence(index, int(worker), "excluded", reason))
        if self._on_accused is not None:
            for each in evidence:
                self._on_accused(each)

    def check(self) -> None:
        """Raises RuntimeError if nothing is exchanged any more."""
        if self.failure:
            raise RuntimeError(f"{self.scheme!r} exchanges nothing any more: {self.failure}")

    def own(self, world: Collective) -> None:
        """Takes a world that nothing else uses, and closes it at the end."""
        self.world = world
        self._end = weakref.finalize(self, world.close)
        # at exit groups end with the process; what happens in between is torch's own business
        self._end.atexit = False

    def fail(self, error: Exception) -> None:
        """Ends the exchange, so that ranks that wait for this one get an error in place of silence."""
        self.close(f"{type(error).__name__}: {error}")

    def close(self, why: str = "it was closed") -> None:
        """Exchanges nothing any more, and gives its own process group back."""
        self.failure = self.failure or why
        if self._end is not None:
            self._end()

    def same_parameters(self, module: nn.Module, layout: Layout, user: str) -> None:
        """Raises ValueError, and ends the exchange, if the trained parameters are no longer those of the layout."""
        self.check()
        try:
            same_parameters(module, layout, user)
        except ValueError as error:
            self.fail(error)
            raise

    def state_dict(self) -> dict[str, Any]:
        """This process's memories and counters, for the user's checkpoint: every process saves its own.

        Nested dictionaries of tensors and plain values: `torch.load(..., weights_only=True)` reads them.
        """
        return {
            **self._identity(),
            "index": self.index,
            "state": self.state,
            "announced": self.announced,
            "ledger": self.ledger.to_json(),
        }

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
        self.announced = saved.get("announced", {})
        self.ledger = WorkerStats.from_json(saved["ledger"])

    def _identity(self) -> dict[str, Any]:
        (worker,) = self.world.local_workers
        return {"scheme": repr(self.scheme), "seed": self.seed, "worker": worker, "workers": self.world.size}


class GradientExchange:
    """Replaces the gradients of a model by a scheme's aggregate over all processes.

    The whole row crosses at once, so every scheme fits, Krum and DETOX included; floating-point buffers travel in the
    row and are installed. Parameters without a gradient count as zero. The gradients of a lost round are zero; they are
    NaN where a scheme that is not robust met NaN or Inf, so that a GradScaler skips the step.

    Every process makes it and calls it, in the same order.

    Args:
        model: a plain module, the same on every process; in torch.compile or not, but not in DistributedDataParallel.
        scheme: a stage or its expression.
        world: a new process group of the same ranks as the default one when None.
        byzantine, seed, warmup, on_excluded, on_accused, exclude_after: as for `SchemeSession`, which is the attribute
            `session` and holds the state.
        weights: where the processes begin with different weights, "broadcast" copies those of rank 0 to all and logs
            it, and "refuse" raises.
    Raises:
        ValueError: on every process, where one of them refuses its arguments, or where they differ in scheme, seed or
            parameters. From a call: the model has got other trained parameters.
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
        weights: Weights = "broadcast",
        on_excluded: Listener | None = None,
        on_accused: Listener | None = None,
        exclude_after: int | None = None,
    ) -> None:
        self.model = model
        options = {"on_excluded": on_excluded, "on_accused": on_accused, "exclude_after": exclude_after}
        self._module, self.layout, self.session = open_session(
            "exchange", model, scheme, world, weights, byzantine=byzantine, seed=seed, warmup=warmup, **options
        )
        self._held: dict[int, Tensor] = {}
        self._counts: dict[str, Tensor] = {}  # buffers of whole numbers, such as a number of batches, behind a unit
        self._buffers: dict[str, Tensor] | None = None  # at the start of a round whose units are added up by the scheme
        if self._allocation.separate:
            model.register_forward_pre_hook(lambda module, _: self._remember_buffers())

    @torch.no_grad()
    def _remember_buffers(self) -> None:
        if self._buffers is None and self._module.training:
            self._buffers = {name: buffer.clone() for name, buffer in self._module.named_buffers()}

    @torch.no_grad()
    def __call__(self, weight: float = 1.0) -> dict[str, Any]:
        """Exchanges the gradients in place and returns the round's measurements.

        Args:
            weight: examples behind this process's gradient.
        Returns:
            bytes_up, excluded (worker -> reason), accused (worker -> evidence), outvoted, far (whose row is far from
            the result, which accuses nobody), lost_groups, undecided, and two sentences or empty strings: notice, which
            rank 0 logs as a warning, and lost, why the gradients were set to zero or NaN.
        """
        self.session.same_parameters(self._module, self.layout, "exchange")
        named = {plain_name(n): p for n, p in self._module.named_parameters() if p.requires_grad}
        have = self.layout.tensors(self._module)
        buffers = {name: have[name] for name in self.layout.installed}
        units = tuple(unit for unit, _ in self.units) if self._allocation.separate else ()
        require(
            not units or weight == 1,
            f"{self.session.scheme!r} adds units up as they are, and each counts the same, got weight={weight}; give "
            "units as many examples each",
        )
        missing = [unit for unit in units if unit not in self._held]
        require(
            not missing,
            f"{self.session.scheme!r} adds units up itself, and units {missing} were not given; call "
            "exchange.hold(unit) after the backward() of each of exchange.units",
        )
        rows = torch.stack([self._held.pop(unit) for unit in units]) if units else self._row()
        self._buffers = None
        for name, buffer in self._module.named_buffers():
            if name in self._counts:
                buffer.copy_(self._counts.pop(name))
        index = self.session.index
        row, measured = self.session.aggregate(rows, self.layout, index=index, weight=weight, units=units)
        self.session.index += 1
        for name, part in self.layout.split(torch.zeros(self.layout.d) if row is None else row).items():
            if name in named:
                named[name].grad = part.to(named[name]).reshape_as(named[name]).clone()
            elif not measured["lost"]:
                buffers[name].copy_(part)
        return measured

    def _row(self) -> Tensor:
        tensors = self.layout.tensors(self._module)
        parts = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in tensors.items() if t.requires_grad}
        return self.layout.join({**tensors, **parts})

    @torch.no_grad()
    def hold(self, unit: int) -> None:
        """Takes the gradients as those of one unit and clears them, for a scheme that adds units up itself.

        Buffers, such as statistics of BatchNorm, go back to what they were at the start of the round: what a unit makes
        of them is the same for every process that computes it.

        Raises:
            ValueError: this process does not have the unit or has given it already, or the scheme takes one sum of the
                units.
        """
        have = [unit for unit, _ in self.units]
        require(unit in have, f"this process computes units {have}, got unit={unit}")
        require(
            self._allocation.separate,
            f"{self.session.scheme!r} takes the sum of a process's units; leave their gradients in the parameters",
        )
        require(unit not in self._held, f"unit {unit} was given already in this round; exchange() sends what is held")
        buffers = dict(self._module.named_buffers())
        require(
            not buffers or self._buffers is not None or not self._module.training,
            "the model has buffers, and its forward pass did not go through the module that exchange was made with; "
            "call that one",
        )
        self._held[unit] = self._row().detach().clone()
        for name, buffer in buffers.items():
            if not buffer.is_floating_point():
                self._counts[name] = buffer.clone()
            buffer.copy_((self._buffers or buffers)[name])
        self._module.zero_grad()

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
        self._held, self._counts, self._buffers = {}, {}, None


def as_scheme(scheme: Stage | str) -> Stage:
    """A stage from its expression, or as it is."""
    made = parse(scheme) if isinstance(scheme, str) else scheme
    if not isinstance(made, Stage):
        raise ValueError(f"{made!r} is no scheme; write a chain such as chain(gather(dense()), median())")
    return made


def open_session(
    user: str,
    model: nn.Module,
    scheme: Stage | str,
    world: Collective | None,
    weights: Weights,
    more: Callable[[], dict[str, object]] = dict,
    **settings: Any,
) -> tuple[nn.Module, Layout, SchemeSession]:
    """The plain module, its layout and a session, once all processes agree on them.

    Args:
        user: the name of what is made, for errors.
        more: checks further settings and returns them; they must be alike too.
        settings: of `SchemeSession`.
    Raises:
        ValueError: on every process, where one of them refuses its arguments or they differ.
    """
    from phalanx.distributed.process_group import ProcessGroupCollective

    meeting = world or ProcessGroupCollective()

    def make() -> tuple[tuple[nn.Module, Layout, SchemeSession], dict[str, object]]:
        require(weights in ("broadcast", "refuse"), f"weights is 'broadcast' or 'refuse', got {weights!r}")
        module = plain_module(model, user)
        layout, session = Layout.of(module), SchemeSession(scheme, meeting, **settings)
        require(layout.stepped > 0, f"{user} has nothing to exchange: the model has no parameter that is trained")
        others = {"warmup": session.warmup, "byzantine": session.byzantine, "weights": weights, **more()}
        return (module, layout, session), terms(user, session, others, layout)

    module, layout, session = agree(meeting, make, user)
    agree_on_weights(meeting, module, weights)
    if world is None:
        session.own(ProcessGroupCollective(group=twin(dist.group.WORLD)))
    return module, layout, session


def terms(kind: str, session: SchemeSession, settings: object, layout: object) -> dict[str, object]:
    """What `agree` compares of a session."""
    return {
        "what is made": kind,
        "scheme": session.scheme,
        "seed": session.seed,
        "settings": (settings, session.exclude_after),
        "parameters": layout,
    }


def _is_broken_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "peer" in str(error)
