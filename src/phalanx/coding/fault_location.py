# SPDX-License-Identifier: Apache-2.0
"""Which rows of a circulant code are false, from a few random projections of them.

Legend: q projections, e rows that are missing, z_t = exp(2 pi i t / n) the place of worker t on the unit circle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, islice

import numpy as np

from phalanx.coding.circulant import Circulant

TOLERANCE = 5.0  # in noise levels of a check; honest rounding stays below 1
_SETS = 500  # of neighbours, looked at one by one


class Unexplained(ValueError):
    """No set of rows of the allowed size explains what arrived."""


class Locator:
    """The search for the smallest set of rows without which the others agree with the code up to rounding.

    Args:
        code: of n workers.
        seen: (n, q) projections; what stands for missing workers is not read.
        present: workers whose rows are here, ascending.
        noise: rounding of a row relative to its size.
        floor: rounding of a projection that does not depend on the size of the row.
    """

    def __init__(self, code: Circulant, seen: np.ndarray, present: Sequence[int], noise: float, floor: float) -> None:
        self.code, self.seen = code, seen
        self.present = np.asarray(present, dtype=np.int64)
        self.spare = code.checks - (code.n - len(self.present))  # checks that missing rows left
        sizes = np.sqrt((seen**2).mean(axis=1))
        # a row's rounding goes with its own size, so a huge lie does not hide a small one; the median, because a row
        # in which gradients cancel is rounded like its neighbours
        typical = float(np.median(sizes[self.present])) if len(self.present) else 0.0
        self.sigma = noise * np.maximum(sizes, typical) + floor
        places = np.arange(code.n)
        self.points = np.exp(2j * np.pi * places / code.n)
        high = code.degree + 1 + np.arange(code.checks)
        self.waves = np.exp(2j * np.pi * (np.outer(high, places) % code.n) / code.n)

    def faults(self) -> tuple[int, ...]:
        """The false rows, ascending.

        Raises:
            Unexplained: more than half as many as there are checks left, or so it seems.
        """
        most = max(self.spare, 0) // 2
        for guess in self._guesses(most):
            if self._agrees(guess):
                found = self._pruned(guess)
                if len(found) <= most:
                    return tuple(sorted(found))
        raise Unexplained

    def _guesses(self, most: int) -> Iterator[list[int]]:
        """Sets of rows, the likelier and smaller ones first; one check at least is left to judge each."""
        peeled: list[int] = []
        while True:
            left = self.spare - len(peeled)
            for count in range(left // 2 + 1):
                if count + len(peeled) < max(self.spare, 1):
                    yield peeled + self._roots(peeled, count)
            if len(peeled) >= most:
                break
            peeled = [*peeled, self._worst(peeled)]
        for count in range(1, most + 1):
            yield self._exchanged(count)
        ring = np.concatenate([self.present, self.present]).tolist()
        for start in range(len(self.present)):
            yield ring[start : start + most]
        # neighbours whose lies imitate one another's: the rows among which they are, then every set of those
        for start in range(len(self.present)):
            window = ring[start : start + self.spare - 1]
            if most > 1 and self._agrees(window):
                yield from map(list, islice(combinations(window, most), _SETS))

    def _roots(self, known: Sequence[int], count: int) -> list[int]:
        """The `count` rows nearest to the roots of the locator polynomial, with known faults as erasures.

        With g(z) = prod_j (z - z_j) over missing and known rows, the syndromes sum_t g(z_t) y_t z_t^f are those of the
        other rows alone; the polynomial whose roots are the faults annihilates their Hankel matrix.
        """
        if count == 0:
            return []
        keep = self._without(known)
        gone = np.setdiff1d(np.arange(self.code.n), keep)
        factors = np.prod(self.points[keep][:, None] - self.points[gone][None, :], axis=1)
        length = self.code.checks - len(gone)
        syndromes = self.waves[:length, keep] @ (factors[:, None] * self.seen[keep])
        windows = np.arange(length - count)[:, None] + np.arange(count + 1)[None, :]
        hankel = syndromes[windows].transpose(2, 0, 1).reshape(-1, count + 1)
        top = np.abs(hankel).max()
        if not top > 0:
            return keep[:count].tolist()
        locator = np.linalg.svd(hankel / top, full_matrices=True)[2][-1].conj()
        values = np.abs(np.polynomial.polynomial.polyval(self.points[keep], locator))
        return keep[np.argsort(values, kind="stable")[:count]].tolist()

    def _worst(self, known: Sequence[int]) -> int:
        """The row whose removal explains most."""
        keep, checks, rest = self._checked(known)
        gains = ((checks.T @ rest) ** 2).sum(axis=1) / np.maximum((checks**2).sum(axis=0), 1e-300)
        return int(keep[gains.argmax()])

    def _exchanged(self, count: int) -> list[int]:
        """Rows chosen one by one, then each exchanged for a better one while that helps."""
        chosen: list[int] = []
        for _ in range(count):
            chosen.append(self._worst(chosen))
        for _ in range(3):
            before = sorted(chosen)
            for row in before:
                chosen.remove(row)
                chosen.append(self._worst(chosen))
            if sorted(chosen) == before:
                break
        return chosen

    def _pruned(self, guess: Sequence[int]) -> list[int]:
        """Without the rows that agree with the others after all."""
        kept = list(guess)
        for row in guess:
            fewer = [r for r in kept if r != row]
            if self._agrees(fewer):
                kept = fewer
        return kept

    def _agrees(self, guess: Sequence[int]) -> bool:
        """Whether the rows outside the guess fulfil the checks among them, up to rounding."""
        _, checks, rest = self._checked(guess)
        return bool((rest**2).mean() <= TOLERANCE**2) if len(checks) else True

    def _checked(self, guess: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows outside the guess, orthonormal checks of theirs, and their values, all in noise levels."""
        keep = self._without(guess)
        sigma = self.sigma[keep, None]
        scale = sigma.min()
        full = np.linalg.qr(self.code.band[keep] * (scale / sigma), mode="complete")[0]
        checks = full[:, self.code.band.shape[1] :].T
        return keep, checks, checks @ (self.seen[keep] / sigma)

    def _without(self, guess: Sequence[int]) -> np.ndarray:
        return self.present[~np.isin(self.present, np.asarray(guess, dtype=np.int64))]
