# SPDX-License-Identifier: Apache-2.0
"""Metrics of a model's outputs and the targets, each over a whole part of the data."""

from __future__ import annotations

import torch
from torch import Tensor


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    """The root of the mean squared error, in the unit of the targets. Shapes: equal ones -> scalar."""
    _check("rmse", outputs, targets)
    return (outputs.double() - targets).square().mean().sqrt()


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean absolute error, in the unit of the targets. Shapes: equal ones -> scalar."""
    _check("mae", outputs, targets)
    return (outputs.double() - targets).abs().mean()


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """The coefficient of determination, at most 1; the mean over several outputs; NaN where targets are all equal.

    Shapes: (N,) or (N, K), equal ones -> scalar.
    """
    _check("r2", outputs, targets)
    errors = (outputs.double() - targets).square().sum(dim=0)
    spread = (targets.double() - targets.double().mean(dim=0)).square().sum(dim=0)
    return torch.where(spread > 0, 1 - errors / spread, torch.nan).mean()


def f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """The micro-averaged F1 score in [0, 1] of scores above 0 against targets of 0 and 1. Shapes: (N, K) both."""
    _check("f1", outputs, targets)
    chosen, true = outputs > 0, targets > 0.5
    hits = (chosen & true).sum().double()
    return 2 * hits / (chosen.sum() + true.sum())


def exact_match(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of examples all of whose labels are right, by scores above 0. Shapes: (N, K) both -> scalar."""
    _check("exact_match", outputs, targets)
    return ((outputs > 0) == (targets > 0.5)).flatten(1).all(dim=1).double().mean()


def mean_iou(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over the classes of intersection over union, in [0, 1]; classes that occur nowhere are left out.

    Shapes: (N, C, ...) scores and (N, ...) classes, -100 for places without one -> scalar.
    """
    known = targets >= 0
    chosen, true, classes = outputs.argmax(dim=1)[known], targets[known], outputs.shape[1]
    table = torch.bincount(true * classes + chosen, minlength=classes**2).reshape(classes, classes).double()
    both = table.diagonal()
    union = table.sum(dim=0) + table.sum(dim=1) - both
    return (both / union)[union > 0].mean()


def pixel_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of places whose class is right, in [0, 1]. Shapes: (N, C, ...) scores and (N, ...) classes."""
    known = targets >= 0
    return (outputs.argmax(dim=1)[known] == targets[known]).double().mean()


def _check(name: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise ValueError(
            f"{name} compares outputs and targets of one shape, got {tuple(outputs.shape)} and {tuple(targets.shape)}"
        )
