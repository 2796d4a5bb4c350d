# SPDX-License-Identifier: Apache-2.0
"""Stages in a place where they do nothing, and seeds that differ between processes, are refused."""

import numpy as np
import pytest
import torch

import phalanx as px
from phalanx.core.round import make_generator
from tests.cases import each


@each(
    ("scheme", "sentence"),
    [
        ("median(), gather(dense())", r"median\(\) stands before the wire and sees one row; put it behind gather"),
        ("mean(), gather(dense())", r"mean\(\) stands before the wire and sees one row; put it behind gather"),
        ("trimmed_mean(f=0), reduce(dense())", r"trimmed_mean\(f=0\) stands before the wire"),
        ("nnm(f=1), gather(dense()), mean()", r"nnm\(f=1\) stands before the wire"),
        ("matched(), gather(dense()), mean()", r"matched\(\) stands before the wire"),
        ("group_vote(r=3), gather(dense()), mean()", r"group_vote\(r=3\) stands before the wire"),
        (
            "reduce(dense()), median()",
            r"median\(\) stands behind reduce\(dense\(\)\) and sees the mean of all rows only",
        ),
        ("reduce(dense()), mean()", r"mean\(\) stands behind reduce"),
        ("power_sgd(), trimmed_mean(f=0)", r"trimmed_mean\(f=0\) stands behind power_sgd\(\)"),
        ("reduce(dense()), reverse()", r"reverse\(\) stands behind reduce"),
        ("noise(std=1.0), cyclic(s=1)", r"cyclic\(s=1\) compares rows bit for bit, and noise\(std=1.0\) does not keep"),
        ("gather(qsgd()), repetition(r=3)", r"repetition\(r=3\) compares rows bit for bit, and gather\(qsgd\(\)\)"),
        ("gather(error_feedback(random_k())), group_vote(r=3), mean()", r"group_vote\(r=3\) compares rows"),
        ("noise(std=1.0), vote(dense(), r=3), mean()", r"vote\(dense\(\), r=3\) compares rows .* noise\(std=1.0\)"),
    ],
)
def test_a_stage_in_a_place_where_it_can_do_nothing_is_refused(scheme, sentence):
    with pytest.raises(ValueError, match=sentence):
        px.parse(f"chain({scheme})")


@each(
    "scheme",
    [
        "chain(clip(norm=1.0), reduce(dense()), noise(std=0.1), momentum())",
        "chain(alie(), gather(qsgd()), nnm(f=1), median())",
        "chain(gather(dense()), reverse(), mean())",
        "chain(reverse(), cyclic(s=1))",
        "chain(momentum(), gather(half()), repetition(r=3))",
        "chain(gather(qsgd()), group_vote(r=3, rtol=0.1), mean())",
        "chain(vote(qsgd(), r=3), median())",
        "chain(nnm(f=1), median())",
    ],
)
def test_schemes_whose_stages_stand_right_are_made(scheme):
    assert px.parse(scheme) == px.parse(repr(px.parse(scheme)))


@each("seed", [torch.Generator().manual_seed(0), torch.tensor(3), object(), (0, torch.Generator()), b"0"])
def test_a_seed_that_differs_between_processes_is_refused(seed):
    calls = [
        lambda: make_generator("shuffle", seed),
        lambda: px.Round(seed=seed).rng(1),
        lambda: px.data.iid().split(torch.arange(9), 3, seed),
        lambda: px.data.dirichlet(1.0).split(torch.arange(99) % 2, 3, seed),
        lambda: px.data.shards().split(torch.arange(99) % 2, 3, seed),
        lambda: px.aggregators.bucketing(size=2).aggregate(torch.ones(4, 2), seed=seed),
        lambda: px.adversary.random(2).at(0, 5, seed),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="made of numbers and strings"):
            call()


def test_a_seed_of_numpy_gives_the_numbers_of_the_same_seed():
    numbers = [torch.rand(3, generator=make_generator("a", seed)) for seed in (7, np.int64(7))]
    assert torch.equal(*numbers)
