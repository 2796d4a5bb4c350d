# SPDX-License-Identifier: Apache-2.0
"""Fourier and cosine bases as atoms."""

from __future__ import annotations

import torch
from torch import Tensor

from phalanx.codecs.atomo.dictionary import Dictionary
from phalanx.core.expression import method


@method("fourier", "atoms")
class Fourier(Dictionary):
    """The waves cas(2 pi <k, x / shape>) = cos + sin over all dimensions of a tensor, an orthonormal real basis.

    Source: Hartley, A more symmetrical Fourier analysis, 1942; Wang et al., ATOMO, 2018, arXiv:1806.04090, names
        Fourier atoms. Differs: the real form, in which a coefficient is one real number.
    """

    def coefficients(self, x: Tensor) -> Tensor:
        return _hartley(x).reshape(-1)

    def combine(self, lam: Tensor, shape: torch.Size) -> Tensor:
        # the transform is its own inverse
        return _hartley(lam.reshape(shape))


def _hartley(x: Tensor) -> Tensor:
    if x.dim() == 0 or x.numel() == 0:
        return x
    waves = torch.fft.fftn(x, norm="ortho")
    return waves.real - waves.imag


@method("dct", "atoms")
class Dct(Dictionary):
    """The orthonormal DCT-II over all dimensions of a tensor; smooth tensors have few large coefficients.

    Source: Ahmed, Natarajan, Rao, Discrete cosine transform, 1974.
    """

    def coefficients(self, x: Tensor) -> Tensor:
        return _cosines(x, "dctn").reshape(-1)

    def combine(self, lam: Tensor, shape: torch.Size) -> Tensor:
        return _cosines(lam.reshape(shape), "idctn")


def _cosines(x: Tensor, transform: str) -> Tensor:
    import scipy.fft

    if x.dim() == 0 or x.numel() == 0:
        return x
    waves = getattr(scipy.fft, transform)(x.detach().cpu().numpy(), norm="ortho")
    return torch.from_numpy(waves).to(x)
