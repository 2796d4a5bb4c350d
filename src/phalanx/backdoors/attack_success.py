# SPDX-License-Identifier: Apache-2.0
"""How well a backdoor works."""

from __future__ import annotations

from typing import Any

from phalanx.backdoors.edges import EdgeCases
from phalanx.core.expression import method
from phalanx.data.dataset import Data, Dataset, labelled
from phalanx.training.evaluator import EvalContext, Evaluator, share


@method("backdoor", "evaluator")
class Backdoor(Evaluator):
    """The share of edge cases that the model calls what the attacker wants, and what else happens to them.

    Found are `attack_success` and `attack_examples`, the number that it is a share of; `edge_accuracy`, the share that
    it calls what they are; and `source_accuracy`, its accuracy on ordinary test examples of the class that is attacked,
    if it is one. Without any attack success has a floor: report the excess over a run without one.

    Args:
        data: those that the edge cases go with, before honest clients were given any.
    """

    edges: EdgeCases
    data: Data

    def check(self, data: Dataset) -> None:
        labelled(data, self)
        self.edges.load(self.data.load())

    def evaluate(self, context: EvalContext) -> dict[str, Any]:
        data, edges = labelled(context.data, self), self.edges.load(self.data.load())
        success, right = edges.rates(context.labels(data.inputs(edges.test_x)))
        sources, source = edges.true_y.unique(), None
        if edges.true_y.dim() == 1 and len(sources) == 1:
            x, y = data.test((data.test_y == sources).nonzero().flatten())
            source = share(context.labels(x) == y)
        return {
            "attack_success": success,
            "edge_accuracy": right,
            "source_accuracy": source,
            "attack_examples": int(edges.attacked.sum()),
        }
