# SPDX-License-Identifier: Apache-2.0
"""The time steps of a packed sequence, and the product of a hidden state with the weights of all gates.

Legend: g gates, n rows of the packed sequence, b rows of one step, h hidden units, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

Sizes = tuple[int, ...]  # number of sequences in each time step; it never increases


def order(sizes: Sizes, reverse: bool) -> list[int]:
    """The time steps in the order in which they are computed."""
    steps = list(range(len(sizes)))
    return steps[::-1] if reverse else steps


def packed(rows: list[Tensor] | tuple[Tensor, ...], reverse: bool, dim: int = 0) -> Tensor:
    """The rows of all time steps sorted by time, from the rows of each step in the order of computation."""
    return torch.cat(rows[::-1] if reverse else rows, dim)


def advance(states: Tensor, first: Tensor) -> Tensor:
    """The states of all sequences, with those of the first ones replaced. Shapes: (b, h), (<= b, h) -> (b, h)."""
    # len() would turn a traced batch size into a constant
    size = first.shape[0]
    return first if size == states.shape[0] else torch.cat([first, states[size:]])


def product(x: Tensor, h: Tensor, u: Tensor | None, v: Tensor) -> tuple[Tensor, Tensor]:
    """x + h W^T for every gate, and the product of h with u.

    Shapes: x (g, b, h), h (b, h), u (g * r, h), v (g, h, r) -> (g, b, h), (b, g * r).
    """
    if u is None:
        return x + (h @ v.flatten(0, 1).mT).unflatten(1, v.shape[:2]).transpose(0, 1), h
    thin = h @ u.mT
    return torch.baddbmm(x, thin.unflatten(1, (v.shape[0], v.shape[2])).transpose(0, 1), v.mT), thin


def product_back(dz: Tensor, u: Tensor | None, v: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of h and of its product with u, from the gradient of the result of `product`.

    Shapes: dz (g, b, h) -> (b, h), (b, g * r).
    """
    if u is None:
        dh = dz.transpose(0, 1).flatten(1) @ v.flatten(0, 1)
        return dh, dh
    dthin = torch.bmm(dz, v).transpose(0, 1).flatten(1)
    return dthin @ u, dthin


def weights_back(
    dz: Tensor, h: Tensor, thin: Tensor | None, dthin: Tensor | None, u: Tensor | None, v: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The gradients of u and v, from all time steps at once.

    Shapes: dz (g, n, h), h (n, h), thin and dthin (n, g * r) -> (g * r, h), (g, h, r).
    """
    if u is None or thin is None or dthin is None:
        return None, (dz.transpose(0, 1).flatten(1).mT @ h).unflatten(0, v.shape[:2])
    left = thin.unflatten(1, (v.shape[0], v.shape[2])).transpose(0, 1)
    return dthin.mT @ h, torch.bmm(dz.mT, left)
