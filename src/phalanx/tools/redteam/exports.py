# SPDX-License-Identifier: Apache-2.0
"""The findings in the formats that code scanners and test reports have: SARIF 2.1.0 and JUnit XML."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from phalanx.tools.redteam.findings import Findings
from phalanx.tools.redteam.standards import (
    BROKEN,
    COSTLY,
    NOT_ATTACKED,
    REQUIREMENTS,
    SURVIVES,
    UNFAIR,
    UNKNOWN,
    requirements,
)
from phalanx.tools.redteam.verdict import Cell
from phalanx.tools.report.backdoors import QUIET

SARIF, JUNIT = "verdicts.sarif", "verdicts.junit.xml"
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {
    BROKEN: "error",
    UNFAIR: "warning",
    COSTLY: "warning",
    UNKNOWN: "note",
    SURVIVES: "none",
    NOT_ATTACKED: "none",
}
_MEANINGS = {
    BROKEN: "The attack raises the share of examples that are called what the attacker wants by more than the limit.",
    UNFAIR: "The rule leaves out honest clients whose data are unusual, or loses accuracy on them.",
    COSTLY: "The rule loses more main accuracy than the limit.",
    UNKNOWN: "A number that the verdict needs is missing.",
    SURVIVES: "The attack stays within all limits.",
    NOT_ATTACKED: "Nobody attacked the rule.",
}


def sarif(findings: Findings) -> dict[str, Any]:
    """The findings as a SARIF log: a result for each attack on each rule, and one for each rule without an attack."""
    rules = [
        {
            "id": _id(word),
            "shortDescription": {"text": word},
            "fullDescription": {"text": meaning},
            "properties": {"tags": [str(each) for each in requirements(word)]},
        }
        for word, meaning in _MEANINGS.items()
    ]
    driver = {
        "name": "phalanx redteam",
        "semanticVersion": _version(findings),
        "informationUri": "https://owasp.org/www-project-artificial-intelligence-security-verification-standard/",
        "rules": rules,
    }
    results = [
        {
            "ruleId": _id(cell.word),
            "level": _LEVELS[cell.word],
            "kind": {SURVIVES: "pass", NOT_ATTACKED: "informational", UNKNOWN: "open"}.get(cell.word, "fail"),
            "message": {"text": _sentence(cell)},
            "locations": [
                {"logicalLocations": [{"name": cell.rule, "fullyQualifiedName": f"{cell.attack}: {cell.rule}"}]}
            ],
            "partialFingerprints": {"attackAndRule/v1": _fingerprint(findings, cell)},
            "properties": {"seeds": cell.n, "numbers": {name: cell.number(name) for name in cell.numbers}},
        }
        for cell in _cells(findings)
    ]
    taxa = [{"id": str(each), "shortDescription": {"text": each.words}} for each in REQUIREMENTS]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "taxonomies": [{"name": "requirements of AISVS 1.0, MITRE ATLAS and NIST AI RMF 1.0", "taxa": taxa}],
                "results": results,
                "properties": {"source": findings.request.source, "seeds": findings.seeds},
            }
        ],
    }


def junit(findings: Findings) -> str:
    """The findings as JUnit XML: a suite for each rule, a case for each attack, and a suite of the policies.

    A broken, unfair or costly rule is a failed case, one that is not known an error.
    """
    root = ElementTree.Element("testsuites", name="phalanx redteam")
    for standing in findings.standings:
        cases = [cell for cell in standing.cells.values() if cell.attack != QUIET or cell.word != NOT_ATTACKED]
        suite = _suite(root, standing.rule, [cell.word for cell in cases])
        for cell in cases:
            case = ElementTree.SubElement(suite, "testcase", classname=standing.rule, name=cell.attack)
            if cell.word in (BROKEN, UNFAIR, COSTLY):
                ElementTree.SubElement(case, "failure", message=cell.word).text = _sentence(cell)
            elif cell.word == UNKNOWN:
                ElementTree.SubElement(case, "error", message=cell.word).text = _sentence(cell)
    if findings.outcomes:
        words = [{True: BROKEN, False: SURVIVES, None: UNKNOWN}[outcome.fails] for outcome in findings.outcomes]
        suite = _suite(root, "policies", words)
        for outcome in findings.outcomes:
            case = ElementTree.SubElement(suite, "testcase", classname="policies", name=outcome.policy.text)
            seen = "; ".join(f"{each.attack}: {each.rule} ({each.seen})" for each in outcome.decisive)
            if outcome.fails is not False:
                kind = "failure" if outcome.fails else "error"
                ElementTree.SubElement(case, kind, message="fails" if outcome.fails else "is not known").text = seen
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ElementTree.Element, name: str, words: list[str]) -> ElementTree.Element:
    failures = sum(word in (BROKEN, UNFAIR, COSTLY) for word in words)
    counts = {"tests": len(words), "failures": failures, "errors": words.count(UNKNOWN)}
    return ElementTree.SubElement(root, "testsuite", {"name": name, **{key: str(n) for key, n in counts.items()}})


def _cells(findings: Findings) -> Iterator[Cell]:
    for standing in findings.standings:
        yield from standing.cells.values()


def _sentence(cell: Cell) -> str:
    """'PGD: median: broken: attack success 31.4 points above ...'."""
    return f"{cell.attack}: {cell.rule}: {'; '.join((cell.word, *cell.why))}"


def _id(word: str) -> str:
    return f"phalanx/{word.replace(' ', '-')}"


def _version(findings: Findings) -> str:
    return str(findings.about.get("versions", {}).get("phalanx-train", "0.0.0"))


def _fingerprint(findings: Findings, cell: Cell) -> str:
    """The same for the same attack on the same rule in every run, so that a scanner recognises a finding."""
    return hashlib.sha256(f"{findings.request.source}\0{cell.attack}\0{cell.rule}".encode()).hexdigest()
