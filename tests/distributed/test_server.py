# SPDX-License-Identifier: Apache-2.0
"""A parameter server and real worker processes, some of which die, stop, lie or talk rubbish."""

import json
from functools import partial

import pytest
import torch

import phalanx as px
from phalanx.core.packing import ReceiveBuffers, Unpacker
from phalanx.distributed.server import transport as server
from phalanx.distributed.server.identity import make_keys
from phalanx.distributed.server.messages import Kind, message
from phalanx.distributed.server.transport import GrpcTransport
from tests.distributed.launch import run_job, torchrun

N = 9
RUN = (
    "run(digits(), mlp(hidden=({hidden},)), phases=(phase(gradient(batch=90), {scheme}, sgd(lr=0.1, momentum=0.5), "
    "rounds={rounds}),), workers=9, byzantine=workers(workers={byzantine}), faults={faults}, "
    "checkpoint_every=5, seed=3)"
)


def expression(scheme, byzantine="()", faults="()", rounds=10, hidden=16):
    text = RUN.format(scheme=scheme, byzantine=byzantine, faults=faults, rounds=rounds, hidden=hidden)
    return repr(px.parse(text))


VOTE = "chain({attack}, vote({codec}, r=3, placement=in_order()), mean())"
# one in each group of three, and one more that is only slow
FAULTS = "(crash(worker=0, at=2), hang(worker=4, at=3), garble(worker=8, at=4), delay(worker=3, seconds=0.2, at=1))"
MEMORY = "chain(momentum(0.5), gather(error_feedback(top_k(0.2))), mean())"
RUNS = {
    "vote": expression(VOTE.format(attack="nan()", codec="dense()")),
    "vote, faults": expression(VOTE.format(attack="nan()", codec="dense()"), faults=FAULTS),
    "vote, liars": expression(VOTE.format(attack="reverse()", codec="dense()"), byzantine="(1, 5, 6)"),
    "vote, QSGD": expression(VOTE.format(attack="nan()", codec="qsgd(bits=4)"), byzantine="(0, 4, 8)"),
    "median": expression("chain(nan(), gather(dense()), median())", byzantine="(2,)", faults=FAULTS, rounds=6),
    "memory": expression(MEMORY),
    "dense bytes": expression("chain(gather(dense()), mean())", rounds=4, hidden=400),
    "vote bytes": expression("chain(vote(dense(), r=3), mean())", rounds=4, hidden=400),
    "QSGD bytes": expression("chain(vote(qsgd(bits=4), r=3), mean())", rounds=4, hidden=400),
    "vote, late": expression(
        "chain(vote(dense(), r=3), momentum(0.5), mean())",
        faults="(delay(worker=5, seconds=4.0, at=3, rounds=1),)",
        rounds=6,
    ),
    "no quorum": expression(
        "chain(gather(dense()), median())",
        faults="(crash(worker=0, at=3), crash(worker=1, at=3), crash(worker=2, at=3), garble(worker=3, at=3), "
        "garble(worker=4, at=3))",
        rounds=6,
    ),
    "late": expression("chain(gather(dense()), median())", faults="(delay(worker=5, seconds=4.0, at=3, rounds=1),)"),
}
TIMEOUTS = {"least_s": 1.5, "factor": 3.0}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    task = {"runs": RUNS, "timeouts": TIMEOUTS}
    return run_job(N + 1, "job_server.py", task, tmp_path_factory.mktemp("server"))


pytestmark = pytest.mark.processes


def simulated(label, **changes):
    run = px.parse(RUNS[label])
    for path, value in changes.items():
        run = px.training.amend(run, path, value)
    return px.train(run).summary()["weights_sha256"]


def excluded(lines):
    """By worker, the rounds in which it was excluded."""
    rounds = {}
    for line in lines:
        for worker in line["excluded"]:
            rounds.setdefault(int(worker), []).append(line["step"])
    return rounds


def test_the_server_ends_with_the_bits_of_the_simulation(served):
    for label in ("vote", "vote, liars", "vote, QSGD", "memory"):
        assert served[label]["weights_sha256"] == simulated(label), label
    assert served["vote"]["lost_rounds"] == 0


def test_faults_and_liars_change_no_bit_of_a_voted_run(served):
    free = served["vote"]["weights_sha256"]
    assert served["vote, faults"]["weights_sha256"] == free
    assert served["vote, liars"]["weights_sha256"] == free
    assert simulated("vote, QSGD", byzantine=px.adversary.none()) == served["vote, QSGD"]["weights_sha256"]


def test_the_right_workers_are_named_from_the_right_round_on(served):
    for label, rounds in (("vote, faults", 10), ("median", 6)):
        found = excluded(served[label]["metrics"])
        assert found[0] == list(range(2, rounds)) and found[4] == list(range(3, rounds)), label
        assert found[8] == list(range(4, rounds)), label
        assert set(found) == ({0, 4, 8} if label.startswith("vote") else {0, 2, 4, 8})
        reasons = {row["worker"]: row["first_reason"] for row in served[label]["accused"]}
        assert "connection" in reasons[0] and "no answer within" in reasons[4] and "message" in reasons[8]
    assert set(excluded(served["vote, liars"]["metrics"])) == set()
    assert all(set(line["outvoted"]) == {1, 5, 6} for line in served["vote, liars"]["metrics"])


def test_a_late_worker_is_left_out_and_comes_back(served):
    found = excluded(served["late"]["metrics"])
    assert set(found) == {5} and found[5][0] == 3 and found[5][-1] < 9
    assert served["late"]["lost_rounds"] == 0


def test_who_was_late_once_is_not_accused_afterwards(served):
    found = excluded(served["vote, late"]["metrics"])
    assert set(found) == {5} and found[5][0] == 3
    assert all(line["outvoted"] == [] for line in served["vote, late"]["metrics"])
    assert served["vote, late"]["weights_sha256"] == simulated("vote, late", faults=())


def test_bytes_into_the_server_on_its_sockets(served):
    def size(label):
        return sum(line["socket_bytes"] for line in served[label]["metrics"])

    assert size("vote bytes") <= 0.36 * size("dense bytes")
    assert size("QSGD bytes") <= 0.06 * size("dense bytes")
    # the meter of the scheme counts values, the sockets headers and numbers as well
    assert served["dense bytes"]["bytes_up"] <= size("dense bytes") <= 1.02 * served["dense bytes"]["bytes_up"]


def test_a_server_resumes_with_its_workers_memories(served, tmp_path):
    task = {"runs": {"memory": RUNS["memory"]}, "stop_at": {"memory": 6}, "timeouts": TIMEOUTS}
    assert run_job(4, "job_server.py", task, tmp_path)["memory"] == {"interrupted": 6}
    # other processes play the workers now
    again = run_job(3, "job_server.py", {**task, "stop_at": {}}, tmp_path)
    assert again["memory"]["weights_sha256"] == served["memory"]["weights_sha256"]
    assert [line["step"] for line in again["memory"]["metrics"]] == list(range(10))


def test_the_command_line_serves(tmp_path):
    out = tmp_path / "out"
    torchrun(
        4, "-m", "phalanx", "run", "quickstart", "--scale", "smoke", "--server", "--only", "group vote r=3",
        "--set", "workers=3", "--set", "byzantine=none()", "--set", "rounds=5", "--out", str(out),
    )  # fmt: skip
    (summary,) = json.loads((out / "summary.json").read_text())
    assert summary["rounds"] == 5 and summary["lost_rounds"] == 0


def test_a_killed_worker_is_started_again(tmp_path):
    # a worker that dies once, and not again when its process is a new one
    runs = {"once": expression("chain(gather(dense()), median())", rounds=40)}
    task = {"runs": runs, "timeouts": TIMEOUTS, "kill_at": {"once": [3, 4]}}
    found = run_job(N + 1, "job_server.py", task, tmp_path)["once"]
    out = excluded(found["metrics"])
    assert set(out) == {4} and out[4][0] in (3, 4) and out[4][-1] < 39, out
    assert found["gone"] == [] and found["lost_rounds"] == 0


def test_a_job_with_keys_ends_with_the_same_bits(served, tmp_path):
    make_keys(tmp_path / "keys", 3)
    task = {"runs": {"memory": RUNS["memory"]}, "timeouts": TIMEOUTS, "keys": str(tmp_path / "keys")}
    assert run_job(4, "job_server.py", task, tmp_path)["memory"]["weights_sha256"] == served["memory"]["weights_sha256"]


def test_most_workers_gone_is_no_quorum(served):
    found = served["no quorum"]
    assert all("an update needs those of more than half" in line["lost"] for line in found["metrics"][3:])
    assert found["lost_rounds"] == len(found["metrics"]) - 3
    assert set(found["gone"]) <= {0, 1, 2} and found["workers"] == 9


def test_payloads_of_several_processes_lie_in_the_order_of_the_workers():
    buffers, order, got = ReceiveBuffers(3, 1000), (1, 4, 5), {}
    for workers in ((4, 5), (0, 1)):
        sent = {f"{worker}/values": torch.full((5,), float(worker)) for worker in workers}
        # what a process says in another's name takes no other's place
        sent["1/values" if workers == (4, 5) else "5/values"] = torch.full((5,), -1.0)
        body = message(Kind.HELD, 0, sent).body
        content = Unpacker(len(body), partial(server._room, workers, buffers, order))
        for piece in body.split(7):
            content.add(piece.numpy())
        got |= server._divided(Kind.HELD, content, workers)[1]
    rows = [got[worker]["values"] for worker in order]
    assert [row.tolist() for row in rows] == [[float(worker)] * 5 for worker in order]
    assert [row.data_ptr() - rows[0].data_ptr() for row in rows] == [0, 20, 40]
    assert got[0]["values"].tolist() == [0.0] * 5


@pytest.mark.parametrize(("n", "processes"), [(3, 0), (3, 4)])
def test_every_process_plays_a_worker(n, processes):
    with pytest.raises(ValueError, match="worker processes"):
        GrpcTransport(n, processes)


@pytest.mark.parametrize(
    "scheme", ["chain(reduce(dense()))", "power_sgd(rank=2)", "chain(alie(), gather(dense()), mean())"]
)
def test_schemes_that_no_server_can_run_are_refused(scheme):
    world = GrpcTransport(9, 1)
    with pytest.raises(ValueError, match="server"):
        px.train(px.parse(expression(scheme)), world)
    world.close()
