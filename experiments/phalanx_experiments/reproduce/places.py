# SPDX-License-Identifier: Apache-2.0
"""Where a measured number is found."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from phalanx.data.shape import Shape
from phalanx_experiments.reproduce.evidence import Document, Evidence, Number


class Place(Protocol):
    """A place of a measured number; it finds the number in the evidence, or None."""

    def find(self, evidence: Evidence) -> Number | None: ...


@dataclass(frozen=True)
class Value:
    """A number in the summaries of a label's runs, over all seeds.

    Args:
        key: dots go into what is inside.
        scale: factor, such as 100 for percent.
    """

    recipe: str
    label: str
    key: str = "accuracy"
    scale: float = 1.0

    def find(self, evidence: Evidence) -> Number | None:
        """Mean and spread over the seeds."""
        seeds: dict[int, float] = {}
        for document in evidence.documents(self.recipe):
            for result in document["results"]:
                value = _within(result, self.key.split("."))
                if _label(result) == self.label and value is not None:
                    seeds[result.get("seed", 0)] = self.scale * value
        return Number.of(seeds)


def accuracy(recipe: str, label: str) -> Value:
    """The test accuracy at the end, in percent."""
    return Value(recipe, label, scale=100.0)


@dataclass(frozen=True)
class Cell:
    """A cell of a table that a recipe reports.

    Args:
        table: how its title begins.
        row: its first cell, or its first cells.
        column: word of the header, or a number where a word stands there twice.
        spread: how the title of the table of standard deviations begins, if there is one.
    """

    recipe: str
    table: str
    row: str | tuple[str, ...]
    column: str | int
    spread: str = ""

    def find(self, evidence: Evidence) -> Number | None:
        """The number in the cell; a mean over the seeds where the table says so, or over documents of several seeds."""
        by_seed: dict[int, float] = {}
        for i, document in enumerate(evidence.documents(self.recipe)):
            value = self._value(document, self.table)
            if value is None:
                continue
            n = self._seeds(document)
            if n > 1:
                deviation = self._value(document, self.spread) if self.spread else None
                return Number(value, n, deviation)
            by_seed[document.get("seed", i)] = value
        return Number.of(by_seed)

    def _value(self, document: Document, title: str) -> float | None:
        table, row = self._row(document, title)
        if table is None or row is None:
            return None
        header = table["header"]
        column = self.column if isinstance(self.column, int) else _position(header, self.column)
        return None if column is None else _number(row[column])

    def _row(self, document: Document, title: str) -> tuple[Any, Any]:
        wanted = (self.row,) if isinstance(self.row, str) else self.row
        for table in _tables(document):
            if table["title"].startswith(title):
                for row in table["rows"]:
                    if tuple(row[: len(wanted)]) == wanted:
                        return table, row
        return None, None

    def _seeds(self, document: Document) -> int:
        """The number of seeds behind a cell: from a column n, the runs of that cell, or the title."""
        table, row = self._row(document, self.table)
        if "n" in table["header"]:
            return int(row[table["header"].index("n")])
        if "tables" not in document and document.get("tables_of_the_first_seed"):
            return 1
        runs = {r.get("seed", 0) for r in document["results"] if _label(r) == f"{self.column}: {self.row}"}
        if runs:  # of this cell, whatever the title says of the others
            return len(runs)
        words = re.search(r"mean of (\d+) seeds", table["title"])
        return int(words.group(1)) if words else 1


@dataclass(frozen=True)
class FileValue:
    """A number in another file of results: a plain number, or an object with mean, stdev and n.

    Args:
        path: keys from the top; a mapping chooses the first object of a list that has its values.
        scale: factor.
    """

    file: str
    path: tuple[str | Mapping[str, Any], ...]
    scale: float = 1.0

    def find(self, evidence: Evidence) -> Number | None:
        """The number in the file, or None."""
        value = _within(evidence.file(self.file), self.path)
        if isinstance(value, dict):
            spread = value.get("stdev")
            return Number(self.scale * value["mean"], value["n"], None if spread is None else self.scale * spread)
        return None if value is None else Number(self.scale * value)


@dataclass(frozen=True)
class Counted:
    """Parameters or multiply-accumulates of a network, which is built for it without memory for its weights.

    Args:
        network: a name of `phalanx.tools.zoo`, or the expression of a model for data of a shape.
        of: "parameters", "parameters_after" (of the hybrid), "macs" or "macs_after".
    """

    network: str
    of: str = "parameters"
    shape: Shape | None = None
    classes: int = 10
    scale: float = 1.0

    def find(self, evidence: Evidence) -> Number | None:
        """The count, which has no spread."""
        counts = _counts(self.network) if self.shape is None else _built(self.network, self.shape, self.classes)
        return Number(self.scale * counts[self.of], n=0)


@dataclass(frozen=True)
class Quotient:
    """One number over another, seed by seed where both are known so."""

    above: Place
    below: Place

    def find(self, evidence: Evidence) -> Number | None:
        """The quotient of both numbers, or None."""
        return paired(self.above.find(evidence), self.below.find(evidence), operator.truediv)


@dataclass(frozen=True)
class Sum:
    """The sum of several numbers; None where one of them was not measured."""

    places: tuple[Place, ...]

    def find(self, evidence: Evidence) -> Number | None:
        """The sum of all numbers, seed by seed where all are known so."""
        total, *rest = [place.find(evidence) for place in self.places]
        for each in rest:
            total = paired(total, each, operator.add)
        return total


def paired(x: Number | None, y: Number | None, do: Callable[[float, float], float]) -> Number | None:
    """Combines two numbers seed by seed, or their means if they share no seed."""
    if x is None or y is None:
        return None
    shared = sorted(set(x.seeds) & set(y.seeds))
    if shared:
        return Number.of({seed: do(x.seeds[seed], y.seeds[seed]) for seed in shared})
    return Number(do(x.mean, y.mean), min(x.n, y.n))


def _label(result: Mapping[str, Any]) -> str:
    """The label of a run without its seed."""
    return re.sub(r", seed \d+$", "", result["label"])


def _within(value: Any, path: Sequence[str | Mapping[str, Any]]) -> Any:
    for key in path:
        if isinstance(key, str):
            value = value.get(key) if isinstance(value, dict) else None
        else:
            value = next((each for each in value or () if key.items() <= each.items()), None)
    return value


def _tables(document: Document) -> list[dict[str, Any]]:
    return document.get("tables") or document.get("tables_of_the_first_seed") or []


def _position(header: Sequence[str], word: str) -> int | None:
    return header.index(word) if word in header else None


def _number(cell: Any) -> float | None:
    """The number that a cell begins with, such as 49.6 in '49.6 %' or 1.42 in '1.42x'."""
    if isinstance(cell, int | float):
        return float(cell)
    match = re.match(r"[-+]?\d[\d,]*(\.\d+)?", cell or "")
    return float(match.group().replace(",", "")) if match else None


@cache
def _counts(network: str) -> dict[str, float]:
    import torch

    from phalanx.tools.zoo import network as known

    with torch.device("meta"):
        plan = known(network).hybrid()
    return {name: getattr(plan, name) for name in ("parameters", "parameters_after", "macs", "macs_after")}


@cache
def _built(expression: str, shape: Shape, classes: int) -> dict[str, float]:
    import torch

    from phalanx.core.parser import parse
    from phalanx.models.model import Model

    model = parse(expression)
    assert isinstance(model, Model)
    with torch.device("meta"):
        network = model.build(shape, classes)
    return {"parameters": sum(weight.numel() for weight in network.parameters())}
