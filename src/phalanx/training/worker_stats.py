# SPDX-License-Identifier: Apache-2.0
"""Statistics of the workers: how often each was excluded or outvoted, and how often that was right."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from phalanx.core.clock import FORGING, PARTS
from phalanx.core.precision import accumulation_dtype
from phalanx.core.stack import Note, Stack

FAR = 6.0  # robust standard deviations
FURTHER = 1.2  # medians: of rows that are nearly equal none is an outlier
_log = logging.getLogger(__name__)
_PIECE = 1 << 14  # columns whose differences stay in cache; those of whole rows would be new memory each time


def find_outliers(arrived: Stack, row: Tensor) -> list[int]:
    """The workers whose row lies far from the result (d,), farther than rows of honest workers do.

    A row is far when its distance exceeds the median distance by 6 robust standard deviations (1.4826 MAD) and by 20 %.
    """
    if len(arrived.rows) < 3:
        return []
    distances = _distances(arrived.rows, row)
    median = distances.median()
    spread = 1.4826 * (distances - median).abs().median()
    far = distances > torch.maximum(median + FAR * spread, FURTHER * median)
    return sorted({w for i in far.nonzero().flatten().tolist() for w in arrived.sources[i]})


def _distances(rows: Tensor, row: Tensor) -> Tensor:
    """The Euclidean distance of each row from a row, in float64 on the CPU. Shapes: (n, d), (d,) -> (n,)."""
    squares = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for piece, part in zip(rows.split(_PIECE, dim=1), row.split(_PIECE), strict=True):
        apart = piece.to(accumulation_dtype(rows.dtype)) - part.to(accumulation_dtype(rows.dtype))
        squares += torch.linalg.vector_norm(apart, dim=1).double().square()
    return squares.sqrt().cpu()


@dataclass
class WorkerStats:
    """Counts of a run, for each worker and in all; plain numbers, so that a checkpoint can hold them.

    An accusation is a worker excluded or outvoted in a round. `byzantine` counts the rounds in which a worker was
    Byzantine or hit by an injected fault.
    """

    workers: int
    rounds: int = 0
    lost_rounds: int = 0
    lost_groups: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    local_epochs: float = 0.0
    excluded: Counter[int] = field(default_factory=Counter)
    outvoted: Counter[int] = field(default_factory=Counter)
    byzantine: Counter[int] = field(default_factory=Counter)
    reasons: dict[int, str] = field(default_factory=dict)
    hits: int = 0
    accusations: int = 0
    attacks: int = 0

    def add_round(self, notes: Sequence[Note], byzantine: frozenset[int], log_notices: bool = False) -> dict[str, Any]:
        """Counts the notes of one round and returns them as this round's metrics.

        Args:
            log_notices: whether notices are also logged as warnings, which one process of a job does.
        """
        excluded = {n.worker: n.reason for n in notes if n.kind == "excluded" and n.worker is not None}
        against = {n.worker for n in notes if n.kind == "outvoted" and n.worker is not None}
        size = int(sum(n.value for n in notes if n.kind == "bytes"))
        groups, undecided = (int(sum(n.value for n in notes if n.kind == k)) for k in ("lost_groups", "undecided"))
        notice = "; ".join(n.reason for n in notes if n.kind == "notice")
        if notice and log_notices:
            _log.warning("%s", notice)
        chosen = sorted({n.worker for n in notes if n.kind == "chosen" and n.worker is not None})
        seconds = dict.fromkeys((*PARTS, FORGING), 0.0)
        for note in notes:
            if note.kind == "seconds":
                seconds[note.reason] += note.value
        accused = set(excluded) | against
        self.rounds += 1
        self.lost_groups += groups
        self.bytes_up += size
        self.excluded.update(excluded.keys())
        self.outvoted.update(against)
        self.byzantine.update(byzantine)
        self.reasons.update({w: r for w, r in excluded.items() if w not in self.reasons})
        self.hits += len(accused & byzantine)
        self.accusations += len(accused)
        self.attacks += len(byzantine)
        return {
            "bytes_up": size,
            "excluded": {str(w): r for w, r in sorted(excluded.items())},
            "outvoted": sorted(against),
            **({"chosen": chosen} if chosen else {}),
            "lost_groups": groups,
            "undecided": undecided,
            "notice": notice,
            **seconds,
        }

    def table(self) -> list[dict[str, Any]]:
        """One row for each worker that was accused or Byzantine."""
        known = sorted(set(self.excluded) | set(self.outvoted) | set(self.byzantine))
        return [
            {
                "worker": w,
                "byzantine_rounds": self.byzantine[w],
                "excluded": self.excluded[w],
                "outvoted": self.outvoted[w],
                "first_reason": self.reasons.get(w, ""),
            }
            for w in known
        ]

    @property
    def precision(self) -> float | None:
        """Share of the accusations (worker and round) that were true; None without accusations."""
        return self.hits / self.accusations if self.accusations else None

    @property
    def recall(self) -> float | None:
        """Share of the Byzantine rows that were accused; None without Byzantine rows."""
        return self.hits / self.attacks if self.attacks else None

    def to_json(self) -> dict[str, Any]:
        """The counts as plain values; `from_json` is the inverse."""
        plain = dict(vars(self))
        for name in ("excluded", "outvoted", "byzantine", "reasons"):
            plain[name] = {str(k): v for k, v in plain[name].items()}
        return plain

    @staticmethod
    def from_json(plain: dict[str, Any]) -> WorkerStats:
        """The statistics that `to_json` gave."""
        counts = {
            n: Counter({int(k): v for k, v in plain.get(n, {}).items()}) for n in ("excluded", "outvoted", "byzantine")
        }
        reasons = {int(k): v for k, v in plain.get("reasons", {}).items()}
        return WorkerStats(**{**plain, **counts, "reasons": reasons})
