# SPDX-License-Identifier: Apache-2.0
"""Partitions: which unit trains on which samples.

A unit is a worker, or a group of workers that compute the same. Everything is a pure function of the seed and the
number of the round, so that a run can resume without the state of a sampler.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from phalanx.core.expression import Expression, method, require
from phalanx.core.round import make_generator
from phalanx.data.examples import Examples

MAX_DRAWS = 100


class Partition(Expression, ABC):
    """A rule that distributes the training samples among units.

    Class attribute `exhaustive`: whether the parts of all units together are all samples, for any number of units.
    """

    exhaustive: ClassVar[bool] = True

    @abstractmethod
    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        """The samples of each unit: disjoint, not empty, and together all samples if the partition is `exhaustive`.

        Shapes: (N,), or (N, L) if every token has a label -> one index vector for each unit.
        Args:
            values: the result of `values`: the label or the owner of each sample.
            units: number of units, >= 1.
            seed: of the random choices.
        Raises:
            ValueError: there are fewer samples than the units need, or the partition cannot use labels of tokens.
        """

    def values(self, data: Examples) -> Tensor:
        """The values on which the parts depend, by default the training labels. Shapes: -> (N,) or (N, L)."""
        return data.keys

    def parts(self, data: Examples, units: int, seed: int) -> Sequence[Tensor]:
        """The training samples of each unit, computed once in a process: never write into them.

        Shapes: -> one index vector for each unit.
        Raises:
            ValueError: as `split`.
        """
        return _parts(self, _Values(self.values(data)), units, seed)

    def draw(self, data: Examples, units: int, batch: int, index: int, seed: int) -> Sequence[Tensor]:
        """The samples of each unit in round `index`, from its own part, shuffled again in each epoch of the unit.

        A part that is smaller than the unit's share of the batch is used more than once.

        Shapes: -> one index vector for each unit, with `batch` entries together; the first batch % units have one more.
        Args:
            batch: samples of all units together, >= units.
            index: number of the round, from 0.
        Raises:
            ValueError: the batch leaves some unit without a sample.
        """
        _check_batch(batch, units)
        parts = self.parts(data, units, seed)

        def drawn(unit: int) -> Tensor:
            part, share = parts[unit], batch // units + (unit < batch % units)
            return part[_shuffled_sequence(len(part), index * share, share, ("unit", seed, unit))]

        return LazyParts(units, drawn) if isinstance(parts, LazyParts) else tuple(map(drawn, range(units)))


@method("iid", "partition")
class Iid(Partition):
    """Every unit has the same distribution: each round distributes the next `batch` samples of one shuffled order.

    The batch of a round does not depend on the number of units, and each epoch has every sample once. A batch across
    the end of an epoch takes the rest of one order and the start of the next.
    """

    def values(self, data: Examples) -> Tensor:
        return torch.zeros(data.num_train, dtype=torch.int64)  # the number of samples is all that counts

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        check_units(self, len(values), units)
        return _shuffled(len(values), ("split", seed)).clone().tensor_split(units)

    def draw(self, data: Examples, units: int, batch: int, index: int, seed: int) -> tuple[Tensor, ...]:
        _check_batch(batch, units)
        n = data.num_train
        require(batch <= n, f"a batch of {batch} is more than the {n} samples there are; lower the batch")
        return _shuffled_sequence(n, index * batch, batch, ("iid", seed)).tensor_split(units)


@method("dirichlet", "partition")
class Dirichlet(Partition):
    """Every class is distributed among the units in proportions from a symmetric Dirichlet distribution.

    A unit that has its fair number N / units gets nothing of the classes that follow. All proportions are drawn again
    until every unit has `least` samples. Where samples have numbers in place of classes, as in regression, those
    between two quantiles are a class.

    Args:
        alpha: concentration, in (0, 1e6]; lower gives each unit fewer classes.
        least: samples that every unit must have, >= 1; FedMA's experiments have 10.
        quantiles: number of classes into which numbers are cut, about equal in size, >= 2.
    Raises:
        ValueError: 100 draws leave some unit below `least`.
    Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, 2019, arXiv:1905.12022,
        section 4. The fair count is in the published code, not in the text. Compare Hsu et al., 2019,
        arXiv:1909.06335, who draw the classes of a unit instead of the units of a class.
    """

    alpha: float
    least: int = 1
    quantiles: int = 10

    def validate(self) -> None:
        require(0 < self.alpha <= 1e6, f"dirichlet needs alpha in (0, 1e6], got alpha={self.alpha}")
        require(self.quantiles >= 2, f"dirichlet needs quantiles >= 2, got quantiles={self.quantiles}")
        require(self.least >= 1, f"dirichlet needs least >= 1, got least={self.least}")

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        _check_labels(self, values)
        check_units(self, len(values), units, self.least)
        if values.is_floating_point():
            levels = torch.linspace(0, 1, self.quantiles + 1, dtype=values.dtype)[1:-1]
            # np.quantile has no limit on the number of values
            cuts = torch.from_numpy(np.quantile(values.numpy(), levels.numpy()))
            values = torch.bucketize(values, cuts.to(values.dtype), right=True)
        for draw in range(MAX_DRAWS):
            owner = self._owners(values, units, seed, draw)
            sizes = owner.bincount(minlength=units)
            if int(sizes.min()) >= self.least:
                return owner.argsort(stable=True).split(sizes.tolist())
        raise ValueError(
            f"{self!r} leaves some of the {units} units with fewer than {self.least} of {len(values)} samples in each "
            f"of {MAX_DRAWS} draws; raise alpha, or lower least or the number of units"
        )

    def _owners(self, labels: Tensor, units: int, seed: int, draw: int) -> Tensor:
        """The unit of each sample. Shapes: (N,) -> (N,)."""
        generator = make_generator("dirichlet", seed, draw)
        rng = np.random.default_rng(generator.initial_seed())
        owner = torch.empty(len(labels), dtype=torch.int64)
        sizes = np.zeros(units)
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            open_units = sizes * units < len(labels)
            # shares of all units, renormalised over some of them, again have a Dirichlet distribution
            share = np.zeros(units)
            share[open_units] = rng.dirichlet(np.full(open_units.sum(), self.alpha))
            ends = np.rint(share.cumsum() / share.sum() * len(members)).astype(int)
            counts = np.diff(ends, prepend=0)
            owner[members] = torch.from_numpy(np.arange(units).repeat(counts))
            sizes += counts
        return owner


@method("shards", "partition")
class Shards(Partition):
    """The samples are sorted by label or number and cut into equal shards, and each unit gets some random shards.

    Args:
        per_unit: number of shards of each unit, >= 1; lower gives each unit fewer classes.
    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017,
        arXiv:1602.05629, section 3. As published; shards differ by one sample if they cannot be equal.
    """

    per_unit: int = 2

    def validate(self) -> None:
        require(self.per_unit >= 1, f"shards needs per_unit >= 1, got per_unit={self.per_unit}")

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        _check_labels(self, values)
        check_units(self, len(values), units, self.per_unit)
        shuffled = _shuffled(len(values), ("split", seed))
        pieces = shuffled[values[shuffled].argsort(stable=True)].tensor_split(units * self.per_unit)
        shards = torch.randperm(len(pieces), generator=make_generator("shards", seed)).reshape(units, self.per_unit)
        return tuple(torch.cat([pieces[i] for i in unit_shards]) for unit_shards in shards.tolist())


@method("by_client", "partition")
class ByClient(Partition):
    """Worker i trains on the examples of client i, of data that keep their clients apart such as `client_datasets`.

    Only the clients that a process works for are loaded in it.

    Raises:
        ValueError: the data have no clients of their own, or another number of clients than there are units.
    """

    exhaustive: ClassVar[bool] = False

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        raise ValueError("by_client() takes the clients of the data as they are, and nothing else splits by them")

    def parts(self, data: Examples, units: int, seed: int) -> Sequence[Tensor]:
        data.check_clients(units)
        return LazyParts(units, data.client_train)


class LazyParts(Sequence[Tensor]):
    """The samples of each unit, looked up when they are asked for."""

    def __init__(self, units: int, part: Callable[[int], Tensor]) -> None:
        self._units, self._part = units, part

    def __len__(self) -> int:
        return self._units

    def __getitem__(self, unit: Any) -> Any:
        if not 0 <= unit < self._units:
            raise IndexError(unit)
        return self._part(unit)


def check_units(partition: Partition, n: int, units: int, each: int = 1) -> None:
    """Raises ValueError unless there is a unit, and n samples suffice for `each` samples of every unit."""
    require(units >= 1, f"{partition!r} needs at least one unit, got {units}")
    need = units * each
    require(n >= need, f"{partition!r} needs {need} samples for {units} units, {each} each, and there are {n}")


def _check_labels(partition: Partition, labels: Tensor) -> None:
    require(
        labels.dim() == 1, f"{partition!r} distributes classes, and each token of these texts has one; choose iid()"
    )


def _check_batch(batch: int, units: int) -> None:
    require(units >= 1, f"a batch is shared among at least one unit, got {units}")
    sentence = f"a batch of {batch} leaves some of {units} units without a sample; raise the batch to {units} or more"
    require(batch >= units, sentence)


@lru_cache(maxsize=8)
def _shuffled(n: int, key: tuple[object, ...]) -> Tensor:
    return torch.randperm(n, generator=make_generator("shuffle", *key))


def _shuffled_sequence(n: int, start: int, count: int, key: tuple[object, ...]) -> Tensor:
    """Entries start .. start + count - 1 of an endless sequence: one shuffled order of n after the other."""
    pieces = []
    while count:
        epoch, place = divmod(start, n)
        piece = _shuffled(n, (*key, epoch))[place : place + count]
        pieces.append(piece)
        start, count = start + len(piece), count - len(piece)
    return torch.cat(pieces)


class _Values:
    """Labels or owners as a key of the cache; two keys are equal if their values are."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.digest = hashlib.blake2b(values.contiguous().numpy().data, digest_size=16).digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Values) and self.digest == other.digest


@lru_cache(maxsize=4)
def _parts(partition: Partition, values: _Values, units: int, seed: int) -> tuple[Tensor, ...]:
    return partition.split(values.values, units, seed)
