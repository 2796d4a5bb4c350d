# SPDX-License-Identifier: Apache-2.0
"""What `explain` says of a scheme, against rounds that were metered."""

import json

import pytest
import torch
from typer.testing import CliRunner

import phalanx as px
from phalanx.core.stack import Stack
from phalanx.tools.advisor.quality import DEFAULTS
from phalanx.tools.cli.app import app
from tests.cases import each

D = 4000


def invoke(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def metered(scheme, n, d=D):
    """The bytes of each worker in a round of the simulation."""
    rows = torch.randn(1, d, generator=torch.Generator().manual_seed(5)).expand(n, -1).clone()
    world = px.LocalCollective(n)
    out, _ = px.parse(scheme)(Stack.of(rows), None, px.Round(world=world))
    return [sum(note.value for note in out.notes if note.kind == "bytes" and note.worker == w) for w in range(n)]


@each(
    ("scheme", "n"),
    (
        ("chain(reduce(half()))", 3),
        ("chain(gather(qsgd(bits=4)), krum(f=2))", 15),
        ("chain(clip(norm=1.0), gather(error_feedback(sign(scaled=True))), median())", 7),
        ("chain(scatter(terngrad(), back=dense()), trimmed_mean(f=1))", 5),
        ("chain(gather(dense()), repetition(r=3))", 9),
        ("signum()", 4),
    ),
)
def test_a_worker_sends_what_a_round_meters(scheme, n):
    told, counted = px.explain(scheme, D, n), metered(scheme, n)
    # shards of scatter differ by a block
    assert told.sent_bytes == pytest.approx(sum(counted) / n, rel=0.03 if "scatter" in scheme else 0)
    assert told.scheme == repr(px.parse(scheme)) and told.entries == D and told.row_bytes == 4 * D


def test_bytes_on_the_busiest_line():
    payload = px.explain("chain(gather(qsgd()), mean())", D, 2).sent_bytes - 8
    for n in (2, 7, 45):
        gathered = px.explain("chain(gather(qsgd()), mean())", D, n)
        assert gathered.line_bytes == pytest.approx((n - 1) * payload, rel=0.1)  # with headers
        assert gathered.server_in_bytes == n * gathered.sent_bytes and gathered.server_out_bytes == n * 4 * D
        reduced = px.explain("chain(reduce(dense()))", D, n)
        assert reduced.line_bytes == pytest.approx(2 * (n - 1) / n * 4 * D, rel=0.02)  # with the weights
        assert reduced.plain_line_bytes == pytest.approx(2 * (n - 1) / n * 4 * D) and reduced.server_in_bytes is None
    big = 1_000_000
    whole = px.explain("chain(gather(qsgd()), mean())", big, 16).sent_bytes
    shared, voted = (px.explain(f"chain(scatter(qsgd(), back=qsgd(){r}), mean())", big, 16) for r in ("", ", r=3"))
    assert shared.line_bytes == pytest.approx(15 / 16 * 2 * whole, rel=0.03)
    assert voted.line_bytes == pytest.approx(15 / 16 * 4 * whole, rel=0.03)
    vote = px.explain("chain(vote(dense(), r=3), mean())", big, 15)
    assert vote.line_bytes == pytest.approx(5 * 4 * big * 14 / 15, rel=0.01)
    assert vote.server_in_bytes == pytest.approx(5 * 4 * big, rel=0.01)


@each(
    ("scheme", "rows"),
    (
        ("chain(gather(qsgd()), mean())", 1),
        ("chain(gather(qsgd()), median())", 1),
        ("chain(gather(qsgd()), krum(f=2))", 15),
        ("chain(gather(dense()), mean())", 15),
        ("chain(scatter(qsgd()), krum(f=2))", 1),
        ("chain(scatter(qsgd(), r=3), median())", 3),
        ("chain(vote(dense(), r=3), median())", 5),
        ("chain(power_sgd(rank=2))", 1),
    ),
)
def test_rows_in_memory(scheme, rows):
    told = px.explain(scheme, D, 15)
    assert (told.rows, told.rows_bytes) == (rows, rows * 4 * D)


def test_what_is_tolerated_and_what_is_trusted():
    krum = px.explain("chain(gather(dense()), krum(f=2))", D, 15)
    assert krum.tolerates == ("2 Byzantine of 15 rows: krum(f=2)",)
    voted = px.explain("chain(vote(dense(), r=3), median())", D, 45).tolerates
    assert voted[0].startswith("1 Byzantine in each group of 3") and voted[1] == "7 Byzantine of 15 rows: median()"
    mean = px.explain("chain(gather(dense(), gate=gate(weights='trusted')), mean())", D, 5)
    assert "one false row" in mean.tolerates[0] and "the weight that each worker claims" in mean.trusts
    equal = px.explain("chain(gather(dense(), gate=gate(weights='equal')), median())", D, 5)
    assert len(equal.trusts) == 1 and equal.trusts[0].startswith("the server")
    assert "1/5 of the columns" in px.explain("chain(scatter(qsgd()), median())", D, 5).trusts[0]
    owners = px.explain("chain(scatter(qsgd(), r=3), median())", D, 5)
    assert "1 of 3 neighbouring owners" in owners.tolerates[0] and "more than half of any 3" in owners.trusts[0]
    assert "nobody sees single rows" in px.explain("chain(reduce(dense()))", D, 5).trusts[0]


@each("scheme", (*DEFAULTS, "chain(cyclic(s=2))", "chain(gather(dense()), group_vote(r=3), median())"))
def test_every_usual_scheme_is_explained(scheme):
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.BatchNorm1d(30), torch.nn.Linear(30, 5))
    told = px.explain(scheme, model, 15)
    assert told.entries == px.Layout.of(model).d and told.sent_bytes > 0 and told.line_bytes > 0
    assert str(told).count("\n") >= 9 and "estimate of the mean" in str(told)
    assert json.loads(json.dumps(told.to_json()))["workers"] == 15


def test_the_command():
    asked = ["explain", "chain(gather(qsgd()), krum(f=2))", "--workers", "15"]
    told = json.loads(invoke(*asked, "--entries", str(D), "--json"))
    assert told == px.explain("chain(gather(qsgd()), krum(f=2))", D, 15).to_json()
    table = invoke(*asked, "--entries", str(D))
    assert "busiest line" in table and "2 Byzantine of 15 rows" in table
    digits = json.loads(invoke(*asked, "--model", "mlp", "--data", "digits", "--json"))
    assert digits["entries"] > 1000


@each(
    ("scheme", "n", "words"),
    (
        ("chain(gather(dense()), krum(f=2))", 5, "krum needs n >= 2f"),
        ("chain(gather(dense()), mean())", 1, "at least 2"),
        ("mean()", 5, "crosses the wire exactly once"),
        ("dense()", 5, "is no scheme"),
        ("chain(gather(dense()))", 5, "ends with 5 rows"),
    ),
)
def test_misuse_is_refused(scheme, n, words):
    with pytest.raises(ValueError, match=words):
        px.explain(scheme, D, n)


@each("model", (0, -1, True, "resnet18", 2.5))
def test_a_model_of_another_kind_is_refused(model):
    with pytest.raises(ValueError, match="a module, a layout or a number of entries"):
        px.explain("chain(reduce(dense()))", model, 4)
