# SPDX-License-Identifier: Apache-2.0
"""SPAHM: matching with variances that are estimated from the neurons themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.matching.buffet import BuffetPrior
from phalanx.matching.matching import Assigned, Matcher, by_size, linear_assignment
from phalanx.matching.normal import Normal
from phalanx.matching.search import Pool, search

FLOOR = 1e-10  # least variance, as a share of the neurons' mean variance


@method("spahm", "matcher")
class Spahm(Matcher):
    """Merges neurons that are likely copies of one, with Gaussians whose variances are estimated for each entry.

    The gains are those of bbp(popularity=2, cap=None, log_determinant=True). After every pass over the clients, with L
    global neurons of n_i copies and means m_i, and N neurons in all,

        mu0 = mean_i m_i,  sigma = sum |w - m_i|^2 / (N - L),  sigma0 = var_i m_i - sigma mean_i(1 / n_i).

    The data decide how many global neurons there are, and entries that are the same in all neurons count for little.
    The average is the plain mean. The objective is twice the log probability; a new estimate can lower it.

    Shapes: J of (L_j, D) -> (L, D).
    Args:
        gamma: expected number of neurons, > 0; it matters little beside the data.
        sweeps: passes over all clients after the first one, at most; >= 0.
    Raises:
        ValueError: gamma is not above 0, sweeps is below 0, or as `match`.
    Source: Yurochkin et al., Statistical Model Aggregation via Parameter Matching, 2019, arXiv:1911.00218, section 4.
        Differs: the first variances come from the better half of the best pairs of two clients; the least variance is
        a share of the mean variance; the average is not shrunk towards mu0 by sigma / (n sigma0 + sigma), which needs
        the estimates and is small where neurons match.
    """

    gamma: float = 7.0
    sweeps: int = 10

    def validate(self) -> None:
        require(0 < self.gamma < math.inf, f"spahm needs gamma > 0, got gamma={self.gamma}")
        require(self.sweeps >= 0, f"spahm needs sweeps >= 0, got sweeps={self.sweeps}")

    def assign(self, layers: Sequence[Tensor], bias_columns: Sequence[int], seed: int) -> Assigned:
        prior = BuffetPrior(self.gamma, 2, None, len(layers))
        return search(layers, initial_model(layers), prior, max_new, self.sweeps, seed, estimated_model)

    def posterior(self, mean: Tensor, counts: Tensor, bias_columns: Sequence[int] = ()) -> Tensor:
        return mean


def max_new(num_rows: int, known: int) -> int:
    """The new neurons that a client may open: min(L_j, max(2 L_j - L, 1))."""
    return min(num_rows, max(2 * num_rows - known, 1))


def initial_model(layers: Sequence[Tensor]) -> Normal:
    """Variances from the better half of the best pairs of neurons of the two clients with most neurons.

    A single client is compared with itself.
    """
    wide = [layer.double() for layer in layers]
    rows = torch.cat(wide)
    total = rows.var(dim=0, correction=0)
    first, second = (wide[j] for j in (by_size(layers) * 2)[:2])
    distances = torch.cdist(first, second)
    left, right = linear_assignment(distances.cpu().numpy())
    left, right = torch.from_numpy(left), torch.from_numpy(right)
    nearest = distances[left, right].argsort()[: (len(left) + 1) // 2].cpu()
    sigma = (first[left[nearest]] - second[right[nearest]]).square().mean(dim=0) / 2
    return _floored(rows.mean(dim=0), sigma, total - sigma, total)


def estimated_model(pool: Pool) -> Normal:
    """Mean and variances estimated from the present partition."""
    n = pool.counts.to(pool.sums.device).double()[:, None]
    means = pool.sums / n
    squares = pool.squares()
    copies = n.sum() - len(n)
    sigma = (squares - (n * means.square()).sum(dim=0)) / copies.clamp(min=1)
    sigma0 = means.var(dim=0, correction=0) - sigma * (1 / n).mean()
    return _floored(pool.mean + means.mean(dim=0), sigma, sigma0, squares / n.sum())


def _floored(mean: Tensor, sigma: Tensor, sigma0: Tensor, total: Tensor) -> Normal:
    """The model with variances of at least `FLOOR` times the mean of `total`."""
    floor = float(FLOOR * total.mean()) or 1.0
    return Normal(mean, sigma.clamp(min=floor), sigma0.clamp(min=floor), log_determinant=True)
