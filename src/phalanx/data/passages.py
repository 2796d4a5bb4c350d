# SPDX-License-Identifier: Apache-2.0
"""Makes examples for a language model from one long text."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from phalanx.core.expression import require
from phalanx.data.shape import UNSCORED


def passages(ids: Tensor, length: int, context: int) -> tuple[Tensor, Tensor]:
    """Passages of a text, which a model reads with an empty memory, and for each word the word that follows.

    Every word is scored once, except the first `context` + 1 words and fewer than `length` at the end.

    Shapes: (T,) -> twice (N, context + length); the labels of the first `context` words are -100.
    Args:
        ids: token ids of the text.
        length: words of a passage that are scored, >= 1.
        context: words before them that the model reads but that are not scored, >= 0.
    Raises:
        ValueError: the text is shorter than one piece and a word.
    """
    wide = context + length + 1
    require(len(ids) >= wide, f"a text of {len(ids)} words is shorter than one passage of {wide}; lower length")
    pieces = ids.unfold(0, wide, length)
    labels = pieces[:, 1:].clone()
    labels[:, :context] = UNSCORED
    return pieces[:, :-1], labels


def columns(ids: Tensor, count: int) -> Tensor:
    """A text cut into `count` long columns, which a model reads in parallel; words that do not fill them are left out.

    Shapes: (T,) -> (count, T // count).
    Raises:
        ValueError: a column would have fewer than two words.
    """
    rows = len(ids) // count
    require(rows >= 2, f"a text of {len(ids)} words gives no two to each of {count} columns; lower columns")
    return ids[: rows * count].reshape(count, rows)


def parts(text: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The columns from left to right, `length` words at a time; for each part the words, and the words that follow.

    Shapes: (C, T) -> pairs of (C, length), the last pair perhaps shorter.
    """
    last = text.shape[1] - 1
    for start in range(0, last, length):
        stop = min(start + length, last)
        yield text[:, start:stop], text[:, start + 1 : stop + 1]
