# SPDX-License-Identifier: Apache-2.0
"""The stage, which is one type for transforms, attacks, wires, votes and rules; and the chain of stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from phalanx.core.allocation import Allocation
from phalanx.core.columns import Undecided
from phalanx.core.expression import Expression, method, require
from phalanx.core.gate import Gate
from phalanx.core.layout import Layout
from phalanx.core.plain_rows import Rows, stack_of
from phalanx.core.plain_states import is_states, middle_integers, states_of
from phalanx.core.registry import register
from phalanx.core.round import Rng, Round
from phalanx.core.stack import Note, Stack
from phalanx.core.trees import State
from phalanx.core.world import LocalCollective

Scope = Literal["coordinate", "tensor", "vector"]  # the smallest piece of a row on which a stage can run alone

_SCOPES: tuple[Scope, ...] = ("coordinate", "tensor", "vector")

Kept = Literal["nothing", "equality", "sums"]  # of several workers' rows, behind a stage; each includes those before it

_KEPT: tuple[Kept, ...] = ("nothing", "equality", "sums")
_LACKING = {"equality": "compares rows bit for bit", "sums": "adds up rows"}


def widest(scopes: Iterable[Scope]) -> Scope:
    """The widest of several scopes: the scope of stages that run together."""
    return _SCOPES[max((_SCOPES.index(scope) for scope in scopes), default=0)]


class TooFewRows(ValueError):
    """A rule is left with fewer rows than it needs: an error before a run, a skipped update within one.

    `notes` holds the notes of the round so far, such as which rows are missing and why. `state` is the state of the
    stages so far, which has to be kept: what they sent is sent.
    """

    def __init__(self, sentence: str, notes: tuple[Note, ...] = (), state: State | None = None) -> None:
        super().__init__(sentence)
        self.notes, self.state = notes, state


class Stage(Expression, ABC):
    """A function of rows: (k, d) -> (m, d).

    The caller keeps the state: it is None or {} in the first round, and what a call returns goes into the next call.

    Class attributes `rows_of`: whose rows a call must see; `sums_rows`: the server gets the mean of all rows, and no
    row of a single worker; `totals`: what the stage asks of whole rows, such as norms and distances, it lets
    `Stack.columns` add up, so that it also runs where each process has some of the columns; `divides`: behind this wire
    stage each process has some of the columns.
    """

    runs_on: ClassVar[Scope] = "coordinate"
    totals: ClassVar[bool] = False
    rows_of: ClassVar[Literal["anybody", "single workers", "all workers"]] = "anybody"
    sums_rows: ClassVar[bool] = False
    divides: ClassVar[bool] = False

    @property
    def keeps(self) -> Kept:
        """What honest rows still have behind the stage: equal rows stay equal, and sums of rows stay sums."""
        return "sums"

    @property
    def needs(self) -> Kept:
        """What the stages before this one must keep, or it fails in every round."""
        return "nothing"

    def tolerates(self, n: int) -> int:
        """The number f of Byzantine rows among n that this stage is set to tolerate."""
        return 0

    @property
    def scope(self) -> Scope:
        """The smallest piece of a row on which this stage can run alone; `runs_on`, unless it depends on the fields."""
        return self.runs_on

    @property
    def on_columns(self) -> bool:
        """Whether it runs behind `scatter(...)`, where each process has some of the columns of all rows."""
        return self.scope == "coordinate" or self.totals

    @property
    def num_wires(self) -> int:
        """The number of times that the rows cross the wire in this stage."""
        return 0

    @abstractmethod
    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        """The next stack and the next state."""

    def rows_out(self, n: int) -> int:
        """The number of rows that come out of n received rows.

        Raises:
            TooFewRows: n is too small for this stage; the sentence states the requirement.
        """
        return n

    def assign(self, n: int, seed: int = 0, index: int = 0) -> Allocation | None:
        """The units of work of each of n workers, if the stage's redundancy needs a special allocation; else None.

        Args:
            seed: seed of the run.
            index: number of the round.
        """
        return None

    def finish(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State | None]:
        """What a wire stage does behind the last stage of its chain: the whole result, and the stage's next state."""
        return stack, state

    def aggregate(self, rows: Rows, weights: Sequence[float] | Tensor | None = None, seed: int = 0) -> Tensor:
        """Applies the stage to plain rows; returns one vector (d,) of their type, dtype and device, or (m, d) if m > 1.

        A chain with a wire, such as chain(gather(qsgd(bits=4)), median()), runs with one worker for each row.

        Args:
            rows: an (n, d) tensor or array, or a list of n tensors or arrays of one shape. A row of another shape or
                dtype than most, or with NaN, Inf or absurd entries, is excluded and counts towards f. A list of state
                dicts, or of Flower's ArrayRecords, gives one of them: its floating-point tensors are the row, of the
                other ones each entry is the lower median of those that were admitted.
            weights: number of examples behind each of the n rows; equal when None. An absurd weight excludes its row,
                as in a round; the other weights are used as they are.
            seed: seed of all random numbers.
        Raises:
            ValueError: a rule has too few rows, or the rows are not floating-point numbers.
        """
        if is_states(rows):
            return self._aggregate_states(rows, weights, seed)
        result = self.outcome(rows, weights, seed).rows
        result = result[0] if len(result) == 1 else result
        like = rows if isinstance(rows, Tensor) else rows[0]
        return result if isinstance(like, Tensor) else result.numpy()  # type: ignore[return-value]

    def _aggregate_states(self, given: Any, weights: Sequence[float] | Tensor | None, seed: int) -> Any:
        form, states = states_of(given, self.expression_name)
        # a row of no entries has another shape than the others
        rows = [torch.empty(0, dtype=form.dtype) if isinstance(s, str) else form.row(s) for s in states]
        out = self.outcome(rows, weights, seed)
        bad = {note.worker for note in out.notes if note.kind == "excluded"}
        good = [s for i, s in enumerate(states) if not isinstance(s, str) and i not in bad]
        integers = middle_integers(form, good)
        kind = type(next(row for row, s in zip(given, states, strict=True) if not isinstance(s, str)))
        made = [form.state(row, integers) for row in out.rows]
        found = [kind(state) for state in made] if kind is not dict else made
        return found[0] if len(found) == 1 else found

    def outcome(self, rows: Rows, weights: Sequence[float] | Tensor | None = None, seed: int = 0) -> Stack:
        """The result of `aggregate` with its notes: which rows were excluded and why, and what the rule reports."""
        stack = stack_of(rows, weights, self.expression_name)
        if self.num_wires:
            require(not stack.erased, f"{self!r} takes rows of one shape and dtype, got {len(stack.notes)} others")
            allocation = self.assign(len(rows), seed)
            if allocation is not None and allocation.separate:
                stack = Stack.of_units(stack.rows, allocation)
            stack = replace(stack, received=False)
        else:
            stack = Gate(weights="trusted").admit(stack)
        return self(stack, None, Round(seed=seed, world=LocalCollective(max(1, len(rows)))))[0]

    @property
    def remembers(self) -> bool:
        """Whether it keeps a memory for each row from round to round."""
        return False


def memory_key(worker: int | None, received: bool) -> str:
    """The key of a row's memory in the state: "worker:3" in the process of worker 3, "row:3" at the server."""
    return f"{'row' if received else 'worker'}:{'all' if worker is None else worker}"


def check_remembers(owner: Any) -> None:
    """Raises ValueError for a stage or codec that keeps a memory and does not say so: votes rely on what it says."""
    require(owner.remembers, f"{owner!r} keeps a memory from round to round; let its property `remembers` be True")


def memory_key_of(stack: Stack, i: int) -> str:
    """The memory of row i: its worker's, or behind a vote its unit's, whoever won it.

    Raises:
        ValueError: it is one of several rows that each stand for several workers, not always the same ones.
    """
    if stack.units is not None:
        return f"unit:{stack.units[i]}"
    source = stack.sources[i]
    require(
        len(source) == 1 or len(stack.rows) == 1,
        f"a memory from round to round needs rows of single workers or of votes, and row {i} of {len(stack.rows)} is "
        f"made of {len(source)} workers' rows; put the stage before the one that merges rows, or at the end",
    )
    return memory_key(source[0] if len(source) == 1 else None, stack.received)


class RowStage(Stage):
    """A stage that acts on every row alone, with a memory for each worker."""

    @abstractmethod
    def row(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Tensor, State]:
        """Transforms one row's directions (d,), and its worker's memory; `rng()` makes the worker's generator."""

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        state = dict(state or {})
        out = torch.empty_like(stack.rows)
        cut, head = stack.layout.stepped, stack.layout.head
        for i, source in enumerate(stack.sources):
            worker = source[0] if len(source) == 1 else None
            key = memory_key_of(stack, i) if self.remembers else ""
            out[i, :cut], memory = self.row(
                stack.rows[i, :cut], head, state.get(key, {}), lambda w=worker: round.rng(w)
            )
            if memory:
                check_remembers(self)
                state[key] = memory
        out[:, cut:] = stack.rows[:, cut:]
        return stack.with_rows(out), state


@method("chain", "stage", listed=False)
class Chain(Stage):
    """Stages one after the other, left to right."""

    stages: tuple[Stage, ...]

    def validate(self) -> None:
        wires = [i for i, stage in enumerate(self.stages) if stage.num_wires]
        if len(wires) != 1:
            return
        wire = self.stages[wires[0]]
        for i, stage in enumerate(self.stages):
            require(
                i >= wires[0] or stage.rows_of != "all workers",
                f"{stage!r} stands before the wire and sees one row; put it behind gather(...)",
            )
            require(
                i <= wires[0] or not wire.sums_rows or stage.rows_of == "anybody",
                f"{stage!r} stands behind {wire!r} and sees the mean of all rows only; write gather(...) in place of "
                f"{wire!r}, or leave {stage!r} out",
            )
            require(
                i <= wires[0] or not wire.divides or stage.on_columns,
                f"{stage!r} needs whole rows, and behind {wire!r} each process has some of their columns; write "
                "gather(...) in place of scatter(...), or a rule of coordinates, norms or distances",
            )
            for before in self.stages[:i]:
                require(
                    _KEPT.index(before.keeps) >= _KEPT.index(stage.needs),
                    f"{stage!r} {_LACKING.get(stage.needs)}, and {before!r} does not keep them so: every round would "
                    "be lost; leave it out, or write dense() for its codec",
                )

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.stages))})"

    @property
    def scope(self) -> Scope:
        return widest(s.scope for s in self.stages)

    @property
    def on_columns(self) -> bool:
        return all(s.on_columns for s in self.stages)

    @property
    def num_wires(self) -> int:
        return sum(s.num_wires for s in self.stages)

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        state = dict(state or {})
        calls = [(i, stage.__call__) for i, stage in enumerate(self.stages)]
        calls += [(i, stage.finish) for i, stage in enumerate(self.stages) if stage.num_wires]
        for i, call in calls:
            # the stages behind a wire that divides have the memories of their columns
            columns = stack.columns if not self.stages[i].num_wires else None
            try:
                stack, inner = call(stack, state.get(str(i)), round.child(i))
            except TooFewRows as error:
                if error.state:
                    state[str(i)] = error.state
                error.state = state
                raise
            except Undecided as error:
                raise TooFewRows(str(error), stack.notes, state) from None
            if inner:
                state[str(i)] = inner if columns is None else columns.own(inner)
        return stack, state

    def rows_out(self, n: int) -> int:
        for stage in self.stages:
            n = stage.rows_out(n)
        return n

    def assign(self, n: int, seed: int = 0, index: int = 0) -> Allocation | None:
        wanted = [a for a in (s.assign(n, seed, index) for s in self.stages) if a is not None]
        require(
            all(a == wanted[0] for a in wanted[1:]),
            "two stages of one chain ask for different assignments of work; keep one of them",
        )
        return wanted[0] if wanted else None


def chain(*stages: Stage) -> Chain:
    """The composition of stages; chains inside are flattened.

    >>> import phalanx as px
    >>> px.chain(px.clip(1.0), px.gather(px.codecs.dense()), px.aggregators.krum(f=2))
    chain(clip(norm=1.0), gather(dense()), krum(f=2))
    """
    flat: list[Stage] = []
    for stage in stages:
        if not isinstance(stage, Stage):
            raise ValueError(f"a chain holds stages, got {stage!r}; a codec goes inside gather(...) or reduce(...)")
        flat.extend(stage.stages if isinstance(stage, Chain) else (stage,))
    return Chain(tuple(flat))


register("chain", "stage", chain)


def check_row(aggregate: Stack) -> None:
    """Raises TooFewRows where a scheme left no row, as a vote does that excludes all of its groups."""
    if not len(aggregate.rows):
        raise TooFewRows("no row is left: every group or row was excluded", aggregate.notes)


def check_scheme(scheme: Stage, n: int) -> None:
    """Raises ValueError unless a scheme takes n workers' rows across exactly one wire to a single row."""
    stages = scheme.stages if isinstance(scheme, Chain) else (scheme,)
    wires = [i for i, stage in enumerate(stages) if stage.num_wires]
    if scheme.num_wires != 1:
        one = Chain(tuple(stage for i, stage in enumerate(stages) if i not in wires[:-1]))
        once = "write gather(codec) or reduce(codec) once"
        way_out = f"keep one of them, such as {one!r}" if len(wires) > 1 else once
        raise ValueError(
            f"a scheme crosses the wire exactly once, and {scheme!r} does {scheme.num_wires} times; {way_out}"
        )
    require(
        isinstance(scheme, Chain) or not scheme.divides,
        f"{scheme!r} leaves each process with some columns of the rows; put a rule behind it, such as "
        f"chain({scheme!r}, mean())",
    )
    rows = scheme.rows_out(n)
    if rows != 1:
        raise ValueError(
            f"{scheme!r} ends with {rows} rows where one update belongs; end it with mean() or a robust rule"
        )
    if scheme.assign(n) is not None:
        check_memories(scheme)


def check_memories(scheme: Stage) -> None:
    """Raises ValueError if workers that compute the same keep a memory: one missed round would set a worker apart."""
    for stage in scheme.stages if isinstance(scheme, Chain) else (scheme,):
        require(
            not stage.remembers,
            f"{stage!r} keeps a memory at each worker, and {scheme!r} has several workers compute the same: one missed "
            "round would set an honest worker apart from its group for good; put momentum behind the wire, such as "
            "chain(vote(dense(), r=3), momentum(), mean()), and take a codec without error feedback",
        )
        if stage.num_wires:
            return


def join_notes(stack: Stack, others: Sequence[Stack]) -> Stack:
    """The stack with the notes that the stacks derived from it have added."""
    num_shared = len(stack.notes)
    return replace(stack, notes=stack.notes + tuple(n for s in others for n in s.notes[num_shared:]))
