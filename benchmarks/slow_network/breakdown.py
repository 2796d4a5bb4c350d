# SPDX-License-Identifier: Apache-2.0
"""Computation, encoding, communication and decoding of a step, by scheme, rate and number of workers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from phalanx.tools.report import tables
from phalanx.tools.report.collect import Result
from phalanx.tools.runner.study import Study
from phalanx.training.phase import NoField, amend
from phalanx.training.run_folder import RunFolder
from slow_network import jobs
from slow_network.hosts import Hosts
from slow_network.link import throughput

if TYPE_CHECKING:
    from rich.table import Table

PARTS = ("computation_s", "encoding_s", "communication_s", "decoding_s")
DDP = "torch DDP, no hook"  # the label of the control
HOOK = "torch DDP, "  # before a scheme's label, where the scheme is its hook
JOB_DDP = Path(__file__).parent / "job_ddp.py"
TEST_IMAGES = 1000  # the test at the end of a short run is not what is measured


def measure(
    study: Study,
    workers: Sequence[int],
    rates: Sequence[str],
    delay_ms: float,
    rounds: int,
    dropped: int,
    limit_s: float,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A line for each number of workers, rate and scheme, in our loop, then DDP without a hook and with each scheme.

    Args:
        rounds: of each short run.
        dropped: rounds at the start that do not count: they compile kernels and warm caches.
        limit_s: for all short runs of one network together.
    """
    lines: list[dict[str, Any]] = []
    for n in workers:
        short = shortened(study, n, rounds)
        for rate in rates:
            say(f"{n} workers at {rate}")
            with Hosts(n, rate, delay_ms) as hosts, tempfile.TemporaryDirectory(prefix="phalanx-") as folder:
                about = {"workers": n, "rate": rate, "achieved_bits_per_s": throughput(hosts)["bits_per_s"]}
                results = jobs.conduct(hosts, short, Path(folder) / "study", limit_s)
                lines += [{**about, **line(result, dropped)} for result in results]
                for label, hook in hooks(short).items():
                    seconds = ddp(hosts, short, hook, Path(folder), rounds, dropped, limit_s)
                    lines.append({**about, "label": label, **seconds, "bytes_per_worker_round": None})
    return lines


def shortened(study: Study, workers: int, rounds: int) -> Study:
    """The study with so many workers and rounds; the batch is the global one, so a worker's share shrinks."""
    runs = dict(study.runs)
    end = 10 * rounds  # neither a test nor a checkpoint on the way
    settings = {"workers": workers, "rounds": rounds, "evaluate_every": end, "checkpoint_every": end}
    for label, run in runs.items():
        for path, value in settings.items():
            run = amend(run, path, value)
        # digits have no such field, and few images
        with suppress(NoField):
            run = amend(run, "data.test", TEST_IMAGES)
        runs[label] = run
    return jobs.changed(study, runs)


def line(result: Result, dropped: int) -> dict[str, Any]:
    """The medians of a run's rounds, as rank 0 saw them."""
    rounds = [split(metrics) for metrics in RunFolder(result.path).metrics()[dropped:]]
    assert rounds, "a run shorter than the rounds to drop"
    return {
        "label": result.label,
        **{part: median(r[part] for r in rounds) for part in PARTS},
        "step_s": median(sum(r.values()) for r in rounds),
        "bytes_per_worker_round": result.summary["bytes_per_worker_round"],
        "rounds": len(rounds),
    }


def split(metrics: dict[str, Any]) -> dict[str, float]:
    """One round's seconds by part; averaging, and whatever else a scheme does, counts as decoding.

    Computation ends when all workers have theirs: it holds the wait for the slowest.
    """
    return {
        "computation_s": metrics["work_s"] + metrics["finish_s"],
        "encoding_s": metrics["encode_s"],
        "communication_s": metrics["wire_s"],
        "decoding_s": metrics["scheme_s"] - metrics["encode_s"] - metrics["wire_s"],
    }


def hooks(study: Study) -> dict[str, str]:
    """Labels and communication hooks to measure DDP with: none, and every scheme that compresses and fits buckets."""
    schemes = {label: run.phases[0].scheme for label, run in study.runs.items()}
    fitting = {label: repr(s) for label, s in schemes.items() if s.scope != "vector"}
    return {DDP: "", **{HOOK + label: text for label, text in fitting.items() if text not in jobs.UNCOMPRESSED}}


def ddp(
    hosts: Hosts, study: Study, hook: str, folder: Path, rounds: int, dropped: int, limit_s: float
) -> dict[str, Any]:
    """A step of DistributedDataParallel; it exchanges while it computes, so communication is what that adds to a step.

    Args:
        hook: a scheme's expression; "" for none.
    """
    run, out = next(iter(study.runs.values())), folder / "ddp.json"
    argv = (str(JOB_DDP), str(out), repr(run), str(rounds), *([hook] if hook else []))
    hosts.torchrun(*argv, logs=folder / "logs", limit_s=limit_s)
    seconds = {name: median(values[dropped:]) for name, values in json.loads(out.read_text()).items()}
    sent = max(0.0, seconds["step_s"] - seconds["alone_s"])
    return {
        **dict(zip(PARTS, (seconds["step_s"] - sent, 0.0, sent, 0.0), strict=True)),
        "step_s": seconds["step_s"],
        "rounds": rounds - dropped,
    }


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """All lines, in milliseconds."""
    header = ("workers", "rate", "link", "scheme", *(part.removesuffix("_s") for part in PARTS), "step", "bytes")
    rows = []
    for row in lines:
        sent = row["bytes_per_worker_round"]
        rows.append(
            [
                str(row["workers"]),
                row["rate"],
                f"{row['achieved_bits_per_s'] / 1e6:,.0f} Mbit/s",
                row["label"],
                *(f"{1e3 * row[name]:.1f}" for name in (*PARTS, "step_s")),
                "-" if sent is None else tables.size(sent),
            ]
        )
    return tables.plain_table("milliseconds of a step, medians", header, rows)
