# SPDX-License-Identifier: Apache-2.0
"""The step sizes of atomo-convergence."""

from __future__ import annotations

from dataclasses import replace

from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.tuning import plot_tuning, tuning_tables
from phalanx_experiments.recipes.atomo_convergence import METHODS, PUBLISHED, SIZES, optimizer

GRID = tuple(2.0**-k for k in (5, 4, 3, 2))  # the dissertation has 2^-7 to 2^-1, constant
SIGNS = tuple(2.0**-k for k in (12, 11, 10, 9))  # for a step whose entries are all -1 or 1
ROUNDS = {"smoke": 4, "laptop": 200, "paper": 200}


@recipe("atomo-tuning", plot=plot_tuning, tables=tuning_tables)
def atomo_tuning(scale: str) -> dict[str, Run]:
    """Short runs of atomo-convergence at four step sizes each: the least loss on batches not trained on before wins."""
    rounds = ROUNDS[scale]
    runs: dict[str, Run] = {}
    for panel, size in SIZES[scale].items():
        short = replace(size, rounds=rounds, evaluate_every=min(rounds, size.evaluate_every))
        for label, scheme in (PUBLISHED if scale == "paper" else METHODS).items():
            for lr in SIGNS if label == "Signum" else GRID:
                name = f"{panel} {label}" if panel else label
                runs[f"{name}: lr {lr:g}"] = replace(short, optimizer=optimizer(lr)).run(scheme)
    return runs
