# SPDX-License-Identifier: Apache-2.0
"""A recurrent classifier of texts."""

from __future__ import annotations

from torch import Tensor, nn

from phalanx.core.expression import method, require
from phalanx.data.shape import PADDING
from phalanx.models.model import Model, Shape


@method("sentence_lstm", "model")
class SentenceLstm(Model):
    """Trained word vectors, LSTM layers, and one linear layer on the last layer's state after the last word.

    It has 643,602 parameters with 2 classes, and `embedding` more for each word of the vocabulary.

    Shapes: (B, L) token ids -> (B, num_classes).
    Args:
        embedding: length of a word vector, >= 1.
        width: size of a layer's state, >= 1.
        layers: number of LSTM layers, >= 1.
        dropout: probability of dropout on word vectors, between layers and before the linear layer, in [0, 1); 0 makes
            the gradient a function of the samples alone.
    Source: Wang et al., Attack of the Tails, 2020, arXiv:2007.05084, task 4, in the size of the dissertation (section
        8.5.2), which does not give the places of dropout and the initialization; the latter is PyTorch's here.
        Differs: a score for each class in place of one score and a sigmoid.
    """

    embedding: int = 200
    width: int = 200
    layers: int = 2
    dropout: float = 0.5

    def validate(self) -> None:
        sizes = self.embedding, self.width, self.layers
        have = "embedding={}, width={}, layers={}".format(*sizes)
        require(min(sizes) >= 1, f"sentence_lstm needs embedding, width and layers >= 1, got {have}")
        require(0 <= self.dropout < 1, f"sentence_lstm needs dropout in [0, 1), got dropout={self.dropout}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        vocabulary = self.tokens(shape).vocabulary
        return _SentenceLstm(vocabulary, self.embedding, self.width, self.layers, self.dropout, num_classes)


class _SentenceLstm(nn.Module):
    """Shapes: (B, L) token ids -> (B, num_classes)."""

    def __init__(
        self, vocabulary: int, embedding: int, width: int, layers: int, dropout: float, num_classes: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PADDING)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(self.dropout(self.embedding(x)))
        # padding follows a text, and a text without a word has its first state
        last = (x != PADDING).sum(dim=1).clamp(min=1) - 1
        state = out.gather(1, last[:, None, None].expand(-1, 1, out.shape[2])).squeeze(1)
        return self.linear(self.dropout(state))
