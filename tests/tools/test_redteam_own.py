# SPDX-License-Identifier: Apache-2.0
"""A federated setting of one's own, attacked."""

from dataclasses import replace

import pytest

import phalanx as px
from phalanx.core.wire_stage import stages_of
from phalanx.tools.redteam.custom_setting import YOURS, Terms, check, own_grid, typical_norm
from phalanx.tools.redteam.grid import grid_of, narrowed, seeded
from phalanx.tools.redteam.setting import ATTACKS, standard
from phalanx.tools.report.backdoors import cell_of
from phalanx.tools.report.selected import holders
from phalanx.training.phase import Phase, Run
from tests.cases import each

LOCAL = px.federated.local_training(px.optim.sgd(0.1), batch=20)
TERMS = Terms(px.backdoors.rare_styles(), every=2, norm=0.5)


def mine(phase: Phase | None = None, **more) -> Run:
    phase = phase or px.federated.fedavg(
        LOCAL, 40, clients=8, codec=px.codecs.qsgd(bits=8), rule=px.aggregators.multi_krum(f=1)
    )
    more = {"workers": 20, "partition": px.data.dirichlet(0.5), "checkpoint_every": 7, **more}
    return px.Run(px.data.digits(), px.models.mlp((4,)), (phase,), **more)


def test_the_setting_stays_as_it_is_but_for_the_attack_and_the_rule() -> None:
    grid = own_grid(mine(), TERMS)
    attacks, rules = zip(*map(cell_of, grid.runs), strict=True)
    assert list(dict.fromkeys(attacks)) == list(ATTACKS)
    assert list(dict.fromkeys(rules)) == [YOURS, *standard(0.5, 20)] and grid.left_out == ()
    for label, run in grid.runs.items():
        run.check()
        attack, rule = cell_of(label)
        phase, stages = run.phases[0], stages_of(run.phases[0].scheme)
        root = rule.startswith("FLTrust")  # the server plays a worker of its own
        assert (run.checkpoint_every, run.evaluate_every, run.workers) == (7, 2, 20 + root)
        assert phase.work == LOCAL and phase.rounds == 40 and px.gather(px.codecs.qsgd(bits=8)).codec in _codecs(stages)
        assert (phase.adversary is None) == (attack == "none")
        assert (px.aggregators.multi_krum(f=1) in stages) == (rule in (YOURS, "Multi-Krum"))
        # the same honest clients take part with and without the attacker
        quiet = grid.runs[f"none: {rule}"].phases[0]
        assert replace(run, phases=(quiet,)) == grid.runs[f"none: {rule}"]
        for index in range(4):
            came, calm = (set(p.clients.sample(index, run.workers, 0)) - {20} for p in (phase, quiet))
            assert len(came) == 8 and 0 not in calm and came - {0} <= calm
            assert (0 in came) == (attack != "none" and (attack.endswith("every round") or index % 2 == 0))


def _codecs(stages) -> list:
    return [stage.codec for stage in stages if isinstance(stage, type(px.gather(px.codecs.dense())))]


def test_a_tenth_of_the_clients_hold_what_the_attacker_has_not() -> None:
    run = own_grid(mine(), TERMS).runs["PGD: yours"]
    assert len(holders(run)) == 2
    edges = run.phases[0].adversary.edges  # type: ignore[union-attr]
    loaded = edges.load(px.data.digits().load())
    assert len(loaded) == 33 and len(loaded.held[1]) == 33
    alone = own_grid(mine(), replace(TERMS, attacker=1.0)).runs["PGD: yours"]
    assert holders(alone) == frozenset() and alone.partition == px.data.dirichlet(0.5)


def test_where_everybody_takes_part_the_attacker_always_does() -> None:
    phase = px.federated.fedavg(LOCAL, 4, rule=px.aggregators.median())
    grid = own_grid(mine(phase, workers=4), TERMS)
    assert {attack for attack, _ in map(cell_of, grid.runs)} == {a for a in ATTACKS if not a.endswith("every round")}
    assert all(
        run.phases[0].clients in (px.training.all_clients(), px.federated.with_fixed(px.training.all_clients()))
        for run in grid.runs.values()
    )
    # four clients are too few for Krum
    assert any(sentence.startswith("Krum: ") and "n=4" in sentence for sentence in grid.left_out)


def test_honest_phases_before_the_last_are_done_once() -> None:
    first, second = px.federated.fedavg(LOCAL, 3, clients=8), px.federated.fedavg(LOCAL, 4, clients=8)
    run = replace(mine(), phases=(first, second))
    grid = own_grid(run, TERMS)
    assert all(
        each.rounds == 4 and each.model == px.training.pretrained(replace(run, phases=(first,)))
        for each in grid.runs.values()
    )


def test_the_length_of_a_change_is_measured() -> None:
    run = mine()
    norm = typical_norm(run)
    assert 0.05 < norm < 5 and own_grid(run, replace(TERMS, norm=None)).norm == norm


GOSSIP = px.Phase(px.training.gradient(20), px.chain(px.gather(px.codecs.dense()), px.aggregators.mean()), rounds=4)
SUMMED = px.Phase(LOCAL, px.reduce(px.codecs.dense()), px.optim.sgd(1.0), 4)
DETOX = px.Phase(LOCAL, px.chain(px.coding.vote(px.codecs.dense(), r=2), px.aggregators.mean()), px.optim.sgd(1.0), 4)


@each(
    ("run", "words"),
    [
        (mine(byzantine=px.adversary.workers((3,))), "has an attacker already"),
        (mine(replace(px.federated.fedavg(LOCAL, 4, clients=8), adversary=LOCAL)), "has an attacker already"),
        (
            mine(px.federated.fedavg(LOCAL, 4, rule=px.chain(px.attacks.reverse(), px.aggregators.mean()))),
            "has an attacker already",
        ),
        (mine(GOSSIP), r"local_training\(...\) that send changes"),
        (mine(SUMMED), "sums changes on the way"),
        (mine(DETOX), "several workers compute the same"),
        (mine(px.federated.fedavg(LOCAL, 4, clients=20)), "20 of 20 take part"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_a_sentence(run: Run, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        check(run)
    assert "\n" not in str(caught.value)


def test_what_is_asked_for_comes_with_what_it_is_compared_with() -> None:
    runs = own_grid(mine(), TERMS).runs
    assert list(narrowed(runs, [])) == list(runs)
    assert set(narrowed(runs, ["PGD: krum"])) == {"none: FedAvg", "none: Krum", "PGD: Krum"}
    assert {rule for _, rule in map(cell_of, narrowed(runs, ["median"]))} == {"median", "FedAvg"}
    assert {attack for attack, _ in map(cell_of, narrowed(runs, ["adaptive"]))} == {"none", "adaptive"}
    with pytest.raises(ValueError, match="did you mean Krum"):
        narrowed(runs, ["Krumm"])


def test_seeds_have_labels_and_runs_of_their_own() -> None:
    runs = narrowed(own_grid(mine(), TERMS).runs, ["PGD: Krum"])
    assert seeded(runs, 1) == runs
    made = seeded({label: replace(run, seed=5) for label, run in runs.items()}, 2)
    assert {run.seed for run in made.values()} == {5, 6} and len(made) == 6
    assert all(
        cell_of(label) in map(cell_of, runs) and label.endswith(f"seed {run.seed}") for label, run in made.items()
    )
    with pytest.raises(ValueError, match="--seeds takes a number >= 1, got 0"):
        seeded(runs, 0)


def test_only_attacks_against_rules_are_a_grid() -> None:
    runs = own_grid(mine(), TERMS).runs
    assert grid_of("mine", runs) == runs
    for wrong in ({"PGD: Krum": runs["PGD: Krum"]}, {"none: Krum": mine()}, {}):
        with pytest.raises(ValueError, match="phalanx redteam cannot use mine"):
            grid_of("mine", wrong)
