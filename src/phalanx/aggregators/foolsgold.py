# SPDX-License-Identifier: Apache-2.0
"""A rule that gives less weight to clients whose updates had the same direction over all rounds."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.aggregators.kernels.gram import cosines, inner_products
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.row_memory import load, store
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope, TooFewRows, memory_key_of
from phalanx.core.trees import State

_MAX_WEIGHT = 0.99  # before the logarithm


@method("foolsgold", "aggregator")
class Foolsgold(Aggregator):
    """The mean with weights that fall as a client's history resembles another's, as it does for colluding attackers.

    With the cosines c_ij of the sums of all rows that clients have sent, v_i = max_j c_ij, and c_ij v_i / v_j in place
    of c_ij where v_j > v_i, the weight is a = 1 - max_j c_ij over the greatest of all, through kappa (ln(a / (1 - a)) +
    1/2), cut to [0, 1]. Weights of rows are ignored. A single attacker resembles nobody and keeps its weight.

    Shapes: (n, d) -> (1, d).
    Args:
        kappa: confidence, > 0; a higher one moves weights towards 0 and 1.
    Raises:
        ValueError: all clients are so alike that every weight is 0.
    Source: Fung et al., Mitigating Sybils in Federated Learning Poisoning, 2018, arXiv:1808.04866, Algorithm 1.
        Differs: the weighted sum is divided by the sum of the weights; all entries count as indicative features.
    """

    kappa: float = 1.0

    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(0 < self.kappa < float("inf"), f"foolsgold needs a finite kappa > 0, got kappa={self.kappa}")

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        state, cut, head = dict(state or {}), stack.layout.stepped, stack.layout.head
        sums = torch.zeros(len(stack.rows), cut, device=stack.rows.device)
        for i in range(len(stack.rows)):
            key = memory_key_of(stack, i)
            before = load(state.get(key, {}), head, sums[i])
            sums[i] = before + stack.rows[i, :cut]
            state[key] = store(sums[i], before, head)
        weights = _weights(inner_products(sums, None, columns=stack.directions.columns), self.kappa)
        if not weights.any():
            raise TooFewRows("foolsgold: all clients look alike, and no weight is left", stack.notes, state)
        share = torch.from_numpy(weights / weights.sum())
        return stack.one(mix_one(share, stack.rows)), state


def _weights(inner: np.ndarray, kappa: float) -> np.ndarray:
    """The weight of each client from inner products of histories. Shapes: (n, n) -> (n,) in [0, 1]."""
    n = len(inner)
    if n == 1:
        return np.ones(1)
    cosine = cosines(inner)
    np.fill_diagonal(cosine, -1)
    closest = cosine.max(axis=1)
    is_lower = closest[:, None] < closest[None, :]
    ratio = np.divide(
        closest[:, None], closest[None, :], out=np.ones_like(cosine), where=is_lower & (closest[None, :] > 0)
    )
    adjusted = np.where(is_lower, cosine * ratio, cosine)
    np.fill_diagonal(adjusted, -1)
    weight = np.clip(1 - adjusted.max(axis=1), 0, 1)
    if not weight.any():
        return weight
    weight = np.minimum(weight / weight.max(), _MAX_WEIGHT)
    odds = np.log(np.maximum(weight, 1e-12) / (1 - weight)) + 0.5
    return np.clip(kappa * odds, 0, 1)
