"""The DDP hook and `exchange` over gloo: several buckets, memories by name, checkpoints, refusals."""

import pytest
import torch

from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes

MEAN = "chain(gather(dense()), mean())"
REDUCE = "reduce(dense())"
BF16 = "reduce(half('bf16'))"
SIGN_VOTE = "chain(gather(sign()), majority())"
MOMENTUM = "chain(momentum(0.9), reverse(2.0), gather(dense()), median())"
FEEDBACK = "chain(gather(error_feedback(sign(scaled=True))), mean())"
FEEDBACK_HALF = "chain(gather(error_feedback(half())), mean())"
KRUM = "chain(clip(1.0), reverse(), gather(dense()), centered_clip())"
STEPS = 6
BOTH = [MEAN, REDUCE, BF16, SIGN_VOTE, MOMENTUM, FEEDBACK, FEEDBACK_HALF]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    task = {"steps": STEPS, "both": BOTH, "whole": [KRUM], "refused": [KRUM, "gather(dense())", "krum(f=1)"]}
    return run_job(2, "job_ddp.py", task, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("scheme", BOTH)
def test_hook_equals_exchange(result, scheme):
    hook, exchange = result["hook"][scheme], result["exchange"][scheme]
    assert hook["buckets"] >= 3
    torch.testing.assert_close(torch.tensor(hook["weights"]), torch.tensor(exchange["weights"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scheme", BOTH)
def test_hook_continues_from_its_state(result, scheme):
    assert result["resumed"][scheme]["weights"] == result["hook"][scheme]["weights"]


@pytest.mark.parametrize("scheme", [MEAN, REDUCE])
def test_dense_hook_equals_plain_ddp(result, scheme):
    ours, plain = result["hook"][scheme]["weights"], result["plain"]["weights"]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(plain), atol=1e-6, rtol=1e-5)


def test_schemes_differ(result):
    """The comparison above would be empty if the scheme did nothing."""
    plain = torch.tensor(result["plain"]["weights"])
    for scheme in (SIGN_VOTE, MOMENTUM, FEEDBACK, BF16):
        assert not torch.equal(torch.tensor(result["hook"][scheme]["weights"]), plain)


def test_bytes_are_those_of_the_payloads(result):
    d = 4 * (600 * 600 + 600) + 600 * 10 + 10
    ranks = 2
    assert result["exchange"][MEAN]["bytes"] == STEPS * ranks * (4 * d + 8)
    assert result["exchange"][BF16]["bytes"] == STEPS * ranks * (2 * d + 8)
    assert result["exchange"][SIGN_VOTE]["bytes"] == STEPS * ranks * (-(-d // 8) + 8)


def test_whole_row_schemes_are_refused_with_the_way_out(result):
    assert "phalanx.exchange" in result["refused"][KRUM]
    assert "one update" in result["refused"]["gather(dense())"]
    assert "krum" in result["refused"]["krum(f=1)"] or "wire" in result["refused"]["krum(f=1)"]
    assert result["exchange"][KRUM]["lost"] == [""] * STEPS
