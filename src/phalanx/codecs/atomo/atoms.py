# SPDX-License-Identifier: Apache-2.0
"""Atoms: how a tensor is written as a sum, and how some of its terms are sent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from phalanx.core.expression import Expression

Forms = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # dtype and shape of each part of a message


class Atoms(Expression, ABC):
    """A decomposition x = sum_i lam_i a_i of a tensor into atoms of norm one, which may depend on x.

    The atoms need not be orthogonal: ATOMO stays unbiased, and its probabilities stay optimal, as the inner products of
    different atoms add a term to the second moment that does not depend on them (Lemma 3.1). A fixed set of atoms
    is easier to write as a `Dictionary`.
    """

    @property
    def vectors(self) -> bool:
        """Whether the parts are vectors whose products are summed, so that an unbiased codec can code each of them."""
        return False

    @abstractmethod
    def most(self, shape: torch.Size) -> int:
        """The largest number of atoms that a tensor of this shape has."""

    @abstractmethod
    def analyse(self, x: Tensor) -> tuple[Tensor, Any]:
        """The coefficients (m,), m <= most(shape), and an analysis of x for `write`; x is float32 or float64.

        If an entry of x is NaN or Inf, a coefficient has to be so too.
        """

    @abstractmethod
    def forms(self, shape: torch.Size, dtype: torch.dtype, ones: int, others: int) -> Forms:
        """The forms of the parts for `ones` atoms kept for certain and `others` kept by chance; dtype is that of x."""

    def num_bytes(self, shape: torch.Size, dtype: torch.dtype, ones: int, others: int) -> int:
        """The number of bytes of the parts that `write` returns."""
        forms = self.forms(shape, dtype, ones, others).values()
        return sum(math.prod(form) * dtype.itemsize for dtype, form in forms)

    @abstractmethod
    def write(self, known: Any, coefficients: Tensor, p: Tensor, kept: Tensor) -> dict[str, Tensor]:
        """The parts of a message for the kept atoms: lam_i / p_i a_i for i in kept, an ascending index tensor."""

    @abstractmethod
    def read(
        self, parts: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype, ones: int, others: int
    ) -> Tensor:
        """The tensor that parts of the right forms describe.

        Raises:
            BadPayload: `write` does not write such parts.
        """
