# SPDX-License-Identifier: Apache-2.0
"""Attackers beside honest local training: alone, together, by turns, drawn, and what stands them."""

from dataclasses import replace

import pytest
import torch

import phalanx as px
from phalanx.backdoors.edges import _load
from phalanx.backdoors.poisoned import _mixture
from phalanx.distributed.subset import SubsetCollective
from phalanx.tools.redteam.setting import ATTACKS, attacked, standard
from phalanx.training.model_state import fingerprint
from phalanx.training.trainer import Trainer
from tests.backdoors.digits_setting import setting

LOCAL = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), batch=20)
EDGES = px.backdoors.rare_styles()
FOE = px.backdoors.poisoned(px.federated.local_training(px.optim.sgd(0.1), batch=30), EDGES, px.data.digits(), clean=20)
GANG = (0, 1, 2)
TRUSTED = "gather(dense(), gate=gate(weights='trusted'))"


def run(phase, workers=12, **options):
    options = {
        "partition": px.data.dirichlet(1.0, least=3),
        "byzantine": px.adversary.workers(GANG),
        "seed": 1,
    } | options
    return px.Run(
        px.backdoors.with_edge_cases(px.data.digits(), EDGES), px.models.mlp((8,)), (phase,), workers=workers, **options
    )


def phase(scheme, clients=None, rounds=2, **options):
    clients = px.federated.with_attackers(7, GANG, every=2) if clients is None else clients
    return px.Phase(LOCAL, px.parse(scheme), px.optim.sgd(1.0), rounds, clients=clients, **options)


def logged(made):
    lines = []
    return px.train(made, listener=lines.append), lines


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("attack", ["reverse(c=3.0)", "alie()", "ipm(epsilon=2.0)", "mimic()", "gaussian()"])
def test_untargeted_attacks_act_together_beside_local_training(attack):
    made = run(phase(f"chain({attack}, {TRUSTED}, mean())"), observers=(px.training.norms(arrived=True),))
    trainer, lines = logged(made)
    calm = px.train(replace(made, phases=(phase(f"chain({TRUSTED}, mean())"),), observers=()))
    assert [set(GANG) <= set(line["clients"]) for line in lines] == [True, False]
    assert not set(GANG) & set(lines[1]["clients"])
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert fingerprint(trainer.model) != fingerprint(calm.model)
    # the update is the mean of what the attack makes of the workers' own rows
    start = Trainer(made)
    stack, _ = start.compute_rows(0, lines[0]["clients"])
    world = SubsetCollective(px.LocalCollective(12), tuple(lines[0]["clients"]))
    forged, _ = px.parse(attack)(stack, None, px.Round(0, 1, frozenset(GANG), world).child(0))
    norms = dict(zip(map(str, forged.ids), forged.rows.double().norm(dim=1).tolist(), strict=True))
    assert lines[0]["observed"][repr(made.observers[0])] == pytest.approx(norms)
    honest = [i for i, worker in enumerate(stack.ids) if worker not in GANG]
    assert forged.rows[honest].equal(stack.rows[honest])
    share = (stack.weights / stack.weights.sum()).float()
    once = px.train(replace(made, phases=(replace(made.phases[0], rounds=1),), observers=()))
    torch.testing.assert_close(flat(once.model), flat(start.model) - share @ forged.rows, rtol=1e-4, atol=1e-5)


def test_colluders_of_one_mind_send_one_row():
    for attack in ("alie()", "ipm(epsilon=0.5)", "mimic()"):
        trainer = Trainer(run(phase(f"chain({attack}, {TRUSTED}, mean())")))
        clients = trainer.config.phases[0].clients.sample(0, 12, 1)
        world = SubsetCollective(px.LocalCollective(12), clients)
        stack, _ = px.parse(attack)(trainer.compute_rows(0, clients)[0], None, px.Round(0, 1, frozenset(GANG), world))
        rows = stack.rows[[stack.ids.index(worker) for worker in GANG]]
        assert rows.equal(rows[:1].expand(3, -1))


def test_a_fixed_pool_takes_part_when_it_is_drawn():
    made = run(
        phase(f"chain(reverse(), {TRUSTED}, median())", px.federated.uniform(4), rounds=8),
        byzantine=px.adversary.random(4),
    )
    _, lines = logged(made)
    pools = {tuple(line["byzantine"]) for line in lines}
    assert len(pools) == 1 and len(next(iter(pools))) == 4
    met = [len(set(line["byzantine"]) & set(line["clients"])) for line in lines]
    assert len(set(met)) > 1 and all(len(line["clients"]) == 4 for line in lines)
    _, again = logged(made)
    assert [line["clients"] for line in again] == [line["clients"] for line in lines]
    with_foe = run(
        phase(f"chain({TRUSTED}, mean())", px.federated.uniform(4), adversary=FOE), byzantine=px.adversary.random(4)
    )
    assert all(p.isfinite().all() for p in px.train(with_foe).model.parameters())


def test_attackers_who_meet_share_the_boost_and_install_the_mean_of_their_models():
    still = px.federated.local_training(epochs=0)
    made = px.Phase(still, px.parse(f"chain(replacement(), {TRUSTED}, mean())"), px.optim.sgd(1.0), 1, adversary=LOCAL)
    made = run(replace(made, clients=px.federated.with_attackers(7, GANG, every=1)))
    trainer = Trainer(made)
    start = flat(trainer.model)
    stack, _ = trainer.compute_rows(0, trainer.config.phases[0].clients.sample(0, 12, 1))
    mine = [stack.ids.index(worker) for worker in GANG]
    share = stack.weights[mine] / stack.weights[mine].sum()
    assert not stack.rows[[i for i in range(7) if i not in mine]].any() and len(set(share.tolist())) > 1
    trainer.run()
    torch.testing.assert_close(flat(trainer.model), start - share.float() @ stack.rows[mine], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", ["krum(f=1)", "median()", "trimmed_mean(f=1)", "geometric_median()", "mean()"])
def test_rules_stand_behind_buckets_of_clients(rule):
    made = run(
        phase(
            f"chain(reverse(c=50.0), gather(dense()), bucketing(size=2), {rule})", px.federated.with_attackers(11, (0,))
        )
    )
    made = replace(made, byzantine=px.adversary.workers((0,)))
    trainer, lines = logged(made)
    assert not any(line["lost"] for line in lines) and 0 in lines[0]["clients"]
    calm = px.train(replace(made, byzantine=px.adversary.none()))
    moved = float((flat(trainer.model) - flat(calm.model)).norm())
    # one reversed row is in one bucket only
    assert moved < 1 if rule != "mean()" else moved > 5
    assert fingerprint(px.train(made).model) == fingerprint(trainer.model)


def test_buckets_that_leave_a_rule_too_few_rows_are_refused():
    with pytest.raises(ValueError, match=r"krum needs n >= 2f \+ 3 rows, got n=4, f=1"):
        Trainer(run(phase("chain(gather(dense()), bucketing(size=2), krum(f=1))")))


@pytest.mark.parametrize("scheme", ["chain(vote(dense(), r=3), mean())", "detox(3, mean(), median(), groups=2)"])
def test_votes_are_refused_where_clients_have_data_of_their_own(scheme):
    for clients in (px.federated.uniform(6), px.federated.with_attackers(6, (0,))):
        with pytest.raises(ValueError, match="several workers compute the same, which goes with neither"):
            Trainer(run(phase(scheme, clients)))
    with pytest.raises(ValueError, match="several workers compute the same, and poisoned"):
        Trainer(run(phase(scheme, px.training.all_clients(), adversary=FOE)))


TINY = replace(
    setting(),
    model=px.models.mlp((8,)),
    partition=px.data.dirichlet(1.0, least=3),
    workers=12,
    clients=8,
    rounds=2,
    every=1,
)


@pytest.mark.parametrize("attack", ["PGD + replacement", "adaptive"])
@pytest.mark.parametrize("name", standard(TINY.norm, TINY.workers))
def test_a_seed_fixes_the_whole_grid(name, attack):
    made = attacked(TINY, standard(TINY.norm, TINY.workers)[name], ATTACKS[attack])
    shas = set()
    for _ in range(2):
        shas.add(fingerprint(px.train(made).model))
        # what another process would draw itself
        _load.cache_clear()
        _mixture.cache_clear()
    assert len(shas) == 1
    assert fingerprint(px.train(replace(made, seed=2)).model) not in shas
