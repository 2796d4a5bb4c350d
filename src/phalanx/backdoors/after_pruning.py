# SPDX-License-Identifier: Apache-2.0
"""What another exam would find if dormant neurons were pruned first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from phalanx.backdoors.dormant import Pruner, before_fall, clean_samples
from phalanx.backdoors.prune import check_pruning
from phalanx.core.expression import method
from phalanx.data.dataset import Dataset, labelled
from phalanx.training.evaluator import EvalContext, Evaluator
from phalanx.training.score import assess, number_of


@method("after_pruning", "evaluator")
class AfterPruning(Evaluator):
    """Another exam of the model without more and more of the neurons that clean examples leave dormant.

    For each pruned share of the neurons, in `shares`: `clean_accuracy` on the clean examples, `accuracy` on the test
    part, and what the other exam finds, in `examined`. `stopped` is the place in these lists at which `prune` of the
    same fields would stop.

    Args:
        exam: such as `backdoor(...)`.
        bound, step, clean, layer: as of `prune`.
    Source: Liu et al., Fine-Pruning, 2018, arXiv:1805.12185, figure 5. Differs: as of `prune`.
    """

    exam: Evaluator
    bound: float = 0.04
    step: float = 0.1
    clean: int = 500
    layer: str | None = None

    def validate(self) -> None:
        check_pruning("after_pruning", self.bound, self.step, self.clean)

    def check(self, data: Dataset) -> None:
        clean_samples(data, self.clean, 0)
        self.exam.check(data)

    def evaluate(self, context: EvalContext) -> dict[str, Any]:
        data, precision = labelled(context.data, self), context.precision
        samples = clean_samples(data, self.clean, context.seed)
        pruner = Pruner(context.model, self.layer, data, samples, precision)
        counts = list(pruner.steps(self.step))
        clean, accuracy, examined = [], [], []
        for count in counts:
            model = pruner.without(count)
            clean.append(pruner.tested()[0])
            accuracy.append(number_of(assess(model, data, next(model.parameters()).device, precision)[0]))
            examined.append(self.exam.evaluate(replace(context, model=model)))
        return {
            "shares": [count / pruner.width for count in counts],
            "clean_accuracy": clean,
            "accuracy": accuracy,
            "examined": examined,
            "stopped": before_fall(clean, self.bound),
        }
