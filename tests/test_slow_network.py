# SPDX-License-Identifier: Apache-2.0
"""The benchmark on a slow network of namespaces; what makes hosts needs root and iproute2."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import phalanx as px
from phalanx.core.parser import parse
from phalanx.core.stage import check_scheme
from phalanx.tools.advisor.link import PAYLOAD_RATIO, Line
from phalanx.tools.advisor.model import Cost, Effort, Message
from phalanx.tools.advisor.served import served
from phalanx.tools.report.collect import Curve, Result
from phalanx.tools.runner.request import build_study
from phalanx.tools.runner.study import Study
from phalanx.training.run_folder import RunFolder
from slow_network import breakdown, convergence, exchange, hosts, jobs, link, plots, reach, scaling
from slow_network.hosts import Hosts, JobFailed, bits_per_s, burst_bytes
from tests.cases import each

ROOT = Path(__file__).parents[1]
RUN = (
    "run(digits(), mlp(hidden=(8,)), phases=(phase(gradient(batch=40), {scheme}, sgd(lr=0.1), rounds=6),), "
    "workers=2, evaluate_every=2, checkpoint_every=2)"
)
PLAIN = "chain(reduce(dense()))"


def unable() -> str | None:
    """Why no hosts can be made here."""
    try:
        hosts.check()
        name = f"phx-{os.getpid()}-999999-probe"
        hosts.call("ip", "netns", "add", name)
        hosts.remove(name)
    except ValueError as error:
        return str(error)
    return None


@pytest.fixture
def able() -> None:
    if (reason := unable()) is not None:
        pytest.skip(reason)


def ours() -> list[str]:
    return [name for name in hosts.namespaces() if name.startswith(f"phx-{os.getpid()}-")]


@each(("rate", "bits"), [("100mbit", 1e8), ("1Gbit", 1e9), ("2.5gbit", 2.5e9), ("64kbit", 64e3)])
def test_rates(rate, bits):
    assert bits_per_s(rate) == bits


@each("rate", ["", "fast", "0mbit", "-1mbit", "100", "100 mbit", "100mbit; reboot", "1mbps"])
def test_other_words_are_no_rate(rate):
    with pytest.raises(ValueError, match="such as 100mbit"):
        bits_per_s(rate)


def test_a_bucket_holds_a_millisecond_and_at_least_ten_frames():
    assert burst_bytes("10gbit") == 1_250_000
    assert burst_bytes("1mbit") >= 10 * 1514


def test_torchrun_command():
    command = hosts.torchrun_command(4, 2, "10.0.0.1", ["-m", "phalanx", "run"])
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    words = " ".join(command)
    assert "--nnodes 4 --node-rank 2 --nproc-per-node 1 --master-addr 10.0.0.1 --master-port" in words
    assert command[-3:] == ["-m", "phalanx", "run"]


def test_who_is_not_root_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda tool: f"/sbin/{tool}")
    with pytest.raises(ValueError, match="needs root"):
        hosts.check()
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(ValueError, match="install iproute2"):
        hosts.check()


@pytest.mark.parametrize(("n", "delay"), [(0, 0.0), (251, 0.0), (2, -1.0)])
def test_hosts_out_of_range(n, delay):
    with pytest.raises(ValueError, match=r"\[1, 250\]"):
        Hosts(n, "1gbit", delay)


def test_ideal_collectives():
    ideal = link.ideal(1e6, 4, 1e8)
    assert ideal["ideal_all_reduce_s"] == pytest.approx(0.12)
    assert ideal["ideal_all_gather_s"] == pytest.approx(0.24)
    assert link.ideal(1e6, 1, 1e8)["ideal_all_gather_s"] == 0


def curve(*points: tuple[float, float]) -> Curve:
    return Curve([], [], [s for s, _ in points], [a for _, a in points])


def test_seconds_to_the_first_test_at_or_above_the_target():
    c = curve((1.0, 0.2), (2.0, 0.6), (3.0, 0.5), (4.0, 0.7))
    assert convergence.seconds_to(c, 0.6) == 2.0
    assert convergence.seconds_to(c, 0.61) == 4.0
    assert convergence.seconds_to(c, 0.1) == 1.0
    assert convergence.seconds_to(c, 0.71) is None
    assert convergence.seconds_to(curve(), 0.5) is None


def result(label: str, *points: tuple[float, float]) -> Result:
    summary = {"accuracy": points[-1][1], "bytes_per_worker_round": 8.0, "round_s": 0.1}
    return Result(label, Path(label), summary, curve(*points))


def test_speed_ups_are_paired_by_seed():
    found = convergence.report(
        {
            0: [result("plain", (10.0, 0.6)), result("fast", (2.0, 0.6)), result("poor", (1.0, 0.6))],
            1: [result("plain", (30.0, 0.6)), result("fast", (10.0, 0.6)), result("poor", (1.0, 0.1))],
        },
        0.6,
        "plain",
    )["schemes"]
    assert found["plain"]["speed_up"]["mean"] == 1
    assert [line["speed_up"] for line in found["fast"]["seeds"].values()] == [5.0, 3.0]
    assert found["fast"]["speed_up"]["mean"] == 4.0
    # a mean over the seeds that got there would flatter
    assert found["poor"]["speed_up"] is None and found["poor"]["seconds_to_target"] is None
    assert found["poor"]["accuracy"]["mean"] == pytest.approx(0.35)


def test_the_uncompressed_run_is_found():
    runs = {s: build_study(RUN.format(scheme=s)).runs["run"] for s in ("chain(gather(sign()), mean())", PLAIN)}
    assert convergence.uncompressed(runs) == PLAIN
    assert convergence.uncompressed({}) is None


def test_parts_of_a_step_add_up_to_it():
    metrics = {"work_s": 5.0, "scheme_s": 4.0, "finish_s": 1.0, "encode_s": 0.5, "wire_s": 2.0, "decode_s": 1.0}
    parts = breakdown.split(metrics)
    assert tuple(parts) == breakdown.PARTS
    assert sum(parts.values()) == 10.0
    assert parts["decoding_s"] == 1.5


def test_the_schemes_of_the_exchange_are_schemes():
    made = [px.parse(text) for text in exchange.schemes()]
    assert len(made) == 3 * len(exchange.CODECS)
    for scheme in made:
        check_scheme(scheme, 4)
    lines = [
        {"workers": 4, "rate": "1gbit", "scheme": "x", "seconds": 0.5, "cpu_s": 0.1, "line_bytes": 10**6, "ratio": 0.25}
        | {"memory_bytes": 2**20}
    ]
    assert exchange.table(lines).row_count == 1


def test_a_short_run_is_only_tested_at_its_end():
    short = breakdown.shortened(build_study(RUN.format(scheme=PLAIN)), 4, 12).runs["run"]
    assert (short.workers, short.rounds) == (4, 12)
    assert short.evaluate_every > 12 and short.checkpoint_every > 12


def test_a_growing_job_keeps_the_share_of_a_worker_and_leaves_out_what_it_is_too_small_for():
    for n, count in ((2, 4), (3, 5), (16, 5)):
        runs = scaling.fitting(scaling.SCHEMES, n, 12).runs
        assert len(runs) == count and (scaling.VOTE in runs) == (n > 2)
        assert all(run.workers == n and run.phases[0].work.batch == 16 * n for run in runs.values())
        assert all(run.phases[0].rounds == 12 < run.evaluate_every for run in runs.values())


def test_a_server_s_wait_is_told_apart_from_the_work():
    twin = {"work_s": 0.3, "encode_s": 0.1, "wire_s": 9.0}
    parts = scaling.apart({"work_s": 1.0, "encode_s": 0.0, "wire_s": 0.5, "step_s": 1.6}, twin)
    assert parts == {"work_s": 0.3, "encode_s": 0.1, "wire_s": pytest.approx(1.1), "step_s": 1.6}


@pytest.mark.parametrize("server", [False, True])
def test_communication_is_predicted_and_simulated_alike(server):
    """Without latency nothing is hidden, and both are the bytes over the rate."""
    efforts = (Effort(2, 0.1, 0.01, 0.2, 0.3, 0.4),)
    cost = Cost(scaling.QSGD, "unbiased", 50_000, (Message("gather", 50_000),), efforts)
    cost = served(cost, 10_000) if server else cost
    line = Line(0.0, 1e6)
    told = scaling.communication(cost, line, 6, {"work_s": 0.7})
    carried = (6 * 90_000 if server else 5 * 50_000) / (PAYLOAD_RATIO * 1e6)
    assert told["wire_s"] == pytest.approx(carried + 0.01)
    assert told["simulated_s"] == pytest.approx(carried + 0.01, rel=0.03)
    assert told["shared_s"] > 0.97 * carried


def test_a_folder_takes_more_runs_but_no_other_run(tmp_path):
    study = jobs.with_schemes(build_study(RUN.format(scheme=PLAIN)), [PLAIN])
    more = jobs.with_schemes(study, ["chain(gather(sign()), majority())"])
    jobs.prepare(study, tmp_path)
    assert list(jobs.prepare(more, tmp_path).study.runs) == [*study.runs, *more.runs]
    assert convergence.unfinished(more, tmp_path) == list(more.runs)
    with pytest.raises(ValueError, match="holds another"):
        jobs.prepare(convergence.seeded(study, 2, seed=5), tmp_path)


def step(label: str, seconds: float, rate: str = "100mbit") -> dict:
    return {"workers": 2, "rate": rate, "label": label, "step_s": seconds}


def test_simulated_rounds_take_the_steps_that_were_measured(tmp_path):
    studies = []
    for seed in (0, 1):
        runs = {
            "plain": parse(RUN.format(scheme=PLAIN)),
            "fast": parse(RUN.format(scheme="chain(gather(half()), mean())")),
        }
        study = jobs.changed(Study("", None, (), {}), {k: px.training.amend(r, "seed", seed) for k, r in runs.items()})
        folder = jobs.prepare(study, tmp_path / str(seed))
        for label, run in study.runs.items():
            px.train(run, folder=RunFolder(folder.run_path(label)))
        studies.append(tmp_path / str(seed))
    lines = [step("plain", 2.0), step("fast", 0.5), step(breakdown.DDP, 1.5)]
    by_seed = reach.rescaled(studies, lines, "plain")
    labels = [breakdown.DDP, "plain", "fast"]
    assert {seed: [r.label for r in runs] for seed, runs in by_seed.items()} == {0: labels, 1: labels}
    ddp, plain, fast = by_seed[1]
    assert (ddp.curve.seconds, plain.curve.seconds, fast.curve.seconds) == ([3, 6, 9], [4, 8, 12], [1, 2, 3])
    assert ddp.curve.accuracy == plain.curve.accuracy
    found = convergence.report(by_seed, 0.0, breakdown.DDP)["schemes"]
    assert found["fast"]["speed_up"]["mean"] == 3 and found["fast"]["speed_up"]["n"] == 2
    assert [r.label for r in reach.rescaled(studies, lines[:1], "plain")[0]] == ["plain"]
    with pytest.raises(ValueError, match="no step of any of these runs was measured; there are 'other'"):
        reach.rescaled(studies, [step("other", 1.0)], "plain")
    with pytest.raises(ValueError, match="one rate"):
        reach.rescaled(studies, [*lines, step("fast", 1, "1gbit")], "plain")


def test_figures(tmp_path):
    parts = dict.fromkeys(breakdown.PARTS, 0.01)
    lines = [
        {"workers": n, "rate": rate, "label": label, **parts}
        for n in (2, 4)
        for rate in ("1mbit", "2mbit")
        for label in ("a", "b")
    ]
    plots.plot_breakdown(lines, "title", tmp_path / "b.png")
    found = convergence.report({s: [result("plain", (1.0, 0.2), (2.0, 0.6))] for s in (0, 1)}, 0.5, None)
    plots.plot_convergence(found, "title", tmp_path / "c.png")
    grown = [
        {
            "workers": n,
            "label": label,
            "measured": {"wire_s": 0.1 * n},
            "base": dict.fromkeys(("wire_s", "simulated_s", "shared_s"), 0.1),
        }
        for n in (2, 4)
        for label in ("a", "b")
    ]
    grown[0]["own"] = grown[0]["base"]
    plots.plot_scaling(grown, "title", tmp_path / "s.png")
    for name in ("b.png", "c.png", "s.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@each(
    ("argv", "words"),
    [
        (["breakdown", "--rates", "fast"], "such as 100mbit"),
        (["breakdown", "--rounds", "5", "--dropped", "5"], "dropped < rounds"),
        (["exchange", "--rates", "fast"], "such as 100mbit"),
        (["scaling", "--rate", "fast"], "such as 100mbit"),
        (["scaling", "--rounds", "5", "--dropped", "5"], "dropped < rounds"),
        (["convergence", "--out", "x", "--target", "58"], "such as 0.58"),
        (["reach", "runs/x", "--steps", "nowhere.json"], "nowhere.json is not there"),
    ],
)
def test_errors_are_one_sentence(argv, words):
    command = [sys.executable, str(ROOT / "benchmarks" / "network.py"), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.processes
def test_a_link_is_as_slow_as_it_should_be_and_nothing_stays(able):
    with Hosts(2, "20mbit") as network:
        assert len(ours()) == 3
        for sender in (0, 1):
            sent = link.throughput(network, sender, 1 - sender, seconds=0.4)
            assert sent["bytes"] == 1_000_000
            # both buckets may be full at the start
            free = 2 * burst_bytes("20mbit")
            assert sent["seconds"] >= (sent["timed_bytes"] - free) * 8 / 20e6
        left = network.start(0, ["sleep", "600"])
    assert left.wait(timeout=10) != 0
    assert ours() == []


@pytest.mark.processes
def test_a_process_on_its_way_to_a_host_ends_with_it(able, monkeypatch):
    # as when the host is asked for its processes before this one has come there
    monkeypatch.setattr(hosts, "kill", lambda namespace: None)
    with Hosts(1, "20mbit") as network:
        left = network.start(0, ["sleep", "600"])
    assert left.wait(timeout=60) == -signal.SIGKILL


@pytest.mark.processes
def test_a_delay_holds_in_both_directions(able):
    # a refused connection takes one round trip
    refused = "import socket, sys, time; t = time.perf_counter(); socket.socket().connect_ex((sys.argv[1], 1)); "
    code = refused + "print(time.perf_counter() - t)"
    try:
        with Hosts(2, "20mbit", delay_ms=10) as network:
            command = [sys.executable, "-c", code, network.address(1)]
            out, _ = network.start(0, command, stdout=subprocess.PIPE, text=True).communicate(timeout=60)
    except ValueError as error:
        assert "leave it out" in str(error) and ours() == []
        pytest.skip(str(error))
    assert float(out) >= 0.02


@pytest.mark.processes
def test_nothing_stays_after_an_error(able):
    with pytest.raises(RuntimeError, match="on purpose"), Hosts(2, "1gbit"), Hosts(1, "1gbit"):
        assert len(ours()) == 5
        raise RuntimeError("on purpose")
    assert ours() == []


@pytest.mark.processes
def test_a_failed_job_is_reported_with_its_words_and_a_late_one_ended(able, tmp_path):
    failing, waiting = tmp_path / "failing.py", tmp_path / "waiting.py"
    failing.write_text("import sys; sys.exit('out of ideas')")
    waiting.write_text("import time; time.sleep(600)")
    with Hosts(2, "1gbit") as network:
        with pytest.raises(JobFailed, match="out of ideas"):
            network.torchrun(str(failing), logs=tmp_path / "logs", limit_s=60)
        with pytest.raises(JobFailed, match="not done after 3 s"):
            network.torchrun(str(waiting), logs=tmp_path / "logs", limit_s=3)
        assert not [pid for name in network.names for pid in hosts.call("ip", "netns", "pids", name).split()]
    assert ours() == []


@pytest.mark.processes
def test_a_job_across_hosts_goes_on_where_it_stopped_and_a_killed_benchmark_is_cleaned_up_after(able, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "benchmarks" / "network.py"), "convergence", "--recipe"]
    command += [RUN.format(scheme=PLAIN), "--rate", "1gbit", "--workers", "2", "--target", "0.9", "--out", str(out)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = out / "seed-0" / "logs" / "rank-1.log"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    mine = f"phx-{killed.pid}-"
    assert [name for name in hosts.namespaces() if name.startswith(mine)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "reached in 0 of 1" in done.stdout
    assert (out / "seed-0" / "run" / "summary.json").exists()
    assert not [name for name in hosts.namespaces() if name.startswith(mine)]
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "finished before" in again.stderr
