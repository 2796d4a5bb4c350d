# SPDX-License-Identifier: Apache-2.0
"""The tasks by name: classification, regression, several labels, segmentation, and a task of functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.core.expression import method, require
from phalanx.core.function import Function, FunctionLike
from phalanx.data.examples import Batch, describe
from phalanx.training import metrics as functions
from phalanx.training.score import cross_entropy
from phalanx.training.task import LOSS, Metric, PairTask, TaskContext, as_number, blaming, evaluating, versions


@method("classification", "task")
class Classification(PairTask):
    """Cross-entropy and accuracy, for examples or tokens that each have one class.

    Shapes: outputs (B, C) and targets (B,) int64, or (B, L, C) and (B, L), in which -100 is not scored.
    Args:
        targets: the entry of a batch that is the target, where batches are dictionaries.
    """

    has_classes: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", None, True, "%"),)  # type: ignore[misc]
    forward: ClassVar[None] = None  # type: ignore[misc]

    targets: str | None = None

    @property
    def loss_function(self) -> Callable[[Any, Any], Any]:
        return cross_entropy

    def training_loss(self, model: nn.Module, batch: Batch, context: TaskContext, smoothing: float = 0.0) -> Tensor:
        scores, labels = self.outputs_of(model, batch, context)
        with blaming(lambda: f"the cross-entropy of scores {describe(scores)} and labels {describe(labels)}"):
            return cross_entropy(scores, labels, smoothing=smoothing)

    @torch.no_grad()
    def measure(self, model: nn.Module, batches: Iterable[Batch], context: TaskContext) -> dict[str, float]:
        right, loss, count = 0, 0.0, 0
        with evaluating(model):
            for batch in batches:
                scores, labels = self.outputs_of(model, batch, context)
                right += int((scores.argmax(dim=-1) == labels).sum())
                loss += float(cross_entropy(scores, labels, "sum"))
                count += int((labels >= 0).sum())
        return {"accuracy": right / count, LOSS: loss / count} if count else {"accuracy": math.nan, LOSS: math.nan}

    def check(self, model: nn.Module, batch: Batch, context: TaskContext) -> None:
        super().check(model, batch, context)
        scores, labels = self.outputs_of(model, batch, context)
        require(
            scores.shape[-1] > 1,
            f"one output cannot tell classes apart, and the model's are {describe(scores)}; give it an output for each "
            "class, or the run task=regression() or task=multi_label()",
        )
        whole = labels.dtype == torch.int64
        require(whole, f"the targets of a classification are classes of int64, got {describe(labels)}")


def _metric(function: Callable[[Tensor, Tensor], Tensor], higher_is_better: bool = True, unit: str = "") -> Metric:
    return Metric(function.__name__, Function(function), higher_is_better, unit)


@method("regression", "task")
class Regression(PairTask):
    """The mean squared error, for targets that are numbers; measured are RMSE, MAE and R^2.

    Shapes: outputs and targets of one shape, (B,) or (B, K).
    Args:
        targets: the entry of a batch that is the target, where batches are dictionaries.
        unit: of the targets, in tables.
    """

    forward: ClassVar[None] = None  # type: ignore[misc]

    targets: str | None = None
    unit: str = ""

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """RMSE, MAE and R^2."""
        errors = (_metric(each, False, self.unit) for each in (functions.rmse, functions.mae))
        return (*errors, _metric(functions.r2))

    @property
    def loss_function(self) -> Callable[[Any, Any], Any]:
        return _mean_square


def _mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape != targets.shape:
        raise ValueError("outputs and targets need one shape; use targets.unsqueeze(1) or outputs.squeeze(1)")
    return F.mse_loss(outputs, targets.to(outputs.dtype))


@method("multi_label", "task")
class MultiLabel(PairTask):
    """Binary cross-entropy of each label, for examples that have any number of K labels; measured are F1 and matches.

    Shapes: outputs (B, K), scores whose sign decides; targets (B, K) of 0 and 1.
    Args:
        targets: the entry of a batch that is the target, where batches are dictionaries.
    """

    forward: ClassVar[None] = None  # type: ignore[misc]

    targets: str | None = None

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """The micro-averaged F1 score, and the share of examples with no wrong label."""
        return _metric(functions.f1), _metric(functions.exact_match)

    @property
    def loss_function(self) -> Callable[[Any, Any], Any]:
        return _binary_cross_entropy


def _binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    low, high = float(targets.min()), float(targets.max())
    if low < 0 or high > 1:
        raise ValueError(f"labels are 0 or 1, got {low:g} to {high:g}")
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))


@method("segmentation", "task")
class Segmentation(PairTask):
    """Cross-entropy at every place of an image or a volume; measured are the mean IoU and the accuracy of places.

    Shapes: outputs (B, C, ...), targets (B, ...) int64, in which -100 is not scored.
    Args:
        targets: the entry of a batch that is the target, where batches are dictionaries.
    """

    forward: ClassVar[None] = None  # type: ignore[misc]

    targets: str | None = None

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """The mean over classes of intersection over union, and the share of places that are right."""
        return _metric(functions.mean_iou), _metric(functions.pixel_accuracy)

    @property
    def loss_function(self) -> Callable[[Any, Any], Any]:
        return _place_cross_entropy


def _place_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape[:1] + outputs.shape[2:] != targets.shape or outputs.shape[1] < 2:
        raise ValueError("outputs are (B, C, ...) with two classes or more, and targets (B, ...)")
    return F.cross_entropy(outputs.float(), targets)


@method("task", "task")
class FunctionTask(PairTask):
    """A task of your own, made of functions at the top level of a module.

    Args:
        loss: function of the outputs and the targets of a batch that returns the mean over the batch; None where only
            `custom_training(...)` trains.
        metrics: what is measured when the model is tested, each over all outputs and targets at once; the first is the
            score by which runs are compared.
        targets: the entry of a batch that is the target, where batches are dictionaries.
        forward: function of the model and a batch that returns (outputs, targets), where a batch is none of these:
            (inputs, targets), more inputs before the target, a dictionary, one tensor that is input and target.
        evaluate: function of the model, the test batches and a `TaskContext` that returns a dictionary with a number
            for each metric, and "loss" if it likes; for what is no function of all outputs at once.
    Raises:
        ValueError: there is neither a loss nor an `evaluate`, or two metrics have one name.
    """

    loss: FunctionLike | None
    metrics: tuple[Metric, ...] = ()
    targets: str | None = None
    forward: FunctionLike | None = None
    evaluate: FunctionLike | None = None

    def validate(self) -> None:
        require(
            self.loss is not None or self.evaluate is not None, "a task needs a loss or a function to evaluate with"
        )
        names = [metric.name for metric in self.metrics]
        require(len(set(names)) == len(names), f"two metrics of a task have one name, got {', '.join(names)}")
        for metric in self.metrics:
            alone = metric.function is None and self.evaluate is None
            require(not alone, f"{metric!r} has no function, and the task has no evaluate(...) that computes it")

    @property
    def loss_function(self) -> Callable[[Any, Any], Any] | None:
        return self.loss

    @torch.no_grad()
    def measure(self, model: nn.Module, batches: Iterable[Batch], context: TaskContext) -> dict[str, float]:
        if self.evaluate is None:
            return super().measure(model, batches, context)
        name, state = self.evaluate.reference, [*model.parameters(), *model.buffers()]
        before = versions(state)
        with evaluating(model), blaming(lambda: name):
            found = self.evaluate(model, batches, context)
        require(
            versions(state) == before,
            f"{name} changes the model that is tested, with which training goes on; let it work on a copy of it",
        )
        require(isinstance(found, dict), f"{name} returns a dictionary of numbers, got {type(found).__name__}")
        missing = [metric.name for metric in self.metrics if metric.name not in found]
        require(not missing, f"{name} returned no {', '.join(missing)}; it returned {', '.join(map(str, found))}")
        unknown = [str(key) for key in found if key not in {LOSS, *(metric.name for metric in self.metrics)}]
        way = (
            f"name it among the task's metrics, as in metric('{unknown[0]}', None, higher_is_better=True)"
            if unknown
            else ""
        )
        require(not unknown, f"nobody knows whether a higher {', '.join(unknown)} of {name} is better; {way}")
        return {LOSS: math.nan, **{key: as_number(f"{key} of {name}", value) for key, value in found.items()}}
