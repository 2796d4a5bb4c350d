# SPDX-License-Identifier: Apache-2.0
"""Runs that stop when their score does not improve, and clients that train unlike each other."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import phalanx as px
from phalanx.training.model_state import fingerprint
from phalanx.training.run_folder import RunFolder
from phalanx.training.trainer import Trainer
from tests.data import own_sets as own

SCORES = [0.5, 0.7, 0.6, 0.65, 0.71, 0.1, 0.1, 0.1, 0.1, 0.1]
LOCAL = px.federated.local_training(px.optim.sgd(0.05), batch=8)


def scripted(model, loader, context):
    return {"auc": SCORES[context.round_index]}


def undefined(model, loader, context):
    return {"auc": float("nan") if context.round_index > 1 else 0.5}


def run_of(higher=True, evaluate=scripted, rounds=10, **fields):
    metric = px.training.metric("auc", None, higher_is_better=higher)
    return px.Run(
        px.data.datasets(own.table),
        px.models.custom(own.linear),
        (px.Phase(LOCAL, px.parse("chain(gather(dense()), mean())"), px.optim.sgd(1.0), rounds),),
        workers=4,
        task=px.training.task(F.mse_loss, metrics=(metric,), evaluate=evaluate),
        evaluate_every=1,
        **fields,
    )


def stopping(**fields):
    return px.training.early_stopping(**fields)


@pytest.mark.parametrize(
    ("higher", "fields", "rounds", "best"),
    [
        (True, {"patience": 2}, 4, 2),  # 0.7, then 0.6 and 0.65
        (True, {"patience": 3}, 8, 5),
        (True, {"patience": 3, "least": 0.05}, 5, 2),  # 0.71 is not enough better than 0.7
        (False, {"patience": 3}, 4, 1),  # 0.5 is the lowest until the sixth
        (False, {"patience": 5}, 10, 6),
        (True, {"patience": 20}, 10, 5),
    ],
)
def test_a_run_stops_after_so_many_tests_and_ends_with_its_best_model(higher, fields, rounds, best):
    run = run_of(higher)
    found = px.train(replace(run, stopping=stopping(**fields)))
    assert found.rounds_done == found.summary()["rounds"] == rounds
    assert found.summary()["best"]["rounds"] == best
    assert found.summary()["best"]["value"] == SCORES[best - 1]
    shorter = replace(run, phases=(replace(run.phases[0], rounds=best),))
    assert fingerprint(found.model) == fingerprint(px.train(shorter).model)
    last = px.train(replace(run, stopping=stopping(**fields, restore=False)))
    shorter = replace(run, phases=(replace(run.phases[0], rounds=rounds),))
    assert fingerprint(last.model) == fingerprint(px.train(shorter).model)


def test_a_score_that_is_not_defined_improves_nothing():
    found = px.train(run_of(evaluate=undefined, stopping=stopping(patience=3))).summary()
    assert (found["rounds"], found["best"]["rounds"]) == (4, 1)


def test_a_stopped_run_resumes_with_its_best_model(tmp_path):
    run = run_of(stopping=stopping(patience=3), checkpoint_every=1)
    whole = px.train(run)
    trainer = Trainer(run)
    folder = RunFolder(tmp_path)
    folder.begin(trainer.text)
    for _ in range(6):
        folder.log(trainer.train_round())
    trainer.save_checkpoint(folder)
    folder.close()
    resumed = px.train(run, folder=RunFolder(tmp_path))
    assert fingerprint(resumed.model) == fingerprint(whole.model)
    assert RunFolder(tmp_path).summary["best"] == whole.summary()["best"]
    again = px.train(run, folder=RunFolder(tmp_path))
    assert again.rounds_done == 8 and fingerprint(again.model) == fingerprint(whole.model)


def test_a_run_without_tests_cannot_stop_early():
    run = replace(run_of(stopping=stopping()), data=px.data.datasets(untested))
    with pytest.raises(ValueError, match="needs test examples, and untested has none"):
        px.train(run)


def untested():
    return own.table()[0]


def rows_of(local):
    run = run_of(rounds=1)
    trainer = Trainer(replace(run, phases=(replace(run.phases[0], work=local),)))
    return trainer.compute_rows(0)[0]


def test_rates_scale_a_clients_steps():
    one_step = replace(LOCAL, batch=1000)
    plain, scaled = rows_of(one_step), rows_of(replace(one_step, rates=(1.0, 0.5, 2.0, 1.0)))
    factors = torch.tensor([1.0, 0.5, 2.0, 1.0]).unsqueeze(1)
    torch.testing.assert_close(scaled.rows, factors * plain.rows)
    assert scaled.weights.equal(plain.weights)


def test_a_client_that_does_a_part_counts_for_the_steps_it_does():
    plain, partly = rows_of(LOCAL), rows_of(replace(LOCAL, shares=(1.0, 0.5, 0.01, 1.0)))
    # 15 examples in batches of 8: two steps, of which a half and a hundredth are one
    assert plain.weights.tolist() == [15.0] * 4 and partly.weights.tolist() == [15.0, 7.5, 7.5, 15.0]
    assert partly.rows[0].equal(plain.rows[0]) and not partly.rows[1].equal(plain.rows[1])
    half = rows_of(replace(LOCAL, steps=1))
    assert partly.rows[1].equal(half.rows[1])


def partial(model, loader, context):
    own.train(model, loader, context)
    return {"loss": 1.0, "examples": 3 if context.client == 2 else 15}


def none(model, loader, context):
    return {"examples": 0}


def test_an_own_loop_says_how_much_of_its_work_it_did():
    assert rows_of(px.federated.custom_training(partial)).weights.tolist() == [15.0, 15.0, 3.0, 15.0]
    with pytest.raises(ValueError, match=r"returned 0\.0 examples"):
        rows_of(px.federated.custom_training(none))


def test_unequal_numbers_of_rates_and_workers_are_refused():
    for name, values in (("rates", (1.0, 2.0)), ("shares", (0.5,) * 5)):
        run = run_of(rounds=1)
        local = replace(LOCAL, **{name: values})
        with pytest.raises(ValueError, match=f"{len(values)} {name}, and there are 4 workers"):
            px.train(replace(run, phases=(replace(run.phases[0], work=local),)))
    with pytest.raises(ValueError, match="shares in"):
        replace(LOCAL, shares=(0.0,))
    with pytest.raises(ValueError, match="rates > 0"):
        replace(LOCAL, rates=(float("inf"),))
