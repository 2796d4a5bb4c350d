# SPDX-License-Identifier: Apache-2.0
"""An attacker that changes only the weights which honest clients hardly change, so that its backdoor lasts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.trees import State
from phalanx.data.examples import Examples
from phalanx.data.partition import Partition
from phalanx.training.client_work import ClientWork
from phalanx.training.context import ModelProvider, WorkerContext
from phalanx.training.task import Task


@method("neurotoxin", "client_work")
class Neurotoxin(ClientWork):
    """Work of an attacker without the entries of the gradient that the global model has changed most.

    In each tensor the share `ratio` of entries with the largest |w_t - w_t-1| gets no gradient in the attacker's
    training, where w_t is the global model now and w_t-1 the one that the attacker got the last time. In its first
    round, when it knows no change, nothing is left out. Give it to a phase as `adversary`.

    Args:
        work: how the attacker trains, such as `poisoned(...)`.
        ratio: share of the entries to leave alone, in (0, 1).
    Source: Zhang et al., Neurotoxin: Durable Backdoors in Federated Learning, ICML 2022, arXiv:2206.10341, Algorithm 1.
        Differs: the change of the global model since the attacker's last round stands for the honest gradient; weight
        decay and momentum of the attacker's optimizer still move all entries.
    """

    work: ClientWork
    ratio: float = 0.05

    def validate(self) -> None:
        require(0 < self.ratio < 1, f"neurotoxin needs ratio in (0, 1), got ratio={self.ratio}")

    def samples(self, partition: Partition, data: Examples, units: int, index: int, seed: int) -> Sequence[Tensor]:
        return self.work.samples(partition, data, units, index, seed)

    def layout(self, models: ModelProvider, round_in_phase: int) -> Layout:
        return self.work.layout(models, round_in_phase)

    def check(self, models: ModelProvider, rounds: int) -> None:
        self.work.check(models, rounds)

    def check_task(self, task: Task) -> None:
        self.work.check_task(task)

    @property
    def stateful(self) -> bool:
        return True

    @property
    def matched(self) -> bool:
        return self.work.matched

    def compute_row(
        self, context: WorkerContext, unit: int, samples: Tensor, out: Tensor, memory: State
    ) -> tuple[float, State]:
        now = {name: parameter.detach().clone() for name, parameter in context.parameters.items()}
        before = memory.get("model", {})
        handles = []
        for name, parameter in context.parameters.items():
            known = before.get(name)
            if parameter.requires_grad and known is not None and known.shape == parameter.shape:
                allowed = _least_changed((now[name] - known.to(now[name])).abs(), self.ratio)
                handles.append(parameter.register_hook(lambda gradient, allowed=allowed: gradient * allowed))
        try:
            loss, inner = self.work.compute_row(context, unit, samples, out, memory.get("work", {}))
        finally:
            for handle in handles:
                handle.remove()
        return loss, {"model": now, **({"work": inner} if inner else {})}


def _least_changed(change: Tensor, ratio: float) -> Tensor:
    """1 where an entry may move, 0 for the share that changed most. Shapes: the same."""
    count = math.floor(ratio * change.numel())
    allowed = torch.ones(change.numel(), dtype=change.dtype, device=change.device)
    if count:
        allowed[change.flatten().argsort(descending=True, stable=True)[:count]] = 0
    return allowed.reshape(change.shape)
