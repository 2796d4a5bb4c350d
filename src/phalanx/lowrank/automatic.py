# SPDX-License-Identifier: Apache-2.0
"""Which layers a plan leaves full by itself, and how it spends a budget of parameters on the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from phalanx.lowrank.layer_timing import groups, slower
from phalanx.lowrank.plan import Entry, Plan
from phalanx.lowrank.ranks import choices, spread

_LITTLE = 0.01  # of the weights: what the first layers may hold together and stay full
_SHARE = 0.5  # of what a matrix has at the start, which it keeps whatever the others would make of it


def automatic(
    start: Plan, shares: Mapping[str, Sequence[float]] | None, leading: bool, timer: Callable[[Plan], Plan] | None
) -> Plan:
    """The plan with some low-rank entries full: those of leading layers that hold little, those that are slower.

    With a budget, entries become full for these reasons only while the others keep half of their parameters, and no
    rank falls below half of the one at the start.

    Args:
        start: ranks as they are wanted; the parameters of its low-rank entries are the budget, if there is one.
        shares: `energies` of every low-rank entry, over which the budget is spread; None keeps the ranks, without a
            budget.
        leading: leave the first layers full that hold less than 1 % of the weights together.
        timer: measures a plan; layers that are slower factorized become full. None for no measurement.
    """
    budgeted = shares is not None
    full = _affordable(start, {}, _leading(start) if leading else {}, budgeted)
    while True:
        made = _with_full(start if shares is None else _shared_out(start, full, shares), full)
        if timer is None:
            return made
        made = timer(made)
        added = _affordable(start, full, slower(made), budgeted)
        if not added:
            return made
        full |= added


def _leading(start: Plan) -> dict[str, str]:
    total, held = sum(entry.parameters for entry in _low(start)), 0
    names: dict[str, str] = {}
    for group in groups(start):
        held += sum(entry.parameters for entry in group)
        if held > _LITTLE * total:
            break
        names |= dict.fromkeys((e.name for e in group), f"of the first layers, which hold under {_LITTLE:.0%} together")
    return names


def _affordable(start: Plan, full: dict[str, str], wanted: dict[str, str], budgeted: bool) -> dict[str, str]:
    """Those of the wanted names that may become full, too, the smallest first, with the reasons."""
    if not budgeted:
        return wanted
    added: dict[str, str] = {}
    for group in sorted(groups(start), key=lambda group: sum(entry.parameters for entry in group)):
        names = {entry.name: wanted[entry.name] for entry in group if entry.name in wanted}
        if names and _room(start, full | added | names):
            added |= names
    return added


def _room(start: Plan, full: Mapping[str, str]) -> bool:
    spent = [entry.parameters for entry in _low(start) if entry.name in full]
    # never less than rank 1 of each
    least = [
        max(_SHARE, 1 / (entry.rank or 1)) * entry.parameters_after for entry in _low(start) if entry.name not in full
    ]
    return sum(spent) + sum(least) <= _budget(start)


def _shared_out(start: Plan, full: Mapping[str, str], shares: Mapping[str, Sequence[float]]) -> Plan:
    """The ranks that the budget allows for what does not stay full, none below half of its first."""
    own = [entry for entry in _low(start) if entry.name not in full and not entry.tied]
    options = [choices(shares[e.name], e.factor, max(1, int(_SHARE * (e.rank or 1)))) for e in own]
    left = _budget(start) - sum(entry.parameters for entry in _low(start) if entry.name in full)
    chosen = {entry.name: choice for entry, choice in zip(own, spread(options, left), strict=True)}

    def changed(entry: Entry) -> Entry:
        choice = chosen.get(entry.tied or entry.name)
        if entry.rank is None or choice is None:
            return entry
        kept = "all" if choice.rank is None else f"{choice.kept:.1%}"
        return replace(entry, rank=choice.rank, reason=f"{kept} of the energy, in the budget of {entry.reason}")

    return replace(start, entries=tuple(changed(entry) for entry in start))


def _with_full(plan: Plan, full: Mapping[str, str]) -> Plan:
    entries = (replace(e, rank=None, reason=full[e.name]) if e.name in full else e for e in plan)
    return replace(plan, entries=tuple(entries))


def _low(plan: Plan) -> list[Entry]:
    return [entry for entry in plan if entry.rank is not None]


def _budget(start: Plan) -> int:
    return sum(entry.parameters_after for entry in _low(start))
