# SPDX-License-Identifier: Apache-2.0
"""Adversarial examples: inputs near the given ones that a network takes for another class."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from phalanx.core.expression import require
from phalanx.core.precision import finite

Norm = Literal["l2", "linf"]


def adversarial_examples(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = 40,
    norm: Norm = "l2",
    box: tuple[float, float] | None = None,
) -> Tensor:
    """Inputs within eps of the given ones, moved towards the classes y by projected gradient descent.

    An example that the network takes for y stays where it is, so it is no farther from x than it had to go. Which ones
    got there, `model(result).argmax(1) == y` says; the others are where the last step left them.

    Shapes: x (n, ...), y (n,) -> (n, ...).
    Args:
        model: of logits (n, c); a copy is used, in evaluation and in the dtype of x.
        x: floating-point inputs.
        y: the class each is to be taken for; for an untargeted attack any class but the right one will do.
        eps: radius of the ball around each input, > 0.
        steps: of length 2.5 eps / steps, >= 1.
        norm: of the ball, "l2" or "linf".
        box: least and largest entry that an input can have, such as the range of pixels; x lies within.
    Raises:
        ValueError: numbers, shapes or classes that do not fit; the sentence names them.
    Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, arXiv:1706.06083.
    Differs: starts at x instead of at random, aims at a class, and stops at the first success.
    """
    _check(x, y, eps, steps, norm, box)
    net = copy.deepcopy(model).to(x.dtype).eval().requires_grad_(False)
    origin = x.detach()
    point, length = origin.clone(), 2.5 * eps / steps
    for _ in range(steps):
        point.requires_grad_(True)
        with torch.enable_grad():
            logits = net(point)
            _check_logits(logits, y)
            loss = nn.functional.cross_entropy(logits, y, reduction="sum")
            (slope,) = torch.autograd.grad(loss, point)
        point = point.detach()
        moving = (logits.detach().argmax(1) != y).reshape(-1, *[1] * (x.dim() - 1))
        if not moving.any():
            break
        moved = _into_ball(point - length * _direction(slope, norm) - origin, eps, norm) + origin
        point = torch.where(moving, moved if box is None else moved.clamp(*box), point)
    return point


def _direction(slope: Tensor, norm: Norm) -> Tensor:
    return slope.sign() if norm == "linf" else slope / _lengths(slope).clamp(min=torch.finfo(slope.dtype).tiny)


def _into_ball(shift: Tensor, eps: float, norm: Norm) -> Tensor:
    return shift.clamp(-eps, eps) if norm == "linf" else shift * (eps / _lengths(shift).clamp(min=eps))


def _lengths(rows: Tensor) -> Tensor:
    """Euclidean norms of all that belongs to each example, of a shape that divides it."""
    return rows.flatten(1).norm(dim=1).reshape(-1, *[1] * (rows.dim() - 1))


def _check(x: Tensor, y: Tensor, eps: float, steps: int, norm: str, box: tuple[float, float] | None) -> None:
    require(
        x.is_floating_point() and x.dim() >= 2, f"x must be floating-point (n, ...), got {x.dtype} {tuple(x.shape)}"
    )
    require(len(x) > 0 and finite(x), "x must hold at least one example, and no NaN or Inf")
    require(
        y.dtype == torch.int64 and y.shape == x.shape[:1],
        f"y must be int64 of shape ({len(x)},), a class for each example, got {y.dtype} {tuple(y.shape)}",
    )
    require(0 < eps < math.inf, f"adversarial_examples needs 0 < eps < inf, got eps={eps}")
    require(steps >= 1, f"adversarial_examples needs steps >= 1, got steps={steps}")
    require(norm in ("l2", "linf"), f'norm must be "l2" or "linf", got {norm!r}')
    if box is not None:
        low, high = float(x.min()), float(x.max())
        require(
            box[0] <= low and high <= box[1],
            f"the box {box} does not hold x, whose entries are {low:.4g} .. {high:.4g}; give the range of the inputs "
            "as the network sees them",
        )


def _check_logits(logits: Any, y: Tensor) -> None:
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    fits = isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(y)
    require(fits, f"the network must return logits ({len(y)}, c), got {shape}")
    num, low, high = logits.shape[1], int(y.min()), int(y.max())
    require(low >= 0 and high < num, f"y must be classes 0 .. {num - 1} of the network, got {low} .. {high}")
