# SPDX-License-Identifier: Apache-2.0
"""The shape of an example, for the models that read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING, UNKNOWN = 0, 1
START, END = 2, 3  # before and after each of a pair of texts
UNSCORED = -100  # label of a token that is not scored; cross_entropy ignores it by default


@dataclass(frozen=True)
class Tokens:
    """A text with one label: `length` token ids, each in [0, vocabulary); 0 is padding, 1 unknown."""

    length: int
    vocabulary: int

    def __str__(self) -> str:
        return f"sequences of {self.length} token ids"


@dataclass(frozen=True)
class Passage:
    """A text in which the label of every token is the next token: `length` token ids, each in [0, vocabulary)."""

    length: int
    vocabulary: int

    def __str__(self) -> str:
        return f"passages of {self.length} token ids with a label each"


@dataclass(frozen=True)
class Pairs:
    """A text and its translation so far, (2, length) token ids below `vocabulary`; the second has labels.

    0 is padding, 1 unknown, 2 the start, 3 the end. A batch is as long as its longest text, at most `length`.
    """

    length: int
    vocabulary: int

    def __str__(self) -> str:
        return f"pairs of texts of up to {self.length} token ids"


@dataclass(frozen=True)
class Features:
    """A line of a table: `count` numbers."""

    count: int

    def __str__(self) -> str:
        return f"tables of {self.count} features"


@dataclass(frozen=True)
class OtherShape:
    """Examples that only a model of the user's own reads; `words` describe them."""

    words: str

    def __str__(self) -> str:
        return self.words


# channels, height and width of an image, or what else an example is
Shape = tuple[int, int, int] | Tokens | Passage | Pairs | Features | OtherShape


def example(shape: Shape) -> Tensor:
    """Two examples of a shape, all zeros. Shapes: -> (2, C, H, W), (2, F), (2, L) or (2, 2, L)."""
    if isinstance(shape, tuple):
        return torch.zeros(2, *shape)
    if isinstance(shape, Features):
        return torch.zeros(2, shape.count)
    if isinstance(shape, OtherShape):
        raise ValueError(f"the layers of a network are traced with one tensor, and the data are {shape}")
    return torch.zeros((2, 2, shape.length) if isinstance(shape, Pairs) else (2, shape.length), dtype=torch.int64)
