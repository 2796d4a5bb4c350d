# SPDX-License-Identifier: Apache-2.0
"""Who trains on which samples.

A unit of work is a worker, or a group of workers that compute alike. Everything is a pure function of the seed and the
round's number, so that a run resumes without a sampler's state.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from phalanx.core.expression import Expression, method, require
from phalanx.core.round import make_generator
from phalanx.data.dataset import Dataset

MAX_DRAWS = 100


class Partition(Expression, ABC):
    """A way to share samples among units.

    Class attribute `exhaustive`: the units' parts are together all samples, however many units there are.
    """

    exhaustive: ClassVar[bool] = True

    @abstractmethod
    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        """The samples that each unit owns: disjoint, none empty, together all where the partition is `exhaustive`.

        Shapes: (N,), or (N, L) where every token has a label -> units index vectors.
        Args:
            values: of each sample, as `values` gives them: its label, or its owner.
        Raises:
            ValueError: there are fewer samples than units need, or it cannot share out labels of tokens.
        """

    def values(self, data: Dataset) -> Tensor:
        """What the parts depend on: the labels of the training part. Shapes: (N,) or (N, L)."""
        return data.train_y

    def parts(self, data: Dataset, units: int, seed: int) -> tuple[Tensor, ...]:
        """The training samples that each unit owns, split once in a process: never write into them.

        Shapes: -> units index vectors.
        Raises:
            ValueError: as `split`.
        """
        return _parts(self, _Values(self.values(data)), units, seed)

    def draw(self, data: Dataset, units: int, batch: int, index: int, seed: int) -> tuple[Tensor, ...]:
        """The samples of each unit in round `index`, from its own part, which it shuffles anew in each of its epochs.

        A part smaller than a unit's share of the batch is passed through more than once.

        Shapes: -> units index vectors, together `batch` long; the first batch % units are one longer.
        Args:
            batch: samples of all units together.
        Raises:
            ValueError: the batch leaves a unit without a sample.
        """
        _check_batch(batch, units)
        drawn = []
        for unit, part in enumerate(self.parts(data, units, seed)):
            share = batch // units + (unit < batch % units)
            drawn.append(part[_walk(len(part), index * share, share, ("unit", seed, unit))])
        return tuple(drawn)


@method("iid", "partition")
class Iid(Partition):
    """Every unit sees the same distribution: each round deals the next `batch` samples of one shuffled order.

    The batch of a round does not depend on the number of units, and each epoch has every sample once; a batch that
    crosses an epoch's end takes the rest of one order and the start of the next.
    """

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        check_units(self, len(values), units)
        return _shuffled(len(values), ("split", seed)).clone().tensor_split(units)

    def draw(self, data: Dataset, units: int, batch: int, index: int, seed: int) -> tuple[Tensor, ...]:
        _check_batch(batch, units)
        n = len(data.train_y)
        require(batch <= n, f"a batch of {batch} is more than the {n} samples there are; lower the batch")
        return _walk(n, index * batch, batch, ("iid", seed)).tensor_split(units)


@method("dirichlet", "partition")
class Dirichlet(Partition):
    """Every class is shared among the units by proportions drawn from a symmetric Dirichlet distribution.

    A unit that owns its fair count N / units gets no share of the classes that follow; the whole is drawn again until
    every unit owns `least` samples.

    Args:
        alpha: concentration in (0, 1e6]; lower gives each unit fewer classes.
        least: samples that every unit owns, >= 1; FedMA's experiments have 10.
    Raises:
        ValueError: 100 draws leave some unit below `least`.
    Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, 2019, arXiv:1905.12022,
        section 4. The fair count is in the published code, not in the text. Compare Hsu et al., 2019,
        arXiv:1909.06335, who draw the classes of a unit instead of the units of a class.
    """

    alpha: float
    least: int = 1

    def validate(self) -> None:
        require(0 < self.alpha <= 1e6, f"dirichlet needs alpha in (0, 1e6], got alpha={self.alpha}")
        require(self.least >= 1, f"dirichlet needs least >= 1, got least={self.least}")

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        _check_labels(self, values)
        check_units(self, len(values), units, self.least)
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
        """(N,): the unit that owns each sample."""
        generator = make_generator("dirichlet", seed, draw)
        rng = np.random.default_rng(generator.initial_seed())
        owner = torch.empty(len(labels), dtype=torch.int64)
        sizes = np.zeros(units)
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            hungry = sizes * units < len(labels)
            # shares of all units, renormalised over some of them, are Dirichlet over these again
            share = np.zeros(units)
            share[hungry] = rng.dirichlet(np.full(hungry.sum(), self.alpha))
            ends = np.rint(share.cumsum() / share.sum() * len(members)).astype(int)
            counts = np.diff(ends, prepend=0)
            owner[members] = torch.from_numpy(np.arange(units).repeat(counts))
            sizes += counts
        return owner


@method("shards", "partition")
class Shards(Partition):
    """The samples sorted by label and cut into equal shards, of which each unit gets a few at random.

    Args:
        per_unit: shards of each unit, >= 1; lower gives each unit fewer classes.
    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017,
        arXiv:1602.05629, section 3. As published; shards differ by one sample where they cannot be equal.
    """

    per_unit: int = 2

    def validate(self) -> None:
        require(self.per_unit >= 1, f"shards needs per_unit >= 1, got per_unit={self.per_unit}")

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        _check_labels(self, values)
        check_units(self, len(values), units, self.per_unit)
        shuffled = _shuffled(len(values), ("split", seed))
        pieces = shuffled[values[shuffled].argsort(stable=True)].tensor_split(units * self.per_unit)
        dealt = torch.randperm(len(pieces), generator=make_generator("shards", seed)).reshape(units, self.per_unit)
        return tuple(torch.cat([pieces[i] for i in hand]) for hand in dealt.tolist())


def check_units(partition: Partition, n: int, units: int, each: int = 1) -> None:
    """Raises ValueError unless there are units and `each` of the n samples for every one."""
    require(units >= 1, f"{partition!r} needs at least one unit, got {units}")
    need = units * each
    require(n >= need, f"{partition!r} needs {need} samples for {units} units, {each} each, and there are {n}")


def _check_labels(partition: Partition, labels: Tensor) -> None:
    require(labels.dim() == 1, f"{partition!r} shares out classes, and each token of these texts has one; choose iid()")


def _check_batch(batch: int, units: int) -> None:
    require(units >= 1, f"a batch is shared among at least one unit, got {units}")
    sentence = f"a batch of {batch} leaves some of {units} units without a sample; raise the batch to {units} or more"
    require(batch >= units, sentence)


@lru_cache(maxsize=8)
def _shuffled(n: int, key: tuple[object, ...]) -> Tensor:
    return torch.randperm(n, generator=make_generator("shuffle", *key))


def _walk(n: int, start: int, count: int, key: tuple[object, ...]) -> Tensor:
    """Places start .. start + count - 1 of an endless sequence: a shuffled order of n, then another, and so on."""
    pieces = []
    while count:
        epoch, place = divmod(start, n)
        piece = _shuffled(n, (*key, epoch))[place : place + count]
        pieces.append(piece)
        start, count = start + len(piece), count - len(piece)
    return torch.cat(pieces)


class _Values:
    """Labels or owners as a key of the cache: equal when their values are."""

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
