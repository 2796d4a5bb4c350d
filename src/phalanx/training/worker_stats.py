# SPDX-License-Identifier: Apache-2.0
"""Statistics of the workers: how often each was excluded, outvoted or accused, and how often that was right."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from phalanx.core.clock import FORGING, PARTS
from phalanx.core.stack import Note
from phalanx.training.accusation import Evidence, Judgement, Sizes, is_certain, judge

_COUNTERS = ("excluded", "outvoted", "byzantine", "tested", "far", "too_long", "accused")
_KEPT = 20  # pieces of evidence of each worker
_log = logging.getLogger(__name__)


@dataclass
class WorkerStats:
    """Counts of a run, for each worker and in all; plain numbers, so that a checkpoint can hold them.

    `far`, `too_long` and `accused` count rounds as `phalanx.training.accusation` defines them; `tested` counts those in
    which the worker's row was compared. `byzantine` counts the rounds in which a worker was Byzantine or hit by an
    injected fault. `evidence` has the first pieces of evidence against each worker, as plain values. `hits` counts
    workers and rounds that were accused or excluded, and rightly, of `accusations`.
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
    tested: Counter[int] = field(default_factory=Counter)
    far: Counter[int] = field(default_factory=Counter)
    too_long: Counter[int] = field(default_factory=Counter)
    accused: Counter[int] = field(default_factory=Counter)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    last_accused: dict[int, int] = field(default_factory=dict)
    hits: int = 0
    accusations: int = 0
    attacks: int = 0

    def add_round(
        self,
        notes: Sequence[Note],
        byzantine: frozenset[int],
        *,
        index: int | None = None,
        sizes: Sizes | None = None,
        log_notices: bool = False,
    ) -> tuple[dict[str, Any], list[Evidence]]:
        """Counts the notes of one round; returns this round's metrics, and the evidence of each new accusation.

        Args:
            index: number of the round, for the evidence; a worker is accused once in all calls with one number.
            sizes: of the rows that arrived; None where they are not compared.
            log_notices: whether notices are also logged as warnings, which one process of a job does.
        """
        index = self.rounds if index is None else index
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
        judgement = Judgement() if sizes is None else judge(sizes)
        evidence = self._accuse(index, notes, judgement)
        blamed = set(excluded) | against | {each.worker for each in evidence}
        self.rounds += 1
        self.lost_groups += groups
        self.bytes_up += size
        self.excluded.update(excluded.keys())
        self.outvoted.update(against)
        self.far.update(judgement.far)
        self.byzantine.update(byzantine)
        self.reasons.update({w: r for w, r in excluded.items() if w not in self.reasons})
        self.hits += len(blamed & byzantine)
        self.accusations += len(blamed)
        self.attacks += len(byzantine)
        metrics = {
            "bytes_up": size,
            "excluded": {str(w): r for w, r in sorted(excluded.items())},
            "outvoted": sorted(against),
            "far": sorted(judgement.far),
            "accused": {str(each.worker): each.reason for each in evidence},
            **({"untold": judgement.untold} if judgement.untold else {}),
            **({"chosen": chosen} if chosen else {}),
            "lost_groups": groups,
            "undecided": undecided,
            "notice": notice,
            **seconds,
        }
        return metrics, evidence

    def _accuse(self, index: int, notes: Sequence[Note], judgement: Judgement) -> list[Evidence]:
        """The evidence that a round adds: what is exact, and rows too long in too many rounds."""
        found: dict[int, Evidence] = {}
        heard = {n.worker for n in notes if n.kind == "bytes"}
        false_rows = {n.worker: n.reason for n in notes if n.kind == "false_row" and n.worker is not None}
        # where most rows overflow none of them is a lie
        if 2 * len(false_rows) < len(heard):
            found = {w: Evidence(index, w, "false_row", f"its row has {reason}") for w, reason in false_rows.items()}
        for note in notes:
            if note.kind == "outvoted" and note.worker is not None:
                found[note.worker] = Evidence(index, note.worker, "outvoted", note.reason)
        self.tested.update(judgement.tested)
        self.too_long.update(judgement.too_long.keys())
        for w, (length, limit) in judgement.too_long.items():
            rounds, tested = self.too_long[w], self.tested[w]
            if w not in found and is_certain(rounds, tested, self.workers):
                reason = f"its row is {length:.3g} times as long as those of most workers, where {limit:.3g} may be; "
                reason += f"so it was in {rounds} of {tested} rounds"
                found[w] = Evidence(index, w, "length", reason, value=length, limit=limit)
        fresh = [found[w] for w in sorted(found) if self.last_accused.get(w) != index]
        self.last_accused.update({each.worker: index for each in fresh})
        self.accused.update(each.worker for each in fresh)
        self.evidence += [each.to_json() for each in fresh if self.accused[each.worker] <= _KEPT]
        return fresh

    def table(self) -> list[dict[str, Any]]:
        """One row for each worker that was accused, excluded or Byzantine."""
        known = sorted(set(self.excluded) | set(self.accused) | set(self.byzantine))
        return [
            {
                "worker": w,
                "byzantine_rounds": self.byzantine[w],
                "excluded": self.excluded[w],
                "outvoted": self.outvoted[w],
                "accused": self.accused[w],
                "far": self.far[w],
                "first_reason": self.reasons.get(w, ""),
            }
            for w in known
        ]

    @property
    def precision(self) -> float | None:
        """Share of the accusations and exclusions (worker and round) that were right; None where nobody knows.

        Without a worker that is Byzantine by the run itself the truth is unknown.
        """
        return self.hits / self.accusations if self.accusations and self.attacks else None

    @property
    def recall(self) -> float | None:
        """Share of the Byzantine rows that were accused or excluded; None without Byzantine rows."""
        return self.hits / self.attacks if self.attacks else None

    def to_json(self) -> dict[str, Any]:
        """The counts as plain values; `from_json` is the inverse."""
        plain = dict(vars(self))
        for name in (*_COUNTERS, "reasons", "last_accused"):
            plain[name] = {str(k): v for k, v in plain[name].items()}
        return plain

    @staticmethod
    def from_json(plain: dict[str, Any]) -> WorkerStats:
        """The statistics that `to_json` gave."""
        counts = {n: Counter({int(k): v for k, v in plain.get(n, {}).items()}) for n in _COUNTERS}
        by_worker = {n: {int(k): v for k, v in plain.get(n, {}).items()} for n in ("reasons", "last_accused")}
        return WorkerStats(**{**plain, **counts, **by_worker})
