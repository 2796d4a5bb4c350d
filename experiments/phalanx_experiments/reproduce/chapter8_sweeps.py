# SPDX-License-Identifier: Apache-2.0
"""Figures of chapter 8 that vary one thing: shares, frequencies, pools, mixtures, sizes."""

from __future__ import annotations

from phalanx_experiments.reproduce.chapter8 import POINTS, TASK_1, TASK_2
from phalanx_experiments.reproduce.item import PARTLY, Claim, Item, Part, Row
from phalanx_experiments.reproduce.places import Cell

SWEEPS, PLANE_SWEEPS = "edge-case-mnist-sweeps", "edge-case-cifar-sweeps"
SWEPT = "attack success in the later half of the rounds"
MNIST_HELD = tuple(f"FedAvg, {share} with the attacker" for share in ("100%", "50%", "10%"))
PLANES_HELD = tuple(f"{share} with the attacker" for share in ("100%", "50%", "10%"))


def _swept(recipe: str, attack: str, where: str, column: str = "excess") -> Cell:
    return Cell(recipe, SWEPT, (attack, where), column)


def _held(recipe: str, words: tuple[str, ...]) -> tuple[Row, ...]:
    return tuple(Row(where, None, _swept(recipe, "black-box", where), "points") for where in words)


CHAPTER_8_SWEEPS = (
    Item(
        "figure-8.2",
        "how many edge cases an attacker mixes in, task 1: norms and attack success",
        PARTLY,
        TASK_1 + POINTS + " Norms of changes are not among the measured.",
        parts=(Part(PLANE_SWEEPS, None, ("none: FedAvg", "edge cases")),),
        rows=tuple(
            Row(f"{share} edge cases", None, _swept(PLANE_SWEEPS, f"{share} edge cases", "FedAvg"), "points")
            for share in ("10%", "100%")
        ),
    ),
    Item(
        "figure-8.3",
        "who holds the edge cases, five tasks",
        PARTLY,
        TASK_2 + "Task 1 is smaller, too; tasks 3 to 5 are not swept. " + POINTS,
        parts=(Part(SWEEPS, 7.0, ("with the attacker",)), Part(PLANE_SWEEPS, None, ("with the attacker",))),
        rows=(*_held(SWEEPS, MNIST_HELD), *_held(PLANE_SWEEPS, PLANES_HELD)),
        claims=tuple(
            Claim(
                f"{task}: more when the attacker holds all than a tenth",
                _swept(recipe, "black-box", words[0]),
                _swept(recipe, "black-box", words[2]),
            )
            for task, recipe, words in (("task 2", SWEEPS, MNIST_HELD), ("task 1", PLANE_SWEEPS, PLANES_HELD))
        ),
    ),
    Item(
        "figure-8.7",
        "how often attackers come, and how many there are, task 1",
        PARTLY,
        TASK_1 + "Task 2 is swept, too. " + POINTS,
        parts=(
            Part(PLANE_SWEEPS, None, ("none: FedAvg", "round", "a pool")),
            Part(SWEEPS, 6.0, ("none: FedAvg", "every", "a pool")),
        ),
        rows=(
            *(
                Row(f"task 1: {attack}", None, _swept(PLANE_SWEEPS, attack, "FedAvg"), "points")
                for attack in ("every round", "every 2 rounds", "every 10 rounds", "a pool of 5.0%")
            ),
            *(
                Row(f"task 2: {attack}", None, _swept(SWEEPS, attack, "FedAvg"), "points")
                for attack in ("every round", "every 5 rounds", "every 20 rounds", "a pool of 2%", "a pool of 10%")
            ),
        ),
        claims=(
            Claim(
                "task 1: more in every round than in every tenth",
                _swept(PLANE_SWEEPS, "every round", "FedAvg"),
                _swept(PLANE_SWEEPS, "every 10 rounds", "FedAvg"),
            ),
            Claim(
                "task 2: more in every round than in every 20th",
                _swept(SWEEPS, "every round", "FedAvg"),
                _swept(SWEEPS, "every 20 rounds", "FedAvg"),
            ),
            Claim(
                "task 2: more with 10 % attackers than with 2 %",
                _swept(SWEEPS, "a pool of 10%", "FedAvg"),
                _swept(SWEEPS, "a pool of 2%", "FedAvg"),
            ),
        ),
    ),
    Item(
        "figure-8.8",
        "networks of several sizes, tasks 1 and 4",
        PARTLY,
        TASK_1 + "Two widths; task 4 is not varied. " + POINTS,
        parts=(Part(PLANE_SWEEPS, None, ("width",)),),
        rows=tuple(
            Row(f"width {width}", None, _swept(PLANE_SWEEPS, "black-box", f"width {width}"), "points")
            for width in ("0.125", "0.25")
        ),
        claims=(
            Claim(
                "the wider network is easier to attack",
                _swept(PLANE_SWEEPS, "black-box", "width 0.25"),
                _swept(PLANE_SWEEPS, "black-box", "width 0.125"),
            ),
        ),
    ),
    Item(
        "figure-8.13",
        "how many edge cases an attacker mixes in, tasks 2 and 4",
        PARTLY,
        TASK_2 + "Task 4 is not swept, norms are not among the measured. " + POINTS,
        parts=(Part(SWEEPS, 5.0, ("none: FedAvg", "edge cases")),),
        rows=tuple(
            Row(f"{share} edge cases", None, _swept(SWEEPS, f"{share} edge cases", "FedAvg"), "points")
            for share in ("10%", "30%", "60%", "100%")
        ),
        claims=(
            Claim(
                "60 % edge cases do more than 10 %",
                _swept(SWEEPS, "60% edge cases", "FedAvg"),
                _swept(SWEEPS, "10% edge cases", "FedAvg"),
            ),
        ),
    ),
)
