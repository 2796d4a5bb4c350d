# SPDX-License-Identifier: Apache-2.0
"""FedMA with communication against FedAvg and FedProx: figures 5.2 and 5.3, tables 5.1, 5.2, 5.6 and 5.7."""

from __future__ import annotations

from dataclasses import dataclass

from phalanx.tools.runner.measurement import Job
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.federated_curves import convergence_tables, plot_convergence
from phalanx_experiments.figures.sweep import plot_sweep, sweep_tables
from phalanx_experiments.recipes.fedma import NETS


@dataclass(frozen=True)
class Tuned:
    """The length of a comparison, and the epochs of each method in it.

    Args:
        passes: of FedMA; the others have as many rounds as these have together.
        epochs: of FedAvg, of FedProx and of FedMA.
    """

    passes: int
    epochs: tuple[int, int, int]


# the published epochs are those of tables 5.1 and 5.2, the best of section 5.2's candidates
CONVERGENCE = {
    "smoke": {"MLP": Tuned(2, (2, 2, 3))},
    "laptop": {"VGG-9": Tuned(2, (8, 8, 8)), "LSTM": Tuned(4, (5, 5, 10))},
    "paper": {"VGG-9": Tuned(11, (20, 20, 150)), "LSTM": Tuned(11, (2, 5, 5))},
}
# passes, and what is tried
EPOCHS = {
    "smoke": ("MLP", 1, (1, 4)),
    "laptop": ("VGG-9", 1, (1, 4, 8)),
    "paper": ("VGG-9", 6, (10, 20, 50, 70, 100, 150)),
}


@recipe("fedma-convergence", plot=plot_convergence, tables=convergence_tables)
def fedma_convergence(scale: str) -> dict[str, Job]:
    """Figure 5.2, tables 5.1, 5.2, 5.6 and 5.7: accuracy of FedMA with communication by rounds and by bytes."""
    jobs: dict[str, Job] = {}
    for name, tuned in CONVERGENCE[scale].items():
        net = NETS[scale][name]
        rounds = tuned.passes * net.layers
        average, proximal, matched = tuned.epochs
        jobs[f"{name}: local models"] = net.alone(local=net.trained(matched))
        jobs[f"{name}: FedAvg"] = net.run(net.fedavg(rounds, average))
        jobs[f"{name}: FedProx"] = net.run(net.fedprox(rounds, proximal))
        jobs[f"{name}: FedMA"] = net.run(net.fedma(tuned.passes, matched))
    return jobs


@recipe("fedma-epochs", plot=plot_sweep, tables=sweep_tables)
def fedma_epochs(scale: str) -> dict[str, Run]:
    """Figure 5.3: the effect of longer local training on FedMA, FedAvg and FedProx after as many rounds."""
    name, passes, tried = EPOCHS[scale]
    net = NETS[scale][name]
    runs: dict[str, Run] = {}
    for epochs in tried:
        phases = {
            "FedAvg": net.fedavg(passes * net.layers, epochs),
            "FedProx": net.fedprox(passes * net.layers, epochs),
            "FedMA": net.fedma(passes, epochs),
        }
        # only the end counts
        every = passes * net.layers
        runs |= {f"E={epochs}: {m}": net.run(phase, evaluate_every=every) for m, phase in phases.items()}
    return runs
