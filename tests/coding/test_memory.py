# SPDX-License-Identifier: Apache-2.0
"""Memory and redundancy: who misses a round is never accused for it, as nobody before a vote remembers anything."""

import pytest
import torch

import phalanx as px
from phalanx.core.stage import Chain
from tests.cases import each

BEHIND = (
    "chain(vote(qsgd(bits=4), r=3), momentum(beta=0.5), mean())",
    "chain(vote(dense(), r=3), momentum(beta=0.5), hierarchy(mean(), median(), groups=3))",
    "chain(gather(dense()), group_vote(r=3), momentum(beta=0.5), mean())",
    "chain(gather(dense()), repetition(r=3), momentum(beta=0.5))",
)
REFUSED = (
    "chain(momentum(), vote(dense(), r=3), mean())",
    "chain(vote(error_feedback(top_k(ratio=0.1)), r=3), mean())",
    "chain(momentum(), gather(dense()), group_vote(r=3), mean())",
    "chain(gather(error_feedback(sign(scaled=True))), repetition(r=3))",
    "chain(momentum(), gather(dense()), split_by_part(chain(group_vote(r=3), mean()), median()))",
    "detox(3, mean(), median(), groups=3, codec=error_feedback(half()))",
    "chain(momentum(), cyclic(s=2))",
)
RUN = (
    "run(digits(), mlp(hidden=(8,)), phases=(phase(gradient(batch=90), chain(reverse(), {scheme}), sgd(lr=0.1), "
    "rounds=6),), workers=9, byzantine={byzantine}, faults={faults}, seed=3)"
)


def outvoted(stack):
    return {note.worker for note in stack.notes if note.kind == "outvoted"}


def rounds_of(stage, missing_at, rounds=5, n=9, missing=4):
    """The stacks of some rounds; in one of them one honest worker takes no part."""
    state, stacks = None, []
    for index in range(rounds):
        round = px.Round(index, world=px.LocalCollective(n))
        allocation = stage.assign(n, 0, index)
        units = torch.randn(n // 3, 6, generator=torch.Generator().manual_seed(index))
        stack = px.Stack.of(allocation.weights_matrix.float() @ units)
        keep = [worker for worker in range(n) if index != missing_at or worker != missing]
        out, state = Chain(stage.stages)(stack.pick(keep), state, round)
        stacks.append(out)
    return stacks


@each("scheme", REFUSED)
def test_a_memory_at_workers_that_compute_the_same_is_refused(scheme):
    with pytest.raises(ValueError, match=r"keeps a memory at each worker.* put momentum behind the wire"):
        px.Phase(px.training.gradient(), px.parse(scheme)).check(9)


def test_why_it_is_refused_one_missed_round_sets_a_worker_apart():
    before = px.parse("chain(momentum(beta=0.9), group_vote(r=3), mean())")
    stacks = rounds_of(before, missing_at=1)
    assert [outvoted(stack) for stack in stacks] == [set(), set(), {4}, {4}, {4}]


@each("placement", ["", ", placement=random_order(every=1)"])
def test_who_misses_a_round_is_not_accused_afterwards(placement):
    behind = px.parse(f"chain(group_vote(r=3{placement}), momentum(beta=0.9), mean())")
    whole, stacks = rounds_of(behind, missing_at=None), rounds_of(behind, missing_at=1)
    for one, other in zip(whole, stacks, strict=True):
        assert outvoted(other) == set() and other.rows.equal(one.rows)


@each("scheme", BEHIND)
def test_momentum_behind_the_vote_is_that_of_each_group_whoever_wins_and_whoever_is_late(scheme):
    def summary(byzantine="none()", faults="()"):
        return px.train(px.parse(RUN.format(scheme=scheme, byzantine=byzantine, faults=faults))).summary()

    free = summary()
    lied = summary("random(1, every=1)")
    late = summary(faults="(crash(worker=4, at=2),)")
    assert free["weights_sha256"] == lied["weights_sha256"] == late["weights_sha256"]
    assert lied["lost_groups"] == 0


def test_momentum_behind_a_vote_is_momentum_before_it():
    """Groups have memories of their own, which all of them shared once."""
    behind = px.parse("chain(group_vote(r=3), momentum(beta=0.9), median())")
    before = px.parse("chain(momentum(beta=0.9), group_vote(r=3), median())")
    for one, other in zip(rounds_of(behind, None), rounds_of(before, None), strict=True):
        assert one.rows.equal(other.rows)


def test_rows_of_several_workers_without_a_vote_have_no_memory_of_their_own():
    stage = px.chain(px.aggregators.bucketing(size=2), px.momentum(0.9), px.aggregators.mean())
    with pytest.raises(ValueError, match="rows of single workers or of votes"):
        stage(px.Stack.of(torch.randn(6, 3)), None, px.Round())


def test_a_codec_that_remembers_in_silence_is_told_to_say_so():
    class Hoarder(type(px.codecs.dense())):
        def encode(self, row, layout, state, rng):
            return {"values": row}, {"seen": torch.ones(1)}

    with pytest.raises(ValueError, match="let its property `remembers` be True"):
        px.gather(Hoarder())(px.Stack.of(torch.ones(2, 3)), None, px.Round(world=px.LocalCollective(2)))
