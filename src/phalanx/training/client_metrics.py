# SPDX-License-Identifier: Apache-2.0
"""What clients measured on test examples of their own, averaged at the server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from phalanx.training.score import number_of
from phalanx.training.task import EXAMPLES

MOST_MEDIANS = 10.0  # nobody counts for more than so many median clients, as in training


@dataclass(frozen=True)
class ClientMetrics:
    """The metrics of each client and their mean.

    Args:
        clients: for each client "examples", "loss" and the task's metrics; None for what is no finite number.
        mean: of each metric over the clients that have it, weighted by their numbers of test examples.
        left_out: clients whose answer could not be used, with the reason.
    """

    clients: dict[int, dict[str, float | None]]
    mean: dict[str, float | None]
    left_out: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def of(found: Mapping[int, Mapping[str, float]], names: tuple[str, ...], trusted: bool = True) -> ClientMetrics:
        """The metrics of some clients.

        Args:
            found: for each client what it measured.
            names: of the loss and the metrics.
            trusted: whether the numbers of examples are believed; else nobody counts for more than ten median clients.
        """
        left_out, used = {}, {}
        for client, numbers in sorted(found.items()):
            count = numbers.get(EXAMPLES, math.nan)
            if count == 0:
                continue
            if not (math.isfinite(count) and count > 0):
                left_out[client] = f"it claims {count} test examples"
            elif missing := [name for name in names if name not in numbers]:
                left_out[client] = f"it did not send {', '.join(missing)}"
            else:
                used[client] = numbers
        bound = math.inf if trusted or not used else MOST_MEDIANS * median(n[EXAMPLES] for n in used.values())
        mean: dict[str, float | None] = {}
        for name in names:
            pairs = [(n[name], min(n[EXAMPLES], bound)) for n in used.values() if math.isfinite(n[name])]
            total = math.fsum(weight for _, weight in pairs)
            mean[name] = math.fsum(value * weight for value, weight in pairs) / total if pairs else None
        clients = {
            client: {name: number_of(numbers[name]) for name in (EXAMPLES, *names)} for client, numbers in used.items()
        }
        return ClientMetrics(clients, mean, left_out)
