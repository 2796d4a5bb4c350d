# SPDX-License-Identifier: Apache-2.0
"""The cost model: its identities, its units, its document, and what it says of links that nobody could mistake."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import phalanx as px
from phalanx.core.stage import TooFewRows, check_scheme
from phalanx.distributed.backend import Loopback, Recording
from phalanx.distributed.job import Processes
from phalanx.distributed.process_group import ProcessGroupCollective
from phalanx.tools.advisor.advise import advise, chosen
from phalanx.tools.advisor.check import check
from phalanx.tools.advisor.growth import grow, rows_bytes
from phalanx.tools.advisor.link import PAYLOAD_RATIO, Line, MeasuredLink, between, fit, volume
from phalanx.tools.advisor.measure import measure, num_units, places
from phalanx.tools.advisor.model import BreakEven, Cost, Effort, Message, break_even, predict
from phalanx.tools.advisor.probe import Probe
from phalanx.tools.advisor.quality import DEFAULTS, PLAIN, quality
from phalanx.tools.advisor.rehearse import rehearse
from phalanx.tools.advisor.served import at_server
from phalanx.tools.advisor.simulation import simulate
from phalanx.tools.advisor.units import bandwidth, bits, duration
from phalanx.tools.cli import probe_options
from phalanx.tools.cli.app import app
from phalanx.training.trainer import Trainer
from tests.cases import each

CPU = torch.device("cpu")
QSGD = "chain(gather(qsgd()), mean())"
GIVEN = ("--bandwidth", "1Gbit", "--workers", "4", "--model", "mlp(hidden=())", "--data", "digits", "--batch", "4")
RUN = px.parse(f"run(digits(), mlp(hidden=(16,)), phases=(phase(gradient(batch=40), {PLAIN}, rounds=6),), workers=2)")


def cost(scheme: str, messages: tuple[Message, ...], encode_s: float = 0.0, decode_s: float = 0.0) -> Cost:
    """A cost whose decoding grows with the workers."""
    efforts = tuple(Effort(n, encode_s, 0.0, decode_s * n, 0.0, 0.001) for n in (2, 6))
    return Cost(scheme, quality(px.parse(scheme)), messages[-1].bytes, messages, efforts)


DENSE = cost(PLAIN, (Message("gather", 8), Message("reduce", 40e6)))
CODED = cost(QSGD, (Message("gather", 8), Message("gather", 6.25e6)), encode_s=0.02, decode_s=0.015)
PROBE = Probe(RUN, ("a", "b"), 10_000_000, 20, 0.2, None, (DENSE, CODED), {})


def ring(kind: str, size: float, n: int, latency_s: float, payload: float) -> tuple[float, float, list[set]]:
    """Seconds, bytes of one process and what each ends with, message by message around a ring."""
    pieces = n if kind == "reduce" else 1
    piece = size / pieces
    have = [{(i, p) for p in range(pieces)} for i in range(n)]  # who contributed to which piece held here
    free, sent = [0.0] * n, [0.0] * n
    for hop in range((n - 1) * (2 if kind == "reduce" else 1)):
        arrivals = []
        for i in range(n):
            due = (i - hop) % n  # the block, or the piece, whose turn it is
            moved = {(j, p) for j, p in have[i] if (j if kind == "gather" else p) == due}
            assert moved
            arrivals.append(((i + 1) % n, moved, free[i] + latency_s + piece / payload))
            sent[i] += piece
        # a process goes on when its own message has left and its neighbour's has come
        after = [end for _, _, end in arrivals]
        free = [max(after[i], after[i - 1]) for i in range(n)]
        for to, moved, _ in arrivals:
            have[to] |= moved
    return max(free), sent[0], have


@each("n", [2, 3, 5, 16])
@each("kind", ["gather", "reduce"])
def test_the_formulas_are_those_of_a_ring(kind, n):
    line = Line(1e-4, 12.5e6)
    seconds, sent, have = ring(kind, 1e6, n, 1e-4, PAYLOAD_RATIO * 12.5e6)
    everything = {(i, p) for i in range(n) for p in range(n if kind == "reduce" else 1)}
    assert all(held == everything for held in have)
    assert line.seconds(kind, 1e6, n) == pytest.approx(seconds)
    assert volume(kind, 1e6, n) == pytest.approx(sent)


@each("kind", ["gather", "reduce"])
@each("n", [2, 4])
def test_a_line_is_recovered_from_its_curve(kind, n):
    line = Line(3e-4, 12.5e6)
    points = [(size, line.seconds(kind, size, n)) for size in (1024, 4096, 65536, 2**20, 2**24)]
    found = fit(kind, points, n)
    assert found.latency_s == pytest.approx(line.latency_s) and found.bandwidth == pytest.approx(line.bandwidth)
    # a bucket that lets 64 kB pass at once hides nothing of the bandwidth
    burst = [(size, line.seconds(kind, size, n) if size > 65536 else 7e-4) for size, _ in points]
    assert fit(kind, burst, n).bandwidth == pytest.approx(line.bandwidth, rel=0.1)


def test_a_measured_link_is_its_points_for_as_many_processes_and_its_fit_for_others():
    line = Line(2e-4, 1e8)
    curves = {
        k: tuple((s, line.seconds(k, s, 3) * (1.2 if s == 10**5 else 1.0)) for s in (10**3, 10**5, 10**7))
        for k in ("gather", "reduce")
    }
    link = MeasuredLink(3, curves)
    for kind in ("gather", "reduce"):
        for size, seconds in curves[kind]:
            assert link.seconds(kind, size, 3) == seconds
        assert link.seconds(kind, 2e7, 3) == pytest.approx(line.seconds(kind, 2e7, 3), rel=0.01)
        assert link.seconds(kind, 1e6, 8) == pytest.approx(link.line(kind).seconds(kind, 1e6, 8))
        times = [link.seconds(kind, size, 3) for size in (1, 10**3, 5 * 10**4, 10**6, 10**8)]
        assert times == sorted(times)
    assert between([(10, 1.0), (20, 3.0)], 15) == 2.0


def test_a_faster_link_never_makes_a_step_longer():
    for costs in (DENSE, CODED):
        steps = [predict(costs, 0.2, Line(1e-4, b), 4).seconds for b in (1e6, 1e7, 1e8, 1e9)]
        assert all(a > b for a, b in pairwise(steps))
        assert predict(costs, 0.2, Line(1e-3, 1e7), 4).seconds > steps[1]


@each("n", [2, 4, 8])
@each("latency_s", [0.0, 1e-4])
def test_at_the_break_even_bandwidth_both_steps_are_equally_long(n, latency_s):
    ends = break_even(CODED, DENSE, (0.2, 0.2), Line(latency_s, 1.0), n)
    assert ends.bandwidth is not None
    for factor, faster in ((0.9, True), (1.1, False)):
        link = Line(latency_s, ends.bandwidth * factor)
        ours, plain = (predict(c, 0.2, link, n).seconds for c in (CODED, DENSE))
        assert (ours < plain) == (faster == (ends.wins == "below"))
    link = Line(latency_s, ends.bandwidth)
    assert predict(CODED, 0.2, link, n).seconds == pytest.approx(predict(DENSE, 0.2, link, n).seconds)


def test_always_and_never():
    link = Line(1e-4, 1e8)
    free = cost("chain(reduce(half()))", (Message("gather", 8), Message("reduce", 20e6)))
    assert break_even(free, DENSE, (0.2, 0.2), link, 4) == BreakEven("always")
    assert break_even(DENSE, DENSE, (0.2, 0.2), link, 4) == BreakEven("never")
    # gathered, 16 workers send more than an all-reduce of the whole row does
    long = cost("chain(gather(half()), mean())", (Message("gather", 8), Message("gather", 20e6)), decode_s=0.01)
    assert break_even(long, DENSE, (0.2, 0.2), link, 16) == BreakEven("never")


def test_the_longest_of_n_messages():
    generator = torch.Generator().manual_seed(0)
    for n in (2, 4, 16):
        drawn = 1000 + 50 * torch.randn(20_000, n, generator=generator, dtype=torch.float64)
        expected = float(drawn.amax(dim=1).mean())
        assert Message("gather", 1000, 50).longest(n) == pytest.approx(expected, abs=5)
    assert Message("reduce", 1000, 50).longest(16) == 1000


def test_effort_is_what_was_measured_and_between_on_a_line():
    assert CODED.at(6) is CODED.efforts[1]
    assert CODED.at(16).decode_s == pytest.approx(16 * 0.015)
    assert CODED.at(16).encode_s == pytest.approx(0.02)
    falling = replace(CODED, efforts=(Effort(2, 1.0, 0, 2.0, 0, 0), Effort(6, 1.2, 0, 1.0, 0, 0)))
    assert falling.at(100).decode_s == pytest.approx(1.5)


@each(
    ("text", "value"),
    [
        ("100Mbit", 12.5e6),
        ("100mbit", 12.5e6),
        ("1 Gbit/s", 125e6),
        ("10Gbps", 1.25e9),
        ("12.5MB/s", 12.5e6),
        ("56 kbit", 7e3),
        ("8bit", 1.0),
        ("1e3kB/s", 1e6),
        ("2.5Gb/s", 312.5e6),
    ],
)
def test_bandwidths(text, value):
    assert bandwidth(text) == pytest.approx(value)
    assert bandwidth(bits(value).replace(" ", "")) == pytest.approx(value, rel=0.01)


@each("text", ["", "100", "Mbit", "-1Mbit", "0Mbit", "1 Mb", "10MBps", "1e999Gbit", "nan Mbit", "10 ms"])
def test_what_is_no_bandwidth(text):
    with pytest.raises(ValueError, match="such as 100Mbit"):
        bandwidth(text)


@each(("text", "value"), [("0.1ms", 1e-4), ("100us", 1e-4), ("1.5 s", 1.5), ("0ms", 0.0), (".5s", 0.5)])
def test_durations(text, value):
    assert duration(text) == pytest.approx(value)


@each("text", ["", "5", "1m", "-1ms", "1 hour", "1Mbit"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match=r"such as 0\.1ms"):
        duration(text)


@pytest.mark.parametrize(
    ("scheme", "word"),
    [
        (PLAIN, "unbiased"),
        ("chain(gather(qsgd()), mean())", "unbiased"),
        ("chain(momentum(0.9), gather(terngrad(clip=inf)), mean())", "unbiased"),
        ("chain(vote(qsgd(), r=3), mean())", "unbiased"),
        ("chain(cyclic(s=2))", "unbiased"),
        ("chain(gather(terngrad()), mean())", "biased"),
        ("chain(reduce(half()))", "biased"),
        ("chain(gather(dense()), median())", "biased"),
        ("chain(clip(1.0), gather(dense()), mean())", "biased"),
        ("signum()", "biased"),
        ("chain(gather(error_feedback(top_k(ratio=0.01))), mean())", "error feedback"),
        ("chain(gather(error_feedback(top_k(ratio=0.01))), median())", "biased"),
        ("power_sgd(rank=2)", "error feedback"),
    ],
)
def test_biased_schemes_are_called_so(scheme, word):
    assert quality(px.parse(scheme)) == word


def test_the_default_schemes_are_schemes():
    for scheme in DEFAULTS:
        check_scheme(px.parse(scheme), 2)
    assert DEFAULTS[0] == PLAIN


@each("n", [2, 5])
@pytest.mark.parametrize("scheme", [*(s for s in DEFAULTS if "scatter" not in s), "chain(gather(dense()), median())"])
def test_a_rehearsal_sends_what_the_scheme_sends(scheme, n):
    """Bytes and shape of the result are those of a round in which every worker holds the same row."""
    trainer = Trainer(replace(RUN, workers=1), px.LocalCollective(1))
    stack, _ = trainer.compute_rows(0)
    stage = px.parse(scheme)
    sample = next(rehearse(trainer, stage, [stack], n))
    assert sample.effort.workers == n and min(vars(sample.effort).values()) >= 0
    every = px.Stack(stack.rows.expand(n, -1), stack.layout, tuple((i,) for i in range(n)), torch.ones(n).double())
    result, _ = stage(every, None, px.Round(1, RUN.seed, world=px.LocalCollective(n)))
    meter = sum(note.value for note in result.notes if note.kind == "bytes" and note.worker == 0)
    if not any(word in scheme for word in ("atomo", "elias", "top_k")):  # of random length, or with a memory
        assert sample.sent_bytes == meter
    carried = sum(size for _, size in sample.calls)
    assert sample.sent_bytes <= carried <= sample.sent_bytes + 400


@each("n", [2, 4, 7])
def test_a_rehearsal_of_owners_sends_their_shares(n):
    run = replace(RUN, workers=1, model=px.parse("mlp(hidden=(500, 400))"))
    trainer = Trainer(run, px.LocalCollective(1))
    stack, _ = trainer.compute_rows(0)
    for codec, back in (("qsgd(bits=4)", "qsgd(bits=8)"), ("dense()", "dense()")):
        sample = next(
            rehearse(trainer, px.parse(f"chain(scatter({codec}, back={back}), krum(f=0))"), [stack], max(n, 3))
        )
        payloads = [px.parse(c).encode(stack.rows[0], stack.layout, {}, torch.Generator)[0] for c in (codec, back)]
        sizes = [sum(t.numel() * t.element_size() for t in payload.values()) for payload in payloads]
        shares = [size for kind, size in sample.calls if kind == "share"]
        # the first owner has the first block of every round of blocks, so at most one more than others
        assert all(0.97 * size <= share <= 1.05 * size for share, size in zip(shares, sizes, strict=True))
        assert sum(size for kind, size in sample.calls if kind != "share") < 0.02 * sum(sizes)
        carried = sum(Message(*call).volume(max(n, 3)) for call in sample.calls)
        assert carried <= 1.07 * (max(n, 3) - 1) / max(n, 3) * sum(sizes)


def test_more_owners_take_no_more_bytes():
    line = Line(0.0, 1e8)
    gathered, scattered = Message("gather", 1e6), Message("share", 2e6)
    assert gathered.seconds(line, 4) == pytest.approx(2 * scattered.seconds(line, 4))
    assert gathered.seconds(line, 64) == pytest.approx(32 * scattered.seconds(line, 64))
    cost = Cost("chain(scatter(dense()), mean())", "unbiased", 0.0, (scattered,), (Effort(2, 0, 0, 0, 0, 0),))
    assert rows_bytes(cost, 64, 1000) == 4000
    ring = simulate(cost, 0.0, line, 16, parts=1).seconds
    assert ring == pytest.approx(predict(cost, 0.0, line, 16).seconds, rel=1e-6)


@each(
    ("sizes", "bytes"),
    [([100] * 8, 100), ([100, 0, 0, 0, 0, 0, 0, 0], 25), ([100] * 6 + [0] * 2, 100), ([100] * 4 + [0] * 4, 63)],
)
def test_lines_note_what_messages_of_unlike_lengths_move(sizes, bytes):
    lines = Recording(Loopback(0, 8, CPU))
    blocks = lines.all_gather_uneven(torch.zeros(100, dtype=torch.uint8), sizes)
    assert [len(block) for block in blocks] == sizes
    assert [(call.kind, call.bytes) for call in lines.calls] == [("gather", bytes)]


def test_a_world_on_recorded_lines_notes_every_collective():
    lines = Recording(Loopback(0, 3, CPU))
    world = ProcessGroupCollective(backend=lines)
    payloads = world.gather([{"x": torch.arange(1000, dtype=torch.uint8)}], limit_bytes=2000)
    assert len(payloads) == 3 and all(torch.equal(p["x"], torch.arange(1000, dtype=torch.uint8)) for p in payloads)
    assert [(c.kind, c.bytes >= 1000) for c in lines.calls] == [("gather", False), ("gather", True)]
    row = torch.randn(1, 50)
    weights = torch.tensor([7.0])
    torch.testing.assert_close(world.mean(row, weights, world.all_gather(weights.reshape(1, 1)).sum()), row[0])
    assert [(c.kind, c.bytes) for c in lines.calls[2:]] == [("gather", 4), ("reduce", 200)]


def test_places_fit_the_scheme():
    assert places(px.parse(PLAIN), 2, alone=False) == (2, 6)
    assert places(px.parse(PLAIN), 16, alone=False) == (2, 16)
    assert places(px.parse(PLAIN), 16, alone=True) == (2, 6)
    assert places(px.parse("chain(gather(dense()), krum(f=3))"), 12, alone=True) == (12,)
    with pytest.raises(TooFewRows, match="krum"):
        places(px.parse("chain(gather(dense()), krum(f=3))"), 4, alone=False)


def test_redundant_work_counts():
    vote = px.parse("chain(gather(dense()), group_vote(r=3), mean())")
    assert num_units(vote, 6) == 2
    link = Line(0.0, 1e9)
    ours = cost(repr(vote), (Message("gather", 8), Message("gather", 1000)))
    given = advise(replace(PROBE, costs=(DENSE, ours)), link, 6)
    assert given.lines[1].step.work_s == pytest.approx(3 * given.lines[0].step.work_s, rel=0.01)


@pytest.fixture(scope="module")
def alone() -> Probe:
    """A probe of one process."""
    return measure(RUN, [px.parse(QSGD), px.parse("signum()")], Processes(), repeats=2, workers=4)


def test_a_probe_of_one_process_knows_no_link(alone):
    assert alone.link is None and alone.processes == 1 and alone.batch == 20 and alone.work_s > 0
    assert [c.scheme for c in alone.costs] == [PLAIN, QSGD, repr(px.codecs.signum())]
    assert all(c.sent_bytes > 0 and [e.workers for e in c.efforts] == [4, 6] for c in alone.costs)
    assert [m.kind for m in alone.costs[0].messages] == ["gather", "reduce"]
    assert [m.kind for m in alone.costs[1].messages] == ["gather", "gather"]
    assert num_bytes(alone.costs[2]) * 8 == pytest.approx(alone.parameters, rel=0.02)


def num_bytes(c: Cost) -> float:
    return c.sent_bytes - 8  # without the weight


def test_the_document_comes_back_as_it_was(alone):
    linked = replace(
        alone,
        hosts=("a", "b", "c"),
        link=MeasuredLink(3, {k: ((1000, 0.1), (2000, 0.15)) for k in ("gather", "reduce")}),
    )
    for probe in (alone, linked):
        assert Probe.from_json(json.loads(json.dumps(probe.to_json()))) == probe


@each("change", [{"format": 99}, {"work_s": "long"}, {"schemes": [{}]}, {"run": "krum(f=1)"}, {"hosts": None}])
def test_a_damaged_document_is_an_error(alone, change):
    with pytest.raises(ValueError, match=r"x\.json (is damaged|has format)"):
        Probe.from_json({**alone.to_json(), **change}, "x.json")
    with pytest.raises(ValueError, match="is no probe"):
        Probe.from_json([], "x.json")


def test_compression_pays_on_a_slow_link_only():
    slow, fast = advise(PROBE, Line(1e-4, bandwidth("100Mbit")), 4), advise(PROBE, Line(1e-5, bandwidth("100Gbit")), 4)
    assert slow.sentence.startswith(f"Use {QSGD} (unbiased)") and slow.lines[1].speedup > 2
    assert fast.sentence.startswith("Do not compress") and fast.lines[1].speedup < 1
    (ends,) = {
        line.ends for advice in (slow, fast) for line in advice.lines[1:] if line.cost is CODED and advice is slow
    }
    assert bandwidth("100Mbit") < ends.bandwidth < bandwidth("100Gbit")


def test_a_biased_favourite_is_named_beside_the_best_unbiased_one():
    sign = cost(
        repr(px.codecs.signum()), (Message("gather", 8), Message("gather", 1.25e6)), encode_s=0.001, decode_s=0.001
    )
    sentence = advise(replace(PROBE, costs=(DENSE, CODED, sign)), Line(1e-4, 12.5e6), 4).sentence
    assert "majority()) (biased)" in sentence and f"of the unbiased ones {QSGD}" in sentence


def test_schemes_that_were_not_probed_are_an_error():
    assert [c.scheme for c in chosen(PROBE, [QSGD]).costs] == [PLAIN, QSGD]
    with pytest.raises(ValueError, match=r"did not measure .*power_sgd"):
        chosen(PROBE, ["power_sgd(rank=2)"])


def test_a_run_is_checked_against_its_prediction(tmp_path):
    """A written run of exactly the predicted seconds has no error, one of twice as long -50 %."""
    link = Line(1e-4, 12.5e6)
    step = predict(CODED, PROBE.work_s, link, 2)
    run = replace(RUN, phases=(replace(RUN.phases[0], scheme=px.parse(QSGD)),))
    for name, factor in (("exact", 1), ("slow", 2)):
        folder = px.training.RunFolder(tmp_path / name)
        folder.begin(repr(run))
        line = {part: factor * getattr(step, part) for part in ("work_s", "encode_s", "wire_s", "decode_s", "finish_s")}
        line["scheme_s"] = factor * (step.encode_s + step.wire_s + step.decode_s + step.rule_s)
        for i in range(8):
            warm = 10 if i < 3 else 1
            folder.log({"step": i, "bytes_up": 2 * 6.25e6, **{k: warm * v for k, v in line.items()}})
        folder.close()
    exact, slow = check(PROBE, link, [tmp_path / "exact", tmp_path / "slow"])
    assert exact.error == pytest.approx(0, abs=1e-9) and slow.error == pytest.approx(-0.5)
    assert exact.sent_bytes == 6.25e6 and exact.workers == 2
    with pytest.raises(ValueError, match="model is mlp"):
        check(replace(PROBE, run=replace(RUN, model=px.models.lenet())), link, [tmp_path / "exact"])
    with pytest.raises(ValueError, match="did not measure"):
        check(replace(PROBE, costs=(DENSE,)), link, [tmp_path / "exact"])


def test_the_commands(tmp_path):
    file = tmp_path / "probe.json"
    tiny = ["--model", "mlp(hidden=())", "--data", "digits", "--batch", "8", "--repeats", "1"]
    ran = invoke("probe", *tiny, "--scheme", QSGD, "--out", str(file))
    assert "link unknown" in ran and "qsgd" in ran
    plain = json.loads(invoke("advise", str(file), "--bandwidth", "1Mbit", "--workers", "3", "--json"))
    assert [row["scheme"] for row in plain["schemes"]] == [PLAIN, QSGD]
    assert (
        plain["workers"] == 3 and plain["schemes"][0]["speedup"] == 1 and math.isfinite(plain["schemes"][1]["step_s"])
    )
    alike = invoke("advise", "--bandwidth", "1Gbit", "--workers", "3", "--step-time", "50ms", *tiny, "--scheme", QSGD)
    assert "never" in alike and "not the number of steps" in alike and "50 ms" in alike


def test_steps_of_more_and_more_workers(tmp_path):
    file, plot = tmp_path / "probe.json", tmp_path / "out" / "scaling.png"
    vote = px.parse("chain(vote(qsgd(), r=3), mean())")
    measured = measure(RUN, [px.parse(QSGD), vote], Processes(), repeats=1, workers=4)
    file.write_text(json.dumps(measured.to_json()))
    asked = ["advise", str(file), "--bandwidth", "10Mbit", "--workers", "4", "--scale-to", "20"]
    grown = json.loads(invoke(*asked, "--simulate", "--plot", str(plot), "--json"))
    assert [column["workers"] for column in grown["scales"]] == [4, 8, 16, 20]
    assert plot.read_bytes().startswith(b"\x89PNG")
    for column in grown["scales"]:
        alone = json.loads(invoke(*asked[:4], "--workers", str(column["workers"]), "--json"))
        for row, single in zip(column["schemes"], alone["schemes"], strict=True):
            assert {key: row[key] for key in single} == single
            assert 0.5 < row["simulated_s"] / row["step_s"] <= 1 + 1e-9
    d = measured.parameters
    assert [row["rows_bytes"] for row in grown["scales"][2]["schemes"]] == [4 * d, 4 * d, 5 * 4 * d]
    slow = json.loads(invoke(*asked, "--simulate", "--stragglers", "2", "--step-time", "1s", "--json"))
    assert slow["scales"][0]["schemes"][0]["simulated_s"] > slow["scales"][0]["schemes"][0]["step_s"]
    table = invoke(*asked, "--simulate", "--server")
    assert "Best: " in table and "rows at 20" in table and table.count("simulated") == 3
    plain = json.loads(invoke(*asked[:6], "--scheme", QSGD, "--json"))
    served = json.loads(invoke(*asked[:6], "--server", "--scheme", QSGD, "--json"))
    assert served["server"] and served["schemes"][0] == plain["schemes"][0] != served["schemes"][1]


def test_a_server_s_table_names_what_it_cannot_take():
    powers = cost("power_sgd(rank=2)", (Message("gather", 8), Message("reduce", 1e6)))
    found, left = at_server(replace(PROBE, costs=(DENSE, CODED, powers)))
    assert [c.served for c in found.costs] == [False, True] and left == ("power_sgd(rank=2)",)
    assert found.costs[0] is DENSE


def test_the_best_scheme_by_number_of_workers():
    """A gathered code wins among few and loses among many; the all-reduce does not grow."""
    probe = replace(PROBE, costs=(DENSE, replace(CODED, efforts=(Effort(2, 0, 0, 0, 0, 0),))))
    grown = grow(probe, Line(0.0, 12.5e6), (2, 4, 8, 16, 64), None)
    assert grown.best == [(2, 8, QSGD), (16, 64, PLAIN)] and grown.simulated is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["advise"], "needs a probe, or --bandwidth and --workers"),
        (["advise", "--bandwidth", "1Gbit", "--workers", "1"], "at least 2"),
        (["advise", "--bandwidth", "fast", "--workers", "4"], "such as 100Mbit"),
        (["advise", "--bandwidth", "1Gbit", "--workers", "4", "--latency", "5"], "such as 0.1ms"),
        (["advise", "--bandwidth", "1Gbit", "--workers", "4", "--model", "lenett"], "did you mean lenet"),
        (["advise", "--bandwidth", "1Gbit", "--workers", "4", "--model", "digits"], "--model takes a model"),
        (["advise", "--bandwidth", "1Gbit", "--workers", "4", "--scheme", "krum(f=1)"], "crosses the wire"),
        (["advise", "--latency", "1ms"], "give both"),
        (["advise", "absent.json"], "absent.json is not there; check the path"),
        (["advise", "--check"], "needs a probe and runs"),
        (["advise", *GIVEN, "--scale-to", "4"], "a larger number, got 4"),
        (["advise", *GIVEN, "--simulate"], "add --scale-to N"),
        (["advise", *GIVEN, "--plot", "x.png"], "add --scale-to N"),
        (["advise", *GIVEN, "--scale-to", "8", "--stragglers", "0.1"], "add --simulate"),
        (["advise", *GIVEN, "--scale-to", "8", "--simulate", "--stragglers", "-1"], "a ratio >= 0"),
        (["advise", "probe.json", "run", "--check", "--server"], "leave out --server"),
        (["advise", "--byzantine", "1", "--workers", "9", "--scale-to", "18"], "--scale-to about step times"),
        (["probe", "--batch", "0"], "at least 1 example"),
        (["probe", "quikstart"], "did you mean quickstart"),
        (["probe", "quickstart", "--model", "lenet"], "leave out --model"),
        (["probe", "--only", "mean"], "belong to a recipe"),
    ],
)
def test_an_error_is_a_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert words in result.stderr and result.stderr.startswith("error: ")


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return result.stdout


def test_a_link_without_a_slope_says_so():
    level = tuple((size, 1e-3) for size in (10, 100, 1000, 10_000))
    steep = tuple((size, 1e-3 + size / 1e6) for size in (10_000, 100_000, 1_000_000))
    link = MeasuredLink(2, {"gather": steep, "reduce": level})
    assert link.line("gather").has_slope and not link.line("reduce").has_slope
    probe = SimpleNamespace(run=SimpleNamespace(model="mlp"), parameters=3, batch=2, work_s=1.0)
    words = probe_options.describe(probe, link, measured=True)
    assert "Tbit/s" not in words and "all-reduce a bandwidth too high to tell and" in words
