# SPDX-License-Identifier: Apache-2.0
"""What `phalanx advise` predicts from a probe across the hosts, beside the steps that were measured on them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phalanx.tools.report import tables
from phalanx.tools.runner.study import Study
from slow_network import jobs
from slow_network.breakdown import shortened
from slow_network.hosts import Hosts, JobFailed

if TYPE_CHECKING:
    from rich.table import Table


def measure(
    study: Study,
    workers: Sequence[int],
    rates: Sequence[str],
    delay_ms: float,
    rounds: int,
    limit_s: float,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """For each number of workers and rate: a probe, short runs of all schemes, and what `advise --check` says of them.

    Args:
        limit_s: for the probe, and for all short runs of one network together.
    Returns:
        workers, rate, the probe, and `check`: a document with a line for each run.
    """
    lines = []
    for n in workers:
        short = shortened(study, n, rounds)
        for rate in rates:
            say(f"{n} workers at {rate}")
            with Hosts(n, rate, delay_ms) as hosts, tempfile.TemporaryDirectory(prefix="phalanx-") as folder:
                probe, ran = Path(folder) / "probe.json", Path(folder) / "study"
                hosts.torchrun(*probe_command(short, probe), logs=Path(folder) / "logs", limit_s=limit_s)
                jobs.conduct(hosts, short, ran, limit_s)
                document = {"probe": json.loads(probe.read_text()), "check": check(probe, ran)}
            lines.append({"workers": n, "rate": rate, **document})
    return lines


def probe_command(study: Study, out: Path) -> list[str]:
    """The command that probes the work and every scheme of a study under torchrun."""
    first = next(iter(study.runs.values()))
    schemes = [word for run in study.runs.values() for word in ("--scheme", repr(run.phases[0].scheme))]
    return ["-m", "phalanx", "probe", repr(first), *schemes, "--out", str(out)]


def check(probe: Path, runs: Path) -> dict[str, Any]:
    """The document of `phalanx advise PROBE --check RUNS --json`.

    Raises:
        JobFailed: the command failed.
    """
    command = [sys.executable, "-m", "phalanx", "advise", str(probe), "--check", str(runs), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise JobFailed(f"phalanx advise ended with {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """Predicted and measured milliseconds of a step, and the relative error."""
    rows = []
    for line in lines:
        for run in line["check"]["runs"]:
            both = [f"{1e3 * run[side]['step_s']:.1f}" for side in ("predicted", "measured")]
            rows.append([str(line["workers"]), line["rate"], run["label"], *both, f"{100 * run['error']:+.0f} %"])
    header = ("workers", "rate", "scheme", "predicted", "measured", "error")
    return tables.plain_table("milliseconds of a step", header, rows)
