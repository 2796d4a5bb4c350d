# SPDX-License-Identifier: Apache-2.0
"""phalanx advise --byzantine: how much redundancy is needed against a number of Byzantine workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from phalanx.tools.cli.common import print_json

SHOWN = tuple(range(1, 16, 2))
MOST = 99  # the largest r that is tried
RISK = 0.01
NOTE = (
    "A vote is wrong if at least half of its group is Byzantine. A rule that gets more wrong votes than it tolerates "
    "may still be right. A rule that gets no more than it tolerates is right whichever votes are wrong."
)


def check_others(others: dict[str, Any]) -> None:
    """Raises ValueError for an option that is about step times."""
    for option, value in others.items():
        if value:
            raise ValueError(f"--byzantine is about redundancy and {option} about step times; leave one of them out")


def redundancy(
    n: int | None, q: int, group_sizes: Sequence[int], risk: float | None, redrawn: int | None, as_json: bool
) -> None:
    """Prints the odds of a vote in groups of r workers, and the smallest r for each rule behind the vote.

    Args:
        group_sizes: values of r; the odd numbers up to 15 when empty.
        redrawn: number of rounds, in each of which the Byzantine workers are drawn anew; None if they are drawn once.
    """
    if n is None:
        raise ValueError("--byzantine needs the number of all workers; add --workers, such as --workers 45")
    answer = document(n, q, group_sizes, RISK if risk is None else risk, 1 if redrawn is None else redrawn)
    if as_json:
        print_json(answer)
        return
    from phalanx.tools.report import tables

    console = tables.console()
    drawn = "drawn once" if answer["rounds"] == 1 else f"drawn anew in each of {answer['rounds']:,} rounds"
    header = ("r", ">groups", ">wrong votes\nexpected", ">bound", ">worst case", ">P(a group\nis lost)")
    lines = [
        (
            str(row["r"]),
            str(row["groups"]),
            f"{row['expected']:.3g}",
            "-" if row["bound"] is None else f"{row['bound']:.3g}",
            str(row["worst"]),
            chance(row["group_lost"]),
        )
        for row in answer["table"]
    ]
    console.print(tables.plain_table(f"{n} workers, {q} Byzantine, {drawn}; groups of r vote", header, lines))
    console.print(
        tables.plain_table(
            "wrong votes that a rule over the votes tolerates, and the odds of more",
            ("vote, then", *(f">r={row['r']}" for row in answer["table"])),
            [(name, *(_cell(row["pairings"][name]) for row in answer["table"])) for name in answer["smallest_r"]],
        )
    )
    typer.echo("\n" + "\n".join([*answer["sentences"], NOTE]))


def document(n: int, q: int, group_sizes: Sequence[int], risk: float, rounds: int) -> dict[str, Any]:
    """Returns all odds as plain values."""
    from phalanx.coding import odds
    from phalanx.tools.pairings import PAIRINGS

    if not 0 <= risk <= 1:
        raise ValueError(f"--risk takes a probability in [0, 1], got {risk}")
    if rounds < 1:
        raise ValueError(f"--redrawn takes at least 1 round, got {rounds}")
    table = []
    for r in group_sizes or [r for r in SHOWN if r <= n]:
        groups = n // r if r >= 1 else 0
        row: dict[str, Any] = {
            "r": r,
            "expected": odds.expected_byzantine_votes(n, q, r, ties=True),
            "groups": groups,
            "bound": odds.bound_expected(n, q, r),
            "worst": odds.worst_votes(n, q, r, ties=True),
            "group_lost": odds.probability_group_lost(n, q, r, ties=True),
            "pairings": {},
        }
        for pairing in PAIRINGS:
            f = pairing.tolerance(groups)
            above = None if f is None else odds.probability_above(n, q, r, f, rounds, ties=True)
            row["pairings"][pairing.name] = {"tolerates": f, "above": above}
        table.append(row)
    smallest = {p.name: odds.smallest_r(n, q, p.tolerance, risk, rounds, ties=True, most=MOST) for p in PAIRINGS}
    exact = 2 * q + 1 if 2 * q + 1 <= n else None
    return {
        "workers": n,
        "byzantine": q,
        "rounds": rounds,
        "risk": risk,
        "table": table,
        "smallest_r": smallest,
        "exact": None if exact is None else {"repetition": exact, "cyclic": exact},
        "sentences": [_least(smallest, risk, n), _exact(exact, n, q)],
        "note": NOTE,
    }


def chance(probability: float) -> str:
    """Formats a probability: 0.031 as '3.1 %', zero as '0', a very small one as '< 1e-10'."""
    if probability < 1e-10:
        return "< 1e-10" if probability else "0"
    return f"{100 * probability:.2g} %" if probability < 0.1 else f"{100 * probability:.0f} %"


def _cell(entry: dict[str, Any]) -> str:
    return "too few\nvotes" if entry["tolerates"] is None else f"{entry['tolerates']}\n{chance(entry['above'])}"


def _least(smallest: dict[str, int | None], risk: float, n: int) -> str:
    words = [f"{name}: {f'no r <= {min(n, MOST)}' if r is None else f'r={r}'}" for name, r in smallest.items()]
    return f"Smallest odd r with more wrong votes than tolerated in at most {100 * risk:.3g} %: {'; '.join(words)}."


def _exact(r: int | None, n: int, q: int) -> str:
    if r is None:
        return f"Exact recovery whoever is Byzantine needs n >= 2q + 1 = {2 * q + 1} workers, and there are {n}."
    return (
        f"Exact recovery whoever is Byzantine: repetition with r=2q+1={r}, where a worker computes {r} times as many "
        f"gradients, or cyclic with s=q={q}, where it does too."
    )
