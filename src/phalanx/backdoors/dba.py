# SPDX-License-Identifier: Apache-2.0
"""Several attackers of which each trains on a part of a trigger, and who are tested with the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from phalanx.backdoors.poisoned import Poisoned
from phalanx.backdoors.trigger import PARTS, Trigger
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.trees import State
from phalanx.data.examples import Examples
from phalanx.data.partition import Partition
from phalanx.training.client_work import ClientWork
from phalanx.training.context import ModelProvider, WorkerContext


@method("dba", "client_work")
class Dba(ClientWork):
    """Distributed backdoor attack: attacker i trains on bar i mod 4 of a trigger of bars.

    Give it to a phase as `adversary`. No single attacker shows the model the whole pattern, on which the backdoor is
    tested.

    Args:
        attack: `poisoned(...)` with `trigger(shape="bars")` as its edge cases; its part is set for each attacker.
    Raises:
        ValueError: the edge cases are no trigger of bars, or have a part already.
    Source: Xie et al., DBA: Distributed Backdoor Attacks against Federated Learning, ICLR 2020, section 3. Differs: the
        part of a worker is its number mod 4, so that four attackers with numbers 0 to 3 have all parts.
    """

    attack: Poisoned

    def validate(self) -> None:
        edges = self.attack.edges
        require(
            isinstance(edges, Trigger) and edges.shape == "bars" and edges.part is None,
            f"dba divides trigger(shape='bars') among attackers, got {edges!r}",
        )

    def of(self, unit: int) -> Poisoned:
        """The work of one attacker."""
        assert isinstance(self.attack.edges, Trigger)
        return replace(self.attack, edges=replace(self.attack.edges, part=unit % PARTS))

    def samples(self, partition: Partition, data: Examples, units: int, index: int, seed: int) -> Sequence[Tensor]:
        return self.attack.samples(partition, data, units, index, seed)

    def layout(self, models: ModelProvider, round_in_phase: int) -> Layout:
        return self.attack.layout(models, round_in_phase)

    def check(self, models: ModelProvider, rounds: int) -> None:
        self.attack.check(models, rounds)

    @property
    def stateful(self) -> bool:
        return self.attack.stateful

    @property
    def matched(self) -> bool:
        return self.attack.matched

    def compute_row(
        self, context: WorkerContext, unit: int, samples: Tensor, out: Tensor, memory: State
    ) -> tuple[float, State]:
        return self.of(unit).compute_row(context, unit, samples, out, memory)
