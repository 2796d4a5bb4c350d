# SPDX-License-Identifier: Apache-2.0
"""Partitions that may leave samples unused or reserve some: by owner, nested, and with a reserve."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.data.examples import Examples
from phalanx.data.partition import Iid, Partition, check_units


@method("by_owner", "partition")
class ByOwner(Partition):
    """Every unit gets the samples of one owner, such as a speaker, whom the data name.

    If there are more owners than units, the samples of the last owners are not used.

    Args:
        least: samples that an owner must have, >= 1; owners with fewer are left out.
        drawn: whether the seed decides the order of owners; otherwise those with most samples come first.
    Raises:
        ValueError: the data have no owners, or fewer owners than units.
    Source: the natural partition of Caldas et al., LEAF: A Benchmark for Federated Settings, 2018, arXiv:1812.01097.
    """

    exhaustive: ClassVar[bool] = False

    least: int = 1
    drawn: bool = False

    def validate(self) -> None:
        require(self.least >= 1, f"by_owner needs least >= 1, got least={self.least}")

    def values(self, data: Examples) -> Tensor:
        if data.owners is None:
            raise ValueError(
                f"{self!r} gives a unit the samples of one owner, and {data.name} does not say who owns which; choose "
                "iid() or dirichlet(0.5)"
            )
        return data.owners

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        check_units(self, len(values), units)
        owners, counts = values.unique(return_counts=True)
        owners, counts = owners[counts >= self.least], counts[counts >= self.least]
        sentence = (
            f"{self!r} has {len(owners)} owners with {self.least} samples or more, and {units} units need one each"
        )
        require(len(owners) >= units, sentence)
        shuffled = torch.randperm(len(owners), generator=make_generator("owners", seed))
        order = shuffled if self.drawn else counts.argsort(descending=True, stable=True)
        return tuple((values == owner).nonzero().flatten() for owner in owners[order[:units]])


@method("nested", "partition")
class Nested(Partition):
    """The samples are split into equal pieces of one distribution, and each piece into parts; each unit gets a part.

    The parts do not depend on the number of units: more units use more data, and `each` units use a whole piece. The
    samples of further parts are not used.

    Args:
        inner: the partition of a piece.
        pieces: number of pieces, >= 1.
        each: parts of a piece, >= 1.
    Raises:
        ValueError: there are more units than parts, or a piece cannot be partitioned so.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, the data efficiency of
        section 4: 25 parts of CIFAR-10.
    """

    exhaustive: ClassVar[bool] = False

    inner: Partition
    pieces: int = 5
    each: int = 5

    def validate(self) -> None:
        ok = self.pieces >= 1 and self.each >= 1
        require(ok, f"nested needs pieces and each >= 1, got pieces={self.pieces}, each={self.each}")

    def values(self, data: Examples) -> Tensor:
        return self.inner.values(data)

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        check_units(self, len(values), units)
        total = self.pieces * self.each
        require(
            units <= total, f"{self!r} makes {self.pieces} x {self.each} = {total} parts, and there are {units} units"
        )
        parts: list[Tensor] = []
        for number, piece in enumerate(Iid().split(values, self.pieces, seed)[: -(-units // self.each)]):
            own_seed = make_generator("nested", seed, number).initial_seed()
            parts += [piece[part] for part in self.inner.split(values[piece], self.each, own_seed)]
        return tuple(parts[:units])


@method("reserve", "partition")
class Reserve(Partition):
    """`amount` random samples for the last unit; an inner partition gives the others to the other units.

    The last unit stands for a server that has collected some data of its own, as `fltrust` needs.

    Args:
        inner: the partition of the other samples among the other units.
        amount: samples of the last unit, >= 1.
    Raises:
        ValueError: no sample is left for some other unit, or there is no other unit.
    """

    inner: Partition
    amount: int = 100

    @property
    def exhaustive(self) -> bool:  # type: ignore[override]
        return self.inner.exhaustive

    def validate(self) -> None:
        require(self.amount >= 1, f"reserve needs amount >= 1, got amount={self.amount}")

    def values(self, data: Examples) -> Tensor:
        return self.inner.values(data)

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        check_units(self, len(values), units)
        enough = units > 1 and self.amount + units - 1 <= len(values)
        have = f"{len(values)} samples for {units} units"
        require(enough, f"{self!r} leaves no sample for some unit, with {have}; lower amount")
        order = torch.randperm(len(values), generator=make_generator("reserved", seed))
        reserved, rest = order[: self.amount].sort().values, order[self.amount :].sort().values
        return (*(rest[part] for part in self.inner.split(values[rest], units - 1, seed)), reserved)
