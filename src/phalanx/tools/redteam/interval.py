# SPDX-License-Identifier: Apache-2.0
"""How uncertain a gain of attack success is: an interval from the seeds and from the number of test examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL, _DRAWS = 0.95, 2000


def gain_interval(
    attacked: Sequence[float], quiet: Sequence[float], examples: int | None
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of attacked - quiet, by a bootstrap over seeds and, in each, over test examples.

    With one seed only the examples are drawn. Always the same for the same numbers.

    Shapes: (n,), (n,), rates in [0, 1], seed by seed.
    Args:
        examples: number that the rates are shares of; None if it is not known, then only the seeds are drawn.
    Returns:
        None where nothing can be drawn: no seed, or a single one without the number of examples.
    """
    a, q = np.asarray(attacked, dtype=float), np.asarray(quiet, dtype=float)
    if not len(a) or (len(a) == 1 and not examples):
        return None
    generator = np.random.default_rng(0)
    picked = generator.integers(len(a), size=(_DRAWS, len(a)))
    a, q = a[picked], q[picked]
    if examples:
        a, q = (generator.binomial(examples, np.clip(each, 0, 1)) / examples for each in (a, q))
    low, high = np.quantile((a - q).mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
