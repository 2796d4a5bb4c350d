# SPDX-License-Identifier: Apache-2.0
"""The sublayers of a Transformer, each with a residual connection and a normalization after it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

# B texts, T query positions, S key positions, H heads, D channels


class Attention(nn.Module):
    """Multi-head attention without biases, in four square matrices.

    Shapes: (B, T, D) and (B, S, D) -> (B, T, D); mask (B or 1, 1, T or 1, S), True where query T may attend to key S.
    Source: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, section 3.2.2. Differs: as in the
        usual PyTorch version, one matrix for the queries of all heads, and likewise for keys, values and the output.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.product = DotProduct(dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            matrix(inputs).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for matrix, inputs in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        attended = self.product(query, key, value, mask).transpose(1, 2).flatten(-2)
        return self.norm(x + self.dropout(self.out(attended)))


class DotProduct(nn.Module):
    """softmax(Q K^T / sqrt(D / H)) V, as a module of its own so that its multiplications are counted.

    Shapes: (B, H, T, D / H), twice (B, H, S, D / H) and a mask -> (B, H, T, D / H).
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)

    def macs(self, inputs: tuple[Any, ...], output: Any) -> int:
        """The number of multiplications of the two products."""
        query, key, value, _ = inputs
        return query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * value.shape[-2] * value.shape[-1]


class FeedForward(nn.Module):
    """Two linear layers with ReLU between them. Shapes: (B, T, D) -> same."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.outer(F.relu(self.inner(x)))))
