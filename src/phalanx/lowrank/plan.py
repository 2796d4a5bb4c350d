# SPDX-License-Identifier: Apache-2.0
"""Which matrix of a model gets which rank, to be read, edited and applied."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from phalanx.lowrank.factor import Factor
from phalanx.registry import suggest

_FORMAT = 1
_FULL = "full"


@dataclass(frozen=True)
class Entry:
    """One matrix of a model, or one for each gate or group.

    Args:
        name: the layer's path, and within attention and recurrent layers the matrix.
        kind: of layer.
        shape: of the weight, (out, in, ...), all gates and groups together.
        rank: of each matrix; None leaves it full.
        reason: why.
        copies: gates or groups.
        tied: the entry that owns the weight, where this one shares it; its parameters count there.
        positions: how many times a forward of the sample input multiplies by the weight; None if not run.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    reason: str
    copies: int = 1
    tied: str = ""
    positions: int | None = None

    @property
    def factor(self) -> Factor:
        """The shapes of the two factors."""
        return Factor(self.name, "weight", self.shape, copies=self.copies)

    @property
    def largest_rank(self) -> int:
        """The rank at which the factors can stand for any weight."""
        return min(self.factor.rows, self.factor.columns)

    @property
    def parameters(self) -> int:
        """Of the dense weight."""
        return 0 if self.tied else math.prod(self.shape)

    @property
    def parameters_after(self) -> int:
        """Of the factors, or of the weight if it stays full."""
        return self.parameters if self.rank is None or self.tied else self.factor.size_at(self.rank)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates with the dense weight in one forward of the sample input; a look-up needs none."""
        if self.positions is None:
            return None
        return 0 if self.kind == "embedding" else self.positions * math.prod(self.shape)

    @property
    def macs_after(self) -> int | None:
        """The same with the factors."""
        if self.rank is None or self.positions is None:
            return self.macs
        if self.kind == "embedding":
            return self.positions * self.rank * self.factor.columns
        return self.positions * self.factor.size_at(self.rank)


@dataclass(frozen=True)
class Plan:
    """The entries of a model in its order. `str(plan)` is a table, `plan.to_yaml()` is text for editing.

    Args:
        entries: one a matrix.
        others: parameters outside of them, such as biases and norms.
    """

    entries: tuple[Entry, ...]
    others: int = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> Entry:
        """The entry of this name; ValueError where there is none."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise ValueError(f"the plan has no layer {name!r}; {suggest(name, [e.name for e in self.entries])}")

    @property
    def parameters(self) -> int:
        """Of the dense model."""
        return self.others + sum(entry.parameters for entry in self)

    @property
    def parameters_after(self) -> int:
        """Of the factorized model."""
        return self.others + sum(entry.parameters_after for entry in self)

    @property
    def macs(self) -> int | None:
        """Of the entries, dense; None if no sample input was run."""
        return _total([entry.macs for entry in self])

    @property
    def macs_after(self) -> int | None:
        """Of the entries, factorized; None if no sample input was run."""
        return _total([entry.macs_after for entry in self])

    def with_ranks(self, ranks: Mapping[str, int | None]) -> Plan:
        """The plan with other ranks for some entries.

        Raises:
            ValueError: a name that the plan does not have.
        """
        for name in ranks:
            self[name]
        changed = (replace(e, rank=ranks[e.name], reason="given") if e.name in ranks else e for e in self)
        return replace(self, entries=tuple(changed))

    def to_yaml(self) -> str:
        """One line an entry; edit the ranks, where `full` leaves a layer as it is."""
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
            fields |= {"positions": entry.positions} if entry.positions is not None else {}
            fields |= {"reason": entry.reason}
            text = yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, width=math.inf)
            lines.append(f"- {text.strip()}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """The inverse of `to_yaml`. Layers may be left out: they stay full.

        Raises:
            ValueError: no plan, or an entry with a wrong field, by its name.
        """
        import yaml

        try:
            tree = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"the plan is not YAML: {error}") from None
        if not isinstance(tree, dict) or not isinstance(tree.get("layers"), list):
            raise ValueError("the plan has no list of layers; start from plan(model).to_yaml()")
        if tree.get("format") != _FORMAT:
            raise ValueError(f"the plan has format {tree.get('format')!r}, this version reads {_FORMAT}")
        if unknown := set(tree) - {"format", "others", "layers"}:
            raise ValueError(f"the plan has unknown fields {sorted(map(str, unknown))}")
        others = tree.get("others", 0)
        if not isinstance(others, int) or isinstance(others, bool):
            raise ValueError(f"the plan needs a whole number of others, got {others!r}")
        return cls(tuple(_entry(i, fields) for i, fields in enumerate(tree["layers"])), others)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("layer", "kind", "shape", "rank", "parameters", "after", "MACs", "after", "why")
        ]
        rows += [
            (
                e.name or "(model)",
                e.kind,
                "x".join(map(str, e.shape)),
                _FULL if e.rank is None else str(e.rank),
                f"{e.parameters:,}",
                f"{e.parameters_after:,}",
                "" if e.macs is None else f"{e.macs:,}",
                "" if e.macs_after is None else f"{e.macs_after:,}",
                e.reason,
            )
            for e in self
        ]
        macs = tuple("" if m is None else f"{m:,}" for m in (self.macs, self.macs_after))
        rows.append(("others", "", "", "", f"{self.others:,}", f"{self.others:,}", "", "", ""))
        rows.append(("total", "", "", "", f"{self.parameters:,}", f"{self.parameters_after:,}", *macs, ""))
        kept = [i for i in range(9) if i not in (6, 7) or self.macs is not None]
        widths = {i: max(len(row[i]) for row in rows) for i in kept}
        cell = {i: str.rjust if 3 <= i <= 7 else str.ljust for i in kept}
        return "\n".join("  ".join(cell[i](row[i], widths[i]) for i in kept).rstrip() for row in rows)


def _entry(i: int, fields: Any) -> Entry:
    """One entry of a YAML file, checked field by field."""
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise ValueError(f"layer {i} of the plan needs a name in quotes, got {fields!r}")
    name, known = fields["name"], {"name", "kind", "shape", "copies", "rank", "tied", "positions", "reason"}
    if unknown := set(fields) - known:
        raise ValueError(f"layer {name!r} of the plan has unknown fields {sorted(map(str, unknown))}")
    shape, rank, copies = fields.get("shape"), fields.get("rank"), fields.get("copies", 1)
    if not isinstance(shape, list) or len(shape) < 2 or not all(_whole(n) for n in shape):
        raise ValueError(f"layer {name!r} of the plan needs a shape of two or more whole numbers, got {shape!r}")
    if rank != _FULL and (rank is None or not _whole(rank) or rank < 1):
        raise ValueError(f"layer {name!r} of the plan needs a rank >= 1 or full, got {rank!r}")
    if not _whole(copies) or copies < 1 or shape[0] % copies:
        raise ValueError(f"layer {name!r} of the plan needs copies that divide {shape[0]} rows, got {copies!r}")
    positions = fields.get("positions")
    if positions is not None and not _whole(positions):
        raise ValueError(f"layer {name!r} of the plan needs a whole number of positions, got {positions!r}")
    texts = [fields.get(key, "") for key in ("kind", "reason", "tied")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"layer {name!r} of the plan needs text for kind, reason and tied, got {texts!r}")
    kind, reason, tied = texts
    return Entry(name, kind, tuple(shape), None if rank == _FULL else rank, reason, copies, tied, positions)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
