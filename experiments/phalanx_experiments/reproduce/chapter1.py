# SPDX-License-Identifier: Apache-2.0
"""Figures of chapter 1."""

from __future__ import annotations

from phalanx_experiments.reproduce.item import NONE, PARTLY, Item, Part, Row
from phalanx_experiments.reproduce.places import Cell


def _spectrum(reshape: str, column: str) -> Cell:
    return Cell("atomo-spectrum", f"SGD, 8.weight, reshape='{reshape}'", "400", column)


CHAPTER_1 = (
    Item(
        "figure-1.1",
        "singular values of a convolution's gradient while ResNet-18 trains on CIFAR-10",
        PARTLY,
        "A small CNN on images of 16x16 pixels in place of ResNet-18, one layer, one seed. In the matrix that chapter "
        "3 sends, (a b / 2, 2 k^2), the sharp decay is not there: the largest three of 18 values hold about half of "
        "the square, and the norms are near to those of a flat spectrum. In (out, in k^2) it is. The spectrum hardly "
        "changes during training, as in the figure. The published network has not been looked at (--scale paper).",
        parts=(Part("atomo-spectrum", 1.1),),
        rows=(
            Row("largest 3 of 18 values, share of the square", None, _spectrum("paper", "in the largest 3")),
            Row("the same in (out, in k^2), of 128", None, _spectrum("matrix", "in the largest 3")),
            Row("|X|_* / |X|_F; 4.24 is flat", None, _spectrum("paper", "|X|_* / |X|_F"), unit=""),
            Row("the same in (out, in k^2); 11.3 is flat", None, _spectrum("matrix", "|X|_* / |X|_F"), unit=""),
        ),
    ),
    Item(
        "figure-1.2",
        "how redundant gradients let a server find false ones (drawing)",
        NONE,
        "A drawing; what it draws is `phalanx.coding.repetition` and `phalanx.coding.cyclic`.",
    ),
    Item(
        "figure-1.3",
        "the two stages of DETOX (drawing)",
        NONE,
        "A drawing; what it draws is `phalanx.coding.detox`.",
    ),
    Item(
        "figure-1.4",
        "examples of edge cases of five tasks (pictures)",
        NONE,
        "Pictures; the edge cases that can be had are `phalanx list edges`.",
    ),
)
