# SPDX-License-Identifier: Apache-2.0
"""Likelihood of neurons as noisy copies of global neurons, all Gaussian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normal:
    """Copies w ~ N(theta, sigma) of global neurons theta ~ N(mean, sigma0), with theta integrated out.

    Entries are independent. Rows and sums are those of w - mean. All values are twice the logarithm of a probability.

    Args:
        mean: prior mean of a neuron, (D,).
        sigma: variance of a copy around its global neuron, (1,) or (D,).
        sigma0: variance of a global neuron around the mean, of the shape of sigma.
        log_determinant: whether Gaussians are normalised; without it a wide Gaussian costs nothing.
    """

    mean: Tensor
    sigma: Tensor
    sigma0: Tensor
    log_determinant: bool

    def gains(self, rows: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """log N(w; theta_i, sigma + variance of theta_i) for each row w and neuron i of n_i copies with sum T_i.

        Here S_i = 1/sigma0 + n_i/sigma and theta_i = T_i / (sigma S_i). It takes one matrix product, or two if the
        variances differ between entries. A neuron without copies is a new one. The terms of the row alone are left
        out, as no assignment changes them.

        Shapes: (K, D), (L, D), (L,) -> (K, L).
        """
        a, total = self._precisions(counts)
        shrink = a / total
        weight = a * total / (a + total)
        if total.shape[1] == 1:
            inner = rows @ sums.T
            lengths = shrink.square() * sums.square().sum(dim=1, keepdim=True)
            distances = inner.mul_(-2 * shrink.T).add_(lengths.T).add_(rows.square().sum(dim=1, keepdim=True))
            out = distances.mul_(-weight.T)
        else:
            centres = shrink * sums
            weighted = weight * centres
            out = 2 * rows @ weighted.T - rows.square() @ weight.T - (weighted * centres).sum(dim=1)
        if self.log_determinant:
            out -= self._entries(torch.log1p(shrink))
        return out

    def evidence(self, sums: Tensor, counts: Tensor, squares: Tensor) -> float:
        """The likelihood of all neurons and their copies; `squares` (D,) is the sum over all copies."""
        a, total = self._precisions(counts)
        value = (a.square() / total * sums.square()).sum() - (a * squares).sum()
        if self.log_determinant:
            logs = (counts.sum() * a.log() - (self.sigma0 * total).log().sum(dim=0)).expand(sums.shape[1])
            value = value + logs.sum()
        return float(value)

    def _precisions(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """1/sigma, and S for each neuron."""
        a = 1 / self.sigma
        return a, 1 / self.sigma0 + counts[:, None] * a

    def _entries(self, x: Tensor) -> Tensor:
        """The sum over all D entries; a single column counts for each of them."""
        return x.sum(dim=1) * (len(self.mean) // x.shape[1])
