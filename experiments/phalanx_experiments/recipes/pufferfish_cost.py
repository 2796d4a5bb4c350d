# SPDX-License-Identifier: Apache-2.0
"""The cost of factorizing once, and the time it saves in each step: tables 4.1, 4.6, 4.19 and 4.20."""

from __future__ import annotations

import phalanx_experiments as pe
from phalanx.tools.report.measured import no_plot
from phalanx.tools.runner.measurement import Job
from phalanx.tools.runner.recipe import recipe
from phalanx_experiments.figures.factorization import PUBLISHED_SVD_S, step_tables, svd_tables

SMALL = ("resnet18-cifar",)
IMAGES = ("vgg19-cifar", "resnet18-cifar")


@recipe("pufferfish-svd", plot=no_plot, tables=svd_tables)
def pufferfish_svd(scale: str) -> dict[str, Job]:
    """Table 4.19: the seconds of the one decomposition of every network, exact and randomized."""
    names = SMALL if scale == "smoke" else tuple(PUBLISHED_SVD_S)
    repeats = {"smoke": 1, "laptop": 2, "paper": 5}[scale]
    return {
        f"{name}, {svd}": pe.svd_cost(name, svd=svd, repeats=repeats) for name in names for svd in ("exact", "auto")
    }


@recipe("pufferfish-speed", plot=no_plot, tables=step_tables)
def pufferfish_speed(scale: str) -> dict[str, Job]:
    """Tables 4.6 and 4.20: training steps, full and hybrid, measured and as multiply-accumulates promise."""
    if scale == "smoke":
        return {"resnet18-cifar, float32": pe.step_cost("resnet18-cifar", batch=4, repeats=1)}
    names = IMAGES if scale == "laptop" else (*IMAGES, "resnet50", "wide-resnet50-2", "transformer-multi30k")
    repeats = {"laptop": 5, "paper": 20}[scale]
    return {
        f"{name}, {precision}": pe.step_cost(name, batch=128, precision=precision, repeats=repeats)
        for name in names
        for precision in ("float32", "bf16")
    }
