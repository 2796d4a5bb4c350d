# SPDX-License-Identifier: Apache-2.0
"""Observers see the rows before the scheme, and change nothing."""

import os
import signal
from dataclasses import replace

import pytest
import torch

import phalanx as px
from phalanx.core.stack import Stack
from phalanx.training.model_state import fingerprint
from phalanx.training.observers.observer import LayerObserver
from phalanx.training.observers.variance import RESHAPES, budget_of, expected_bytes, second_moment
from phalanx.training.trainer import Trainer
from tests.cases import each
from tests.distributed.launch import run_job
from tests.examples import examples, honest, round_of

OBSERVERS = examples("observer")
RUN = px.parse(
    "run(digits(), mlp(hidden=(16,)), phases=(phase(gradient(batch=60), chain(momentum(0.9), noise(0.01), "
    "gather(qsgd(bits=2)), mean()), rounds=5),), workers=4, evaluate_every=5, checkpoint_every=2, seed=1)"
)
WATCHED = replace(
    RUN,
    observers=(
        px.training.spectrum(every=2),
        px.training.spectrum(layer="3.weight", worker=3, every=3),
        px.training.variance(draws=3, every=4),
    ),
)


def logged(run, **kwargs):
    lines = []
    return px.train(run, listener=lines.append, **kwargs), lines


def stack_of(x: torch.Tensor) -> Stack:
    layout = px.Layout(("bias", "x"), (torch.Size([3]), x.shape))
    return Stack.of(layout.join({"bias": torch.ones(1, 3), "x": x.unsqueeze(0)}), layout)


def test_observing_changes_no_weights_and_logs_when_it_is_due():
    alone, without = logged(RUN)
    seen, lines = logged(WATCHED)
    assert fingerprint(alone.model) == fingerprint(seen.model)
    first, second, third = map(repr, WATCHED.observers)
    due = [{first, second, third}, set(), {first}, {second}, {first, third}]
    assert [set(line.get("observed", {})) for line in lines] == due
    assert not any("observed" in line for line in without)
    timeless = [{k: v for k, v in line.items() if k != "observed" and not k.endswith("_s")} for line in lines]
    assert timeless == [{k: v for k, v in line.items() if not k.endswith("_s")} for line in without]


def test_the_numbers_are_those_of_the_gradient_before_the_scheme():
    _, lines = logged(WATCHED)
    trainer = Trainer(RUN, px.LocalCollective(4))
    stack, _ = trainer.compute_rows(0)
    for observer, worker, names in (
        (WATCHED.observers[0], 0, ["1.weight", "3.weight"]),
        (WATCHED.observers[1], 3, ["3.weight"]),
    ):
        found = lines[0]["observed"][repr(observer)]
        assert list(found) == names
        for name in names:
            gradient = trainer.layout.split(stack.rows)[name][worker]
            expected = torch.linalg.svdvals(gradient.double())
            torch.testing.assert_close(torch.tensor(found[name], dtype=torch.float64), expected)


@pytest.mark.parametrize("observer", OBSERVERS, ids=repr)
def test_an_observer_leaves_the_stack_alone_and_depends_on_it_only(observer):
    stack = honest()
    kept = stack.rows.clone()
    first = observer.look(stack, round_of())
    torch.manual_seed(99)
    assert observer.look(stack, round_of()) == first
    assert stack.rows.equal(kept)


@pytest.mark.parametrize("observer", [o for o in OBSERVERS if isinstance(o, LayerObserver)], ids=repr)
def test_what_is_not_finite_is_none(observer):
    x = torch.ones(4, 6)
    x[1, 2] = torch.nan
    assert observer.look(stack_of(x), round_of(1)) == {"x": None}


@pytest.mark.parametrize("reshape", RESHAPES)
def test_a_spectrum_is_that_of_the_reshaped_tensor(reshape):
    x = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    found = px.training.spectrum(reshape=reshape).look(stack_of(x), round_of(1))["x"]
    rows, columns = {"paper": (8, 18), "matrix": (5, 27), "square": (12, 12)}[reshape]
    matrix = torch.cat([x.flatten(), torch.zeros(rows * columns - 135)]).reshape(rows, columns)
    torch.testing.assert_close(torch.tensor(found), torch.linalg.svdvals(matrix), rtol=1e-4, atol=1e-5)


def test_variance_of_entries_and_singular_values():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(24, 2, generator=generator), torch.randn(2, 30, generator=generator)
    x = left @ right
    found = px.training.variance(share=0.1, draws=200).look(stack_of(x), round_of(1))["x"]
    frobenius, entries = float(x.norm()), found["entries"]
    assert found["frobenius"] == pytest.approx(frobenius, rel=1e-5) and found["shape"] == [24, 30]
    assert entries["norm"] == pytest.approx(float(x.abs().sum()), rel=1e-5)
    # table 3.1, where no probability is one
    assert float(x.abs().max()) * 72 < entries["norm"]
    assert entries["floats"] == pytest.approx(entries["norm"] ** 2 / 72 / frobenius**2, rel=1e-4)
    # a kept entry costs less than a float, so equal bytes allow more of them
    assert entries["budget"] > 72 and entries["bytes"] < entries["floats"]
    for reshape, part in found["spectral"].items():
        n, m = px.codecs.spectral(reshape).sides(x.shape)
        nuclear = float(torch.linalg.svdvals(px.codecs.spectral(reshape).matrix(x)).sum())
        assert (part["rows"], part["columns"]) == (n, m)
        assert part["norm"] == pytest.approx(nuclear, rel=1e-4)
        assert part["holds"] == ((n + m) * nuclear**2 <= entries["norm"] ** 2)
        assert part["budget"] == pytest.approx(72 / (n + m))
    # rank two: theorem 3.8 holds for the matrix itself, and not once its entries are scattered over another
    assert found["spectral"]["matrix"]["holds"] and not found["spectral"]["square"]["holds"]
    for part in (entries, *found["spectral"].values()):
        assert abs(part["measured"] - part["bytes"]) < 5 * part["error"]


def test_a_budget_spends_the_bytes_it_is_given():
    lam = torch.randn(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for share in (0.01, 0.1, 0.4):
        budget = budget_of(px.codecs.entries(), lam, torch.Size([5000]), share * 20000)
        assert expected_bytes(px.codecs.entries(), lam, torch.Size([5000]), budget) == pytest.approx(
            share * 20000, abs=8
        )
        draws = [
            px.codecs.atomo(px.codecs.entries(), budget=budget).encode(
                lam.float(), px.Layout.flat(5000), {}, lambda i=i: torch.Generator().manual_seed(i)
            )[0]
            for i in range(20)
        ]
        sent = sum(t.nbytes for payload in draws for t in payload.values()) / 20
        assert sent == pytest.approx(share * 20000, rel=0.03, abs=16)


def test_second_moment_is_the_sum_over_the_probabilities():
    lam = torch.tensor([10.0, 1, 1, -1, 1, 0], dtype=torch.float64)
    assert second_moment(lam, 3) == pytest.approx(100 + 4 / 0.5)
    assert second_moment(lam, 5) == pytest.approx(104)


@each(
    ("text", "words"),
    [
        ("spectrum(layer='3.wight')", "did you mean 3.weight"),
        ("spectrum(worker=4)", "choose from 0 to 3"),
        ("spectrum(every=0)", "every >= 1"),
        ("variance(share=1.0)", "share in \\(0, 1\\)"),
        ("variance(draws=1)", "draws >= 2"),
        ("variance(layer='nothing')", "choose from 1.weight, 3.weight"),
    ],
)
def test_what_cannot_be_observed_is_an_error_before_the_run(text, words):
    with pytest.raises(ValueError, match=words):
        Trainer(replace(RUN, observers=(px.parse(text),)), px.LocalCollective(4))


def test_two_equal_observers_are_one_too_many():
    with pytest.raises(ValueError, match="two observers are equal"):
        replace(RUN, observers=(px.training.spectrum(), px.training.spectrum()))


def test_a_resumed_run_has_seen_the_same(tmp_path):
    whole = px.training.RunFolder(tmp_path / "whole")
    px.train(WATCHED, folder=whole)

    def stop(line):
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(px.Interrupted):
        px.train(WATCHED, folder=px.training.RunFolder(tmp_path / "cut"), listener=stop)
    px.train(WATCHED, folder=px.training.RunFolder(tmp_path / "cut"))
    seen = [line.get("observed") for line in px.training.RunFolder(tmp_path / "cut").metrics()]
    assert seen == [line.get("observed") for line in whole.metrics()]


@pytest.mark.processes
def test_several_processes_see_what_the_simulation_sees(tmp_path):
    there = run_job(2, "job_train.py", {"runs": {"watched": repr(WATCHED)}}, tmp_path)["watched"]
    trainer, lines = logged(WATCHED)
    assert there["weights_sha256"] == fingerprint(trainer.model)
    assert [line.get("observed") for line in there["metrics"]] == [line.get("observed") for line in lines]
