# SPDX-License-Identifier: Apache-2.0
"""Whether a rule survives an attack, what it costs, and which clients it excludes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import mean, stdev
from typing import Any

from phalanx.aggregators.mean import Mean
from phalanx.core.expression import require
from phalanx.core.wire_stage import WireStage, stages_of
from phalanx.tools.redteam.interval import gain_interval
from phalanx.tools.redteam.selection_bias import Choices, choices
from phalanx.tools.redteam.standards import (
    BROKEN,
    COSTLY,
    NOT_ATTACKED,
    SURVIVES,
    UNFAIR,
    UNKNOWN,
    WORDS,
    requirements,
)
from phalanx.tools.report.backdoors import QUIET, cell_of, cells, excess, main_accuracy, rates, taken, window, within
from phalanx.tools.report.collect import Result
from phalanx.training.phase import Run

Seeded = dict[int, float | None]  # a number of each seed


@dataclass(frozen=True)
class Limits:
    """Beyond which a rule has failed; all in [0, 1].

    Args:
        excess: of attack success over the run without an attack; more is broken.
        accuracy: main accuracy below the plain mean's without an attack; more is costly.
        parity: accuracy parity ratio below the plain mean's without an attack; more is unfair.
        choice: honest clients that hold edge cases are taken at least at this share of the others' rate, or the rule is
            unfair.
    """

    excess: float = 0.1
    accuracy: float = 0.025
    parity: float = 0.1
    choice: float = 0.5

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            require(0 <= value <= 1, f"the limit of {each.name} lies in [0, 1], got {value}")


@dataclass(frozen=True)
class Cell:
    """A rule under an attack, or under none.

    Args:
        numbers: by name, then by seed; see `policy.KEYS`.
        chosen: whose rows the rule took; None where it names none.
        word: one of WORDS.
        why: a sentence for each limit that is passed, and for what is not known.
        examples: test examples that attack success is a share of; None if it is not known.
    """

    attack: str
    rule: str
    numbers: Mapping[str, Seeded]
    chosen: Choices | None
    word: str
    why: tuple[str, ...] = ()
    examples: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `excess`, over seeds and test examples; None where it is not known."""
        gains, successes = self.numbers["excess"], self.numbers["attack_success"]
        pairs = [(s, s - g) for seed, g in gains.items() if g is not None and (s := successes[seed]) is not None]
        return gain_interval([success for success, _ in pairs], [quiet for _, quiet in pairs], self.examples)

    @property
    def n(self) -> int:
        """Seeds that have ended."""
        return len(self.numbers["main_accuracy"])

    def known(self, name: str) -> list[float]:
        """A number of the seeds that have it."""
        return [value for value in self.numbers[name].values() if value is not None]

    def number(self, name: str) -> float | None:
        """A number's mean over the seeds."""
        return mean(self.known(name)) if self.known(name) else None

    def spread(self, name: str) -> float | None:
        """Its standard deviation over the seeds; None with fewer than two."""
        return stdev(self.known(name)) if len(self.known(name)) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values, for JSON."""
        names = list(self.numbers)
        groups = {} if self.chosen is None else vars(self.chosen)
        return {
            "attack": self.attack,
            "rule": self.rule,
            "verdict": self.word,
            "why": list(self.why),
            "seeds": self.n,
            "numbers": {name: self.number(name) for name in names},
            "deviations": {name: self.spread(name) for name in names},
            "excess_interval": None if self.interval is None else list(self.interval),
            "attack_examples": self.examples,
            "requirements": [str(each) for each in requirements(self.word)],
            "rows": {name: vars(share) for name, share in groups.items()} or None,
        }


@dataclass(frozen=True)
class Standing:
    """A rule against all attacks that it was tried with.

    Args:
        cells: by attack, the run without one among them.
    """

    rule: str
    cells: Mapping[str, Cell]
    word: str = field(init=False)

    def __post_init__(self) -> None:
        words = {cell.word for cell in self.cells.values()} if self.attacked else {NOT_ATTACKED}
        object.__setattr__(self, "word", next(word for word in WORDS if word in words))

    @property
    def attacked(self) -> list[Cell]:
        """The cells with an attack."""
        return [cell for attack, cell in self.cells.items() if attack != QUIET]

    def counted(self) -> dict[str, float]:
        """How many attacks have which verdict, by the keys of a policy."""
        words = [cell.word for cell in self.attacked]
        return {key: float(words.count(word)) for key, word in COUNTS.items()}

    def numbers(self, cell: Cell) -> dict[str, float | None]:
        """The numbers of a cell that a policy can compare."""
        return {**{name: cell.number(name) for name in cell.numbers}, **self.counted()}

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values, for JSON."""
        return {"rule": self.rule, "verdict": self.word, "attacks": [c.to_json() for c in self.cells.values()]}


COUNTS = {"broken": BROKEN, "unfair": UNFAIR, "costly": COSTLY, "unknown": UNKNOWN}


def standings(planned: Mapping[str, Run], results: Sequence[Result], limits: Limits) -> list[Standing]:
    """The verdicts on a grid, finished or not.

    Args:
        planned: all runs of the grid, by label.
        results: those that there are; what has not ended is not looked at.
    """
    have = cells([result for result in results if result.summary])
    grid: dict[tuple[str, str], list[Run]] = {}
    for label, run in planned.items():
        grid.setdefault(cell_of(label), []).append(run)
    plain = next((rule for (attack, rule), runs in grid.items() if attack == QUIET and is_plain(runs[0])), None)
    reference = {} if plain is None else have.get((QUIET, plain), {})
    by_rule: dict[str, dict[str, Cell]] = {}
    for attack, rule in grid:
        cell = judge(attack, rule, have.get((attack, rule), {}), have.get((QUIET, rule), {}), reference, limits)
        by_rule.setdefault(rule, {})[attack] = cell
    return [Standing(rule, by) for rule, by in by_rule.items()]


def is_plain(run: Run) -> bool:
    """Whether the only stage after the wire is a mean."""
    stages = stages_of(run.phases[-1].scheme)
    behind = [i for i, stage in enumerate(stages) if isinstance(stage, WireStage)]
    return bool(behind) and stages[behind[0] + 1 :] == (Mean(),)


def judge(
    attack: str,
    rule: str,
    runs: Mapping[int, Result],
    quiet: Mapping[int, Result],
    plain: Mapping[int, Result],
    limits: Limits,
) -> Cell:
    """The verdict on a rule under an attack.

    Args:
        runs: those that have ended, by seed.
        quiet: of the same rule without an attack.
        plain: of the plain mean without an attack.
    """
    numbers: dict[str, Seeded] = {name: {} for name in NUMBERS}
    for seed, run in runs.items():
        measured = _measured(run, quiet.get(seed), plain.get(seed))
        for name in NUMBERS:
            numbers[name][seed] = measured[name]
    chosen = choices(runs.values(), attack != QUIET)
    examples = min((count for run in runs.values() if (count := _examples(run)) is not None), default=None)
    cell = Cell(attack=attack, rule=rule, numbers=numbers, chosen=chosen, word=UNKNOWN, examples=examples)
    word, why = _verdict(cell, limits)
    return replace(cell, word=word, why=why)


def _examples(run: Result) -> int | None:
    """The number of test examples that attack success is a share of."""
    counts = rates(run, "attack_examples")
    return int(counts[-1][1]) if counts else None


NUMBERS = ("attack_success", "excess", "main_accuracy", "accuracy_lost", "parity", "parity_lost", "taken")


def _measured(run: Result, quiet: Result | None, plain: Result | None) -> dict[str, float | None]:
    rounds = window(run)
    accuracy, parity = main_accuracy(run), within(rates(run, "ratio"), rounds)
    usual = None if plain is None else main_accuracy(plain, rounds)
    usual_parity = None if plain is None else within(rates(plain, "ratio"), rounds)
    return {
        "attack_success": within(rates(run), rounds),
        "excess": excess(run, quiet),
        "main_accuracy": accuracy,
        "accuracy_lost": _less(usual, accuracy),
        "parity": parity,
        "parity_lost": _less(usual_parity, parity),
        "taken": taken(run),
    }


def _verdict(cell: Cell, limits: Limits) -> tuple[str, tuple[str, ...]]:
    """The worst of what is known, and a sentence for each limit that is passed."""
    if not cell.n:
        return UNKNOWN, ("has not ended",)
    faults: list[tuple[str, str]] = []
    gained, lost = cell.number("excess"), cell.number("accuracy_lost")
    if cell.attack != QUIET and gained is None:
        faults.append((UNKNOWN, "attack success above the run without an attack is not known"))
    if cell.attack != QUIET and gained is not None and gained > limits.excess:
        faults.append((BROKEN, f"attack success {points(gained)} above the run without an attack{_worst(cell)}"))
    if lost is None:
        faults.append((UNKNOWN, "main accuracy beside the plain mean's is not known"))
    elif lost > limits.accuracy:
        faults.append((COSTLY, f"main accuracy {points(lost)} below the plain mean without an attack"))
    faults += [(UNFAIR, sentence) for sentence in _unfair(cell, limits)]
    faults.sort(key=lambda each: WORDS.index(each[0]))
    unharmed = NOT_ATTACKED if cell.attack == QUIET else SURVIVES
    return (faults[0][0] if faults else unharmed), tuple(sentence for _, sentence in faults)


def _unfair(cell: Cell, limits: Limits) -> list[str]:
    sentences = []
    parity = cell.number("parity_lost")
    if parity is not None and parity > limits.parity:
        sentences.append(f"accuracy parity ratio {parity:.2f} below the plain mean's")
    if cell.chosen is not None and cell.chosen.shut_out(limits.choice):
        holders, others = cell.chosen.holders, cell.chosen.others
        sentences.append(
            f"of the rows of honest clients that hold edge cases {holders.taken} of {holders.came} were taken, of the "
            f"other honest ones' {others.taken} of {others.came}"
        )
    return sentences


def _worst(cell: Cell) -> str:
    values = cell.known("excess")
    return f" ({points(min(values))} to {points(max(values))} in {len(values)} seeds)" if len(values) > 1 else ""


def points(share: float) -> str:
    """0.314 as '31.4 points'."""
    return f"{100 * share:.1f} points"


def _less(x: float | None, y: float | None) -> float | None:
    return None if x is None or y is None else x - y
