# SPDX-License-Identifier: Apache-2.0
"""What to change, from the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from phalanx.tools.redteam.verdict import BROKEN, COSTLY, SURVIVES, UNFAIR, UNKNOWN, Standing, points

OFTEN = ", every round"  # behind the name of an attack whose attacker always comes


def advice(standings: Sequence[Standing], judged: Sequence[Standing]) -> list[str]:
    """Sentences, the most urgent first; each follows from numbers of the grid.

    Args:
        judged: the rules that somebody means to use.
    """
    said = [_about(standing) for standing in judged]
    others = [standing for standing in standings if standing not in judged or len(judged) == len(standings)]
    said += _instead([s for s in others if s.attacked], judged)
    said += [sentence for standing in judged for sentence in _seldom(standing)]
    return said


def _about(standing: Standing) -> str:
    tried, name = standing.attacked, standing.rule
    by = {word: [cell.attack for cell in tried if cell.word == word] for word in (BROKEN, UNKNOWN, UNFAIR, COSTLY)}
    if not tried:
        return f"{name}: no attack was tried against it."
    if by[BROKEN]:
        more = f"; not known yet: {'; '.join(by[UNKNOWN])}" if by[UNKNOWN] else ""
        return f"{name} is broken by {_list(by[BROKEN])}{more}. Do not deploy it against such an attacker."
    if by[UNKNOWN]:
        return f"{name}: nothing can be said yet about {_list(by[UNKNOWN])}. Finish the study first."
    if standing.word == SURVIVES:
        return f"{name} survives all {len(tried)} attacks that were tried, within the limits of cost and fairness."
    also = "is unfair to unusual clients" if standing.word == UNFAIR else "costs more accuracy than the limit allows"
    return f"{name} survives all {len(tried)} attacks that were tried, but it {also}."


def _instead(others: Sequence[Standing], judged: Sequence[Standing]) -> list[str]:
    """The rules that survive, or that comes closest, among those that met the same attacks."""
    if len(judged) == 1 and judged[0].word == SURVIVES:
        return []
    rivals = [s for s in others if len(judged) != 1 or s not in judged]
    attacks, peers = _peers(rivals, judged)
    if not peers or (len(peers) == 1 and peers[0] in judged):
        return ["Which rule would do better cannot be said: no other rule met the same attacks."]
    standing = sorted((s for s in peers if s.word == SURVIVES), key=_cost)
    if standing:
        named = ", ".join(f"{s.rule} ({points(_cost(s))} of main accuracy at most)" for s in standing[:3])
        return [f"Rules that survived every attack within the limits, the cheapest first: {named}."]
    dear = sorted((s for s in peers if s.word in (COSTLY, UNFAIR)), key=_cost)
    if dear:
        named = ", ".join(f"{s.rule} ({s.word}, {points(_cost(s))} of main accuracy at most)" for s in dear[:3])
        return [f"No rule survived every attack within all limits. Those that no attack broke: {named}."]
    known = [s for s in peers if all(s.cells[attack].number("excess") is not None for attack in attacks)]
    if not known:
        return ["Which rule would do better is not known yet."]
    gains = {s.rule: max(s.cells[attack].number("excess") or 0.0 for attack in attacks) for s in known}
    best = min(gains, key=lambda rule: gains[rule])
    return [
        f"No rule that met the same attacks survives all of them. {best} comes closest of the {len(gains)} "
        f"{'rules' if len(gains) > 1 else 'rule'} that met the same attacks ({_list(attacks)}): the worst of these "
        f"gains {points(gains[best])}. A rule behind the wire is not enough here; limit which clients take part and "
        "how often, and check the model's answers to unusual inputs."
    ]


def _peers(rivals: Sequence[Standing], judged: Sequence[Standing]) -> tuple[list[str], list[Standing]]:
    """The attacks that count, and the rules that met all of them.

    They are those of the rule that is judged; of several, those that most rules met, then the longest list.
    """
    met = {s.rule: [cell.attack for cell in s.attacked] for s in (*rivals, *judged)}
    lists = [met[s.rule] for s in judged]
    attacks = max(lists, key=lambda each: (sum(set(each) == set(x) for x in lists), len(each)), default=[])
    return attacks, [s for s in rivals if set(met[s.rule]) >= set(attacks)]


def _seldom(standing: Standing) -> list[str]:
    """Attacks that only break a rule in every round."""
    by = {cell.attack: cell.word for cell in standing.attacked}
    only = [
        a for a, word in by.items() if word == BROKEN and a.endswith(OFTEN) and by.get(a[: -len(OFTEN)]) == SURVIVES
    ]
    if not only:
        return []
    return [
        f"{standing.rule} is broken by an attacker that comes in every round and not by one that comes seldom "
        f"({_list(only)}): let no client take part that often."
    ]


def _cost(standing: Standing) -> float:
    return max((cell.number("accuracy_lost") or 0.0 for cell in standing.cells.values()), default=0.0)


def _list(names: Sequence[str]) -> str:
    return "; ".join(names)
