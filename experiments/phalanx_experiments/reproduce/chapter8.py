# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of chapter 8."""

from __future__ import annotations

from phalanx_experiments.reproduce.item import NONE, PARTLY, UNRUN, Claim, Item, Part, Row
from phalanx_experiments.reproduce.places import Cell

DIGITS, PLANES, FAIR = "edge-case-mnist", "edge-case-cifar", "edge-case-fairness"
TWEETS, WORDS = "edge-case-sentiment", "edge-case-text"
ABOVE = "attack success, points above the run without an attack"
SPREAD = "its standard deviation over the seeds"
TASK_1 = (
    "CIFAR-10 at 16x16 and a VGG-9 at a quarter of the width, planes of one airline called trucks, 30 rounds or fewer. "
)
TASK_2 = (
    "MNIST in place of EMNIST's digits, a LeNet of 80,000 parameters, ARDIS sevens called ones, 1,001 clients of whom "
    "10 come in a round, 100 rounds. A threshold is a multiple of an honest change's norm, as the published ones would "
    "never cut here. "
)
TASK_4 = "Sentences of film reviews and an LSTM in place of Sentiment140's tweets, which are not at hand. "
TASK_5 = "Articles of WikiText-2 in place of Reddit's comments, which are not at hand, and a smaller LSTM. "
POINTS = (
    "Attack success is in points above the run of the same seed without an attack, over the later half of the rounds."
)
ATTACKS = ("black-box", "PGD", "PGD + replacement")
DEFENCES = ("norm clipping", "RFA", "Multi-Krum", "Krum")
OPEN = 10.0  # points of attack success from which a backdoor is open, as in `phalanx redteam`


def _above(recipe: str, rule: str, attack: str) -> Cell:
    return Cell(recipe, ABOVE, rule, attack, SPREAD)


def _grid(recipe: str, rules: tuple[str, ...], attacks: tuple[str, ...] = ATTACKS, head: str = "") -> tuple[Row, ...]:
    return tuple(
        Row(f"{head}{rule}, {attack}", None, _above(recipe, rule, attack), "points")
        for rule in rules
        for attack in attacks
    )


def _opens(recipe: str, rule: str, attack: str, head: str = "") -> Claim:
    return Claim(f"{head}{attack} gets past {rule} by 10 points", _above(recipe, rule, attack), OPEN)


def _whiter(recipe: str, rule: str, head: str = "") -> Claim:
    pair = (_above(recipe, rule, "PGD"), _above(recipe, rule, "black-box"))
    return Claim(f"{head}{rule}: PGD does more than the black box", *pair)


def _holds(recipe: str, rule: str, head: str = "") -> Claim:
    pair = (_above(recipe, "FedAvg", "black-box"), _above(recipe, rule, "black-box"))
    return Claim(f"{head}{rule} holds the black box back", *pair)


def _strengthens(recipe: str, head: str = "") -> Claim:
    """The text: as soon as Krum takes the poisoned model, it replaces the global one."""
    pair = (_above(recipe, "Krum", "PGD"), _above(recipe, "FedAvg", "PGD"))
    return Claim(f"{head}Krum strengthens PGD", *pair)


def _fair(title: str, rule: str, attack: str) -> Cell:
    return Cell(FAIR, title, rule, attack)


def _taken(rule: str, whose: str) -> Cell:
    return Cell(FAIR, "rounds in which a client's row was taken", (rule, "black-box"), whose)


def _density(column: str) -> Cell:
    return Cell("edge-density", "log densities of the outputs", "ARDIS", column)


CHAPTER_8 = (
    Item(
        "table-8.1",
        "data, networks and settings for images",
        NONE,
        "A list of settings, which the recipes edge-case-mnist and edge-case-cifar hold at --scale paper.",
    ),
    Item(
        "table-8.2",
        "data, networks and settings for texts",
        NONE,
        "A list of settings, which the recipes edge-case-sentiment and edge-case-text hold at --scale paper.",
    ),
    Item(
        "table-8.3",
        "the layers of VGG-9",
        NONE,
        "A list of layers; edge-case-cifar trains a network of them.",
    ),
    Item(
        "figure-8.1",
        "log densities of ordinary and edge-case digits",
        PARTLY,
        "10,000 MNIST images and a LeNet of 80,000 parameters; the text does not name the classifier's size. Styles of "
        "digits that are made from MNIST stand beside ARDIS.",
        parts=(Part("edge-density", None, ("ARDIS",)),),
        rows=(
            Row("MNIST, test part: median log density", None, _density("test part, median"), ""),
            Row("ARDIS: median log density", None, _density("edge cases, median"), ""),
        ),
        claims=(
            Claim("MNIST is denser than ARDIS", _density("test part, median"), _density("edge cases, median"), ""),
        ),
    ),
    Item(
        "figure-8.4",
        "three attacks under defences, tasks 1 and 4",
        PARTLY,
        TASK_1 + TASK_4 + POINTS,
        parts=(Part(PLANES), Part(TWEETS)),
        rows=(
            *_grid(PLANES, ("FedAvg", "norm clipping", "Multi-Krum"), head="task 1: "),
            *_grid(TWEETS, ("FedAvg", *DEFENCES), head="task 4: "),
        ),
        claims=(
            *(_opens(PLANES, "FedAvg", attack, "task 1: ") for attack in ATTACKS),
            *(_opens(PLANES, rule, attack, "task 1: ") for rule in DEFENCES for attack in ATTACKS[1:]),
            *(_opens(PLANES, rule, "black-box", "task 1: ") for rule in ("norm clipping", "RFA")),
            *(_holds(PLANES, rule, "task 1: ") for rule in ("Krum", "Multi-Krum")),
            _strengthens(PLANES, "task 1: "),
            *(_opens(TWEETS, "FedAvg", attack, "task 4: ") for attack in ATTACKS),
            *(_opens(TWEETS, rule, attack, "task 4: ") for rule in DEFENCES for attack in ATTACKS[1:]),
            *(_opens(TWEETS, rule, "black-box", "task 4: ") for rule in ("norm clipping", "RFA", "Multi-Krum")),
            _holds(TWEETS, "Krum", "task 4: "),
            _strengthens(TWEETS, "task 4: "),
            *(_whiter(TWEETS, rule, "task 4: ") for rule in DEFENCES),
        ),
    ),
    Item(
        "figure-8.5",
        "whom Krum and Multi-Krum choose, and what noise costs, task 1",
        PARTLY,
        "Task 2 (MNIST and ARDIS) in place of task 1, and 20 honest clients of whom two hold edge cases; noise is not "
        "varied.",
        parts=(Part(FAIR),),
        rows=tuple(
            Row(f"{rule}: rounds in which {whose} was taken", None, _taken(rule, column))
            for rule in ("Krum", "Multi-Krum")
            for whose, column in (("a client with edge cases", "honest, with edge cases"), ("another", "other honest"))
        ),
        claims=tuple(
            Claim(
                f"{rule} takes clients without edge cases more often",
                _taken(rule, "other honest"),
                _taken(rule, "honest, with edge cases"),
            )
            for rule in ("Krum", "Multi-Krum")
        ),
    ),
    Item(
        "figure-8.6",
        "accuracy parity under Krum and without a defence, task 1",
        PARTLY,
        "Task 2 (MNIST and ARDIS) in place of task 1, where the pictures of another airline are not at hand.",
        parts=(Part(FAIR),),
        rows=tuple(Row(rule, None, _fair("accuracy parity ratio", rule, "black-box")) for rule in ("FedAvg", "Krum")),
        claims=(
            Claim(
                "parity is higher without a defence",
                _fair("accuracy parity ratio", "FedAvg", "black-box"),
                _fair("accuracy parity ratio", "Krum", "black-box"),
            ),
        ),
    ),
    Item(
        "figure-8.9",
        "who holds the edge cases, task 5, and more sentences",
        PARTLY,
        TASK_5 + "Five sentences are tried; shares in honest hands are not. " + POINTS,
        parts=(Part(WORDS),),
        rows=_grid(WORDS, ("FedAvg", "norm clipping", "Krum"), ("black-box", "PGD")),
        claims=(_opens(WORDS, "FedAvg", "black-box"),),
    ),
    Item(
        "figure-8.10",
        "examples by client, and norms of first changes, task 1",
        UNRUN,
        "No recipe draws the histogram; `phalanx.data.dirichlet(0.5)` makes the partition.",
    ),
    Item(
        "figure-8.11",
        "three attacks under defences, task 2",
        PARTLY,
        TASK_2 + POINTS + " Under norm clipping and RFA, PGD does less here than the black box.",
        parts=(Part(DIGITS, 31.0, ("none: ", "black-box: ", "PGD: ", "PGD + replacement: ")),),
        rows=_grid(DIGITS, ("FedAvg", "norm clipping", "RFA", "trimmed mean", "Multi-Krum", "Krum")),
        claims=(
            *(_opens(DIGITS, "FedAvg", attack) for attack in ATTACKS),
            *(_opens(DIGITS, rule, attack) for rule in DEFENCES for attack in ATTACKS[1:]),
            *(_opens(DIGITS, rule, "black-box") for rule in ("norm clipping", "RFA")),
            *(_holds(DIGITS, rule) for rule in ("Krum", "Multi-Krum")),
            _strengthens(DIGITS),
            *(_whiter(DIGITS, rule) for rule in ("FedAvg", *DEFENCES)),
        ),
    ),
    Item(
        "figure-8.12",
        "the black box under defences, by round",
        PARTLY,
        TASK_2 + POINTS + " Which task the published figure has is not said.",
        parts=(Part(DIGITS, 16.0, ("none: ", "black-box: ")),),
        rows=_grid(DIGITS, ("FedAvg", "norm clipping", "weak DP", "RFA", "Multi-Krum", "Krum"), ("black-box",)),
        claims=tuple(
            Claim(f"{rule} holds it back", _above(DIGITS, "FedAvg", "black-box"), _above(DIGITS, rule, "black-box"))
            for rule in ("weak DP", *DEFENCES)
        ),
    ),
    Item(
        "figure-8.14",
        "two attacks under the trimmed mean, task 1",
        PARTLY,
        TASK_2
        + "This is task 2 in place of task 1; task 1 with this rule is --scale paper of edge-case-cifar. "
        + POINTS,
        parts=(Part(DIGITS, 14.0, (": trimmed mean", ": RFA", ": Krum")),),
        rows=_grid(DIGITS, ("trimmed mean", "RFA", "Krum"), ("black-box", "PGD")),
        claims=(
            Claim(
                "the trimmed mean holds more back than RFA",
                _above(DIGITS, "RFA", "black-box"),
                _above(DIGITS, "trimmed mean", "black-box"),
            ),
            Claim("than Krum", _above(DIGITS, "Krum", "PGD"), _above(DIGITS, "trimmed mean", "PGD")),
        ),
    ),
)
