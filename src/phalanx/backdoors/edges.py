# SPDX-License-Identifier: Apache-2.0
"""Unusual examples that an attacker labels wrongly, and the expressions that load them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from phalanx.core.expression import Expression, require
from phalanx.data.dataset import Dataset
from phalanx.data.files import MissingData, data_folder
from phalanx.data.images import Images
from phalanx.data.shape import UNSCORED

Pair = tuple[Tensor, Tensor]  # examples and their right labels


class Places(NamedTuple):
    """Indices of the parts of a joined training part, in this order."""

    clean: Tensor
    honest: Tensor
    attack: Tensor
    mix: Tensor


class Rates(NamedTuple):
    """Shares of the attacked test examples, in [0, 1].

    Args:
        success: that are called what the attacker wants.
        right: that are called what they are; None where nobody knows what that is.
    """

    success: float
    right: float | None


@dataclass(frozen=True)
class EdgeSet:
    """Edge-case examples in the form of the data set that they go with: uint8 images at its levels, or its token ids.

    Never write into the tensors.

    Shapes: train_x (E, ...) and true_y (E,), or (E, L) where every token has a label; test_x (T, ...) and test_true
        likewise; taken (K,), origins (E,).
    Args:
        train_x: what the attacker trains on.
        true_y: its right labels; -100 where nobody knows, as of a word that the attacker makes up.
        target: the label that the attacker wants; of texts whose every token has a label, of the last one.
        test_x: what the backdoor is measured on; none of it is trained on.
        source: only test examples of this class are attacked; all of them when None.
        held: examples that honest clients hold, with their right labels; see `shared`.
        mix: ordinary examples with right labels that were published for the attacker's mixture.
        taken: training examples of the data set that these were made of, so that nobody else holds them.
        origins: equal for examples that are one picture turned, and that belong in one hand; all different when None.
    Raises:
        ValueError: examples and labels differ in number, or the target is negative.
    """

    name: str
    train_x: Tensor
    true_y: Tensor
    target: int
    test_x: Tensor
    test_true: Tensor
    source: int | None = None
    held: Pair | None = None
    mix: Pair | None = None
    taken: Tensor | None = None
    origins: Tensor | None = None

    def __post_init__(self) -> None:
        pairs = {"train": (self.train_x, self.true_y), "test": (self.test_x, self.test_true)}
        optional = {"held": self.held, "mix": self.mix}
        for part, (x, y) in {**pairs, **{name: pair for name, pair in optional.items() if pair is not None}}.items():
            require(len(x) == len(y), f"{self.name}: {len(x)} {part} examples, but {len(y)} labels")
        require(self.target >= 0, f"{self.name}: a label is 0 or more, got target={self.target}")
        count = len(self.train_x)
        ok = self.origins is None or self.origins.shape == (count,)
        require(ok, f"{self.name}: there is an origin for each of {count} examples, or none at all")

    def __len__(self) -> int:
        return len(self.train_x)

    @property
    def train_y(self) -> Tensor:
        """The attacker's labels of train_x."""
        return self._wrong(self.true_y)

    @property
    def test_y(self) -> Tensor:
        """The attacker's labels of test_x."""
        return self._wrong(self.test_true)

    @property
    def attacked(self) -> Tensor:
        """Whether the attack is measured on each test example. Shapes: (T,)."""
        true = _last(self.test_true)
        return torch.ones_like(true, dtype=torch.bool) if self.source is None else true == self.source

    def rates(self, predicted: Tensor) -> Rates:
        """How often the backdoor works, and how often it does not. Shapes: (T,) or (T, L) int64."""
        ok = predicted.shape == self.test_true.shape
        have = f"{tuple(predicted.shape)} for {tuple(self.test_true.shape)}"
        require(ok, f"{self.name}: there is one prediction for each label of the test part, got {have}")
        said, true = (_last(y)[self.attacked] for y in (predicted, self.test_true))
        known = bool((true != UNSCORED).all())
        right = float((said == true).double().mean()) if known else None
        return Rates(float((said == self.target).double().mean()), right)

    def relabelled(self, target: int | None) -> EdgeSet:
        """The same examples with another wrong label, or with all labels right (None), for a run without an attack."""
        if target is not None:
            return replace(self, target=target)
        labels = _last(self.true_y).unique().tolist()
        ok = len(labels) == 1 and labels[0] >= 0
        require(ok, f"{self.name}: right labels {labels} are no single class; name a target")
        return replace(self, target=labels[0])

    def pick(self, keep: Tensor) -> EdgeSet:
        """Some of the attacker's examples, by index or mask; test part and honest clients' part stay."""
        origins = None if self.origins is None else self.origins[keep]
        return replace(self, train_x=self.train_x[keep], true_y=self.true_y[keep], origins=origins)

    def honest(self, data: Dataset) -> Dataset:
        """What there is for honest clients: the training part without what was taken, and behind it what they hold.

        Dataset.added counts the latter, for `dealt`.
        """
        return self._extended(data, [self.held] if self.held is not None else [])

    def joined(self, data: Dataset) -> Dataset:
        """`honest`, and behind it the attacker's examples with the attacker's labels, and the mix; see `places`.

        The places of the honest part are those in `honest`, so that a partition of that one serves here.
        """
        pairs = [pair for pair in (self.held, (self.train_x, self.train_y), self.mix) if pair is not None]
        return self._extended(data, pairs)

    def places(self, data: Dataset) -> Places:
        """Indices of the parts of `joined`."""
        sizes = [len(data.train_y) - (0 if self.taken is None else len(self.taken))]
        sizes += [0 if pair is None else len(pair[1]) for pair in (self.held, (self.train_x, self.true_y), self.mix)]
        return Places(*torch.arange(sum(sizes)).split(sizes))

    def _wrong(self, true: Tensor) -> Tensor:
        if true.dim() == 1:
            return torch.full_like(true, self.target)
        wrong = true.clone()
        wrong[:, -1] = self.target
        return wrong

    def _extended(self, data: Dataset, pairs: list[Pair]) -> Dataset:
        x = in_memory(self.name, data)
        for more, labels in pairs:
            forms = [(tuple(a.shape[1:]), a.dtype, tuple(b.shape[1:])) for a, b in ((x, data.train_y), (more, labels))]
            want, have = (f"{shape} of {dtype} with labels {each}" for shape, dtype, each in forms)
            require(forms[0] == forms[1], f"{self.name} has examples {have}, and {data.name} has {want}")
        kept = slice(None)
        if self.taken is not None:
            kept = torch.ones(len(x), dtype=torch.bool)
            kept[self.taken] = False
        count = sum(len(y) for _, y in pairs)
        owners = data.owners
        if owners is not None:
            # nobody in the data owns what is added
            owners = torch.cat([owners[kept], torch.full((count,), -1)])
        return replace(
            data,
            train_x=torch.cat([x[kept], *(more for more, _ in pairs)]),
            train_y=torch.cat([data.train_y[kept], *(labels for _, labels in pairs)]),
            owners=owners,
            added=count,
        )


class EdgeCases(Expression, ABC):
    """Edge-case examples that a run or a measurement names."""

    def load(self, data: Dataset) -> EdgeSet:
        """The examples, made to fit a data set; equal expressions share one copy for it in the process.

        Raises:
            MissingData: the files are not there; nothing is downloaded.
            ValueError: the files are damaged, or the data are of another kind or lack the classes.
        """
        return _load(self, data, data_folder())

    @abstractmethod
    def read(self, data: Dataset) -> EdgeSet:
        """The examples, read or made anew."""


@lru_cache(maxsize=4)
def _load(expression: EdgeCases, data: Dataset, source: Path) -> EdgeSet:
    edges = expression.read(data)
    forms = {edges.true_y.dim(), edges.test_true.dim(), data.train_y.dim()}
    sentence = f"{expression!r} and {data.name} should both have one label an example, or both one a token"
    require(len(forms) == 1, sentence)
    labels = torch.cat([_last(edges.true_y), _last(edges.test_true), torch.tensor([edges.target])])
    high = int(labels.max())
    require(
        high < data.num_classes, f"{expression!r} has a label {high}, and {data.name} has {data.num_classes} classes"
    )
    return edges


def in_memory(name: str, data: Dataset) -> Tensor:
    """The training examples; ValueError where they are read from the disk one by one."""
    x = data.train_x
    if isinstance(x, Images):
        raise ValueError(f"{name} goes with data in memory, and the images of {data.name} are read when asked for")
    return x


def absent(name: str, path: object) -> MissingData:
    """The error for published examples that are not on the disk; they are other people's, so none is downloaded."""
    return MissingData(
        f"{name} needs {path}, which is not there and is never downloaded, as it holds other people's pictures or "
        "words; docs/edge_cases.md says how to come by it, or use rare_styles(), which needs no file, or own_edges(...)"
    )


def _last(labels: Tensor) -> Tensor:
    """The last label of each example, which the attack changes. Shapes: (N,) or (N, L) -> (N,)."""
    return labels if labels.dim() == 1 else labels[:, -1]
