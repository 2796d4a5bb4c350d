# SPDX-License-Identifier: Apache-2.0
"""A backdoor pruned away: neurons that clean data leave dormant are silenced."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phalanx.backdoors.dormant import Pruner, clean_samples, reader
from phalanx.core.expression import method, require
from phalanx.core.trees import State
from phalanx.data.dataset import labelled
from phalanx.data.examples import Examples
from phalanx.data.partition import Partition
from phalanx.training.client_work import ClientWork
from phalanx.training.context import ModelProvider, WorkerContext


@method("prune", "client_work")
class Prune(ClientWork):
    """Silences the neurons that clean examples leave most dormant, while accuracy on them falls by a bound at most.

    The row is what has to be taken off the weights, so `sgd(lr=1.0)` makes them zero. A phase of one round with
    clients=uniform(1) is the server's own pruning, as all workers compute the same from the examples that it is given.
    With clean=None each worker prunes by its own examples, and `median()` behind the wire is their vote: silenced is a
    neuron that more than half of an odd number of them name. Training behind it may wake a neuron up again.

    Args:
        bound: accuracy that may be lost, in [0, 1]; higher prunes more.
        step: share of the neurons that goes between two looks, in (0, 1].
        clean: examples of the training part that the server is given, drawn from the run's seed; attackers' examples
            are not among them. None takes those of each worker.
        layer: a fully connected one, whose inputs are pruned; when None, the one behind the last convolution, or the
            last one of a network without convolutions.
    Source: Liu et al., Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks, 2018,
        arXiv:1805.12185, section 3.1; the vote: Wu et al., Mitigating Backdoor Attacks in Federated Learning, 2020,
        arXiv:2011.01767. Differs: activations are those that the next layer reads, behind pooling; clients vote on
        neurons to silence, each with a bound of its own, and not on a ranking; extreme weights stay.
    """

    bound: float = 0.04
    step: float = 0.02
    clean: int | None = 500
    layer: str | None = None

    def validate(self) -> None:
        check_pruning("prune", self.bound, self.step, self.clean)

    def samples(self, partition: Partition, data: Examples, units: int, index: int, seed: int) -> Sequence[Tensor]:
        if self.clean is None:
            return partition.parts(data, units, seed)
        return [clean_samples(labelled(data, self), self.clean, seed)] * units

    def check(self, models: ModelProvider, rounds: int) -> None:
        reader(models.model, self.layer)

    def compute_row(
        self, context: WorkerContext, unit: int, samples: Tensor, out: Tensor, memory: State
    ) -> tuple[float, State]:
        pruner = Pruner(context.model, self.layer, labelled(context.data, self), samples, context.precision)
        pruned = pruner.without(pruner.most(self.step, self.bound)).state_dict()
        before, parts = context.model.state_dict(), context.layout.split(out)
        torch.sub(before[pruner.weight], pruned[pruner.weight], out=parts[pruner.weight])
        for name in context.layout.installed:
            parts[name].copy_(before[name])
        return pruner.tested()[1], memory


def check_pruning(name: str, bound: float, step: float, clean: int | None) -> None:
    """Raises ValueError for a bound or a number of examples out of range."""
    require(0 <= bound <= 1, f"{name} needs a bound in [0, 1], got bound={bound}")
    require(0 < step <= 1, f"{name} needs a step in (0, 1], got step={step}")
    require(clean is None or clean >= 1, f"{name} needs clean >= 1 example, got clean={clean}")
