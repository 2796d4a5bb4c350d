# SPDX-License-Identifier: Apache-2.0
"""Trust by likeness to an update that the server has computed itself."""

from __future__ import annotations

import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope, TooFewRows
from phalanx.core.trees import State


@method("fltrust", "aggregator")
class Fltrust(Aggregator):
    """The mean of rows brought to the root row's length, each weighted by its cosine with the root row where it is > 0.

    The root row is that of a worker whose data the server has collected and trusts; it has no weight itself, unless it
    is alone. Examples do not count.

    Shapes: (n, d) -> (1, d).
    Args:
        root: the worker that stands for the server, with data that it trusts; it has to take part in every round, and a
            round without it is lost.
    Raises:
        ValueError: the root row is missing, or points where no other does.
    Source: Cao et al., FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, 2020,
        arXiv:2012.13995, equations 2 to 4. As published.
    """

    root: int = 0

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        require(self.root >= 0, f"fltrust needs root >= 0, got root={self.root}")

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        at = [i for i, source in enumerate(stack.sources) if source == (self.root,)]
        if not at:
            raise TooFewRows(f"fltrust: the row of the root, worker {self.root}, is missing", stack.notes)
        if len(stack.rows) == 1:
            return stack.one(stack.rows[0].clone()), {}
        cut = stack.layout.stepped
        heads = stack.rows[:, :cut].double()
        lengths = torch.linalg.vector_norm(heads, dim=1)
        root, whole = heads[at[0]], float(lengths[at[0]])
        cosine = (heads @ root / (lengths * whole).clamp_min(1e-300)).clamp(min=0)
        cosine[at[0]] = 0
        if not bool(cosine.any()):
            raise TooFewRows("fltrust: no row points where the root's does", stack.notes)
        share = cosine / cosine.sum()
        row = mix_one(share, stack.rows)
        row[:cut] = mix_one(share * whole / lengths.clamp_min(1e-300), stack.rows[:, :cut])
        return stack.one(row), {}
