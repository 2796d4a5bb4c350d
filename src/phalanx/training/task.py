# SPDX-License-Identifier: Apache-2.0
"""What a model is trained for: how a batch becomes a loss, and how well a model does."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phalanx.core.expression import Expression, method, require
from phalanx.core.function import FunctionLike, said_by
from phalanx.data.examples import Batch, describe, form_of, map_tensors, tensors_of

LOSS = "loss"
EXAMPLES = "examples"
_PROBED = 8  # examples of made-up outputs and targets that a function is tried on


@dataclass(frozen=True)
class TaskContext:
    """What a task may know beside the model and the batches.

    Args:
        device: of the model and of the batches.
        precision: "bf16" computes the forward pass under bfloat16 autocast.
        client: number of the client whose examples they are; None for those of the server.
        round_index: number of the round in the run, from 0.
        seed: of the run.
    """

    device: torch.device
    precision: str = "float32"
    client: int | None = None
    round_index: int = 0
    seed: int = 0


@method("metric", "metric")
class Metric(Expression):
    """A number that says how well a model does.

    Args:
        name: under which its numbers are kept.
        function: of the outputs and the targets of all examples of a part at once, which returns one number; None where
            the task's own `evaluate` computes it.
        higher_is_better: whether a higher number is the better one.
        unit: behind the number in tables, such as "mmHg"; empty for a pure number.
    """

    name: str
    function: FunctionLike | None
    higher_is_better: bool
    unit: str = ""

    def validate(self) -> None:
        require(bool(self.name.strip()), "a metric has a name, got an empty one")
        taken = self.name in (LOSS, EXAMPLES)
        require(not taken, f"{self.name!r} of every test is kept anyway; give the metric another name")

    def better(self, number: float, other: float) -> bool:
        """Whether a number is better than another; NaN is never better."""
        return number > other if self.higher_is_better else number < other


LOSS_METRIC = Metric("test_loss", None, higher_is_better=False)  # where a task has no metric


class Task(Expression, ABC):
    """How a batch becomes a loss, and how a model is evaluated.

    The first of its metrics is the score, by which runs are compared.

    Attributes:
        metrics: what is measured when a model is tested, besides the loss.
    Class attribute `has_classes`: whether every example, or every token, has one of a few classes.
    """

    has_classes: ClassVar[bool] = False
    metrics: tuple[Metric, ...]

    @property
    def score(self) -> Metric:
        """The metric by which runs are compared: the first, or the loss where there is none."""
        return self.metrics[0] if self.metrics else LOSS_METRIC

    @abstractmethod
    def training_loss(self, model: nn.Module, batch: Batch, context: TaskContext, smoothing: float = 0.0) -> Tensor:
        """The mean loss over a batch, one number that depends on the model's parameters.

        Args:
            smoothing: share of a label that the other classes have, for tasks with classes.
        """

    @abstractmethod
    def measure(self, model: nn.Module, batches: Iterable[Batch], context: TaskContext) -> dict[str, float]:
        """The loss and all metrics over some batches, in evaluation mode; NaN for what is not defined there."""

    def check(self, model: nn.Module, batch: Batch, context: TaskContext) -> None:
        """Raises ValueError if model, batch and functions do not fit; the batch has two examples or more."""
        return


def try_task(task: Task, model: nn.Module, batch: Batch, context: TaskContext, tried: set[str]) -> None:
    """Tries a task on a batch of a form that it has not been tried on.

    Args:
        tried: the forms so far; that of the batch is added.
    """
    form = form_of(batch)
    if form not in tried:
        task.check(model, batch, context)
        tried.add(form)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and each of its modules back into its own at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def blaming(what: Callable[[], str]) -> Iterator[None]:
    """Turns an exception of the user's code into a sentence; the exception itself stays its cause."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what()} raised {said_by(error)}") from error


class PairTask(Task):
    """A task whose loss and metrics are functions of the model's outputs and the targets.

    A batch is (inputs, targets); of a longer tuple the last entry is the target, and of a dictionary the entry that
    `targets` names. A batch of one tensor is input and target at once. Inputs in a tuple or a dictionary are the
    arguments of the model.
    """

    targets: str | None = None
    forward: FunctionLike | None = None

    @property
    @abstractmethod
    def loss_function(self) -> Callable[[Any, Any], Any] | None:
        """The loss of outputs and targets; None where the task is evaluated only."""

    def split(self, batch: Batch) -> tuple[Any, Any]:
        """The inputs and the targets of a batch."""
        if isinstance(batch, dict):
            entries = ", ".join(map(repr, batch))
            way = f"{self.expression_name}(targets='label') names the entry that is the target"
            require(self.targets is not None, f"a batch is a dictionary of {entries}, and {way}")
            require(self.targets in batch, f"a batch has no entry {self.targets!r}; it has {entries}")
            return {key: value for key, value in batch.items() if key != self.targets}, batch[self.targets]
        require(
            self.targets is None,
            f"targets={self.targets!r} names an entry of batches that are dictionaries, got {describe(batch)}",
        )
        if isinstance(batch, Tensor):
            return batch, batch
        ok = isinstance(batch, tuple | list) and len(batch) >= 1
        require(ok, f"a batch is (inputs, targets), a dictionary or a tensor, got {describe(batch)}")
        if len(batch) == 1:
            return batch[0], batch[0]
        *inputs, target = list(batch)
        return (inputs[0] if len(inputs) == 1 else tuple(inputs)), target

    def outputs_of(self, model: nn.Module, batch: Batch, context: TaskContext) -> tuple[Any, Any]:
        """The outputs of the model, in float32 where the forward pass ran in bfloat16, and the targets."""
        with torch.autocast(context.device.type, torch.bfloat16, enabled=context.precision == "bf16"):
            if self.forward is not None:
                with blaming(lambda: f"{self.forward}, given a batch {describe(batch)},"):
                    found = self.forward(model, batch)
                ok = isinstance(found, tuple | list) and len(found) == 2
                require(ok, f"{self.forward.reference} returns (outputs, targets), got {describe(found)}")
                outputs, targets = found
            else:
                inputs, targets = self.split(batch)
                with blaming(lambda: f"the model, given inputs {describe(inputs)},"):
                    if isinstance(inputs, dict):
                        outputs = model(**inputs)
                    else:
                        outputs = model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
        if context.precision == "bf16":
            outputs = map_tensors(outputs, lambda t: t.float() if t.dtype == torch.bfloat16 else t)
        return outputs, targets

    def training_loss(self, model: nn.Module, batch: Batch, context: TaskContext, smoothing: float = 0.0) -> Tensor:
        function = self.loss_function
        if function is None:
            raise ValueError(f"{self!r} has no loss to train with; give it one, or train with custom_training(...)")
        outputs, targets = self.outputs_of(model, batch, context)
        with blaming(lambda: f"the loss of outputs {describe(outputs)} and targets {describe(targets)}"):
            loss = function(outputs, targets)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            have = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"an object of {type(loss).__name__}"
            raise ValueError(
                f"a loss is a tensor of one number, the mean over the batch, got {have}; return loss.mean()"
            )
        return loss

    @torch.no_grad()
    def measure(self, model: nn.Module, batches: Iterable[Batch], context: TaskContext) -> dict[str, float]:
        pieces = []
        with evaluating(model):
            for batch in batches:
                pieces.append(self.outputs_of(model, batch, context))
        names = (LOSS, *(metric.name for metric in self.metrics))
        if not pieces:
            return dict.fromkeys(names, math.nan)
        outputs, targets = (_joined([piece[i] for piece in pieces], i) for i in range(2))
        functions = [(LOSS, self.loss_function), *((metric.name, metric.function) for metric in self.metrics)]
        return {
            name: measured(name, function, outputs, targets) for name, function in functions if function is not None
        }

    def check(self, model: nn.Module, batch: Batch, context: TaskContext) -> None:
        functions = [(LOSS, self.loss_function), *((metric.name, metric.function) for metric in self.metrics)]
        with evaluating(model), torch.no_grad():
            outputs, targets = self.outputs_of(model, batch, context)
            for name, function in functions:
                if function is not None:
                    check_broadcast(name, function, outputs, targets)
        with evaluating(model), torch.enable_grad():
            if self.loss_function is not None:
                loss = self.training_loss(model, batch, context)
                require(
                    loss.requires_grad,
                    f"the loss of {self!r} does not depend on the model's parameters; compute it from the outputs, "
                    "without detach(), argmax or item()",
                )
        with torch.no_grad():
            for name, function in functions:
                if function is not None:
                    measured(name, function, outputs, targets)
            if self.loss_function is not None:
                _check_mean(self.loss_function, outputs, targets)


def measured(name: str, function: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> float:
    """A function of outputs and targets as a number."""
    before = versions(outputs, targets)
    with blaming(lambda: f"{name} of outputs {describe(outputs)} and targets {describe(targets)}"):
        value = function(outputs, targets)
    require(
        versions(outputs, targets) == before,
        f"{name} writes into the outputs or the targets, which the other metrics read as well; let it work on a clone",
    )
    return as_number(name, value)


def versions(*batches: Any) -> list[int]:
    """How often each tensor was written to."""
    return [tensor._version for batch in batches for tensor in tensors_of(batch)]


def as_number(name: str, value: Any) -> float:
    """A number that a function of the user's own returned.

    Raises:
        ValueError: it is none.
    """
    item = value
    if isinstance(value, Tensor) or hasattr(value, "item"):
        require(
            getattr(value, "size", 1) == 1 if not isinstance(value, Tensor) else value.numel() == 1,
            f"{name} is one number, got {describe(value) if isinstance(value, Tensor) else value!r}",
        )
        item = value.item()
    ok = isinstance(item, int | float) and not isinstance(item, bool)
    require(ok, f"{name} is one number, got {item!r}")
    return float(item)


def check_broadcast(name: str, function: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> None:
    """Raises ValueError if a function broadcasts outputs of (N, 1) against targets of (N,), or the like.

    Each output would be compared with every target. A function that treats both shapes by itself is let through:
    made-up outputs and targets give the same number in either shape.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.shape == targets.shape:
        return
    shapes = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
    way = "give both the same shape, as with targets.unsqueeze(1) or outputs.squeeze(1)"
    sentence = f"{name} broadcasts {shapes}, so that outputs are compared with targets of other examples; {way}"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            function(outputs, targets)
        except Exception:
            return
    require(not any("target size" in str(warning.message) for warning in said), sentence)
    if outputs.numel() != targets.numel() or outputs.dim() == 0 or targets.dim() == 0:
        return
    rng = torch.Generator().manual_seed(0)
    made = []
    for tensor in (outputs, targets):
        shape = (_PROBED, *tensor.shape[1:])
        values = torch.rand(shape, generator=rng)
        made.append((values if tensor.is_floating_point() else values.round()).to(tensor.device, tensor.dtype))
    try:
        apart = as_number(name, function(made[0], made[1]))
        alike = as_number(name, function(made[0].reshape(made[1].shape), made[1]))
    except Exception:
        return  # it takes no other shape than its own
    same = math.isclose(apart, alike, rel_tol=1e-4, abs_tol=1e-7) or (math.isnan(apart) and math.isnan(alike))
    require(same, sentence)


def _check_mean(function: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> None:
    """Raises ValueError if the loss of every example twice is twice the loss."""
    twice = [map_tensors(batch, lambda t: torch.cat([t, t]) if t.dim() else t) for batch in (outputs, targets)]
    try:
        once, both = as_number(LOSS, function(outputs, targets)), as_number(LOSS, function(*twice))
    except Exception:
        return
    sums = once != 0 and math.isfinite(both) and math.isclose(both, 2 * once, rel_tol=1e-5)
    require(
        not sums,
        f"the loss adds up over the batch ({once:.6g}, and {both:.6g} with each example twice), so it would grow with "
        "the batch and with the test set; return the mean",
    )


def _joined(pieces: list[Any], which: int) -> Any:
    """The outputs or the targets of all batches as one."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if isinstance(first, Tensor):
        try:
            return torch.cat(pieces)
        except RuntimeError as error:
            what = ("outputs", "targets")[which]
            forms = ", ".join(dict.fromkeys(map(describe, pieces)))
            raise ValueError(
                f"the {what} of the test's batches cannot be joined ({forms}), and loss and metrics are functions of "
                "all of them; give the task a function evaluate(model, loader, context)"
            ) from error
    if isinstance(first, dict):
        return {key: _joined([piece[key] for piece in pieces], which) for key in first}
    if isinstance(first, tuple | list):
        return [_joined(list(entries), which) for entries in zip(*pieces, strict=True)]
    return pieces
