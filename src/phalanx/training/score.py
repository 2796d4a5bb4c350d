# SPDX-License-Identifier: Apache-2.0
"""Loss and accuracy of a model's scores, for labels of whole examples or of each token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.core.expression import require
from phalanx.data.dataset import Dataset


def cross_entropy(
    scores: Tensor, labels: Tensor, reduction: Literal["mean", "sum"] = "mean", smoothing: float = 0.0
) -> Tensor:
    """-log softmax(scores) at the labels, mean or sum over all labels but those of -100.

    Shapes: (B, C) and (B,), or (B, L, C) and (B, L) -> scalar.
    Args:
        smoothing: share of a label that the other C - 1 classes get in equal parts, in [0, (C - 1) / C).
    Raises:
        ValueError: the model's scores do not have a row for each label, or smoothing is too large.
    """
    if scores.shape[:-1] != labels.shape:
        shapes = f"{tuple(scores.shape)} and {tuple(labels.shape)}"
        raise ValueError(
            f"a model gives scores for each label, but scores and labels are {shapes}; choose another model"
        )
    classes = scores.shape[-1]
    # PyTorch spreads its share over all classes, the label's own among them
    spread = smoothing * classes / max(1, classes - 1)
    require(spread <= 1, f"smoothing={smoothing} leaves a label less than each of the other {classes - 1} classes")
    return F.cross_entropy(scores.float().flatten(0, -2), labels.flatten(), reduction=reduction, label_smoothing=spread)


def assess(model: nn.Module, data: Dataset, device: torch.device, precision: str) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross-entropy over the labels of the test set, in evaluation mode; NaN without one.

    Args:
        precision: "bf16" for bfloat16 autocast.
    """
    right, loss, count = 0, 0.0, 0
    for scores, y in scored(model, data, device, precision):
        right += int((scores.argmax(dim=-1) == y).sum())
        loss += float(cross_entropy(scores, y, "sum"))
        count += int((y >= 0).sum())
    return (right / count, loss / count) if count else (math.nan, math.nan)


def together(data: Dataset) -> int:
    """The number of examples in a batch of the test."""
    return data.test_batch


@torch.no_grad()
def scores_of(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """The model's scores of a batch in float32. Shapes: (B, ...) -> (B, C) or (B, L, C)."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model(x).float()


def scored(model: nn.Module, data: Dataset, device: torch.device, precision: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the model's scores of the test set and its labels, batch by batch, in evaluation mode."""
    model.eval()
    step = together(data)
    for start in range(0, len(data.test_y), step):
        x, y = (t.to(device) for t in data.test(slice(start, start + step)))
        yield scores_of(model, x, precision), y


def number_of(x: Tensor | float) -> float | None:
    """A float for JSON; None in place of NaN and infinity, which JSON does not have."""
    value = float(x)
    return value if math.isfinite(value) else None
