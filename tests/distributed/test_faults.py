"""Every rule, in every world, with f bad rows of every kind: a finite result, the offenders named."""

import math

import pytest

import phalanx as px
from tests.cases import each
from tests.distributed.faults import outcome
from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes

N, BYZANTINE = 11, [3, 8]
RULES = [
    "mean()",
    "median()",
    "trimmed_mean(f=2)",
    "trimmed_mean(ratio=0.2)",
    "geometric_median()",
    "krum(f=2)",
    "multi_krum(f=2)",
    "bulyan(f=2)",
    "bulyan(f=2, one_shot=True)",
    "majority()",
    "centered_clip()",
    "chain(nnm(f=2), mean())",
    "chain(bucketing(size=2), median())",
    "hierarchy(mean(), median(), groups=3)",
    "chain(group_vote(r=3), mean())",
]
KINDS = ["short", "long", "dtype", "keys", "missing", "random", "weight", "negative_weight"]
FAULTS = [
    "chain({attack}, gather(dense()), {rule})".replace("{attack}", attack)
    for attack in ("nan()", "constant(inf)", "constant(1e30)")
] + [f"chain(gather(dense(), forge=malformed('{how}')), {{rule}})" for how in KINDS]
SCHEMES = [fault.replace("{rule}", rule) for rule in RULES for fault in FAULTS]


@pytest.fixture(scope="module")
def over_gloo(tmp_path_factory):
    task = {"workers": N, "byzantine": BYZANTINE, "schemes": [repr(px.parse(s)) for s in SCHEMES]}
    return run_job(3, "job_faults.py", task, tmp_path_factory.mktemp("faults"))


@each("scheme", SCHEMES)
def test_finite_and_named_in_every_world(over_gloo, scheme):
    scheme = repr(px.parse(scheme))
    here = outcome(scheme, px.LocalCollective(N), BYZANTINE)
    assert all(math.isfinite(x) for x in here["row"])
    assert max(map(abs, here["row"])) < 10
    assert here["excluded"] == BYZANTINE
    assert over_gloo[scheme] == here
