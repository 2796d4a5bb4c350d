# SPDX-License-Identifier: Apache-2.0
"""Where workers stand in a code: independent of who lies, spread over hosts, and of no effect on an honest run."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.aggregators.kernels.shuffle import even_groups
from phalanx.coding import odds
from phalanx.distributed.backend import Loopback
from tests.cases import each

STAGES = ("vote(dense(), r={r}{more})", "group_vote(r={r}{more})", "repetition(r={r}{more})")


def groups_of(stage, n, seed=0, index=0):
    units = stage.assign(n, seed, index).units
    return [{worker for worker in range(n) if units[worker] == (unit,)} for unit in range(n // stage.r)]


def lost(stage, n, liars, seed):
    """Whether the liars have the majority of a group."""
    return any(2 * len(group & liars) > len(group) for group in groups_of(stage, n, seed))


@each("stage", STAGES)
def test_neighbouring_ranks_share_a_group_only_as_often_as_others(stage):
    """Ranks 0, 1, 2 run on one host. In the order of the ranks they are one group, in every run."""
    rule = px.parse(stage.format(r=3, more=""))
    shared = sum(lost(rule, 15, {0, 1}, seed) for seed in range(400))
    # 2 of 14 others share a group with rank 0
    assert 0.08 < shared / 400 < 0.21
    assert all(lost(px.parse(stage.format(r=3, more=", placement=in_order()")), 15, {0, 1}, seed) for seed in range(3))


@each(("n", "q", "percent"), [(15, 3, 41), (9, 2, 25)])
@each("adversary", [px.adversary.random, px.adversary.evenly_spaced, lambda q: px.adversary.workers(tuple(range(q)))])
def test_whoever_lies_the_odds_of_a_lost_group_are_the_real_ones(n, q, percent, adversary):
    rule, runs = px.coding.group_vote(r=3), 600
    seen = sum(lost(rule, n, adversary(q).at(0, n, seed), seed) for seed in range(runs)) / runs
    real = odds.probability_above(n, q, 3, tolerance=0)
    assert round(100 * real) == percent
    assert abs(seen - real) < 4 * (real * (1 - real) / runs) ** 0.5


def test_places_stay_for_a_run_or_are_drawn_anew():
    kept, anew = px.coding.group_vote(r=3), px.coding.group_vote(r=3, placement=px.coding.random_order(every=2))
    assert groups_of(kept, 12, 5, 0) == groups_of(kept, 12, 5, 9) != groups_of(kept, 12, 6, 0)
    rounds = [groups_of(anew, 12, 5, index) for index in range(8)]
    assert rounds[0] == rounds[1] and len({str(groups) for groups in rounds}) == 4
    assert px.parse(repr(anew)) == anew and repr(kept) == "group_vote(r=3)"


def test_the_own_loop_is_told_the_units_of_the_round():
    scheme = px.parse("chain(vote(dense(), r=3, placement=random_order(every=1)), mean())")
    world = px.ProcessGroupCollective(backend=Loopback(4, 9, torch.device("cpu")))
    exchange = px.exchange(torch.nn.Linear(2, 2), scheme, world=world, seed=4)
    for index in range(6):
        exchange.session.index = index
        assert [unit for unit, _ in exchange.units] == list(scheme.assign(9, 4, index).units[4])


@given(st.lists(st.integers(1, 4), min_size=3, max_size=8), st.sampled_from((3, 5)), st.integers(0, 50))
def test_a_host_that_is_taken_over_wins_no_group(sizes, r, seed):
    hosts = tuple(host for host, size in enumerate(sizes) for _ in range(size))
    n = len(hosts)
    if n < r:
        return
    rule = px.coding.group_vote(r=r, placement=px.coding.by_host(hosts))
    count = n // r
    if 2 * -(-max(sizes) // count) >= n // count:
        with pytest.raises(ValueError, match="take a larger r, more hosts, or random_order"):
            rule.assign(n, seed)
        return
    groups = groups_of(rule, n, seed)
    assert sorted(map(len, groups)) == sorted(map(len, even_groups(n, count)))
    for host, size in enumerate(sizes):
        own = {worker for worker in range(n) if hosts[worker] == host}
        assert max(len(group & own) for group in groups) <= -(-size // count)
        assert not lost(rule, n, own, seed)


def test_hosts_without_groups_are_far_apart():
    hosts = ("a",) * 3 + ("b",) * 3 + ("c",) * 3
    for seed in range(20):
        positions = px.coding.by_host(hosts).positions(9, seed)
        assert sorted(positions) == list(range(9))
        for host in "abc":
            own = sorted(position for position, name in zip(positions, hosts, strict=True) if name == host)
            assert min((b - a) % 9 for a, b in zip(own, own[1:] + own[:1], strict=True)) >= 2


@each(
    ("text", "words"),
    [
        ("by_host(())", "got none"),
        ("by_host((0, 1), every=-1)", "every=-1"),
        ("random_order(every=-2)", "every=-2"),
        ("group_vote(r=3, placement=mean())", "placement must be an object of Placement"),
    ],
)
def test_wrong_placements(text, words):
    with pytest.raises(ValueError, match=words):
        px.parse(text)


def test_hosts_of_other_workers_are_refused_before_a_run():
    scheme = px.parse("chain(gather(dense()), group_vote(r=3, placement=by_host((0, 0, 1, 1, 2, 2))), mean())")
    assert scheme.rows_out(6) == 1
    with pytest.raises(ValueError, match="names the hosts of 6 workers, and there are n=9"):
        scheme.rows_out(9)


RUN = (
    "run(digits(), mlp(hidden=(8,)), phases=(phase(gradient(batch=90), chain(reverse(), {scheme}), sgd(lr=0.1), "
    "rounds=4),), workers=9, byzantine={byzantine}, seed=3)"
)
SCHEMES = (
    "vote(qsgd(bits=4), r=3{more}), mean()",
    "gather(dense()), group_vote(r=3{more}), mean()",
    "gather(dense()), repetition(r=3{more})",
    "vote(dense(), r=3{more}), hierarchy(mean(), median(), groups=3)",
)


@each("scheme", SCHEMES)
def test_an_honest_run_ends_with_the_same_bits_wherever_workers_stand(scheme):
    def sha(more, byzantine="none()"):
        text = RUN.format(scheme=scheme.format(more=more), byzantine=byzantine)
        return px.train(px.parse(text)).summary()["weights_sha256"]

    plain = sha(", placement=in_order()")
    assert sha("") == plain == sha(", placement=random_order(every=1)")
    # and whoever lies, while no group is lost
    assert sha("", "random(1, every=1)") == plain


def test_counts_of_group_sizes_are_those_of_the_odds():
    for n in (9, 10, 11, 17):
        sizes = Counter(map(len, groups_of(px.coding.group_vote(r=3), n)))
        assert sizes == odds._sizes(n, 0, 3)
