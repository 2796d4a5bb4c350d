"""`phalanx.ddp.register` over gloo: many buckets and steps, DDP's options, failures, checkpoints of fresh processes."""

import pytest
import torch

from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes

DENSE = "reduce(dense())"
TOP_K = "chain(gather(error_feedback(top_k(0.1))), mean())"
POWER_SGD = "power_sgd(rank=2)"
QSGD = "chain(gather(qsgd()), mean())"
SCHEMES = [
    DENSE,
    TOP_K,
    POWER_SGD,
    QSGD,
    "chain(gather(atomo(spectral(), budget=3)), mean())",
    "chain(gather(sign()), majority())",
    "chain(noise(0.01), gather(terngrad()), mean())",
]
OPTIONS = {
    "views": {"gradient_as_bucket_view": True},
    "static": {"static_graph": True},
    "both": {"static_graph": True, "gradient_as_bucket_view": True},
}
NARROW = ["reduce(half('bf16'))", TOP_K]
SAVED = [TOP_K, POWER_SGD, QSGD]
STEPS = 20
CASES = ["schemes", "options", "unused", "frozen", "accumulated", "warmup", "narrow", "several", "overlapped", "saved"]
LAST = ["alone", "refused", "failing"]  # leave groups behind that nobody answers in


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


@pytest.fixture(scope="module")
def results(folder):
    task = {"dense": DENSE, "memory": TOP_K, "narrow": NARROW, "schemes": SCHEMES, "options": OPTIONS}
    checkpoint = {"folder": str(folder), "saved": SAVED, "save": 7}
    return run_job(2, "job_ddp_cases.py", {**task, **checkpoint, "steps": STEPS, "cases": CASES + LAST}, folder)


@pytest.fixture(scope="module")
def resumed(folder, results):
    task = {"folder": str(folder), "saved": SAVED, "save": 7, "steps": STEPS, "cases": ["resumed"]}
    return run_job(2, "job_ddp_cases.py", task, folder)


@pytest.fixture(scope="module")
def result(results):
    return results[0]


def close(ours, other, atol=1e-5):
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(other), atol=atol, rtol=1e-4)


def test_ranks_end_with_the_same_weights(results):
    def walk(a, b):
        for key, value in a.items():
            if key in ("hook", "inside", "half", "all") and "weights" in value:
                assert value["weights"] == b[key]["weights"]
            elif isinstance(value, dict):
                walk(value, b[key])

    walk(results[0], results[1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hook_equals_exchange_in_every_cut(result, scheme):
    """Many buckets, rebuilt after the first step, draw and remember as the whole row does."""
    made = result["schemes"][scheme]
    assert made["hook"]["rounds"] >= 3 * STEPS and made["hook"]["lost"] == 0
    assert made["hook"]["weights"] == made["inside"]["weights"]
    close(made["hook"]["weights"], made["exchange"]["weights"], atol=1e-4)


def test_schemes_differ(result):
    """The comparison above would be empty if the scheme did nothing."""
    ends = [tuple(result["schemes"][scheme]["hook"]["weights"]) for scheme in SCHEMES]
    assert len(set(ends)) == len(SCHEMES)


@pytest.mark.parametrize("scheme", [DENSE, TOP_K])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_ddp_change_nothing(result, option, scheme):
    made = result["options"][f"{option}: {scheme}"]
    close(made["hook"]["weights"], made["other"]["weights"])


@pytest.mark.parametrize("scheme", [DENSE, TOP_K])
@pytest.mark.parametrize("by", ["by all", "by one"])
def test_unused_parameters(result, by, scheme):
    made = result["unused"][f"{by}: {scheme}"]
    close(made["hook"]["weights"], made["other"]["weights"])
    assert made["untouched"] == (by == "by all")


def test_frozen_parameters(result):
    close(result["frozen"]["hook"]["weights"], result["frozen"]["other"]["weights"])


@pytest.mark.parametrize("scheme", [DENSE, TOP_K])
def test_accumulated_gradients_are_exchanged_once(result, scheme):
    made = result["accumulated"][scheme]
    close(made["hook"]["weights"], made["other"]["weights"])
    assert made["hook"]["rounds"] == result["schemes"][scheme]["hook"]["rounds"]
    if "plain" in made:
        close(made["hook"]["weights"], made["plain"]["weights"])


def test_warmup_is_plain_ddp_and_memories_begin_behind_it(result):
    made = result["warmup"]
    close(made["all"]["weights"], made["plain"]["weights"])
    close(made["half"]["weights"], made["exchange"]["weights"])
    assert made["half"]["weights"] != made["all"]["weights"]


@pytest.mark.parametrize("scheme", NARROW)
@pytest.mark.parametrize("dtype", ["torch.float16", "torch.bfloat16"])
def test_parameters_of_16_bits(result, dtype, scheme):
    made = result["narrow"][f"{dtype}: {scheme}"]
    assert torch.tensor(made["hook"]["weights"]).isfinite().all() and made["hook"]["lost"] == 0
    assert made["hook"]["weights"] == made["exchange"]["weights"]


def test_several_models_in_one_backward(result):
    made = result["several"]
    assert made["hook"] == made["alone"]
    assert made["threads_left"] == 0


def test_groups_that_leave_ranks_out(results):
    for rank in results:
        assert len(rank["alone"]["hook"]) >= 2
        for weights in rank["alone"]["hook"]:
            close(weights, rank["alone"]["other"])


def test_exchange_runs_while_backward_goes_on(results):
    assert all(rank["overlapped"]["overlapped"] for rank in results)


@pytest.mark.parametrize("overlap", ["True", "False"])
def test_a_failed_exchange_raises_on_every_rank(results, overlap):
    """The rank that waits gets an error long before its patience of 20 seconds ends: the group was closed."""
    assert "the disk is full" in results[1]["failing"][overlap]
    assert results[0]["failing"][overlap]
    assert "imed out" not in results[0]["failing"][overlap]


def test_refusals_name_the_way_out(result):
    said = result["refused"]
    assert "once" in said["twice"]
    assert "warmup=-1" in said["negative"]
    assert "sparse=False" in said["sparse"]
    assert "closed" in said["closed"]
    assert "seed 0" in said["seed"] and "worker 1" in said["worker"]


@pytest.mark.parametrize("scheme", SAVED)
def test_fresh_processes_continue_to_the_same_bits(results, resumed, scheme):
    for before, after in zip(results, resumed, strict=True):
        assert after["resumed"]["with"][scheme] == before["saved"][scheme]
        assert after["resumed"]["without"][scheme] != before["saved"][scheme]
