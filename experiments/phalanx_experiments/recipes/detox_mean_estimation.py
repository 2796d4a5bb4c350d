# SPDX-License-Identifier: Apache-2.0
"""Mean estimation with and without DETOX: figure 7.6."""

from __future__ import annotations

import phalanx_experiments as pe
from phalanx.tools.runner.measurement import Job
from phalanx.tools.runner.recipe import recipe
from phalanx_experiments.figures.mean_estimation import mean_estimation_tables, plot_mean_estimation

DRAWS = {"laptop": 1, "paper": 5}


@recipe("detox-mean-estimation", plot=plot_mean_estimation, tables=mean_estimation_tables)
def detox_mean_estimation(scale: str) -> dict[str, Job]:
    """The error of robust means of normal samples by dimension, with and without a vote, at the published size."""
    if scale == "smoke":
        return {"draw 1": pe.mean_estimation(nodes=2200, byzantine=199, dims=(20, 60, 100), groups=20)}
    return {f"draw {seed + 1}": pe.mean_estimation(seed=seed) for seed in range(DRAWS[scale])}
