# SPDX-License-Identifier: Apache-2.0
"""phalanx probe between processes, and its predictions read back."""

import json

import pytest
from typer.testing import CliRunner

from phalanx.tools.advisor.probe import Probe
from phalanx.tools.advisor.quality import PLAIN
from phalanx.tools.cli.app import app
from tests.distributed.launch import torchrun

pytestmark = pytest.mark.processes

QSGD = "chain(gather(qsgd()), mean())"
RUN = "run(digits(), mlp(hidden=()), phases=(phase(gradient(batch=16), {scheme}, rounds=8),), workers=2)"


def test_a_probe_of_two_processes_predicts_their_runs(tmp_path):
    file = tmp_path / "out" / "probe.json"
    options = ("--model", "mlp(hidden=())", "--data", "digits", "--batch", "8", "--repeats", "1")
    schemes = ("--scheme", QSGD, "--scheme", "power_sgd(rank=1)")
    printed = torchrun(2, "-m", "phalanx", "probe", *options, *schemes, "--out", str(file), "--json", limit_s=120)
    probe = Probe.read(file)
    assert Probe.from_json(json.loads(printed)) == probe
    assert probe.processes == 2 and probe.batch == 8 and probe.run.workers == 2
    assert [c.scheme for c in probe.costs] == [PLAIN, QSGD, "power_sgd()"]
    assert probe.link is not None
    for kind in ("gather", "reduce"):
        sizes = [size for size, _ in probe.link.curves[kind]]
        assert sizes == sorted(sizes) and all(seconds > 0 for _, seconds in probe.link.curves[kind])
        assert probe.link.line(kind).bandwidth > 0
    assert [e.workers for e in probe.costs[1].efforts] == [2, 6]

    run = tmp_path / "run"
    torchrun(2, "-m", "phalanx", "run", RUN.format(scheme=QSGD), "--out", str(run), limit_s=120)
    result = CliRunner().invoke(app, ["advise", str(file), "--check", str(run), "--json"])
    assert result.exit_code == 0, result.stderr
    (compared,) = json.loads(result.stdout)["runs"]
    assert compared["scheme"] == QSGD and compared["workers"] == 2
    # the bytes are exact; the seconds depend on what else the machine does
    assert compared["predicted"]["sent_bytes"] == compared["measured"]["sent_bytes"]
    assert compared["predicted"]["step_s"] > 0 and compared["measured"]["step_s"] > 0
