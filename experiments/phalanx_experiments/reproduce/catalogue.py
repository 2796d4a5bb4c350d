# SPDX-License-Identifier: Apache-2.0
"""All tables and figures of the dissertation."""

from __future__ import annotations

from phalanx.core.registry import suggest
from phalanx_experiments.reproduce.chapter1 import CHAPTER_1
from phalanx_experiments.reproduce.chapter3 import CHAPTER_3
from phalanx_experiments.reproduce.chapter4 import CHAPTER_4
from phalanx_experiments.reproduce.chapter4_speed import CHAPTER_4_SPEED
from phalanx_experiments.reproduce.chapter5 import CHAPTER_5
from phalanx_experiments.reproduce.chapter6 import CHAPTER_6
from phalanx_experiments.reproduce.chapter7 import CHAPTER_7
from phalanx_experiments.reproduce.chapter8 import CHAPTER_8
from phalanx_experiments.reproduce.chapter8_sweeps import CHAPTER_8_SWEEPS
from phalanx_experiments.reproduce.item import Item

CHAPTERS = {
    1: "What it is about",
    3: "ATOMO: sparse atoms of gradients",
    4: "PUFFERFISH: low-rank training",
    5: "FedMA: matched averaging",
    6: "DRACO: exact recovery from redundancy",
    7: "DETOX: votes, then robust rules",
    8: "Edge-case backdoors",
}

_ALL = (
    *CHAPTER_1,
    *CHAPTER_3,
    *CHAPTER_4,
    *CHAPTER_4_SPEED,
    *CHAPTER_5,
    *CHAPTER_6,
    *CHAPTER_7,
    *CHAPTER_8,
    *CHAPTER_8_SWEEPS,
)


def items() -> list[Item]:
    """All tables and figures by chapter, tables first, by number."""
    return sorted(_ALL, key=lambda item: (item.chapter, item.order[2] != "table", item.order[1]))


def find(key: str) -> Item:
    """The item of a key, such as table-5.1 or "Table 5.1".

    Raises:
        ValueError: there is none; the sentence lists the nearest.
    """
    by_key = {item.key: item for item in items()}
    plain = key.strip().lower().replace(" ", "-")
    if plain not in by_key:
        raise ValueError(f"the dissertation has no {key!r}; {suggest(plain, list(by_key))}")
    return by_key[plain]
