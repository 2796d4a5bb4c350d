# SPDX-License-Identifier: Apache-2.0
"""The simulated step: its bytes, its order, and that the formulas of the cost model agree with it where they should."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.coding.vote import DIGEST_BYTES
from phalanx.tools.advisor.link import PAYLOAD_RATIO, Line
from phalanx.tools.advisor.model import Cost, Effort, Message, predict
from phalanx.tools.advisor.quality import PLAIN, quality
from phalanx.tools.advisor.served import served
from phalanx.tools.advisor.simulation import HALVES, WHOLE, Network, queued, simulate, straggling
from tests.cases import draws, each

QSGD = "chain(gather(qsgd()), mean())"
VOTE = "chain(vote(qsgd(), r=3), mean())"
D = 100_000  # entries of the model
SLOW, FAST = Line(4e-4, 12.5e6), Line(5e-5, 1.25e9)
WORKERS = (16, 32, 64, 128, 256, 512, 1024)


def cost(scheme: str, *messages: Message, decode_s: float = 0.0) -> Cost:
    efforts = tuple(Effort(n, 2e-3, 1e-4, decode_s * n, 1e-4, 1e-3) for n in (2, 6))
    return Cost(scheme, quality(px.parse(scheme)), messages[-1].bytes, messages, efforts)


DENSE = cost(PLAIN, Message("gather", 8), Message("reduce", 4 * D))
CODED = cost(QSGD, Message("gather", 8), Message("gather", D / 4), decode_s=2e-4)
VOTED = cost(VOTE, Message("gather", 8), Message("gather", 60), Message("gather", 8), Message("gather", D / 4 + 32))
SERVED = [served(cost("chain(gather(dense()), mean())", Message("gather", 4 * D)), D), served(CODED, D)]
SERVED.append(served(VOTED, D))
SCHEMES = [DENSE, CODED, VOTED, *SERVED]
NAMES = ["dense", "qsgd", "vote", "dense at a server", "qsgd at a server", "vote at a server"]
each_scheme = pytest.mark.parametrize("costs", SCHEMES, ids=NAMES)
times = st.floats(0, 10)


@given(
    st.lists(st.tuples(st.integers(0, 3), times, times), min_size=1, max_size=30),
    st.lists(times, min_size=4, max_size=4),
)
def test_a_queue_serves_one_after_the_other(jobs, free):
    places, ready, spent = (np.array(column) for column in zip(*jobs, strict=True))
    left = np.array(free)
    begun = queued(places, ready, spent, left)
    until = list(free)
    for i in sorted(range(len(jobs)), key=lambda i: (ready[i], i)):
        at = max(ready[i], until[places[i]])
        assert begun[i] == pytest.approx(at)
        until[places[i]] = at + spent[i]
    assert left == pytest.approx(until)


@each("line", [SLOW, FAST])
@each("n", WORKERS)
@pytest.mark.parametrize("costs", [DENSE, CODED, VOTED], ids=NAMES[:3])
def test_the_formulas_of_rings_are_exact_for_messages_that_travel_whole(costs, n, line):
    told = predict(costs, 0.05, line, n).seconds
    assert simulate(costs, 0.05, line, n, parts=WHOLE).seconds == pytest.approx(told, rel=1e-9)


@each("line", [SLOW, FAST])
@each("n", WORKERS)
@pytest.mark.parametrize("costs", SERVED, ids=NAMES[3:])
def test_the_formulas_of_a_server_are_those_of_its_line(costs, n, line):
    """Within a turn of 32: the first workers have the model a turn before the last ones."""
    told = predict(costs, 0.05, line, n).seconds
    found = simulate(costs, 0.05, line, n).seconds
    assert 0.94 * told <= found <= told * (1 + 1e-9)


@given(
    n=st.integers(2, 12),
    size=st.floats(1, 1e7),
    latency=st.floats(0, 1e-2),
    rate=st.floats(1e5, 1e10),
    kind=st.sampled_from(["gather", "reduce"]),
)
def test_halves_in_flight_save_at_most_a_third(n, size, latency, rate, kind):
    """While one half is on its way the other leaves, so that a latency may be hidden; the formula is never too low."""
    line = Line(latency, rate)
    costs = replace(DENSE, messages=(Message(kind, size),))
    told = predict(costs, 0, line, n).seconds
    found = simulate(costs, 0, line, n, parts=HALVES).seconds
    assert found <= told * (1 + 1e-9)
    assert found >= 2 / 3 * told


@each_scheme
@each("n", [3, 7, 16])
def test_every_line_carries_the_bytes_of_the_formula(costs, n):
    found = simulate(costs, 0.05, SLOW, n)
    assert found.sent_bytes.sum() == pytest.approx(found.received_bytes.sum())
    if not costs.served:
        for carried in (found.sent_bytes, found.received_bytes):
            assert carried == pytest.approx(np.full(n, sum(m.volume(n) for m in costs.calls)))
        return
    for kind, carried in (("spread", found.sent_bytes[-1]), ("collect", found.received_bytes[-1])):
        assert carried == pytest.approx(sum(m.volume(n) for m in costs.calls if m.kind == kind))


@each_scheme
@draws(30)
@given(
    n=st.integers(3, 10),
    factor=st.floats(1, 10),
    latency=st.floats(0, 1e-2),
    rate=st.floats(1e5, 1e9),
    ratios=st.lists(st.floats(0.1, 2), min_size=11, max_size=11),
)
def test_more_bytes_slower_lines_and_more_latency_never_make_a_step_shorter(costs, n, factor, latency, rate, ratios):
    def seconds(given: Cost, line: Line, ratios: list[float]) -> float:
        return simulate(given, 0.05, line, n, Network(ratios[: n + given.served])).seconds

    line = Line(latency, rate)
    have = seconds(costs, line, ratios) * (1 - 1e-9)
    longer = replace(costs, messages=tuple(replace(m, bytes=factor * m.bytes) for m in costs.messages))
    assert seconds(longer, line, ratios) >= have
    assert seconds(costs, Line(latency, rate / factor), ratios) >= have
    assert seconds(costs, Line(latency * factor, rate), ratios) >= have


def test_one_worker_sends_nothing():
    for costs in (DENSE, CODED, VOTED):
        alone = simulate(costs, 0.05, SLOW, 1)
        effort = costs.at(1)
        assert alone.sent_bytes.sum() == alone.received_bytes.sum() == 0
        parts = effort.encode_s + effort.pack_s + effort.decode_s + effort.rule_s + effort.finish_s
        assert alone.seconds == pytest.approx(0.05 + parts)


@each_scheme
def test_stragglers_cost_at_most_what_the_slowest_does(costs):
    works = straggling(0.1, 0.3, 32, np.random.default_rng(0))
    found = simulate(costs, works, SLOW, 32).seconds
    # a queue at a server hides them
    assert costs.served or simulate(costs, works.mean(), SLOW, 32).seconds < found
    assert found <= simulate(costs, works.max(), SLOW, 32).seconds * (1 + 1e-9)


def test_a_ring_goes_at_the_pace_of_its_slowest_line_and_a_server_does_not():
    ratios = np.ones(33)
    ratios[5] = 0.25
    quarter = Line(0.0, SLOW.bandwidth / 4)
    slowed = simulate(DENSE, 0.0, Line(0.0, SLOW.bandwidth), 32, Network(ratios[:32])).seconds
    assert slowed == pytest.approx(predict(DENSE, 0.0, quarter, 32).seconds, rel=0.01)
    at_server = simulate(SERVED[0], 0.0, SLOW, 32, Network(ratios)).seconds
    assert at_server == pytest.approx(predict(SERVED[0], 0.0, SLOW, 32).seconds, rel=0.1)
    ratios[-1], ratios[5] = 0.25, 1.0
    at_server = simulate(SERVED[0], 0.0, SLOW, 32, Network(ratios)).seconds
    assert at_server == pytest.approx(predict(SERVED[0], 0.0, quarter, 32).seconds, rel=0.1)


def test_hosts_that_share_cores_wait_for_them():
    small = replace(CODED, messages=(Message("gather", 100),))
    alone, shared = (simulate(small, 0.0, SLOW, 16, Network(np.ones(16), 1e-4, cores)).seconds for cores in (None, 2))
    assert alone == pytest.approx(simulate(small, 0.0, Line(5e-4, SLOW.bandwidth), 16).seconds, rel=0.02)
    # 16 hosts, two halves each, two gathers of 15 hops, on two cores
    assert shared >= 16 * 2 * 2 * 15 / 2 * 1e-4


def test_random_lengths_are_padded_to_the_longest():
    spread = replace(CODED, messages=(Message("gather", 1e5, 5e3),))
    rng = np.random.default_rng(0)
    found = np.mean([simulate(spread, 0.0, SLOW, 64, parts=WHOLE, rng=rng).seconds for _ in range(50)])
    assert found == pytest.approx(predict(spread, 0.0, SLOW, 64).seconds, rel=0.01)


def test_a_server_takes_what_the_scheme_sends():
    assert [m.kind for m in SERVED[2].messages] == ["spread", "collect", "spread", "collect"]
    assert SERVED[2].messages[0].bytes == 4 * D and SERVED[2].messages[1].bytes == DIGEST_BYTES
    # 16 workers in groups of 3: five payloads
    payload = VOTED.sent_bytes - DIGEST_BYTES
    assert SERVED[2].messages[3].volume(16) == pytest.approx(5 * payload)
    tolerant = replace(VOTED, scheme="chain(vote(dense(), r=3, atol=0.1), mean())")
    assert [m.kind for m in served(tolerant, D).messages] == ["spread", "collect"]
    with pytest.raises(ValueError, match="all-reduce"):
        served(DENSE, D)
    line = Line(1e-3, 1e6)
    step = predict(SERVED[1], 0.5, line, 8)
    assert step.work_s == 0.5
    carried = 8 * (4 * D + D / 4) / (PAYLOAD_RATIO * 1e6) + 2e-3
    assert step.wire_s == pytest.approx(carried + SERVED[1].at(8).pack_s)


@each(
    ("make", "words"),
    [
        (lambda: Network([1.0, 0.0]), "above zero"),
        (lambda: Network([]), "needs hosts"),
        (lambda: Network([1.0], touch_s=-1), "no negative time"),
        (lambda: Network([1.0], cores=0), "at least one core"),
        (lambda: simulate(SERVED[0], 0.0, SLOW, 4, Network(np.ones(4))), "needs 5 hosts, got 4"),
    ],
)
def test_what_cannot_be_simulated_is_an_error(make, words):
    with pytest.raises(ValueError, match=words):
        make()
