# SPDX-License-Identifier: Apache-2.0
"""Accusations under DDP: the buckets of a step are judged together, and who is convicted is left out on every rank."""

import pytest

from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_job(4, "job_accused.py", {}, tmp_path_factory.mktemp("accused"))


def test_every_rank_names_the_liar_in_two_steps_and_leaves_it_out(ranks):
    # DDP makes one bucket in the first step, and two from then on
    assert ranks[0]["rounds"] == 1 + 4 * 2
    for seen in ranks:
        assert seen["accused"] == [[1, 1, "length"], [2, 1, "length"]]
        assert seen["excluded"] == [[step, 1, "left out: accused in 2 rounds"] for step in (3, 3, 4, 4)]
        # of three rows none is compared
        assert seen["tested"] == dict.fromkeys("0123", 3)
        assert seen["weights"] == ranks[0]["weights"]
