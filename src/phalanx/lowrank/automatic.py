# SPDX-License-Identifier: Apache-2.0
"""Layers that a plan leaves full automatically, and the budget of parameters that it spends on the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from phalanx.lowrank.layer_timing import groups, slower
from phalanx.lowrank.plan import Entry, Plan
from phalanx.lowrank.ranks import choices, spend_budget

_LITTLE = 0.01  # the first layers stay full if together they hold at most this share of the weights
_SHARE = 0.5  # least share of a matrix's first parameters that the budget leaves it


def choose_full_layers(
    start: Plan, shares: Mapping[str, Sequence[float]] | None, leading: bool, timer: Callable[[Plan], Plan] | None
) -> Plan:
    """The plan with more full entries: those of small first layers, and those that are slower in low rank.

    With a budget, entries become full only while the others keep half of their parameters, and no rank falls below
    half of its first value.

    Args:
        start: the wanted ranks; with a budget, the parameters of its low-rank entries are the budget.
        shares: `energies` of every low-rank entry, among which the budget is distributed; None keeps the ranks and has
            no budget.
        leading: leave the first layers full that together hold less than 1 % of the weights.
        timer: measures a plan; layers that are slower in low rank become full. None for no measurement.
    """
    budgeted = shares is not None
    full = _affordable(start, {}, _leading(start) if leading else {}, budgeted)
    while True:
        plan = _with_full(start if shares is None else _distribute(start, full, shares), full)
        if timer is None:
            return plan
        plan = timer(plan)
        added = _affordable(start, full, slower(plan), budgeted)
        if not added:
            return plan
        full |= added


def _leading(start: Plan) -> dict[str, str]:
    """The names of the small first layers, with the reason."""
    total, held = sum(entry.parameters for entry in _low(start)), 0
    names: dict[str, str] = {}
    for group in groups(start):
        held += sum(entry.parameters for entry in group)
        if held > _LITTLE * total:
            break
        names |= dict.fromkeys((e.name for e in group), f"of the first layers, which hold under {_LITTLE:.0%} together")
    return names


def _affordable(start: Plan, full: dict[str, str], wanted: dict[str, str], budgeted: bool) -> dict[str, str]:
    """The wanted names that may also become full, the smallest first, with the reasons."""
    if not budgeted:
        return wanted
    added: dict[str, str] = {}
    for group in sorted(groups(start), key=lambda group: sum(entry.parameters for entry in group)):
        names = {entry.name: wanted[entry.name] for entry in group if entry.name in wanted}
        if names and _fits_budget(start, full | added | names):
            added |= names
    return added


def _fits_budget(start: Plan, full: Mapping[str, str]) -> bool:
    """Whether the budget suffices if these entries are full and the others have their least ranks."""
    spent = [entry.parameters for entry in _low(start) if entry.name in full]
    # never less than rank 1 of each
    least = [
        max(_SHARE, 1 / (entry.rank or 1)) * entry.parameters_after for entry in _low(start) if entry.name not in full
    ]
    return sum(spent) + sum(least) <= _budget(start)


def _distribute(start: Plan, full: Mapping[str, str], shares: Mapping[str, Sequence[float]]) -> Plan:
    """The plan with the ranks that the budget allows; none falls below half of its first value."""
    low = [entry for entry in _low(start) if entry.name not in full and not entry.tied]
    options = [choices(shares[e.name], e.factor, max(1, int(_SHARE * (e.rank or 1)))) for e in low]
    left = _budget(start) - sum(entry.parameters for entry in _low(start) if entry.name in full)
    chosen = {entry.name: choice for entry, choice in zip(low, spend_budget(options, left), strict=True)}

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
