# SPDX-License-Identifier: Apache-2.0
"""An observer that measures the norms of the workers' rows."""

from __future__ import annotations

from typing import Any

import torch

from phalanx.core.expression import method
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.training.observers.observer import Observer
from phalanx.training.score import number_of


@method("norms", "observer")
class Norms(Observer):
    """The l2 norm of each worker's row, by the worker's number: in federated learning, of its change of the model.

    Values that are installed do not count.

    Args:
        every: rounds between two looks, >= 1.
        arrived: of the rows as they come off the wire, which a defence sees: behind codecs and attacks on rows, and
            without those that the gate has excluded. Else of what the workers have computed, before all that.
    Source: the norm differences of Wang et al., Attack of the Tails, 2020, arXiv:2007.05084, figures 8.2 and 8.10 of
        the dissertation.
    """

    every: int = 1
    arrived: bool = False

    def look(self, stack: Stack, round: Round) -> dict[str, Any]:
        norms = torch.linalg.vector_norm(stack.rows[:, : stack.layout.stepped], dim=1, dtype=torch.float64).cpu()
        payload = {"workers": torch.tensor(stack.ids, dtype=torch.int64), "norms": norms}
        # behind the wire every process has all rows
        parts = [payload] if stack.received else round.collective.all_gather_payloads(payload)
        workers, lengths = (torch.cat([part[name] for part in parts]).tolist() for name in ("workers", "norms"))
        return {str(worker): number_of(length) for worker, length in zip(workers, lengths, strict=True)}
