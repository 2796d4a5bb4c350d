# SPDX-License-Identifier: Apache-2.0
"""The words of a data set of texts."""

from __future__ import annotations

from phalanx.core.expression import require
from phalanx.data.dataset import Dataset


def vocabulary(name: str, data: Dataset) -> dict[str, int]:
    """The token id of each word; raises ValueError if the data have no words."""
    sentence = f"{name} is written in the words of the data, and {data.name} has none"
    require(len(data.words) > 0, f"{sentence}; choose movie_review() or wikitext2()")
    return {word: i for i, word in enumerate(data.words)}
