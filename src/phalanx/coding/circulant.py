# SPDX-License-Identifier: Apache-2.0
"""The real symmetric circulant code: its shares, its code space, and what is recovered from some of the rows.

Read the n coded values of one coordinate as a function of the worker i at the angle 2 pi i / n. They form a real
trigonometric polynomial of degree m, and the mean of the units' values is its mean. Any 2m + 1 values determine it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from phalanx.core.stage import TooFewRows


@dataclass(frozen=True, eq=False)
class Circulant:
    """The code of n workers that stands s lies.

    Args:
        support: units of one worker, i, i+1, .. from worker i on: 2s + 1 for odd n, 2s + 2 for even n.
        degree: m, of the polynomials; n - support = 2m.
        shares: (support,) coefficients of a worker's units; >= 0, their sum is 1.
        band: (n, 2m + 1) orthonormal basis of the code space; its first column is constant.
    """

    n: int
    s: int
    support: int
    degree: int
    shares: np.ndarray
    band: np.ndarray

    @property
    def checks(self) -> int:
        """Independent equations that honest rows fulfil; a lie uses up two of them, a missing row one."""
        return self.support - 1

    @property
    def weights(self) -> np.ndarray:
        """W, (n, n): row i holds worker i's coefficients."""
        matrix = np.zeros((self.n, self.n))
        for i in range(self.n):
            matrix[i, (i + np.arange(self.support)) % self.n] = self.shares
        return matrix

    def recovery(self, keep: np.ndarray) -> np.ndarray:
        """v, (len(keep),): the shortest vector with v . rows[keep] = the mean of the units, for all honest rows."""
        if len(keep) == self.n:
            return np.full(self.n, 1 / self.n)
        q, r = np.linalg.qr(self.band[keep])
        constant = np.zeros(r.shape[0])
        constant[0] = 1 / np.sqrt(self.n)
        return q @ np.linalg.solve(r.T, constant)

    def amplification(self, missing: int) -> float:
        """The largest sum |v_i| when `missing` rows are left out; adjacent ones are the worst."""
        return float(np.abs(self.recovery(np.arange(missing, self.n))).sum())


@cache
def circulant(n: int, s: int) -> Circulant:
    """The code for n workers and s lies.

    t(theta) = prod_j 2 sin((theta - theta_j) / 2) over the 2m workers j without the unit, scaled so that the n values
    add up to one. Between two of these neighbouring zeros t has one sign, so no share is negative.

    Raises:
        TooFewRows: n <= 2s.
    """
    if n <= 2 * s:
        raise TooFewRows(f"cyclic needs n > 2s workers, got n={n}, s={s}; take more workers or a smaller s")
    support = 2 * s + 1 + (n + 1) % 2
    degree = (n - support) // 2
    place, zeros = np.arange(support), np.arange(support, n)
    # in logarithms, as the product of thousands of factors leaves the range of float64
    logs = np.log(2 * np.sin(np.pi * (zeros[None, :] - place[:, None]) / n)).sum(axis=1)
    shares = np.exp(logs - logs.max())
    # the support is symmetric about its middle; say so to the bit
    shares = shares + shares[::-1]
    return Circulant(n=n, s=s, support=support, degree=degree, shares=shares / shares.sum(), band=_band(n, degree))


def _band(n: int, degree: int) -> np.ndarray:
    # angles by whole numbers modulo n, where cos and sin lose nothing
    turns = np.outer(np.arange(n), np.arange(1, degree + 1)) % n * (2 * np.pi / n)
    waves = np.stack([np.cos(turns), np.sin(turns)], axis=2).reshape(n, -1) * np.sqrt(2 / n)
    return np.concatenate([np.full((n, 1), 1 / np.sqrt(n)), waves], axis=1)
