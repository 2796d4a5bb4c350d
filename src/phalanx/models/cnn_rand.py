# SPDX-License-Identifier: Apache-2.0
"""A convolutional network for sentences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.core.expression import method, require
from phalanx.models.model import Model, Shape


@method("cnn_rand", "model")
class CnnRand(Model):
    """Trained word vectors, convolutions over windows of words, their maximum over time, one linear layer.

    It has 154,502 parameters with 2 classes, and `dim` more for each word of the vocabulary.

    Shapes: (B, L) token ids -> (B, num_classes).
    Args:
        dim: length of a word vector, >= 1.
        maps: number of output channels for each window, >= 1.
        windows: number of words in the window of each convolution, >= 1.
        dropout: probability of dropout before the linear layer, in [0, 1); 0 makes the gradient a function of the
            samples alone.
    Source: Kim, Convolutional Neural Networks for Sentence Classification, 2014, arXiv:1408.5882, CNN-rand, in the size
        of the dissertation (Table 6.1: 154k; it does not give the rest). Differs: vectors of 128 where the paper has
        300, because then all parameters but the vectors are the dissertation's 154k; dropout 0 where the paper has
        0.5; no bound on the norm of the last layer.
    """

    dim: int = 128
    maps: int = 100
    windows: tuple[int, ...] = (3, 4, 5)
    dropout: float = 0.0

    def validate(self) -> None:
        ok = min(self.dim, self.maps, *self.windows, 1) >= 1 and len(self.windows) >= 1
        have = f"dim={self.dim}, maps={self.maps}, windows={self.windows}"
        require(ok, f"cnn_rand needs dim, maps and at least one window, all >= 1, got {have}")
        require(0 <= self.dropout < 1, f"cnn_rand needs dropout in [0, 1), got dropout={self.dropout}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        vocabulary = self.tokens(shape).vocabulary
        return _CnnRand(vocabulary, self.dim, self.maps, self.windows, self.dropout, num_classes)


class _CnnRand(nn.Module):
    """Shapes: (B, L) token ids -> (B, num_classes)."""

    def __init__(
        self, vocabulary: int, dim: int, maps: int, windows: tuple[int, ...], dropout: float, num_classes: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim, padding_idx=0)
        # zeros on both sides, so that every window sees every word and a text may be shorter than a window
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, maps, width, padding=width - 1) for width in windows)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(maps * len(windows), num_classes)
        with torch.no_grad():
            nn.init.uniform_(self.embedding.weight, -0.25, 0.25)
            self.embedding.weight[0].zero_()

    def forward(self, x: Tensor) -> Tensor:
        words = self.embedding(x).transpose(1, 2)
        peaks = [convolution(words).max(dim=2).values for convolution in self.convolutions]
        return self.linear(self.dropout(F.relu(torch.cat(peaks, dim=1))))
