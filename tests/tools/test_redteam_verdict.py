# SPDX-License-Identifier: Apache-2.0
"""Verdicts on rules, from runs that were never carried out."""

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.tools.redteam.findings import RedTeamRequest
from phalanx.tools.redteam.page import page
from phalanx.tools.redteam.policy import UNKNOWN as NO_NUMBER
from phalanx.tools.redteam.selection_bias import ENOUGH, Choices, Share
from phalanx.tools.redteam.verdict import BROKEN, COSTLY, NOT_ATTACKED, SURVIVES, UNFAIR, UNKNOWN, Limits, is_plain
from phalanx.tools.report.selected import holders
from tests.tools.made_grid import SMOKE, findings, lines, run

QUIET = {"none: FedAvg": run(px.aggregators.mean()), "none: Krum": run(px.aggregators.krum(f=1))}
GRID = {**QUIET, "PGD: FedAvg": run(px.aggregators.mean(), "PGD"), "PGD: Krum": run(px.aggregators.krum(f=1), "PGD")}
CALM = {"none: FedAvg": lines(0.1), "none: Krum": lines(0.05, accuracy=0.89)}


def verdict(path: Path, rule: str = "Krum", attack: str = "PGD", **logged: list):
    """The cell of a rule when these are added to the calm runs; "_" stands for ": "."""
    said = {**CALM, **{label.replace("_", ": "): value for label, value in logged.items()}}
    found = findings(path, GRID, {label: value for label, value in said.items() if value})
    (standing,) = [standing for standing in found.standings if standing.rule == rule]
    return standing.cells[attack]


def test_success_counts_above_the_same_rule_without_an_attack(tmp_path: Path) -> None:
    cell = verdict(tmp_path / "a", PGD_Krum=lines(0.16, accuracy=0.89))
    assert cell.word == BROKEN and cell.number("excess") == pytest.approx(0.11)
    assert cell.number("attack_success") == pytest.approx(0.16) and "11.0 points" in cell.why[0]
    cell = verdict(tmp_path / "b", PGD_Krum=lines(0.14, accuracy=0.89))
    assert cell.word == SURVIVES and cell.why == () and cell.n == 1 and cell.spread("excess") is None


def test_accuracy_counts_below_the_plain_mean_without_an_attack(tmp_path: Path) -> None:
    cell = verdict(tmp_path, PGD_Krum=lines(0.05, accuracy=0.87))
    assert cell.word == COSTLY and cell.number("accuracy_lost") == pytest.approx(0.03)
    assert is_plain(GRID["PGD: FedAvg"]) and not is_plain(GRID["none: Krum"])


def test_parity_counts_below_the_plain_means(tmp_path: Path) -> None:
    cell = verdict(tmp_path / "a", PGD_Krum=lines(0.05, accuracy=0.89, parity=0.6))
    assert cell.word == UNFAIR and cell.number("parity_lost") == pytest.approx(0.2)
    # without the exam nothing is said about it
    cell = verdict(tmp_path / "b", PGD_Krum=lines(0.05, accuracy=0.89, parity=None))
    assert cell.word == SURVIVES and cell.number("parity") is None


def test_what_is_missing_is_not_known(tmp_path: Path) -> None:
    ended = lines(0.9, accuracy=0.89)
    cell = verdict(tmp_path / "a")
    assert (cell.word, cell.n, cell.why) == (UNKNOWN, 0, ("has not ended",))
    cell = verdict(tmp_path / "b", PGD_Krum=ended, none_Krum=[])
    assert cell.word == UNKNOWN and cell.number("excess") is None and cell.number("attack_success") == 0.9
    cell = verdict(tmp_path / "c", PGD_Krum=lines(0.05), none_FedAvg=[])
    assert cell.word == UNKNOWN and cell.number("accuracy_lost") is None
    # what is known to be broken is
    assert verdict(tmp_path / "d", PGD_Krum=ended, none_FedAvg=[]).word == BROKEN


def test_runs_that_have_not_ended_are_not_looked_at(tmp_path: Path) -> None:
    logged = {**CALM, "PGD: Krum": lines(0.9)}
    found = findings(tmp_path, GRID, logged, unended=("PGD: Krum",))
    (krum,) = [standing for standing in found.standings if standing.rule == "Krum"]
    assert krum.word == UNKNOWN and krum.cells["PGD"].n == 0
    assert found.missing == ["PGD: FedAvg", "PGD: Krum"]


def test_seeds_are_paired_and_averaged(tmp_path: Path) -> None:
    runs, logged = {}, {}
    floors, reached = {0: 0.1, 1: 0.3, 2: 0.2}, {0: 0.15, 1: 0.5, 2: 0.5}
    for seed in floors:
        for attack, success in (("none", floors), ("PGD", reached)):
            label = f"{attack}: FedAvg, seed {seed}"
            runs[label], logged[label] = run(px.aggregators.mean(), attack, seed), lines(success[seed])
    found = findings(tmp_path, runs, logged)
    cell = found.standings[0].cells["PGD"]
    gains = [reached[seed] - floors[seed] for seed in floors]
    assert cell.n == 3 and found.seeds == [0, 1, 2]
    assert cell.number("excess") == pytest.approx(mean(gains)) and cell.spread("excess") == pytest.approx(stdev(gains))
    assert "5.0 points to 30.0 points in 3 seeds" in cell.why[0]


def test_a_rule_is_as_good_as_its_worst_verdict(tmp_path: Path) -> None:
    found = findings(tmp_path, GRID, {**CALM, "PGD: FedAvg": lines(0.9), "PGD: Krum": lines(0.05, accuracy=0.87)})
    words = {standing.rule: standing.word for standing in found.standings}
    assert words == {"FedAvg": BROKEN, "Krum": COSTLY}
    assert found.standings[0].counted() == {"broken": 1.0, "unfair": 0.0, "costly": 0.0, "unknown": 0.0}
    said = " ".join(found.advice)
    assert "FedAvg is broken by PGD" in said and "Krum (costly, 3.0 points" in said


def test_a_rule_that_nobody_attacked_does_not_survive(tmp_path: Path) -> None:
    grid = {label: run for label, run in GRID.items() if label != "PGD: FedAvg"}
    found = findings(tmp_path, grid, {**CALM, "PGD: Krum": lines(0.05, accuracy=0.89)})
    quiet, krum = found.standings
    assert (quiet.word, krum.word) == (NOT_ATTACKED, SURVIVES) and quiet.to_json()["attacks"][0]["verdict"] != SURVIVES
    assert '<td class="unknown">not attacked</td>' in page(found) and "FedAvg" not in " ".join(found.advice)


def met(path: Path, gains: dict[str, float], *judged: str) -> str:
    """The advice on a grid of these attacks on rules, with the attack success each gains."""
    rules = {"A": px.aggregators.mean(), "B": px.aggregators.krum(f=1), "C": px.aggregators.median()}
    runs = {f"none: {name}": run(rule) for name, rule in rules.items()}
    logged = dict.fromkeys(runs, lines(0.1))
    for label, gain in gains.items():
        runs[label], logged[label] = run(rules[label[-1]], "PGD"), lines(0.1 + gain)
    return " ".join(findings(path, runs, logged, request=RedTeamRequest("made", judged)).advice)


def test_only_rules_that_met_the_same_attacks_are_compared(tmp_path: Path) -> None:
    # B met a weaker attack than A and C
    said = met(tmp_path / "a", {"PGD: A": 0.6, "black-box: B": 0.2, "PGD: C": 0.5})
    assert "C comes closest of the 2 rules that met the same attacks (PGD)" in said and "B comes" not in said
    assert "no other rule met the same attacks" in met(tmp_path / "b", {"PGD: A": 0.6, "black-box: B": 0.2})
    # whoever survived other attacks is not offered in place of a rule; whoever survived more of them is
    assert "no other rule met the same attacks" in met(tmp_path / "c", {"PGD: A": 0.6, "black-box: B": 0.0}, "A")
    more = {"PGD: A": 0.6, "PGD: B": 0.0, "black-box: B": 0.0, "black-box: C": 0.0}
    assert "the cheapest first: B (" in met(tmp_path / "d", more, "A")
    # an attack that only one rule met does not count in the comparison
    more = {"PGD: A": 0.6, "PGD: B": 0.5, "black-box: B": 0.8, "PGD: C": 0.7}
    assert "B comes closest" in met(tmp_path / "e", more, "A") and "gains 50.0 points" in met(tmp_path / "f", more, "A")


UNUSUAL = replace(
    SMOKE,
    held=px.backdoors.with_edge_cases(
        px.data.digits(), px.backdoors.split_edge_cases(px.backdoors.rare_styles(), ratio=0.5, attacker=33)
    ),
    partition=px.backdoors.assign_added(px.data.dirichlet(0.5), clients=4),
)


def test_unusual_clients_that_a_rule_never_takes_are_shut_out(tmp_path: Path) -> None:
    runs = {
        "none: FedAvg": run(px.aggregators.mean(), mine=UNUSUAL),
        "none: MK": run(px.aggregators.multi_krum(f=1), mine=UNUSUAL),
    }
    assert holders(runs["none: MK"]) == {0, 1, 2, 3}
    never = lines(0.0, chosen=[4, 5, 6, 7, 8, 9])
    logged = {"none: FedAvg": lines(0.0), "none: MK": never}
    plain, strict = findings(tmp_path / "a", runs, logged).standings
    cell = strict.cells["none"]
    # 1 to 3 hold edge cases and always come; worker 0 comes in every other round, and is honest without an attack
    assert cell.chosen == Choices(Share(), Share(0, 28), Share(48, 52))
    assert cell.word == UNFAIR and "0 of 28 were taken" in cell.why[0] and plain.word == strict.word == NOT_ATTACKED
    logged["none: MK"] = lines(0.0, chosen=[1, 2, 3, 4, 5])
    assert findings(tmp_path / "b", runs, logged).standings[1].cells["none"].word == NOT_ATTACKED


@given(*(st.integers(0, 60) for _ in range(4)), st.floats(0, 1))
def test_nothing_is_said_of_few_rows(taken: int, came: int, others: int, all_others: int, below: float) -> None:
    mine, theirs = Share(min(taken, came), came), Share(min(others, all_others), all_others)
    said = Choices(Share(), mine, theirs).shut_out(below)
    if mine.rate is None or theirs.rate is None or theirs.rate * came < ENOUGH:
        assert said is None
    else:
        assert said is (mine.rate < below * theirs.rate)


def test_limits_are_shares() -> None:
    with pytest.raises(ValueError, match="limit of parity"):
        Limits(parity=1.5)


def test_policies_are_about_the_rules_that_are_judged(tmp_path: Path) -> None:
    logged = {**CALM, "PGD: FedAvg": lines(0.9), "PGD: Krum": lines(0.05, accuracy=0.89)}
    policies = ("parity < 0.5", "attack_success > 0.5 or broken > 0 exit 9", "excess > 0.1")

    def outcome(name: str, *judged: str, said=logged):
        found = findings(tmp_path / name, GRID, said, request=RedTeamRequest("made", judged, policies=policies))
        return found.exit_code, [each.fails for each in found.outcomes]

    assert outcome("all") == (9, [False, True, True])
    assert outcome("krum", "Krum") == (0, [False, False, False])
    assert outcome("unknown", "Krum", said=CALM) == (NO_NUMBER, [None, None, None])
    # a failure that is known is one, whatever is missing besides
    assert outcome("some", said={**CALM, "PGD: FedAvg": lines(0.9)}) == (9, [None, True, True])
    with pytest.raises(ValueError, match="did you mean Krum"):
        RedTeamRequest("made", ("Krumm",)).check(findings(tmp_path / "names", GRID, {}).study)
