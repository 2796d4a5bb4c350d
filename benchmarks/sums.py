# SPDX-License-Identifier: Apache-2.0
"""How long a server takes to decode and combine payloads, against `copy_` of one row into memory that is there.

    python benchmarks/sums.py                          # 16 payloads of ResNet-18's gradient, one thread
    python benchmarks/sums.py --workers 32 --threads 2 --json out.json

"into the sum" is the wire stage and the rule as they are, gate included; "rows first" decodes all payloads into a
table and runs the same rule on it. Repetitions are interleaved, so that a busy moment of the machine hits all; the
table shows medians, in copies of one row. Memory is the peak of what a call takes, in rows, from a run of its own that
finds no freed memory: only what NumPy allocates is seen, and rows of this length are allocated by NumPy.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import keep, machine, use_threads

Call = Callable[[], Any]

CASES = (
    ("qsgd(bits=4)", "mean()"),
    ("terngrad()", "mean()"),
    ("sign()", "majority()"),
    ("sign()", "mean()"),
    ("sign(scaled=True)", "mean()"),
    ("top_k(ratio=0.01)", "mean()"),
    ("top_k(1/64, chunk=4096, values=2)", "mean()"),
    ("half(precision='bf16')", "mean()"),
    ("qsgd(bits=4)", "median()"),
)


def calls(codec_text: str, rule_text: str, n: int) -> tuple[Call, Call]:
    """A step at the server, without and with a table of decoded rows."""
    import torch

    import phalanx
    from phalanx.core.buffers import RowBuffer
    from phalanx.core.codec import open_row
    from phalanx.core.gate import Gate
    from phalanx.core.stack import Stack

    layout = phalanx.Layout.of(phalanx.models.resnet18().build((3, 32, 32), 10)).head
    codec, rule = phalanx.parse(codec_text), phalanx.parse(rule_text)
    made = []
    for worker in range(n):
        row = torch.randn(layout.d, generator=torch.Generator().manual_seed(worker))
        payload, _ = codec.encode(row, layout, {}, lambda worker=worker: torch.Generator().manual_seed(worker))
        made.append({**payload, "weight": torch.ones(1, dtype=torch.float64)})

    class Arrived(phalanx.LocalCollective):
        def gather(self, payloads: Any, limit_bytes: int) -> Any:
            return made

    empty = Stack(torch.empty(0, layout.d), layout, (), torch.empty(0, dtype=torch.float64))
    wire, round = phalanx.gather(codec), phalanx.Round(world=Arrived(n))

    def into_the_sum() -> Any:
        return rule(wire.receive([], empty, round), None, round)[0]

    def rows_first() -> Any:
        table, weights = RowBuffer(n, layout.d, empty.rows), []
        for payload in made:
            parts, weight = open_row(codec, payload, layout)
            table.add(parts)
            weights.append(weight)
        ids = tuple((worker,) for worker in range(n))
        stack = Stack(table.rows, layout, ids, torch.tensor(weights, dtype=torch.float64), received=True)
        return rule(Gate().admit(stack), None, round)[0]

    return into_the_sum, rows_first


def peak_rows(call: Call, row_bytes: int) -> float:
    """The most memory that a call takes at a time, in rows."""
    from phalanx.core import buffers

    buffers._free.clear()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / row_bytes
    finally:
        tracemalloc.stop()


def timed(every: dict[str, Call], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, interleaved; the first of each is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(repeats + 1):
        for name, call in every.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {name: times[1:] for name, times in seconds.items()}


def report(n: int, threads: int, repeats: int) -> dict[str, Any]:
    """All measurements of one run."""
    import torch

    torch.set_num_threads(threads)
    measured: dict[str, Any] = {}
    row_bytes, entries = 0, 0
    for codec, rule in CASES:
        into_the_sum, rows_first = calls(codec, rule, n)
        result = into_the_sum().rows[0]
        same = bool(torch.equal(result, rows_first().rows[0]))
        row_bytes, entries = result.nbytes, len(result)
        source, target = torch.randn(entries), torch.randn(entries)
        copy: Call = lambda s=source, t=target: t.copy_(s)  # noqa: E731
        seconds = timed({"copy": copy, "sum": into_the_sum}, repeats)
        # a table of rows takes the place of the memory that a server keeps from round to round
        seconds["rows"] = timed({"copy": copy, "rows": rows_first}, repeats)["rows"]
        middle = {name: statistics.median(times) for name, times in seconds.items()}
        measured[f"{codec}, {rule}"] = {
            "copy_ms": 1e3 * middle["copy"],
            "into_the_sum_ms": 1e3 * middle["sum"],
            "rows_first_ms": 1e3 * middle["rows"],
            "into_the_sum_in_copies": middle["sum"] / middle["copy"],
            "rows_first_in_copies": middle["rows"] / middle["copy"],
            "least_in_copies": min(seconds["sum"]) / min(seconds["copy"]),
            "peak_rows": peak_rows(into_the_sum, row_bytes),
            "same_bits": same,
        }
    return {
        "setting": {"workers": n, "entries": entries, "threads": threads, "repeats": repeats, "dtype": "float32"},
        "machine": machine("torch", "numba", "numpy"),
        "sums": measured,
    }


def show(result: dict[str, Any]) -> None:
    """The report as a table."""
    from rich.console import Console
    from rich.table import Table

    setting = result["setting"]
    table = Table(
        title=f"{setting['workers']} payloads of {setting['entries']:,} float32, {setting['threads']} threads; "
        "times in copies of one row"
    )
    table.add_column("codec and rule")
    for head in ("copy ms", "into the sum", "best", "rows first", "peak rows", "same bits"):
        table.add_column(head, justify="right")
    for name, row in result["sums"].items():
        table.add_row(
            name,
            f"{row['copy_ms']:.1f}",
            f"{row['into_the_sum_in_copies']:.1f}",
            f"{row['least_in_copies']:.1f}",
            f"{row['rows_first_in_copies']:.1f}",
            f"{row['peak_rows']:.2f}",
            "yes" if row["same_bits"] else "no",
        )
    Console(width=120).print(table)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=16, help="payloads (default 16)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of the loops (default 1)")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repetitions (default 7)")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    args = parser.parse_args()
    # numpy's threads are set before it is imported
    use_threads(args.threads)
    result = report(args.workers, args.threads, args.repeats)
    show(result)
    keep(args.json, result)


if __name__ == "__main__":
    main()
