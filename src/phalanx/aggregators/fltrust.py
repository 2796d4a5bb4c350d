# SPDX-License-Identifier: Apache-2.0
"""A rule that trusts a row as far as it resembles the update of a worker with trusted data."""

from __future__ import annotations

from typing import ClassVar

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
    """The mean of the rows scaled to the norm of the root row, weighted by their cosines with it where these are > 0.

    The root row comes from a worker whose data the server has collected and trusts. It has no weight itself, unless it
    is the only row. Weights of rows are ignored.

    Shapes: (n, d) -> (1, d).
    Args:
        root: the worker with the server's trusted data; it has to take part in every round, and a round without it is
            skipped.
    Raises:
        ValueError: the root row is missing, or no other row has a positive cosine with it.
    Source: Cao et al., FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, 2020,
        arXiv:2012.13995, equations 2 to 4. As published.
    """

    root: int = 0

    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.root >= 0, f"fltrust needs root >= 0, got root={self.root}")

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        positions = [i for i, source in enumerate(stack.sources) if source == (self.root,)]
        if not positions:
            raise TooFewRows(f"fltrust: the row of the root, worker {self.root}, is missing", stack.notes)
        if len(stack.rows) == 1:
            return stack.one(stack.rows[0].clone()), {}
        num_directions = stack.layout.stepped
        directions = stack.rows[:, :num_directions].double()
        root, columns = directions[positions[0]], stack.directions.columns
        if columns is None:
            lengths, products = torch.linalg.vector_norm(directions, dim=1), directions @ root
        else:
            lengths = stack.directions.norms()
            products = columns.total(lambda part: directions[:, part].contiguous() @ root[part].clone(), lengths)
        root_length = float(lengths[positions[0]])
        trust = (products / (lengths * root_length).clamp_min(1e-300)).clamp(min=0)
        trust[positions[0]] = 0
        if not bool(trust.any()):
            raise TooFewRows("fltrust: no row points where the root's does", stack.notes)
        share = trust / trust.sum()
        row = mix_one(share, stack.rows)
        row[:num_directions] = mix_one(share * root_length / lengths.clamp_min(1e-300), stack.rows[:, :num_directions])
        return stack.one(row), {}
