"""The same run in the simulation and over gloo processes ends with the same weights."""

import json

import pytest
import torch

import phalanx as px
from phalanx.training.trainer import Trainer
from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes

RUN = (
    "run(digits(), mlp(hidden=(16,)), phases=(phase(gradient(batch=60), {scheme}, {optimizer}, rounds=12),), "
    "workers={n}, byzantine={byzantine}, checkpoint_every=5, seed=3)"
)


def expression(scheme: str, n: int = 7, byzantine: str = "random(1, every=2)", optimizer: str = "sgd(lr=0.1)") -> str:
    return RUN.format(scheme=scheme, n=n, byzantine=byzantine, optimizer=optimizer)


EXACT = {
    "median": expression("chain(reverse(), gather(dense()), median())"),
    "krum": expression("chain(alie(), gather(dense()), krum(f=1))"),
    "bulyan": expression("chain(ipm(), gather(dense()), bulyan(f=1))"),
    "geometric median": expression("chain(mimic(), gather(half()), geometric_median())"),
    "sign vote": expression("chain(constant(), gather(sign()), majority())", optimizer="sgd(lr=0.01, momentum=0.5)"),
    "error feedback": expression("chain(gather(error_feedback(sign(scaled=True))), mean())", byzantine="none()"),
    "momentum": expression(
        "chain(momentum(0.9), clip(1.0), noise(0.001), gaussian(), gather(dense()), nnm(f=1), median())"
    ),
    "server memory": expression("chain(gather(dense()), momentum(0.5), centered_clip())", optimizer="adam(lr=0.01)"),
    "group vote": expression("chain(nan(), gather(dense()), group_vote(r=3), mean())"),
    "hierarchy": expression("chain(reverse(), gather(dense()), hierarchy(mean(), median(), groups=3))"),
    "composition": expression(
        "chain(alie(z=1.0), vote(atomo(spectral('matrix'), budget=2, vectors=qsgd(bits=4, norm='linf'), smallest=100), "
        "r=3), hierarchy(mean(), median(), groups=3))",
        n=9,
    ).replace("rounds=12", "rounds=12, surgery=pufferfish(ratio=0.5, warmup=0.0, first=1, keep=())"),
    "scatter": expression("chain(reverse(), scatter(qsgd(bits=4), back=dense()), median())"),
    "scatter with feedback": expression(
        "chain(scatter(error_feedback(top_k(ratio=0.1)), back=error_feedback(qsgd(bits=2))), mean())",
        byzantine="none()",
    ),
    "scatter krum": expression("chain(ipm(), scatter(terngrad()), multi_krum(f=1))"),
    "scatter geometric median": expression("chain(nan(), scatter(dense()), clip(5.0), geometric_median())"),
    "scatter memory": expression("chain(scatter(half()), momentum(0.5), nnm(f=1), centered_clip())"),
    "scatter sign vote": expression("chain(momentum(0.5), scatter(sign()), majority())", optimizer="sgd(lr=0.01)"),
    "scatter whole tensors": expression("chain(scatter(atomo(entries(), ratio=0.2)), trimmed_mean(f=1))"),
    "scatter hierarchy": expression("chain(alie(), scatter(qsgd(bits=8)), hierarchy(mean(), krum(f=0), groups=3))"),
    "scatter votes": expression(
        "chain(reverse(), scatter(qsgd(bits=4), back=error_feedback(qsgd(bits=4)), r=3, lie=malformed('random')), "
        "clip(3.0), median())"
    ),
    **{
        f"scatter malformed {how}": expression(
            f"chain(scatter(qsgd(bits=4), forge=malformed('{how}')), trimmed_mean(f=1))"
        )
        for how in ("short", "keys", "missing", "weight")
    },
    **{
        f"malformed {how}": expression(f"chain(gather(dense(), forge=malformed('{how}')), trimmed_mean(f=1))")
        for how in ("short", "dtype", "missing", "random", "weight")
    },
}
CLOSE = {
    "all-reduce": expression("chain(reduce(dense()))", byzantine="none()"),
    "all-reduce bf16": expression("chain(reduce(half('bf16')))", byzantine="none()"),
}


def simulate(text: str) -> Trainer:
    return px.train(px.parse(text))


@pytest.fixture(scope="module")
def over_gloo(tmp_path_factory):
    return run_job(4, "job_train.py", {"runs": {**EXACT, **CLOSE}}, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("label", EXACT)
def test_same_weights_as_the_simulation(over_gloo, label):
    trainer = simulate(EXACT[label])
    there = over_gloo[label]
    assert trainer.summary()["weights_sha256"] == there["weights_sha256"]
    assert trainer.worker_stats.bytes_up == there["bytes_up"]
    assert trainer.worker_stats.table() == there["accused"]
    assert there["processes"] > 1


@pytest.mark.parametrize("label", CLOSE)
def test_close_weights_where_an_all_reduce_sums(over_gloo, label):
    trainer = simulate(CLOSE[label])
    here = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    there = torch.tensor(over_gloo[label]["weights"])
    torch.testing.assert_close(here, there, atol=1e-6 if label == "all-reduce" else 2e-2, rtol=0)


@pytest.mark.parametrize("how", ["short", "dtype", "missing", "random", "weight"])
def test_malformed_messages_are_named(over_gloo, how):
    metrics = over_gloo[f"malformed {how}"]["metrics"]
    for line in metrics:
        assert set(line["excluded"]) <= {str(w) for w in line["byzantine"]}
    # random bytes may decode to finite floats; everything else is seen at once
    if how != "random":
        assert all(line["excluded"] for line in metrics)


def test_resume_with_another_number_of_processes(over_gloo, tmp_path):
    label = "momentum"
    first = run_job(3, "job_train.py", {"runs": {label: EXACT[label]}, "stop_at": {label: 6}}, tmp_path)
    assert first[label] == {"interrupted": 6}
    assert len((tmp_path / label / "metrics.jsonl").read_text().splitlines()) < 12
    second = run_job(2, "job_train.py", {"runs": {label: EXACT[label]}}, tmp_path)
    assert second[label]["weights_sha256"] == over_gloo[label]["weights_sha256"]
    assert [line["step"] for line in second[label]["metrics"]] == list(range(12))
    assert json.loads((tmp_path / label / "summary.json").read_text())["rounds"] == 12


@pytest.mark.parametrize("label", ["scatter memory", "scatter with feedback"])
def test_owners_take_their_memories_with_them(over_gloo, label, tmp_path):
    task = {"runs": {label: EXACT[label]}}
    assert run_job(3, "job_train.py", {**task, "stop_at": {label: 4}}, tmp_path)[label] == {"interrupted": 4}
    # from the first checkpoint on every process has read the memories of all
    assert run_job(2, "job_train.py", {**task, "stop_at": {label: 8}}, tmp_path)[label] == {"interrupted": 8}
    assert run_job(3, "job_train.py", task, tmp_path)[label]["weights_sha256"] == over_gloo[label]["weights_sha256"]


def test_payloads_of_one_size_need_one_trip_and_others_arrive_as_well(tmp_path):
    steady = [[500, 500, 500]] * 6
    odd = [[500, 500, 60_000], [500, 10, 500], [-1, 500, 500], [500, 200_000, 500], [0, 0, 0]]
    first, second = run_job(2, "job_gather.py", {"sizes": [*steady, *odd, *steady]}, tmp_path)
    assert first == second
    assert [line["trips"] for line in first[:7]] == [2, 2, 2, 2, 1, 1, 2]
    assert first[-1]["trips"] == 1
    outcomes = [line["outcome"] for line in first]
    assert outcomes[:8] == [["same"] * 3] * 8
    assert outcomes[8] == ["nothing arrived", "same", "same"]
    assert outcomes[9][1].endswith("at most 100000 allowed") and outcomes[9][::2] == ["same", "same"]
    assert outcomes[10:] == [["same"] * 3] * 7


def test_those_asked_send_to_everyone_whatever_their_sizes(tmp_path):
    sizes = [[500, 60_000, 1, 0, 3, 200_000], [0, 0, 0, 0, 0, 0], [7, -1, 7, 7, 7, 7]]
    asked = [[1], [2], [3], [0, 3], [1, 4], [4, 2], [5], [0, 1, 2, 3, 4], []]
    task = {"workers": 6, "sizes": [s for s in sizes for _ in asked], "asked": asked * len(sizes)}
    ranks = run_job(4, "job_gather.py", task, tmp_path)
    assert ranks == ranks[:1] * 4
    outcomes = [line["outcome"] for line in ranks[0]]
    first, empty, missing = outcomes[:9], outcomes[9:18], outcomes[18:]
    # a piece for each of four processes, and no padding
    longest = dict(zip(map(tuple, asked), (line["longest"] for line in ranks[0]), strict=False))
    assert 15_000 < longest[1,] < 15_100 and 15_000 < longest[1, 4] < 15_100
    assert first[6] == ["200019 bytes, at most 100000 allowed"]
    assert [o for i, o in enumerate(first) if i != 6] == [["same"] * len(a) for i, a in enumerate(asked) if i != 6]
    assert empty == [["same"] * len(a) for a in asked]
    assert missing == [["nothing arrived" if w == 1 else "same" for w in a] for a in asked]
