# SPDX-License-Identifier: Apache-2.0
"""What an audit found, and the sentence that says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from phalanx.distributed.determinism import ranks_in_words

Pair = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """A disagreement that an audit met; the same on every rank.

    Args:
        step: call of the audit, from 0.
        kind: "computation": a pair computed one micro-batch differently; "weights": ranks hold different parameters.
        suspects: ranks of which at least one is wrong.
        hosts: of the suspects, in their order.
        culprit: the rank that others outvote, or None where no vote decides.
        pair: the two ranks that differed; None for weights.
        third: the rank that was asked for a third vote.
        difference: relative Euclidean distance of the gradients or weights, or of the losses if that is larger.
        unsteady: ranks of the pair that did not repeat their own result.
    """

    step: int
    kind: Literal["computation", "weights"]
    suspects: tuple[int, ...]
    hosts: tuple[str, ...]
    culprit: int | None
    pair: Pair | None = None
    third: int | None = None
    difference: float = 0.0
    unsteady: tuple[int, ...] = ()

    def __str__(self) -> str:
        who = ", ".join(f"rank {r} on {h}" for r, h in zip(self.suspects, self.hosts, strict=True))
        size = f"{self.difference:.1e} (relative)"
        if self.kind == "weights":
            rest = "the majority" if self.culprit is not None else "each other"
            return f"step {self.step}: {who}: other weights than {rest}, apart by {size}"
        if self.culprit is not None:
            said = f"step {self.step}: {who} computed a micro-batch unlike two other computations of it, by {size}"
        else:
            said = f"step {self.step}: {who} computed one micro-batch differently, by {size}, and no vote decides"
        if self.unsteady:
            said += (
                f"; {ranks_in_words(self.unsteady, 'rank')} did not repeat the own result: flaky hardware, "
                "or kernels that are not deterministic, for which rtol is there"
            )
        return said
