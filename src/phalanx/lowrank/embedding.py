# SPDX-License-Identifier: Apache-2.0
"""Embeddings of low rank."""

from __future__ import annotations

from typing import Any, Self, cast

from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import OneWeight, Ranks, empty_pair


class LowRankEmbedding(OneWeight):
    """Row i of v u for a word i: a vector of `rank` entries is looked up and multiplied by u.

    Shapes: (...) of whole numbers -> (..., width); v (words, rank), u (rank, width), which a tied `LowRankLinear`
    shares.
    """

    kind = "embedding"

    def __init__(
        self, factor: Factor, u: nn.Parameter, v: nn.Parameter, padding_idx: int | None, by_freq: bool, sparse: bool
    ) -> None:
        super().__init__()
        self.factor = factor
        self.num_embeddings, self.embedding_dim = factor.shape
        self.u, self.v = u, v
        self.padding_idx, self.scale_grad_by_freq, self.sparse = padding_idx, by_freq, sparse

    @classmethod
    def dense_factors(cls, dense: nn.Module) -> tuple[Factor, ...]:
        return (Factor("", "weight", tuple(cast(nn.Embedding, dense).weight.shape)),)

    @classmethod
    def refusal(cls, dense: nn.Module) -> str:
        return "max_norm changes single rows, which factors cannot" if dense.max_norm is not None else ""

    @classmethod
    def like(cls, dense: nn.Module, ranks: Ranks) -> Self:
        old, (factor,), rank = cast(nn.Embedding, dense), cls.dense_factors(dense), ranks[""]
        assert rank is not None
        u, v = empty_pair(factor, rank, old.weight)
        return cls(factor, u, v, old.padding_idx, old.scale_grad_by_freq, old.sparse)

    def dense_like(self) -> nn.Module:
        return nn.Embedding(
            self.num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
            device="meta",
        )

    def macs(self, inputs: tuple[Any, ...], output: Any) -> int:
        return output.numel() // self.embedding_dim * self.u.numel()  # v is looked up

    def forward(self, input: Tensor) -> Tensor:
        short = F.embedding(
            input, self.v, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse
        )
        return F.linear(short, self.u.mT)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.v.shape[1]}"
