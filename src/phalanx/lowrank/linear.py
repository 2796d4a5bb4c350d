# SPDX-License-Identifier: Apache-2.0
"""Fully connected layers of low rank."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import OneWeight, Ranks, empty_pair


class LowRankLinear(OneWeight):
    """y = v (u x) + bias, as a replacement for `nn.Linear` or for the `Conv1D` of Hugging Face's GPT-2.

    Shapes: (..., in) -> (..., out); u (rank, in), v (out, rank), bias (out,).
    Source: Wang et al., Pufferfish, 2021, arXiv:2103.03936, section 2.1. As published.
    """

    kind = "linear"

    def __init__(
        self, factor: Factor, u: nn.Parameter, v: nn.Parameter, bias: nn.Parameter | None, dense: type
    ) -> None:
        super().__init__()
        self.factor = factor
        self.out_features, self.in_features = factor.shape
        self.u, self.v, self.bias = u, v, bias
        self.dense_type = dense

    @classmethod
    def dense_factors(cls, dense: nn.Module) -> tuple[Factor, ...]:
        rows, columns = _weight(dense).shape
        if is_transposed(dense):
            return (Factor("", "weight", (columns, rows), transposed=True),)
        return (Factor("", "weight", (rows, columns)),)

    @classmethod
    def like(cls, dense: nn.Module, ranks: Ranks) -> Self:
        (factor,) = cls.dense_factors(dense)
        rank = ranks[""]
        assert rank is not None
        u, v = empty_pair(factor, rank, _weight(dense))
        bias: Any = dense.bias
        return cls(factor, u, v, bias, type(dense))

    def dense_like(self) -> nn.Module:
        with torch.device("meta"):
            if self.factor.transposed:
                dense = self.dense_type(self.out_features, self.in_features)
            else:
                dense = self.dense_type(self.in_features, self.out_features, bias=self.bias is not None)
        dense.bias = self.bias
        return dense

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(F.linear(input, self.u), self.v, self.bias)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.v.shape[1]}, bias={bias}"


def is_transposed(dense: nn.Module) -> bool:
    """Whether this is a `Conv1D` of Hugging Face, by its name and fields, because the import would take seconds."""
    named = type(dense).__name__ == "Conv1D" and not isinstance(dense, nn.Conv1d)
    return named and all(hasattr(dense, field) for field in ("nf", "nx", "weight", "bias"))


def _weight(dense: nn.Module) -> nn.Parameter:
    weight: Any = dense.weight
    return weight
