# SPDX-License-Identifier: Apache-2.0
"""Matching of layers as a plain function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from phalanx.core.expression import require
from phalanx.matching.bbp import Bbp
from phalanx.matching.matching import Matcher, Matching

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def match(
    layers: Sequence[Tensor] | Sequence[np.ndarray] | Tensor | np.ndarray,
    gamma: float = 7.0,
    sigma: float = 1.0,
    sigma0: float = 1.0,
    *,
    matcher: Matcher | None = None,
    bias: Literal["last", "none", "first"] = "last",
    seed: int = 0,
) -> Matching:
    """Matches the neurons of one layer of several networks, and averages them.

    Shapes: J of (L_j, D) -> (L, D).
    Args:
        layers: for each client one row for each neuron, with its incoming weights and then its bias; tensors or arrays.
        gamma: expected number of neurons, > 0; gamma, sigma and sigma0 are settings of `bbp`, by default the published
            ones.
        sigma: variance of an entry around the neuron it is a copy of, > 0.
        sigma0: variance of a neuron's entries around their prior mean, > 0.
        matcher: a matcher with its own settings, in place of bbp(gamma, sigma, sigma0).
        bias: the column of the bias; "first" gives the prior mean of biases to the first weight, as the published code
            does in all layers but the first.
        seed: of the order of clients.
    Raises:
        ValueError: there is no client, a layer is empty, the widths differ, an entry is NaN or Inf, a layer is not of
            floating point, or settings are given beside a matcher.
    Source: as `bbp`.

    >>> match([torch.eye(3), torch.eye(3).flip(0)], gamma=0.1, bias="none").assignments
    (tensor([0, 1, 2]), tensor([2, 1, 0]))
    """
    parameters = (gamma, sigma, sigma0)
    require(
        matcher is None or parameters == (7.0, 1.0, 1.0),
        f"match takes gamma, sigma, sigma0 or a matcher, got {parameters} and {matcher!r}; set them in the matcher",
    )
    require(bias in ("last", "none", "first"), f"match: bias must be 'last', 'none' or 'first', got {bias!r}")
    rule = Bbp(gamma, sigma, sigma0) if matcher is None else matcher
    require(isinstance(rule, Matcher), f"match takes a matcher such as bbp(), got {rule!r}")
    try:
        tables = [torch.as_tensor(layer) for layer in layers]
    except (TypeError, ValueError, RuntimeError):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        raise ValueError(
            f"match takes one layer of each client, (neurons, weights), as a tensor, got {kinds}"
        ) from None
    width = tables[0].shape[-1] if tables and tables[0].dim() else 0
    columns = {"last": (width - 1,), "first": (0,), "none": ()}[bias] if width else ()
    return rule.match(tables, columns, seed)
