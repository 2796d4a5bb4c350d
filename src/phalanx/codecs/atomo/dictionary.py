# SPDX-License-Identifier: Apache-2.0
"""Atoms that worker and server know, so that only their indices and coefficients are sent."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from phalanx.codecs.atomo import elias_fano
from phalanx.codecs.atomo.atoms import Atoms, Forms
from phalanx.core.expression import method
from phalanx.core.payload import BadPayload


class Dictionary(Atoms):
    """A fixed set of atoms; a subclass has `coefficients` and `combine`, and `most` if there are other than d atoms.

    An atom that is kept for certain is sent as its index and coefficient. All others decode to the same magnitude
    |lam_i| / p_i = 1 / c, so each is sent as its index and sign, and the magnitude once for each tensor.
    """

    @abstractmethod
    def coefficients(self, x: Tensor) -> Tensor:
        """The coefficients lam (m,) of x, so that x = combine(lam, x.shape)."""

    @abstractmethod
    def combine(self, lam: Tensor, shape: torch.Size) -> Tensor:
        """The tensor sum_i lam_i a_i of the given shape."""

    def most(self, shape: torch.Size) -> int:
        return shape.numel()

    def analyse(self, x: Tensor) -> tuple[Tensor, Any]:
        return self.coefficients(x), x.shape

    def forms(self, shape: torch.Size, dtype: torch.dtype, ones: int, others: int) -> Forms:
        n = self.most(shape)
        size = elias_fano.length(n, ones) + elias_fano.length(n, others)
        return {
            "indices": (torch.uint8, (size,)),
            "signs": (torch.uint8, (-(-others // 8),)),
            "values": (dtype, (ones + (others > 0),)),
        }

    def write(self, known: Any, coefficients: Tensor, p: Tensor, kept: Tensor) -> dict[str, Tensor]:
        n, is_certain = self.most(known), p[kept] >= 1
        ones, others = kept[is_certain], kept[~is_certain]
        lam = coefficients[others]
        # all are equal up to rounding; if an atom had a tiny p, the largest is the exact one
        magnitude = (lam.to(torch.float64).abs() / p[others]).amax(0, keepdim=True) if len(others) else p[:0]
        return {
            "indices": torch.cat([elias_fano.write(ones, n), elias_fano.write(others, n)]),
            "signs": elias_fano.pack_bits(lam < 0),
            "values": torch.cat([coefficients[ones], magnitude.to(coefficients)]),
        }

    def read(
        self, parts: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype, ones: int, others: int
    ) -> Tensor:
        n, values = self.most(shape), parts["values"]
        cut = elias_fano.length(n, ones)
        certain = elias_fano.read(parts["indices"][:cut], n, ones)
        random = elias_fano.read(parts["indices"][cut:], n, others)
        negative = elias_fano.unpack_bits(parts["signs"], others)
        if bool((values[ones:] < 0).any()):
            raise BadPayload("a negative magnitude")
        lam = values.new_zeros(n)
        lam[random] = 1.0 - 2.0 * negative.to(lam)
        if bool(lam[certain].any()):
            raise BadPayload("one atom twice")
        if others:
            lam *= values[ones]
        lam[certain] = values[:ones]
        return self.combine(lam, shape)


@method("entries", "atoms")
class Entries(Dictionary):
    """The entries of a tensor as atoms, which are the standard basis. As published."""

    def coefficients(self, x: Tensor) -> Tensor:
        return x.reshape(-1)

    def combine(self, lam: Tensor, shape: torch.Size) -> Tensor:
        return lam.reshape(shape)
