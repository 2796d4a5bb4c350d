# SPDX-License-Identifier: Apache-2.0
"""A plan: the rank of every matrix of a model. It can be printed, edited and applied."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any, TypeVar

from phalanx.core.limits import MAX_DEPTH
from phalanx.core.registry import suggest
from phalanx.lowrank.factor import Factor

_Number = TypeVar("_Number", int, float)

_FORMAT = 1
_MAX_CHARACTERS = 10_000_000
_FULL = "full"  # in a file or a table: the layer keeps its dense weight
_WHOLE = ("attention", "lstm", "gru")  # kinds of layers that have several matrices
_FLOAT_BYTES = 4
_NAME_COLUMNS = ("layer", "kind", "shape", "rank")
_NUMBER_COLUMNS = ("parameters", "after", "MB a step", "after", "MACs", "after", "ms", "after")


@dataclass(frozen=True)
class Entry:
    """One matrix of a model, or one for each gate or group.

    Args:
        name: path of the layer, followed by the name of the matrix in attention and recurrent layers.
        kind: kind of layer.
        shape: shape of the weight, (out, in, ...), with all gates or groups.
        rank: rank of each matrix; None leaves it full.
        reason: the reason for this rank.
        copies: number of gates or groups.
        tied: name of the entry that owns the weight, if this one shares it; its parameters count there.
        positions: number of vectors that the weight multiplies in a forward of the sample input; None if not run.
        seconds: time of a training step of the dense layer alone, forward and backward; None if not measured. The first
            matrix of an attention or a recurrent layer has the time of the whole layer.
        seconds_after: the same with factors of these ranks, or dense if all stay full.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    reason: str
    copies: int = 1
    tied: str = ""
    positions: int | None = None
    seconds: float | None = None
    seconds_after: float | None = None

    @property
    def layer(self) -> str:
        """The name of the layer to which the matrix belongs."""
        return self.name.rpartition(".")[0] if self.kind in _WHOLE else self.name

    @property
    def factor(self) -> Factor:
        """The shapes of the two factors."""
        return Factor(self.name, "weight", self.shape, copies=self.copies)

    @property
    def largest_rank(self) -> int:
        """The largest useful rank, at which the factors can express any weight."""
        return min(self.factor.rows, self.factor.columns)

    @property
    def parameters(self) -> int:
        """The number of parameters of the dense weight; 0 if it is shared."""
        return 0 if self.tied else math.prod(self.shape)

    @property
    def parameters_after(self) -> int:
        """The number of parameters of the factors, or of the weight if it stays full."""
        return self.parameters if self.rank is None or self.tied else self.factor.size_at(self.rank)

    @property
    def step_bytes(self) -> int:
        """Bytes that a worker sends in a step for the dense gradient in float32."""
        return _FLOAT_BYTES * self.parameters

    @property
    def step_bytes_after(self) -> int:
        """Bytes that a worker sends in a step for the gradients of the factors."""
        return _FLOAT_BYTES * self.parameters_after

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of the dense weight in a forward of the sample input; a look-up has none."""
        if self.positions is None:
            return None
        if self.kind == "experts":  # a vector meets one of the experts
            return self.positions * math.prod(self.shape) // self.copies
        return 0 if self.kind == "embedding" else self.positions * math.prod(self.shape)

    @property
    def macs_after(self) -> int | None:
        """Multiply-accumulates of the factors in a forward of the sample input."""
        if self.rank is None or self.positions is None:
            return self.macs
        if self.kind == "embedding":
            return self.positions * self.rank * self.factor.columns
        return self.positions * self.factor.size_at(self.rank)


@dataclass(frozen=True)
class Plan:
    """The entries of a model in the model's order. `str(plan)` is a table, `plan.to_yaml()` a text to edit.

    Args:
        entries: one for each matrix.
        others: number of all other parameters, such as biases and norms.
    """

    entries: tuple[Entry, ...]
    others: int = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> Entry:
        """The entry of this name.

        Raises:
            ValueError: there is none.
        """
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise ValueError(f"the plan has no layer {name!r}; {suggest(name, [e.name for e in self.entries])}")

    @property
    def parameters(self) -> int:
        """The number of parameters of the dense model."""
        return self.others + sum(entry.parameters for entry in self)

    @property
    def parameters_after(self) -> int:
        """The number of parameters of the factorized model."""
        return self.others + sum(entry.parameters_after for entry in self)

    @property
    def step_bytes(self) -> int:
        """Bytes that a worker sends in a step of the dense model: all gradients in float32."""
        return _FLOAT_BYTES * self.parameters

    @property
    def step_bytes_after(self) -> int:
        """Bytes that a worker sends in a step of the factorized model."""
        return _FLOAT_BYTES * self.parameters_after

    @property
    def seconds(self) -> float | None:
        """Seconds of a training step of all dense layers, each alone; None if not measured."""
        return _total([entry.seconds for entry in self])

    @property
    def seconds_after(self) -> float | None:
        """The same for the factorized layers; None if some were not measured at these ranks."""
        measured = [entry.seconds_after for entry in self if entry.seconds is not None]
        return None if None in measured else _total(measured)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of all dense entries; None if no sample input was run."""
        return _total([entry.macs for entry in self])

    @property
    def macs_after(self) -> int | None:
        """Multiply-accumulates of all entries at their ranks; None if no sample input was run."""
        return _total([entry.macs_after for entry in self])

    def with_ranks(self, ranks: Mapping[str, int | None]) -> Plan:
        """The plan with other ranks for some entries; the times of their layers become unknown.

        Args:
            ranks: new rank of each entry by its name; None is full.
        Raises:
            ValueError: the plan does not have an entry of some name.
        """
        other = {self[name].layer for name in ranks}
        known = [replace(e, seconds_after=None) if e.layer in other else e for e in self]
        changed = (replace(e, rank=ranks[e.name], reason="given") if e.name in ranks else e for e in known)
        return replace(self, entries=tuple(changed))

    def to_yaml(self) -> str:
        """The plan as YAML, one line for each entry; the rank `full` keeps a layer dense."""
        import yaml

        lines = [
            "# rank: a whole number factorizes a layer, full leaves it as it is",
            f"format: {_FORMAT}",
            f"others: {self.others}",
            "layers:" if self.entries else "layers: []",
        ]
        for entry in self:
            fields: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "shape": list(entry.shape)}
            fields |= {"copies": entry.copies} if entry.copies > 1 else {}
            fields |= {"rank": _FULL if entry.rank is None else entry.rank}
            fields |= {"tied": entry.tied} if entry.tied else {}
            numbers = {name: getattr(entry, name) for name in ("positions", "seconds", "seconds_after")}
            fields |= {name: number for name, number in numbers.items() if number is not None}
            fields |= {"reason": entry.reason}
            text = yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, width=math.inf)
            lines.append(f"- {text.strip()}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """The inverse of `to_yaml`. Layers that are left out stay full.

        Raises:
            ValueError: the text is no plan, or a field of an entry is wrong.
        """
        tree = _read_yaml(text)
        if not isinstance(tree, dict) or not isinstance(tree.get("layers"), list):
            raise ValueError("the plan has no list of layers; start from plan(model).to_yaml()")
        if tree.get("format") != _FORMAT:
            raise ValueError(f"the plan has format {reprlib.repr(tree.get('format'))}, this version reads {_FORMAT}")
        if unknown := set(tree) - {"format", "others", "layers"}:
            raise ValueError(f"the plan has unknown fields {reprlib.repr(sorted(map(str, unknown)))}")
        others = tree.get("others", 0)
        if not isinstance(others, int) or isinstance(others, bool):
            raise ValueError(f"the plan needs a whole number of others, got {reprlib.repr(others)}")
        return cls(tuple(_entry(i, fields) for i, fields in enumerate(tree["layers"])), others)

    def __str__(self) -> str:
        return _table(self)


def _read_yaml(text: str) -> Any:
    """The values of a text of YAML without aliases, of which a few bytes can stand for more than there is memory.

    Raises:
        ValueError: it is too long, nested too deeply, has an alias, or is no YAML.
    """
    import yaml

    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"a plan has at most {_MAX_CHARACTERS:,} characters, got {len(text):,}")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"the plan has an alias (*{event.anchor}); write out what it stands for")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"the plan is nested more than {MAX_DEPTH} deep")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        reason = reprlib.repr(str(error)) if len(str(error)) > 300 else error
        raise ValueError(f"the plan is not YAML: {reason}") from None


def _entry(i: int, fields: Any) -> Entry:
    """An entry from a YAML file, after a check of every field."""
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise ValueError(f"layer {i} of the plan needs a name in quotes, got {reprlib.repr(fields)}")
    name = fields["name"]
    if unknown := set(fields) - {field.name for field in dataclass_fields(Entry)}:
        raise ValueError(f"layer {name!r} of the plan has unknown fields {reprlib.repr(sorted(map(str, unknown)))}")
    shape, rank, copies = fields.get("shape"), fields.get("rank"), fields.get("copies", 1)
    if not isinstance(shape, list) or len(shape) < 2 or not all(_whole(n) for n in shape):
        raise ValueError(
            f"layer {name!r} of the plan needs a shape of two or more whole numbers, got {reprlib.repr(shape)}"
        )
    if rank != _FULL and (rank is None or not _whole(rank) or rank < 1):
        raise ValueError(f"layer {name!r} of the plan needs a rank >= 1 or full, got {reprlib.repr(rank)}")
    if not _whole(copies) or copies < 1 or shape[0] % copies:
        raise ValueError(
            f"layer {name!r} of the plan needs copies that divide {shape[0]} rows, got {reprlib.repr(copies)}"
        )
    positions = fields.get("positions")
    if positions is not None and not _whole(positions):
        raise ValueError(f"layer {name!r} of the plan needs a whole number of positions, got {reprlib.repr(positions)}")
    times = [fields.get(key) for key in ("seconds", "seconds_after")]
    if not all(time is None or _time(time) for time in times):
        raise ValueError(f"layer {name!r} of the plan needs numbers >= 0 of seconds, got {reprlib.repr(times)}")
    texts = [fields.get(key, "") for key in ("kind", "reason", "tied")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"layer {name!r} of the plan needs text for kind, reason and tied, got {reprlib.repr(texts)}")
    kind, reason, tied = texts
    seconds, seconds_after = times
    return Entry(
        name=name,
        kind=kind,
        shape=tuple(shape),
        rank=None if rank == _FULL else rank,
        reason=reason,
        copies=copies,
        tied=tied,
        positions=positions,
        seconds=seconds,
        seconds_after=seconds_after,
    )


def _time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _total(counts: list[_Number | None]) -> _Number | None:
    known = [count for count in counts if count is not None]
    return sum(known[1:], known[0]) if known else None


def _table(plan: Plan) -> str:
    """A table with one line for each entry, and the totals; columns without numbers are left out."""
    rows: list[tuple[str, ...]] = [(*_NAME_COLUMNS, *_NUMBER_COLUMNS, "why")]
    for e in plan:
        rank = _FULL if e.rank is None else str(e.rank)
        rows.append((e.name or "(model)", e.kind, "x".join(map(str, e.shape)), rank, *_number_cells(e), e.reason))
    rows.append(("others", "", "", "", *[f"{plan.others:,}"] * 2, *[""] * 7))
    rows.append(("total", "", "", "", *_number_cells(plan), ""))
    last = len(rows[0]) - 1
    kept = [i for i in range(last + 1) if i in (0, last) or any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    cell = {i: str.rjust if 3 <= i < last else str.ljust for i in kept}
    return "\n".join("  ".join(cell[i](row[i], widths[i]) for i in kept).rstrip() for row in rows)


def _number_cells(counted: Entry | Plan) -> tuple[str, ...]:
    """The cells with numbers of one entry, or of the whole plan."""
    return (
        *(f"{n:,}" for n in (counted.parameters, counted.parameters_after)),
        *(f"{n / 1e6:,.2f}" for n in (counted.step_bytes, counted.step_bytes_after)),
        *("" if n is None else f"{n:,}" for n in (counted.macs, counted.macs_after)),
        *("" if s is None else f"{1e3 * s:,.2f}" for s in (counted.seconds, counted.seconds_after)),
    )
