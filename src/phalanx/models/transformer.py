# SPDX-License-Identifier: Apache-2.0
"""A Transformer that translates, and its sublayers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.core.expression import method, require
from phalanx.data.shape import PADDING
from phalanx.models.model import Model, Shape


@method("transformer", "model")
class Transformer(Model):
    """Predicts the next word of a translation: an encoder of the text, a decoder, and one matrix for all words.

    It has 48,978,432 parameters with Multi30k's 9,521 words.

    Shapes: pairs (B, 2, L) of token ids -> (B, L, num_classes).
    Args:
        width: length of a word vector; even and a multiple of heads.
        hidden: width between the two linear layers of a block, >= 1.
        heads: number of heads of each attention, >= 1.
        layers: number of layers of the encoder and of the decoder, >= 1.
        dropout: probability of dropout on word vectors, attentions and every sublayer, in [0, 1); 0 makes the gradient
            a function of the samples alone.
        scaled: how the one matrix is scaled, which is too small for word vectors or too large for scores. "words"
            multiplies the vectors by sqrt(width) before positions are added; "scores" divides the scores by sqrt(width)
            and learns much later.
    Source: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762. Differs: as in the dissertation's
        code, LayerNorm also on the word vectors; that code has scaled="scores" where the paper has "words".
    """

    width: int = 512
    hidden: int = 2048
    heads: int = 8
    layers: int = 6
    dropout: float = 0.1
    scaled: Literal["words", "scores"] = "words"

    def validate(self) -> None:
        counts = (self.width, self.hidden, self.heads, self.layers)
        require(min(counts) >= 1, f"transformer needs width, hidden, heads and layers >= 1, got {counts}")
        ok = self.width % self.heads == 0 and self.width % 2 == 0
        have = f"width={self.width}, heads={self.heads}"
        require(ok, f"transformer needs an even width that its heads divide, got {have}")
        require(0 <= self.dropout < 1, f"transformer needs dropout in [0, 1), got dropout={self.dropout}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        vocabulary = self.pairs(shape).vocabulary
        sizes = (vocabulary, self.width, self.hidden, self.heads, self.layers)
        return Translator(*sizes, self.dropout, self.scaled == "words")


class Translator(nn.Module):
    """Scores of the next word at every position of a translation, from the text and the words before.

    Shapes: pairs (B, 2, L) of token ids, the text and the translation so far -> (B, L, vocabulary).
    """

    def __init__(
        self, vocabulary: int, width: int, hidden: int, heads: int, layers: int, dropout: float, large_words: bool
    ) -> None:
        super().__init__()
        self.word_scale, self.score_scale = (width**0.5, 1.0) if large_words else (1.0, width**-0.5)
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.dropout = nn.Dropout(dropout)
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.encoder = nn.ModuleList(_EncoderLayer(width, hidden, heads, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(_DecoderLayer(width, hidden, heads, dropout) for _ in range(layers))
        self.projection = nn.Linear(width, vocabulary, bias=False)
        self.projection.weight = self.embedding.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        source, target = x.unbind(1)
        return self.scores(self.decode(target, source, self.encode(source)))

    def encode(self, source: Tensor) -> Tensor:
        """Encodes a text. Shapes: (B, S) token ids -> (B, S, width)."""
        x, mask = self.encoder_norm(self._embed(source)), _words(source)
        for layer in self.encoder:
            x = layer(x, mask)
        return x

    def decode(self, target: Tensor, source: Tensor, memory: Tensor) -> Tensor:
        """The decoder's output at each position of the translation so far, which depends on the positions up to it.

        Shapes: (B, T) and (B, S) token ids, (B, S, width) from `encode` -> (B, T, width).
        """
        length = target.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=target.device).tril()
        x = self.decoder_norm(self._embed(target))
        mask, source_mask = _words(target) & before, _words(source)
        for layer in self.decoder:
            x = layer(x, mask, memory, source_mask)
        return x

    def scores(self, x: Tensor) -> Tensor:
        """The score of each word. Shapes: (..., width) -> (..., vocabulary)."""
        return self.projection(x) * self.score_scale

    def _embed(self, ids: Tensor) -> Tensor:
        vectors = self.embedding(ids) * self.word_scale
        return self.dropout(vectors + positions(ids.shape[1], vectors.shape[-1]).to(vectors))


class _EncoderLayer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.feed = FeedForward(width, hidden, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.feed(self.attention(x, x, mask))


class _DecoderLayer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.across = Attention(width, heads, dropout)
        self.feed = FeedForward(width, hidden, dropout)

    def forward(self, x: Tensor, mask: Tensor, memory: Tensor, source_mask: Tensor) -> Tensor:
        return self.feed(self.across(self.attention(x, x, mask), memory, source_mask))


def positions(length: int, width: int) -> Tensor:
    """Position vectors PE[t, 2i] = sin(t / 10000^(2i / width)), PE[t, 2i + 1] = cos of the same.

    Shapes: -> (length, width).
    Source: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, section 3.5. As published.
    """
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-torch.tensor(10_000.0).log() / width))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def _words(ids: Tensor) -> Tensor:
    """A mask that is False at padding; the first position is always True, as an empty text would give NaN.

    Shapes: (B, S) -> (B, 1, 1, S).
    """
    words = ids != PADDING
    words[:, :1] = True
    return words[:, None, None]


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
