# SPDX-License-Identifier: Apache-2.0
"""The report of a red team study as one HTML file, which loads nothing and runs nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from statistics import mean

from phalanx.tools.redteam.ci_gate import Outcome
from phalanx.tools.redteam.findings import Findings
from phalanx.tools.redteam.standards import REQUIREMENTS, requirements
from phalanx.tools.redteam.svg import Line, key, panel, style
from phalanx.tools.redteam.tables import attacks_of, costs, fairness, gained
from phalanx.tools.redteam.threat import adversary, rule, situation
from phalanx.tools.redteam.verdict import BROKEN, COSTLY, NOT_ATTACKED, SURVIVES, UNFAIR, UNKNOWN, Cell
from phalanx.tools.report.backdoors import QUIET, cell_of, cells, rates
from phalanx.tools.report.markup import Markup, document, joined, table, tag
from phalanx.training.phase import Run

CLASSES = {BROKEN: "broken", UNKNOWN: "unknown", UNFAIR: "unfair", COSTLY: "costly", SURVIVES: "survives"}
CLASSES |= {NOT_ATTACKED: "unknown"}


def page(findings: Findings) -> str:
    """The whole report."""
    title = f"Red team report: {'a setting of your own' if '(' in findings.request.source else findings.request.source}"
    return document(title, tag("h1", title), *_sections(findings))


def _sections(findings: Findings) -> Iterator[Markup]:
    yield _outcome(findings)
    yield _section("Verdicts", *_verdicts(findings))
    yield _section("What to change", tag("ul", *(tag("li", sentence) for sentence in findings.advice)))
    yield _section("Threat model", *_threat(findings))
    yield _section("How far the backdoor got", *_curves(findings))
    yield _section("Who was shut out", *_fairness(findings))
    cost = costs(findings.standings)
    yield _section("What the rules cost", table(cost.header, cost.words(), cost.title), tag("p", PLAIN, class_="note"))
    yield _section("What was tried", *_tried(findings))
    yield _section("What this is not", tag("p", PURPOSE))


PURPOSE = (
    "This report measures how well a training set-up resists backdoors, so that it can be defended before it is "
    "deployed. A rule that survives has survived these attackers, on these data, with these seeds, and nothing else. "
    "Attackers with other means, more clients or more rounds were not tried unless they are listed above."
)
PLAIN = "Everything is compared with the plain mean of the clients' changes without an attack, with the same seed."
NO_CHOICE = (
    "Rows taken are known only of rules that name the rows they take, such as Krum, Multi-Krum and FLAME. The parity "
    "ratio is the accuracy of the worst served client over that of the best."
)


def _section(title: str, *inside: Markup) -> Markup:
    return tag("section", tag("h2", title), *inside)


def _outcome(findings: Findings) -> Markup:
    """The verdict on the rules that somebody means to use, and on the policies."""
    judged = findings.judged
    count = len(findings.study.jobs) - len(findings.missing)
    lines = [tag("p", f"{count} of {len(findings.study.jobs)} runs have ended. {_seeds(findings)}")]
    if len(judged) == 1:
        lines.insert(0, tag("p", "The rule ", tag("b", judged[0].rule), ": ", _badge(judged[0].word), class_="big"))
    else:
        words = [standing.word for standing in judged]
        parts = [joined([_badge(word), f" {words.count(word)} "]) for word in CLASSES if word in words]
        lines.insert(0, tag("p", f"{len(judged)} rules under attack: ", *parts, class_="big"))
    if findings.missing:
        lines.append(
            tag("p", tag("b", "Not finished. "), f"What follows lacks: {some(findings.missing, 12)}.", class_="warning")
        )
    return tag("section", *lines, *([_policies(findings.outcomes)] if findings.outcomes else []))


def _seeds(findings: Findings) -> str:
    n = len(findings.seeds)
    if n == 1:
        return f"One seed ({findings.seeds[0]}): differences of a few points may be chance."
    return f"{n} seeds ({', '.join(map(str, findings.seeds))}): means over them, with 95 % intervals."


def _policies(outcomes: Sequence[Outcome]) -> Markup:
    said = {True: (BROKEN, "fails"), False: (SURVIVES, "holds"), None: (UNKNOWN, "not known")}
    items = []
    for outcome in outcomes:
        word, name = said[outcome.fails]
        cases = [f"{case.attack}: {case.rule} ({case.seen})" for case in outcome.decisive]
        where = f" {some(cases, 4)}." if cases else ""
        policy = tag("code", f"fail if {outcome.policy.text}")
        items.append(tag("li", policy, " ", _badge(word, name), f" exit code {outcome.policy.code}.{where}"))
    return tag("ul", *items)


def some(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")


def _verdicts(findings: Findings) -> Iterator[Markup]:
    limits, attacks = findings.request.limits, attacks_of(findings.standings)
    rows = []
    for standing in findings.standings:
        cells = [_cell(standing.cells.get(attack)) for attack in attacks]
        named = dict.fromkeys(str(each) for cell in standing.cells.values() for each in requirements(cell.word))
        evidence = tag("td", tag("small", ", ".join(named)))
        rows.append((standing.rule, tag("td", standing.word, class_=CLASSES[standing.word]), *cells, evidence))
    yield table(("rule", "verdict", *attacks, "evidence for"), rows)
    yield tag(
        "details",
        tag("summary", "What the requirements are about"),
        tag("ul", *(tag("li", tag("b", str(each)), f": {each.words}.") for each in REQUIREMENTS)),
    )
    yield tag(
        "p",
        "Numbers are points of attack success above the same run without an attack, over the later half of the rounds, "
        "with a 95 % interval over seeds and test examples, and n seeds. "
        f"Broken: more than {100 * limits.excess:g} points. Costly: main accuracy more than {100 * limits.accuracy:g} "
        "points below the plain mean without an attack. "
        f"Unfair: accuracy parity ratio more than {limits.parity:g} below the plain mean's, or honest clients with "
        f"edge cases taken at less than {limits.choice:g} of the others' rate. Not known: a number is missing. "
        "Not attacked: the rule was run without an attack only, to be compared with.",
        class_="note",
    )
    reasons = [
        tag("li", tag("b", f"{cell.attack}: {cell.rule}"), f" - {cell.word}: {'; '.join(cell.why)}.")
        for standing in findings.standings
        for cell in standing.cells.values()
        if cell.why and cell.n
    ]
    if reasons:
        yield tag("details", tag("summary", f"Reasons, {len(reasons)} runs"), tag("ul", *reasons))


def _cell(cell: Cell | None) -> Markup:
    if cell is None:
        return tag("td", "", class_="untried")
    return tag("td", cell.word, tag("br"), tag("small", f"{gained(cell)} n={cell.n}"), class_=CLASSES[cell.word])


def _threat(findings: Findings) -> Iterator[Markup]:
    runs = _first_runs(findings)
    yield tag("dl", *(part for name, words in situation(next(iter(runs.values()))) for part in _pair(name, words)))
    yield tag(
        "p", "The attacker wants unusual inputs to be called by a wrong name, and everything else to go on as ever."
    )
    known = {}
    for (attack, _), run in runs.items():
        if attack != QUIET and attack not in known:
            known[attack] = "; ".join(adversary(run)) or "as the expression of the run says"
    yield tag("dl", *(part for name, words in known.items() for part in _pair(name, f"{words}.")))
    if any(run.phases[-1].adversary is not None for run in runs.values()):
        yield tag("p", "Radii and factors are those of the first rule; other rules may have others.", class_="note")


def _curves(findings: Findings) -> Iterator[Markup]:
    grid = cells(findings.results)
    attacks = list(dict.fromkeys(attack for attack, _ in grid))
    place = {
        attack: "quiet" if attack == QUIET else style(i) for i, attack in enumerate(a for a in attacks if a != QUIET)
    }
    place |= {QUIET: "quiet"}
    legend = [tag("li", key(place[a]), "no attack" if a == QUIET else a) for a in attacks]
    yield tag("p", "Share of edge cases that are called what the attacker wants (%), by round.")
    yield tag("ul", *legend, class_="legend")
    panels = []
    for standing in findings.standings:
        lines = [
            Line(attack, _points(list(grid[attack, standing.rule].values())), place[attack])
            for attack in attacks
            if (attack, standing.rule) in grid
        ]
        if any(line.points for line in lines):
            words = f"attack success by round against {standing.rule}"
            heading = tag("figcaption", tag("b", standing.rule), " ", _badge(standing.word))
            panels.append(tag("figure", heading, panel(words, lines)))
    yield tag("div", *panels, class_="panels") if panels else tag("p", "No run has been tested yet.", class_="warning")


def _points(runs) -> list[tuple[int, float, float, float]]:
    """Mean and range over the seeds, of rounds in which all were tested."""
    curves = [dict(rates(run)) for run in runs]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    values = {index: [curve[index] for curve in curves] for index in shared}
    return [(index, mean(successes), min(successes), max(successes)) for index, successes in values.items()]


def _fairness(findings: Findings) -> Iterator[Markup]:
    sheet = fairness(findings.standings)
    yield table(sheet.header, sheet.words())
    yield tag("p", NO_CHOICE, class_="note")
    if all(row[4] is None for row in sheet.rows):
        yield tag(
            "p",
            "No honest client holds edge cases in these runs, or no rule here names the rows it takes.",
            class_="note",
        )


def _tried(findings: Findings) -> Iterator[Markup]:
    study, about = findings.study, findings.about
    rounds = sorted({run.rounds for run in study.runs.values()})
    spent = [tag("li", note) for note in (*findings.request.notes, *findings.notices)]
    yield tag(
        "dl",
        *_pair("source", findings.request.source + (f", scale {study.scale}" if study.scale else "")),
        *_pair("settings", ", ".join(study.settings) or "as they are"),
        *_pair("seeds", ", ".join(map(str, findings.seeds))),
        *_pair("rounds", " or ".join(map(str, rounds))),
        *_pair("time", str(about.get("time"))),
        *_pair("machine", ", ".join(f"{k} {v}" for k, v in about.get("machine", {}).items() if v is not None)),
        *_pair("versions", ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())),
        *_pair("commit", str(about.get("commit") or "not known")),
        *_pair("command", shlex.join(["phalanx", *about.get("argv", [])[1:]])),
    )
    if spent:
        yield tag("ul", *spent)
    rules = {name: rule(run) for (_, name), run in _first_runs(findings).items()}
    yield table(("rule", "behind the wire"), [(name, tag("td", tag("code", words))) for name, words in rules.items()])
    yield tag(
        "p",
        "To go on or to look again: ",
        tag("code", f"phalanx redteam --resume {shlex.quote(str(findings.path))}"),
        ". Every run's expression, metrics round by round and checkpoint lie in that folder.",
    )


def _first_runs(findings: Findings) -> dict[tuple[str, str], Run]:
    """A run of each attack and rule."""
    runs: dict[tuple[str, str], Run] = {}
    for label, run in findings.study.runs.items():
        runs.setdefault(cell_of(label), run)
    return runs


def _badge(word: str, shown: str = "") -> Markup:
    return tag("span", shown or word, class_=f"badge {CLASSES[word]}")


def _pair(name: str, words: str) -> tuple[Markup, Markup]:
    return tag("dt", name), tag("dd", words)
