# SPDX-License-Identifier: Apache-2.0
"""FedMA with codecs for the clients' weights, and with Byzantine clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import phalanx as px
from phalanx.core.aggregator import Aggregator
from phalanx.core.codec import Codec
from phalanx.core.stage import Stage
from phalanx.tools.report.collect import Result
from phalanx.tools.report.sheet import Sheet
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Phase, Run
from phalanx_experiments.figures.convergence import short
from phalanx_experiments.figures.federated import federated_tables
from phalanx_experiments.figures.grid import grid_tables, plot_grid
from phalanx_experiments.recipes.fedma import NETS, Net

HONEST = "no attack"
# who has more examples of a class counts for more in its output
CLAIMS = px.chain(
    px.attacks.only_on(px.attacks.reverse(c=1.0)), px.attacks.only_on(px.attacks.reverse(c=-10.0), at="installed")
)
ATTACKS: dict[str, Stage] = {
    "constant -100": px.attacks.constant(value=-100.0),
    "reversed": px.attacks.reverse(c=1.0),
    "ALIE": px.attacks.alie(z=1.0),
    "reversed, claims tenfold": CLAIMS,
}
CODECS: dict[str, Codec] = {
    "half": px.codecs.half(),
    "QSGD 8 bit": px.codecs.qsgd(bits=8),
    "QSGD 4 bit": px.codecs.qsgd(bits=4),
    "TernGrad": px.codecs.terngrad(),
    "top-k 10 %": px.codecs.top_k(ratio=0.1),
}
_LOCAL = px.federated.local_training(px.optim.sgd(0.02, momentum=0.9), epochs=4, batch=20, own=True)

# the network, and the number of Byzantine clients; they are spread evenly, and one of them is the first client, with
# whom the matcher begins
NETWORKS = {
    "smoke": (replace(NETS["smoke"]["MLP"], workers=7), 1),
    "laptop": (
        Net(
            px.data.mnist(train=3200, test=2000), px.models.lenet(channels=(8, 16), hidden=32), 4, 16, _LOCAL, last=None
        ),
        3,
    ),
    "paper": (NETS["paper"]["LeNet"], 3),
}


def rules(f: int) -> dict[str, Aggregator]:
    """The robust rules behind matching."""
    return {
        "median": px.aggregators.median(),
        "trimmed mean": px.aggregators.trimmed_mean(f=f),
        "geometric median": px.aggregators.geometric_median(),
        "Multi-Krum": px.aggregators.multi_krum(f=f),
    }


def fedma(net: Net, f: int = 0, codec: Codec | None = None, rule: Aggregator | None = None) -> Phase:
    """A pass of FedMA; with f > 0 it takes more than f clients to decide a neuron or a class that others lack."""
    middle = "median" if f else "mean"
    matcher = px.matching.bbp(gamma=net.gamma, average="plain")
    options = {"matcher": matcher, "support": 2 * f + 1, "middle": middle, "codec": codec, "rule": rule}
    return px.federated.fedma(net.local, net.layers, last=net.last, **options)


def methods(net: Net, f: int) -> dict[str, Phase]:
    """The methods that every attack is tried on."""
    guarded = {f"FedMA, {name}": fedma(net, f, rule=rule) for name, rule in rules(f).items()}
    return {
        "FedMA": fedma(net),
        "FedMA, median alone": fedma(net, rule=px.aggregators.median()),
        **guarded,
        "FedMA, QSGD 8 bit, median": fedma(net, f, px.codecs.qsgd(bits=8), px.aggregators.median()),
        "FedAvg": net.fedavg(),
        "FedAvg, median": px.federated.fedavg(net.local, net.layers, rule=px.aggregators.median()),
        "FedAvg, Multi-Krum": px.federated.fedavg(net.local, net.layers, rule=px.aggregators.multi_krum(f=f)),
    }


def tables(results: Sequence[Result]) -> list[Sheet]:
    """Accuracies by method and attack, and the size of the network under each attack."""
    return [*grid_tables(results), *federated_tables([run for run in results if short(run).startswith("FedMA")])]


@recipe("fedma-composed", plot=plot_grid, tables=tables)
def fedma_composed(scale: str) -> dict[str, Run]:
    """FedMA with codecs on the wire, with robust rules after matching, and with both, against Byzantine clients."""
    net, f = NETWORKS[scale]
    runs = {f"{HONEST}: {name}": net.run(phase) for name, phase in methods(net, f).items()}
    for name, codec in CODECS.items():
        runs[f"{HONEST}: FedMA, {name}"] = net.run(fedma(net, codec=codec))
    for word, attack in ATTACKS.items():
        for name, phase in methods(net, f).items():
            # who sends changes makes no claims in them
            if attack != CLAIMS or phase.work.matched:
                lying = replace(phase, scheme=px.chain(attack, phase.scheme))
                runs[f"{word}: {name}"] = net.run(lying, byzantine=px.adversary.evenly_spaced(f))
    return runs
