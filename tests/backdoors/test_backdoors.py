# SPDX-License-Identifier: Apache-2.0
"""Attackers of federated learning: projected training, model replacement, and when they take part."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.backdoors.edges import _load
from phalanx.backdoors.poisoned import _mixture
from phalanx.core.stack import Stack
from phalanx.data.dataset import SCORED
from phalanx.training.evaluator import EvalContext
from phalanx.training.model_state import fingerprint
from phalanx.training.trainer import Trainer
from tests.backdoors.edges import texts
from tests.cases import each

LOCAL = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), batch=20)


def run(phase, workers=6, **options):
    options = {"partition": px.data.dirichlet(1.0, least=5), "evaluate_every": 1, "seed": 1} | options
    return px.Run(px.data.digits(), px.models.mlp((16,)), (phase,), workers=workers, **options)


def distance(weights, centre, norm="l2"):
    moves = torch.cat([(w.double() - c.double()).flatten() for w, c in zip(weights, centre, strict=True)])
    return float(moves.norm() if norm == "l2" else moves.abs().max())


@given(
    st.sampled_from(["l2", "linf"]),
    st.sampled_from(["model", "tensor"]),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e4),
    st.integers(0, 99),
)
def test_a_projection_lands_on_the_ball_and_is_the_nearest_point(norm, each, radius, size, seed):
    rng = torch.Generator().manual_seed(seed)
    centre = [torch.randn(3, 4, generator=rng), torch.randn(5, generator=rng), torch.zeros(0)]
    weights = [c + size * torch.randn(c.shape, generator=rng) for c in centre]
    before = [w.clone() for w in weights]
    px.federated.ball(radius, norm=norm, each=each).project(weights, centre, 0)
    pieces = (
        [(weights, before, centre)]
        if each == "model"
        else [([w], [b], [c]) for w, b, c in zip(weights, before, centre, strict=True) if len(w)]
    )
    for now, then, middle in pieces:
        was, is_now = distance(then, middle, norm), distance(now, middle, norm)
        if was <= radius * (1 - 1e-6):
            assert all(a.equal(b) for a, b in zip(now, then, strict=True))
        elif was > radius * (1 + 1e-6):
            scale = max(1.0, float(torch.cat([c.flatten() for c in middle]).abs().max()) / radius)
            assert abs(is_now - radius) <= 1e-6 * radius * scale
            if norm == "l2":
                for a, b, c in zip(now, then, middle, strict=True):
                    torch.testing.assert_close(a, c + (b - c) * (radius / was), rtol=1e-4, atol=1e-5 * radius)


def test_a_decayed_ball_shrinks_with_the_rounds():
    ball, centre = px.federated.ball(2.0, decay=0.5), [torch.zeros(4)]
    for at, radius in enumerate((2.0, 1.0, 0.5)):
        weights = [torch.full((4,), 9.0)]
        ball.project(weights, centre, at)
        assert float(weights[0].norm()) == pytest.approx(radius)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_client_in_a_ball_ends_in_it(epochs):
    inside = px.federated.local_training(
        px.optim.sgd(0.1), epochs=epochs, batch=7, ball=px.federated.ball(0.05, every=4)
    )
    rows = Trainer(run(px.federated.fedavg(inside, 1))).compute_rows(0)[0].rows
    assert (rows.double().norm(dim=1) <= 0.05 * (1 + 1e-5)).all()
    far = px.federated.local_training(px.optim.sgd(0.1), epochs=epochs, batch=7, ball=px.federated.ball(1e6))
    free = px.federated.local_training(px.optim.sgd(0.1), epochs=epochs, batch=7)
    assert (
        Trainer(run(px.federated.fedavg(far, 1)))
        .compute_rows(0)[0]
        .rows.equal(Trainer(run(px.federated.fedavg(free, 1))).compute_rows(0)[0].rows)
    )


def test_replacement_with_silent_others_installs_the_attackers_model():
    still, own = px.federated.local_training(epochs=0), px.federated.local_training(px.optim.sgd(0.1), epochs=2)
    scheme = px.parse("chain(replacement(), gather(dense(), gate=gate(weights='trusted')), mean())")
    phase = px.Phase(still, scheme, px.optim.sgd(1.0), 1, adversary=own)
    trainer = Trainer(run(phase, byzantine=px.adversary.workers((2,))))
    start = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    row = trainer.compute_rows(0)[0].rows[2]
    trainer.run()
    end = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    torch.testing.assert_close(end, start - row, rtol=1e-4, atol=1e-6)
    assert not trainer.compute_rows(0)[0].rows[[0, 1, 3, 4, 5]].any()


def test_attackers_of_a_round_share_the_boost():
    layout = px.Layout.flat(3)
    weights = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    stack = Stack(torch.ones(4, 3), layout, ((0,), (1,), (2,), (3,)), weights)
    round = px.Round(byzantine=frozenset({1, 2}), world=px.LocalCollective(4))
    out, _ = px.attacks.replacement()(stack, None, round)
    assert out.rows[:, 0].tolist() == pytest.approx([1, 12 / 5, 12 / 5, 1])
    share = (weights / weights.sum()).float()
    assert float(share[1:3] @ out.rows[1:3, 0]) == pytest.approx(1.0)


def test_the_adversary_works_in_place_of_its_workers_only():
    strange = px.federated.local_training(px.optim.sgd(0.3), epochs=4, batch=11)
    phase = px.federated.fedavg(LOCAL, 1)
    both = px.Phase(phase.work, phase.scheme, phase.optimizer, 1, adversary=strange)
    plain, mixed = (
        Trainer(run(phase)).compute_rows(0)[0].rows,
        Trainer(run(both, byzantine=px.adversary.workers((1, 4)))).compute_rows(0)[0].rows,
    )
    honest = [0, 2, 3, 5]
    assert mixed[honest].equal(plain[honest]) and not mixed[[1, 4]].equal(plain[[1, 4]])
    assert mixed[[1, 4]].equal(Trainer(run(px.federated.fedavg(strange, 1))).compute_rows(0)[0].rows[[1, 4]])


def test_attackers_come_when_it_is_their_turn():
    selection = px.federated.with_attackers(4, (0, 7), every=3, first=2, rounds=9)
    for index in range(14):
        chosen = selection.sample(index, 12, 5)
        assert len(set(chosen)) == 4 and chosen == tuple(sorted(chosen))
        assert ({0, 7} <= set(chosen)) == (index in (2, 5, 8)) and (index in (2, 5, 8) or not {0, 7} & set(chosen))
    assert len({selection.sample(index, 12, 5) for index in range(14)}) > 5


def test_an_attack_by_turns_runs_and_is_counted():
    phase = px.federated.fedavg(LOCAL, 4)
    scheme = px.chain(px.attacks.replacement(2.0), *phase.scheme.stages)
    made = px.Phase(
        LOCAL, scheme, phase.optimizer, 4, clients=px.federated.with_attackers(3, (5,), every=2), adversary=LOCAL
    )
    lines = []
    px.train(run(made, byzantine=px.adversary.workers((5,))), listener=lines.append)
    assert [5 in line["clients"] for line in lines] == [True, False, True, False]


@each(
    ("make", "sentence"),
    [
        (lambda: px.federated.ball(0.0), "radius > 0"),
        (lambda: px.federated.ball(1.0, decay=1.5), r"decay in \(0, 1\]"),
        (lambda: px.attacks.replacement(-1.0), "boost > 0"),
        (lambda: px.federated.with_attackers(1, (0, 1)), "1 to clients=1 attackers"),
        (
            lambda: Trainer(
                run(px.Phase(LOCAL, px.federated.fedavg(LOCAL).scheme, clients=px.federated.with_attackers(6)))
            ),
            "needs 6 honest workers",
        ),
        (
            lambda: Trainer(
                run(
                    px.Phase(
                        px.training.gradient(60),
                        px.parse("chain(vote(dense(), r=3), mean())"),
                        adversary=px.training.gradient(60),
                    )
                )
            ),
            "work of its own",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_parity_asks_every_client_and_changes_nothing():
    plain = px.train(run(px.federated.fedavg(LOCAL, 2)))
    lines = []
    asked = px.train(
        run(px.federated.fedavg(LOCAL, 2), evaluators=(px.training.parity(), px.training.parity(clients=2, most=5))),
        listener=lines.append,
    )
    assert fingerprint(asked.model) == fingerprint(plain.model)
    every, some = lines[-1]["examined"].values()
    assert len(every["accuracy"]) == 6 and len(some["accuracy"]) == 2
    assert every["ratio"] == pytest.approx(min(every["accuracy"].values()) / max(every["accuracy"].values()))
    parts = asked.config.partition.parts(asked.data, 6, 1)
    x, y = asked.data.train(parts[3][:200])
    with torch.no_grad():
        right = asked.model.eval()(x).argmax(1) == y
    assert every["accuracy"]["3"] == pytest.approx(float(right.double().mean()))
    assert asked.summary()["examined"] == lines[-1]["examined"]


def test_an_exam_looks_at_no_more_scores_of_passages_than_the_test_does():
    seen = []

    class Repeats(torch.nn.Linear):
        def forward(self, x):
            seen.append(x.numel())
            return torch.nn.functional.one_hot(x, 20)

    sitting = EvalContext(Repeats(1, 1), texts(tuple("abcdefghijklmnopqrst"), passages=True), 1, 0, "float32", tuple)
    x = torch.arange(300 * 8).reshape(300, 8) % 20
    assert sitting.labels(x).equal(x) and len(sitting.labels(x[:0])) == 0
    assert sum(seen) == 2400 and max(seen) <= SCORED


EDGES = px.backdoors.rare_styles()


def poisoned_run(every=1, rounds=6, attack=True, **options):
    data = px.backdoors.with_edge_cases(px.data.digits(), EDGES)
    dirty = px.backdoors.poisoned(
        px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), epochs=5, batch=20),
        EDGES,
        px.data.digits(),
        clean=60,
    )
    phase = px.federated.fedavg(LOCAL, rounds)
    made = px.Phase(
        LOCAL,
        phase.scheme,
        phase.optimizer,
        rounds,
        clients=px.federated.with_attackers(4, (0,), every=every if attack else 10**6, first=0 if attack else 10**6),
        adversary=dirty,
    )
    exams = (px.backdoors.backdoor(EDGES, px.data.digits()),)
    return px.Run(
        data,
        px.models.mlp((32,)),
        (made,),
        workers=8,
        byzantine=px.adversary.workers((0,)),
        evaluators=exams,
        seed=2,
        **options,
    )


def test_a_poisoned_mixture_holds_the_edge_cases_with_the_wrong_label():
    data, edges = px.backdoors.with_edge_cases(px.data.digits(), EDGES).load(), EDGES.load(px.data.digits().load())
    mixture = px.backdoors.poisoned(LOCAL, EDGES, px.data.digits(), clean=60, amount=5).mixture(data, 3)
    assert len(mixture.train_y) == 65 and (mixture.train_y[:5] == edges.target).all()
    assert mixture.train_x[:5].equal(edges.train_x[:5]) and mixture.test_x is data.test_x
    again = px.backdoors.poisoned(LOCAL, EDGES, px.data.digits(), clean=60, amount=5).mixture(data, 3)
    assert again is mixture
    with pytest.raises(ValueError, match="wants 100000 ordinary examples"):
        px.backdoors.poisoned(LOCAL, EDGES, px.data.digits(), clean=100_000).mixture(data, 3)


def test_a_backdoor_gets_in_where_nobody_defends_and_is_measured():
    plain, attacked = [], []
    px.train(poisoned_run(attack=False, evaluate_every=1), listener=plain.append)
    px.train(poisoned_run(evaluate_every=1), listener=attacked.append)
    found = [next(iter(lines[-1]["examined"].values())) for lines in (plain, attacked)]
    assert found[1]["attack_success"] > found[0]["attack_success"] + 0.3
    assert set(found[0]) == {"attack_success", "edge_accuracy", "source_accuracy", "attack_examples"}
    assert attacked[-1]["clients"][0] == 0 and 0 not in plain[-1]["clients"]


def test_a_seed_fixes_the_attack():
    shas = set()
    for _ in range(2):
        shas.add(fingerprint(px.train(poisoned_run()).model))
        # what another process would draw itself
        _load.cache_clear()
        _mixture.cache_clear()
    assert len(shas) == 1


def test_another_seed_draws_other_ordinary_examples():
    data, foe = (
        px.backdoors.with_edge_cases(px.data.digits(), EDGES).load(),
        px.backdoors.poisoned(LOCAL, EDGES, px.data.digits(), clean=60),
    )
    one, other = (foe.mixture(data, seed).train_x[len(EDGES.load(px.data.digits().load())) :] for seed in (3, 4))
    assert len(one) == len(other) == 60 and not one.equal(other)


def test_replacement_leaves_what_is_installed_and_is_refused_by_a_server():
    layout = px.Layout(("w", "running_mean"), (torch.Size([2]), torch.Size([2])), 1)
    stack = Stack.of(torch.ones(3, 4), layout)
    out, _ = px.attacks.replacement(5.0)(stack, None, px.Round(byzantine=frozenset({1}), world=px.LocalCollective(3)))
    assert out.rows[1].tolist() == [5, 5, 1, 1] and out.rows[0].tolist() == [1, 1, 1, 1]
    from phalanx.core.wire_stage import check_server

    check_server(px.parse("chain(replacement(boost=3.0), gather(dense()), mean())"))
    with pytest.raises(ValueError, match="the examples of all workers"):
        check_server(px.parse("chain(replacement(), gather(dense()), mean())"))


def test_an_adversary_that_cannot_work_is_told_before_the_first_round():
    def with_foe(foe):
        return px.Phase(LOCAL, px.federated.fedavg(LOCAL).scheme, px.optim.sgd(1.0), 2, adversary=foe)

    for foe, sentence in (
        (
            px.backdoors.poisoned(px.federated.local_training(frozen=("nothing",)), EDGES, px.data.digits(), clean=1),
            "names no parameter",
        ),
        (px.backdoors.poisoned(LOCAL, EDGES, px.data.digits(), clean=1, amount=10**6), "wants 1000000 edge cases"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Trainer(run(with_foe(foe), byzantine=px.adversary.workers((0,))))
    matched = px.federated.fedma(LOCAL, layers=2)
    with pytest.raises(ValueError, match="beside clients that send changes"):
        Trainer(run(px.Phase(matched.work, matched.scheme, matched.optimizer, 2, adversary=LOCAL)))
