# SPDX-License-Identifier: Apache-2.0
"""The exchange of one row alone: schemes beside gloo's all-reduce of the same row, in interleaved rounds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from slow_network.hosts import Hosts
from slow_network.link import HERE

CODECS = ("qsgd(bits=4)", "terngrad()", "sign()", "error_feedback(top_k(ratio=0.01))")
RULES = {"sign()": "majority()"}


def schemes() -> list[str]:
    """Each code gathered, scattered with the same code back, and scattered with its default back."""
    forms = ("gather({c})", "scatter({c}, back={c})", "scatter({c})")
    return [f"chain({form.format(c=codec)}, {RULES.get(codec, 'mean()')})" for codec in CODECS for form in forms]


def measure(
    workers: Sequence[int],
    rates: Sequence[str],
    delay_ms: float,
    entries: int,
    rounds: int,
    wanted: Sequence[str],
    limit_s: float,
    say: Callable[[str], object],
) -> list[dict[str, Any]]:
    """Medians of every scheme for every number of hosts and rate, with ratios to the all-reduce."""
    lines = []
    for n in workers:
        for rate in rates:
            say(f"{n} hosts, {rate}")
            with Hosts(n, rate, delay_ms) as hosts, tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "exchange.json"
                argv = (str(HERE / "job_exchange.py"), str(out), str(rounds), str(entries), *wanted)
                hosts.torchrun(*argv, logs=Path(folder) / "logs", limit_s=limit_s)
                measured = json.loads(out.read_text())
            plain = measured[0]["seconds"]
            lines += [{"workers": n, "rate": rate, **each, "ratio": each["seconds"] / plain} for each in measured]
    return lines


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """A row for each scheme."""
    from phalanx.tools.report import tables

    rows = []
    for line in lines:
        times = (f"{1e3 * line['seconds']:,.0f}", f"{line['ratio']:.2f}", f"{1e3 * line['cpu_s']:,.0f}")
        sizes = (tables.size(line["line_bytes"]), tables.size(line["memory_bytes"]))
        rows.append([str(line["workers"]), line["rate"], line["scheme"], *times, *sizes])
    header = ("workers", "rate", "scheme", "ms", "ratio", "CPU ms", "line", "memory")
    return tables.plain_table("medians; ratio to the all-reduce; most of any host", header, rows)
