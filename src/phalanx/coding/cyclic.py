# SPDX-License-Identifier: Apache-2.0
"""Every worker sends a combination of 2s + 1 gradients; s false rows are located and the mean solved for."""

from __future__ import annotations

import secrets
from contextlib import suppress
from functools import cache
from typing import ClassVar

import numpy as np
import torch

from phalanx.aggregators.kernels.columns import PIECE
from phalanx.coding.circulant import Circulant, circulant
from phalanx.coding.code import Code, TooManyFaults
from phalanx.coding.fault_location import Locator, Unexplained
from phalanx.coding.projection import sweep
from phalanx.core.allocation import Allocation
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Kept, Scope
from phalanx.core.trees import State

LIMIT = 0.05  # relative error of the result at which a code is refused
_SAMPLE = 32  # a first guess is made from one column in so many
_FINEST = 2.0**-44  # rounding of projections in float64: a finer wire shows no finer faults


@method("cyclic", "aggregator")
class Cyclic(Code):
    """The mean of n units, of which each worker computes 2s + 1 (2s + 2 for even n) and sends one real combination.

    Of one coordinate, the n honest rows are values of a trigonometric polynomial of degree m = (n - support) / 2 at the
    angles 2 pi i / n, and the mean of the units is its mean. False rows are found once for whole rows, from four random
    projections that nobody knows before: they break the equations that honest rows fulfil. The mean is then the
    combination of least norm of all rows that are left, added up in float64. One pass over the rows, linear in n d: it
    combines them for the false rows that a few of the columns show, and a second pass mends a wrong guess.

    l lies and e missing rows are recovered from while 2 l + e <= 2 s. The result is exact up to the rounding of the
    rows, enlarged by at most `amplification(n)` when the excluded workers are neighbours. A lie of the size of that
    rounding stays, and does as little. Neighbours that know all rows can choose lies that look, up to rounding, like
    lies of others: `ambiguity(n)` times the rounding is the largest; repetition(r) has no such limit.

    Notes: "outvoted" for each worker whose row is false.

    Shapes: (n, d) -> (1, d), n > 2s.
    Args:
        s: lies to stand, >= 0.
        noise: relative rounding of what crossed the wire, in (0, 1); None for that of the rows' dtype. Give it behind a
            codec that rounds, such as 2**-11 for half(). The code needs rows that add up: no other lossy codec fits.
    Raises:
        TooManyFaults: more than s rows are false, or so it seems; or what is left gives the mean to no better than 5 %.
        ValueError: n <= 2s, or rounding would be enlarged beyond 5 %; the sentence names the way out.
    Source: Chen et al., DRACO: Byzantine-resilient Distributed Training via Redundant Gradients, 2018,
        arXiv:1803.09877, section 4.2. Differs: the frequencies of the code are symmetric about zero, so that rows are
        real and half as long; projections are new and secret in every round; the rank of the locator's equations is
        detected; the mean is solved for from all rows that are left; and what remains is checked.
    """

    requirement: ClassVar[str] = "n > 2s"

    s: int
    noise: float | None = None

    @property
    def needs(self) -> Kept:
        return "sums" if self.noise is None else "equality"

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        require(self.s >= 0, f"cyclic needs s >= 0, got s={self.s}")
        require(self.noise is None or 0 < self.noise < 1, f"cyclic needs a noise in (0, 1), got noise={self.noise}")

    def tolerates(self, n: int) -> int:
        return self.s

    def least(self, f: int) -> int:
        return 1

    def merges(self, n: int) -> int:
        self._check(n, self.noise or torch.finfo(torch.float32).eps)
        return 1

    def assign(self, n: int, seed: int = 0, index: int = 0) -> Allocation:
        code = circulant(n, self.s)
        units, shares = [], []
        for i in range(n):
            assigned = sorted(((i + k) % n, float(share)) for k, share in enumerate(code.shares))
            units.append(tuple(unit for unit, _ in assigned))
            shares.append(tuple(share for _, share in assigned))
        return Allocation(tuple(units), tuple(shares))

    def amplification(self, n: int) -> float:
        """The result's relative error, with s neighbours excluded, in units of the rounding of the wire's numbers.

        A row is the rounded sum of `support` rounded terms: sqrt(support) times the sum of the decoder's factors.
        """
        return _amplification(n, self.s, self.s)

    def ambiguity(self, n: int) -> float:
        """The same with 2s neighbours excluded: so large may lies of s of them be and look like lies of the others."""
        return _amplification(n, self.s, circulant(n, self.s).checks)

    def _check(self, n: int, noise: float) -> None:
        error = self.amplification(n) * noise
        if error > LIMIT:
            raise ValueError(
                f"cyclic(s={self.s}) with n={n} enlarges rounding of {noise:.1g} to {error:.1g}, above {LIMIT}; take a "
                f"smaller s, more exact rows, or repetition(r={2 * self.s + 1})"
            )

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        if any(len(source) != 1 for source in stack.sources):
            raise ValueError("cyclic decodes the rows of single workers; put it before the stages that merge rows")
        ids = np.array(stack.ids)
        n = max(len(ids) + stack.erased, round.world.size, int(ids.max()) + 1)
        noise = max(self.noise or torch.finfo(stack.rows.dtype).eps, _FINEST)
        self._check(n, noise)
        code = circulant(n, self.s)
        order = np.argsort(ids)
        if n - len(ids) > code.checks:
            raise TooManyFaults(f"cyclic(s={self.s}): {n - len(ids)} of n={n} rows are missing", stack.notes)
        # a row is a sum of `support` rounded terms
        rounding = 0.3 * noise * np.sqrt(code.support + 1)
        floor = float(np.sqrt(max(1, stack.rows.shape[1]))) * torch.finfo(stack.rows.dtype).smallest_normal * noise

        def located(projections: np.ndarray) -> tuple[int, ...]:
            seen = np.zeros((n, 4))
            seen[ids] = projections
            return Locator(code, seen, ids[order].tolist(), rounding, floor).faults()

        key, guess = _secret(round), ()
        if stack.rows.shape[1] > PIECE:
            with suppress(Unexplained):
                guess = located(sweep(stack.rows, key, np.zeros(len(ids)), _SAMPLE)[0])
        projections, row = sweep(stack.rows, key, _shares(code, ids, guess))
        try:
            false_ids = located(projections)
        except Unexplained:
            missing = f" and {n - len(ids)} missing" if n > len(ids) else ""
            raise TooManyFaults(
                f"cyclic(s={self.s}): more than {self.s} of n={n} rows are false{missing}, or they are less exact than "
                f"{noise:.1g}; nothing fits them",
                stack.notes,
            ) from None
        shares = _shares(code, ids, false_ids)
        left = len(ids) - len(false_ids)
        error = float(np.sqrt(code.support) * np.abs(shares).sum()) * noise
        if left < n and error > LIMIT:
            raise TooManyFaults(
                f"cyclic(s={self.s}): the {left} rows left of n={n} give the mean to {error:.1g} only, above "
                f"{LIMIT}: too many neighbours are missing or false",
                stack.notes,
            )
        if false_ids != guess:
            row = sweep(stack.rows, key, shares)[1]
        notes = [Note("outvoted", worker, reason="its row breaks the code") for worker in false_ids]
        return stack.one(row).note(notes), {}


def _shares(code: Circulant, ids: np.ndarray, false: tuple[int, ...]) -> np.ndarray:
    """What each of these workers' rows counts for; a false one nothing, as to leave it out would copy the others."""
    shares = np.zeros(len(ids))
    kept = [i for i in np.argsort(ids).tolist() if int(ids[i]) not in false]
    shares[kept] = code.recovery(ids[kept])
    return shares


@cache
def _amplification(n: int, s: int, gone: int) -> float:
    code = circulant(n, s)
    return float(np.sqrt(code.support)) * code.amplification(min(gone, code.checks))


def _secret(round: Round) -> int:
    """A key that no worker knew when it sent its row, the same in all processes that decode.

    With keys of their own, processes could differ on a lie of the size of the rounding, and their models from then on.
    """
    return round.world.broadcast({"key": secrets.randbits(63)})["key"]
