# SPDX-License-Identifier: Apache-2.0
"""One long text as examples for a language model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from phalanx.core.expression import require
from phalanx.data.shape import UNSCORED


def passages(ids: Tensor, length: int, context: int) -> tuple[Tensor, Tensor]:
    """Pieces of a text, each of which a model reads with an empty memory, and the words that follow each of theirs.

    Every word but the first `context` + 1 and the last fewer than `length` is scored once.

    Shapes: (T,) -> twice (N, context + length), labels of the first `context` words being -100.
    Args:
        length: words of a piece that are scored, >= 1.
        context: words before them that the model reads and that are not scored, >= 0.
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
    """A text cut into long pieces that are read side by side; words that do not fill them are left out.

    Shapes: (T,) -> (count, T // count).
    Raises:
        ValueError: a column would have fewer than two words.
    """
    rows = len(ids) // count
    require(rows >= 2, f"a text of {len(ids)} words gives no two to each of {count} columns; lower columns")
    return ids[: rows * count].reshape(count, rows)


def parts(text: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Columns from left to right, `length` words at a time, each part with the words that follow its own.

    Shapes: (C, T) -> pairs of (C, length), the last pair perhaps shorter.
    """
    last = text.shape[1] - 1
    for start in range(0, last, length):
        stop = min(start + length, last)
        yield text[:, start:stop], text[:, start + 1 : stop + 1]
