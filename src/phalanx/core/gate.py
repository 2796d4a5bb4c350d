# SPDX-License-Identifier: Apache-2.0
"""The gate admits finite, bounded rows with a plausible weight to an aggregator; any other row is an erasure."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from phalanx.core.coded_rows import CodedRows
from phalanx.core.expression import Expression, method, require
from phalanx.core.precision import accumulation_dtype
from phalanx.core.stack import Note, Stack

UNUSABLE = "a claimed weight of nan"  # the reason for a worker that says its own row is not finite
ABSURD = 1000.0  # a claimed weight above this many medians is an attack or a fault, not a miscount


@method("gate", "policy")
class Gate(Expression):
    """Decides which received rows an aggregator sees, and with which weights.

    A row with NaN, Inf, or an entry beyond `limit` is excluded; so is one whose claimed weight is NaN, infinite, zero,
    negative or above 1000 medians of the claimed weights.

    Args:
        limit: largest magnitude of an entry; 1e18 is where the square of a float32 stops being finite.
        weights: "bounded" cuts claimed weights at `max_weight` medians, "equal" ignores them, "trusted" keeps them.
        max_weight: in medians of the claimed weights, >= 1. At 1 no worker counts more than the median worker, so that
            f Byzantine workers weigh no more than f rows; raise it where data sets differ in size and f is small.
    """

    limit: float = 1e18
    weights: Literal["bounded", "equal", "trusted"] = "bounded"
    max_weight: float = 1.0

    def validate(self) -> None:
        require(0 < self.limit < float("inf"), f"gate needs a finite limit > 0, got limit={self.limit}")
        require(self.max_weight >= 1, f"gate needs max_weight >= 1 median, got max_weight={self.max_weight}")

    def admit(self, stack: Stack, in_place: bool = False) -> Stack:
        """The admitted rows; each other row becomes an erasure with a reason. Shapes: (k, d) -> (m, d), m <= k.

        Args:
            in_place: whether the rows may be written over, which takes no memory for those that are admitted.
        """
        return self.exclude(stack, bad_rows(stack.rows, self.limit), in_place)

    def exclude(self, stack: Stack, bad: dict[int, str], in_place: bool = False) -> Stack:
        """The rows that are not bad and have a plausible weight; for rows that were looked at in several places.

        Args:
            bad: by position, why a row is not finite or absurdly large.
            in_place: of `admit`.
        """
        false_rows = [Note("false_row", w, reason=reason) for i, reason in bad.items() for w in stack.sources[i]]
        stack = stack.erase({**bad, **_bad_weights(stack.weights)}, in_place).note(false_rows)
        return replace(stack, weights=self._bound(stack.weights), gated=True)

    def _bound(self, weights: torch.Tensor) -> torch.Tensor:
        if self.weights == "equal":
            return torch.ones_like(weights)
        if self.weights == "trusted" or not len(weights):
            return weights
        return weights.clamp(max=self.max_weight * float(weights.median()))


def admit(stack: Stack) -> Stack:
    """Passes a stack through the default gate, unless its rows are known to be finite and bounded."""
    return stack if stack.gated else Gate().admit(stack)


def bad_rows(rows: torch.Tensor, limit: float) -> dict[int, str]:
    """By position, why a row is not finite or has an entry beyond the limit."""
    if not rows.numel():
        return {}
    if isinstance(rows, CodedRows) and not rows.is_read:
        bounds = torch.tensor(rows.bounds, dtype=torch.float64)
        norms = torch.maximum(bounds, _norms(rows.installed)) if rows.installed.numel() else bounds
    else:
        norms = _norms(rows)
    doubtful = (~(norms <= limit)).nonzero().flatten().tolist()
    reasons = {}
    for i in doubtful:
        # a coded row is decoded for that, alone
        row = rows.row(i) if isinstance(rows, CodedRows) else rows[i]
        value = float(torch.linalg.vector_norm(row, ord=torch.inf, dtype=accumulation_dtype(rows.dtype)))
        if value <= limit:
            continue
        special = "NaN" if value != value else "Inf" if value == float("inf") else ""
        reasons[i] = special or f"an entry of size {value:.3g} (limit {limit:.3g})"
    return reasons


def _norms(rows: torch.Tensor) -> torch.Tensor:
    # the Euclidean norm is ten times as fast as the largest magnitude, bounds it, and is NaN or Inf if an entry is
    return torch.linalg.vector_norm(rows, dim=1, dtype=accumulation_dtype(rows.dtype)).to("cpu", torch.float64)


def _bad_weights(weights: torch.Tensor) -> dict[int, str]:
    good = weights[weights.isfinite() & (weights > 0)]
    most = ABSURD * float(good.median()) if len(good) else float("inf")
    return {
        i: f"a claimed weight of {w:.4g}"
        for i, w in enumerate(weights.tolist())
        if not (0 < w <= most and w != float("inf"))
    }
