# SPDX-License-Identifier: Apache-2.0
"""Linear assignment by SciPy, which is imported when it is asked for."""

from __future__ import annotations

import numpy as np


def assigned(table: np.ndarray, maximize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rows, and their columns, of the assignment of least or greatest sum. Shapes: (m, n) -> (min(m, n),) each."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(table, maximize=maximize)
