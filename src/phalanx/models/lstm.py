# SPDX-License-Identifier: Apache-2.0
"""A recurrent language model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.core._torch_private import refresh_flat_weights
from phalanx.core.expression import method, require
from phalanx.data.passages import columns, parts
from phalanx.models.model import Model, Shape

State = tuple[Tensor, Tensor]  # h and c of all layers, each (layers, B, width)


@method("tied_lstm", "model")
class TiedLstm(Model):
    """Predicts the next word: word vectors, LSTM layers, and the same word vectors as the last layer.

    It has 85,962,278 parameters on WikiText-2.

    Shapes: (B, L) token ids -> (B, L, num_classes).
    Args:
        width: length of a word vector and size of a layer's state, >= 1.
        layers: number of LSTM layers, >= 1.
        dropout: probability of dropout on word vectors, between layers and before the last layer, in [0, 1); 0 makes
            the gradient a function of the samples alone.
    Source: Press and Wolf, Using the Output Embedding to Improve Language Models, 2016, arXiv:1608.05859, in the size
        of the dissertation (Table 4.12). Differs from its published code: every layer keeps its own state from one part
        of a text to the next, where that code resets the second layer and gives its last state to the first.
    """

    width: int = 1500
    layers: int = 2
    dropout: float = 0.65

    def validate(self) -> None:
        ok = self.width >= 1 and self.layers >= 1
        require(ok, f"tied_lstm needs width and layers >= 1, got width={self.width}, layers={self.layers}")
        require(0 <= self.dropout < 1, f"tied_lstm needs dropout in [0, 1), got dropout={self.dropout}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return LanguageModel(self.passage(shape).vocabulary, self.width, self.layers, self.dropout)


class LanguageModel(nn.Module):
    """Scores of the next word at every position of a text, which the model starts with an empty state.

    Shapes: (B, L) token ids -> (B, L, vocabulary).
    """

    def __init__(self, vocabulary: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        between = dropout if layers > 1 else 0.0
        self.lstm = one_bias(nn.LSTM(width, width, layers, batch_first=True, dropout=between))
        self.decoder = nn.Linear(width, vocabulary)
        self.decoder.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        for name, weight in self.lstm.named_parameters():
            for gate in weight.detach().chunk(4):
                nn.init.zeros_(gate) if name.startswith("bias") else nn.init.xavier_uniform_(gate)

    def forward(self, x: Tensor) -> Tensor:
        return self.resume(x, None)[0]

    def resume(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The scores for a part of a text that continues from a state, and the state of every layer at its end.

        Shapes: (B, L), two of (layers, B, width) -> (B, L, vocabulary), two of (layers, B, width).
        """
        out, after = self.lstm(self.dropout(self.embedding(x)), state)
        return self.decoder(self.dropout(out)), after


def one_bias(lstm: nn.LSTM) -> nn.LSTM:
    """The LSTM with one bias for each gate, as in textbooks: PyTorch's second, redundant bias becomes fixed zeros.

    Otherwise it stays an nn.LSTM. The zeros are not parameters and are not saved.
    """
    for name in [name for name, _ in lstm.named_parameters() if name.startswith("bias_hh")]:
        zeros = torch.zeros_like(getattr(lstm, name).detach())
        delattr(lstm, name)
        lstm.register_buffer(name, zeros, persistent=False)
    refresh_flat_weights(lstm)
    return lstm


@torch.no_grad()
def perplexity(model: Any, text: Tensor, length: int = 35, count: int = 10) -> float:
    """Perplexity of a text: exp of the mean cross-entropy of each word given all words before it in its column.

    The text is cut into `count` columns, which the model reads in parallel, `length` words at a time; the state
    continues from part to part. Words that do not fill the columns are left out.

    Shapes: (T,) token ids -> a number >= 1.
    Args:
        model: a model with `resume`, such as a tied_lstm, factorized or not.
        text: token ids of the text.
        length: words that the model reads at a time, >= 1.
        count: number of columns, >= 1.
    Raises:
        ValueError: the text is too short for the columns.
    """
    text_columns = columns(text, count)
    was, state, total, scored = model.training, None, 0.0, 0
    model.eval()
    for x, y in parts(text_columns, length):
        scores, state = model.resume(x, state)
        total += float(F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum"))
        scored += y.numel()
    model.train(was)
    return math.exp(total / scored)
