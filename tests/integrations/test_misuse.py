"""Misuse of a loop of one's own over gloo: one sentence on every rank, or the right result."""

import pytest
import torch

from tests.cases import each
from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes

CASES = ["wrapped", "split", "unlike", "copied", "scaled", "overflown", "compiled", "changed"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_job(3, "job_misuse.py", {"cases": CASES}, tmp_path_factory.mktemp("misuse"), limit_s=120)


@each("case", ["exchange", "DiLoCo", "compiled", "part"])
def test_a_model_in_ddp_is_refused_where_gradients_would_be_averaged_before(results, case):
    for rank in results:
        assert rank["wrapped"][case].startswith("ValueError: DDP averages the gradients before ")
        assert "phalanx.ddp.register" in rank["wrapped"][case]


def test_a_model_in_ddp_on_one_rank_is_refused_on_all(results):
    said = [rank["wrapped"]["one rank"] for rank in results]
    assert "DDP averages" in said[1] and said[0] == said[2]
    assert said[0].startswith("ValueError: exchange: rank 1 refused its arguments")
    assert "wrap it first" in results[0]["wrapped"]["plain"]


@each("case", ["exchange", "DiLoCo", "check", "register"])
def test_a_model_split_by_fully_shard_gets_one_sentence(results, case):
    words = "wrapped in DistributedDataParallel" if case == "register" else "0.weight is split over the ranks"
    assert all(words in rank["split"][case] for rank in results)


@each(
    ("case", "words"),
    [
        ("scheme", "rank 1 got another value for scheme than ranks 0, 2"),
        ("hook scheme", "rank 1 got another value for scheme than ranks 0, 2"),
        ("seed", "rank 1 got another value for seed than ranks 0, 2"),
        ("warmup", "ranks 1, 2 got another value for settings than rank 0"),
        ("parameters", "rank 1 got another value for parameters than ranks 0, 2"),
        ("every", "rank 1 got another value for settings than ranks 0, 2"),
        ("optimizer", "rank 1 got another value for settings than ranks 0, 2"),
        ("check", "rank 1 got another value for settings than ranks 0, 2"),
        ("kind", "rank 1 got another value for what is made than ranks 0, 2"),
        ("generator", "a seed is a whole number"),
        ("weights", "ranks 1, 2 began with other weights than rank 0; load the same on every rank"),
        ("frozen", "rank 1 has parameters or buffers of other names, shapes or dtypes than ranks 0, 2"),
        ("buffer", "rank 1 has parameters or buffers of other names, shapes or dtypes than ranks 0, 2"),
        ("dtype", "rank 1 has parameters or buffers of other names, shapes or dtypes than ranks 0, 2"),
    ],
)
def test_ranks_that_differ_raise_on_every_rank_and_name_who_differs(results, case, words):
    for rank in results:
        assert rank["unlike"][case].startswith("ValueError: ") and words in rank["unlike"][case]


@each("case", ["one refuses", "one hook refuses"])
def test_no_rank_waits_for_one_that_refuses(results, case):
    said = [rank["unlike"][case] for rank in results]
    assert all(each.startswith("ValueError: ") for each in said)
    assert "rank 1 refused its arguments" in said[0] and "rank 1 refused its arguments" in said[2]
    assert "rank 1" not in said[1]


def test_different_initial_weights_become_those_of_rank_0(results):
    for rank in results:
        made = rank["copied"]
        assert made["exchange"] == made["DiLoCo"] == made["hook"] == results[0]["copied"]["first"]
        assert made["count"] == 0


@each("case", ["exchange True", "exchange False", "hook True", "hook False", "DiLoCo"])
def test_a_changed_set_of_parameters_is_said(results, case):
    words = "trained since: 2.weight, 2.bias" if case.endswith("False") else "no longer trained: "
    for rank in results:
        assert rank["changed"][case].startswith("ValueError: the trained parameters have changed since ")
        assert words in rank["changed"][case]


@each("case", ["exchange on one", "hook on one"])
def test_where_one_rank_changes_its_parameters_the_others_do_not_wait(results, case):
    said = [rank["changed"][case] for rank in results]
    assert said[1].startswith("ValueError: the trained parameters have changed")
    assert all("broke off because another rank" in each for each in (said[0], said[2]))


@each(
    "scheme",
    [
        "chain(gather(dense()), mean())",
        "reduce(dense())",
        "exchange: chain(gather(dense()), mean())",
        "exchange: reduce(dense())",
    ],
)
def test_fp16_with_a_scaler_trains_as_without_the_hook(results, scheme):
    for rank in results:
        plain, ours = rank["scaled"]["plain"], rank["scaled"][scheme]
        # the case is none unless some steps overflow and most do not
        assert 2.0**24 > plain["scales"][-1] > 1.0 and len(set(plain["scales"])) > 4
        assert ours["scales"] == plain["scales"]
        torch.testing.assert_close(torch.tensor(ours["weights"]), torch.tensor(plain["weights"]), atol=2e-3, rtol=1e-2)


@each(
    "scheme",
    ["chain(gather(error_feedback(top_k(0.2))), mean())", "power_sgd(rank=1)", "chain(gather(random_k(0.5)), mean())"],
)
def test_a_codec_hides_no_overflow_from_the_scaler(results, scheme):
    for rank in results:
        plain, ours = rank["scaled"]["plain"], rank["scaled"][scheme]
        assert ours["scales"][:8] == plain["scales"][:8]
        assert ours["lost"] > 0 and torch.tensor(ours["weights"]).isfinite().all()
        assert ours["weights"] == results[0]["scaled"][scheme]["weights"]


@each("scheme", ["mean", "reduce"])
def test_a_bucket_that_is_not_finite_stays_so_without_robustness(results, scheme):
    for rank in results:
        made = rank["overflown"][scheme]
        assert not made["finite"] and "non-finite" in made["said"] and made["lost"] > 0


def test_a_robust_scheme_says_once_that_it_loses_rounds(results):
    for number, rank in enumerate(results):
        made = rank["overflown"]["median"]
        assert made["finite"] and made["lost"] >= 2
        assert len(made["log"]) == (number == 0)
    assert "round 0 is lost, and later ones are only counted" in results[0]["overflown"]["median"]["log"][0]


@each("how", ["outside", "inside"])
def test_a_compiled_model_in_ddp_trains_as_it_does_plain(results, how):
    for rank in results:
        assert rank["compiled"][how] == rank["compiled"]["plain"]
        assert "0.weight" in rank["compiled"][how]["names"]


def test_a_compiled_model_has_the_names_of_the_plain_one_in_an_exchange(results):
    for rank in results:
        assert rank["compiled"]["exchange"] == rank["compiled"]["exchange, plain"]
