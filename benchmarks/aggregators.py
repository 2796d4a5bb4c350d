# SPDX-License-Identifier: Apache-2.0
"""How long each rule takes on the same rows, against the plain mean, the obvious torch code, byzfl and Flower.

    python benchmarks/aggregators.py                       # 45 x 1,000,000 float32, f = 5, two threads
    python benchmarks/aggregators.py --rows 15 --f 2 --json out.json

Every rule gets the same rows as one round at the server, the gate included. Repetitions are interleaved, so that a busy
moment of the machine hits all; the table shows medians, and as "best" the ratio of the shortest times. Peak memory is
taken in a fresh process for each rule: the largest resident size during one call (VmHWM, reset before it) less the
resident size before, plus the rows themselves.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from record import keep, machine, use_threads

Call = Callable[[], Any]


def rules(n: int, f: int) -> dict[str, str]:
    """The expression of every rule that works with n rows; rules that only prepare rows are followed by a mean."""
    known = {
        "mean": "mean()",
        "median": "median()",
        "trimmed mean": f"trimmed_mean(f={f})",
        "geometric median": "geometric_median()",
        "Krum": f"krum(f={f})",
        "Multi-Krum": f"multi_krum(f={f})",
        "Bulyan": f"bulyan(f={f})",
        "Bulyan, one shot": f"bulyan(f={f}, one_shot=True)",
        "majority": "majority()",
        "centred clipping": "centered_clip()",
        "NNM": f"nnm(f={f})",
        "bucketing": "bucketing(size=2)",
        "hierarchy": "hierarchy(mean(), median(), groups=5)",
    }
    if n < 4 * f + 3:
        known = {name: text for name, text in known.items() if not name.startswith("Bulyan")}
    return known


def own_call(expression: str, rows: Any) -> Call:
    """One round of a rule on received rows."""
    import phalanx
    from phalanx.core.stack import Stack

    rule = phalanx.parse(expression)
    return lambda: rule(Stack.of(rows), None, phalanx.Round())


def torch_calls(rows: Any, f: int) -> dict[str, Call]:
    """What one would write first."""
    n = len(rows)
    return {
        "plain mean": lambda: rows.mean(dim=0),
        "median": lambda: rows.median(dim=0).values,
        "trimmed mean": lambda: rows.sort(dim=0).values[f : n - f].mean(dim=0),
    }


def byzfl_calls(rows: Any, f: int) -> dict[str, Call]:
    """byzfl's rules on torch tensors; its geometric median stops after three steps."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models", "seaborn"):
        try:
            importlib.import_module(name)
        except ImportError:
            # byzfl's aggregators need none of it, its package does
            sys.modules[name] = MagicMock()
    try:
        aggregators = importlib.import_module("byzfl.aggregators.aggregators")
        preaggregators = importlib.import_module("byzfl.aggregators.preaggregators")
    except ImportError as error:
        print(f"byzfl is left out: {error}", file=sys.stderr)
        return {}
    calls = {
        "median": aggregators.Median(),
        "trimmed mean": aggregators.TrMean(f=f),
        "geometric median": aggregators.GeometricMedian(),
        "Krum": aggregators.Krum(f=f),
        "Multi-Krum": aggregators.MultiKrum(f=f),
        "centred clipping": aggregators.CenteredClipping(L=3),
        "NNM": preaggregators.NNM(f=f),
        "bucketing": preaggregators.Bucketing(s=2),
    }
    return {name: (lambda rule=rule: rule(rows)) for name, rule in calls.items()}


def flower_calls(rows: Any, f: int) -> dict[str, Call]:
    """Flower's rules on numpy arrays."""
    try:
        aggregate = importlib.import_module("flwr.server.strategy.aggregate")
    except ImportError as error:
        print(f"Flower is left out: {error}", file=sys.stderr)
        return {}
    n = len(rows)
    results = [([row], 1) for row in rows.numpy()]
    calls: dict[str, Call] = {
        "mean": lambda: aggregate.aggregate(results),
        "median": lambda: aggregate.aggregate_median(results),
        "trimmed mean": lambda: aggregate.aggregate_trimmed_avg(results, f / n),
        "Krum": lambda: aggregate.aggregate_krum(results, f, 0),
        "Multi-Krum": lambda: aggregate.aggregate_krum(results, f, n - f - 2),
    }
    if n >= 4 * f + 3:
        krum = aggregate.aggregate_krum
        calls["Bulyan"] = lambda: aggregate.aggregate_bulyan(list(results), f, krum, to_keep=0)
    return calls


def make_rows(n: int, d: int) -> Any:
    """Honest-looking rows: a common part and noise."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator) + torch.randn(d, generator=generator)


def timed(calls: dict[tuple[str, str], Call], repeats: int, slow_s: float) -> dict[tuple[str, str], list[float]]:
    """Seconds of each call, interleaved; a call that takes longer than slow_s is made twice only."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for key, call in calls.items():
        begin = time.perf_counter()
        call()
        seconds[key] = [time.perf_counter() - begin]
    slow = {key for key, (first, *_) in seconds.items() if key[0] != "phalanx" and first > slow_s}
    for repeat in range(repeats):
        for key, call in calls.items():
            if repeat and key in slow:
                continue
            begin = time.perf_counter()
            call()
            seconds[key].append(time.perf_counter() - begin)
    # the first call compiles and warms up
    return {key: values[1:] for key, values in seconds.items()}


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return 1024 * int(match.group(1))


def print_peak(expression: str, n: int, d: int, threads: int) -> None:
    """Runs in a process of its own: the peak of one call in units of the rows."""
    import torch

    torch.set_num_threads(threads)
    own_call(expression, make_rows(n, 4096))()
    rows = make_rows(n, d)
    call = own_call(expression, rows)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    call()
    print(1 + (resident_bytes("VmHWM") - before) / (rows.numel() * rows.element_size()))


def peak(expression: str, n: int, d: int, threads: int) -> float | None:
    """Peak memory of a rule in units of the rows; None where the system does not tell."""
    command = [sys.executable, __file__, "--peak", expression, "--rows", str(n), "--columns", str(d)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else None


def report(n: int, d: int, f: int, threads: int, repeats: int, with_peaks: bool) -> dict[str, Any]:
    """All measurements of one run."""
    import torch

    torch.set_num_threads(threads)
    rows = make_rows(n, d)
    expressions = rules(n, f)
    calls: dict[tuple[str, str], Call] = {("torch", k): c for k, c in torch_calls(rows, f).items()}
    calls |= {("phalanx", name): own_call(text, rows) for name, text in expressions.items()}
    calls |= {("byzfl", k): c for k, c in byzfl_calls(rows, f).items()}
    calls |= {("flower", k): c for k, c in flower_calls(rows, f).items()}
    seconds = timed(calls, repeats, slow_s=1.0)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    least = {key: min(values) for key, values in seconds.items()}
    plain = ("torch", "plain mean")
    measured = {}
    for name, text in expressions.items():
        own_s = medians["phalanx", name]
        others = {who: medians[who, name] for who in ("torch", "byzfl", "flower") if (who, name) in medians}
        measured[name] = {
            "expression": text,
            "ms": 1e3 * own_s,
            "ratio_to_plain_mean": own_s / medians[plain],
            "ratio_of_best": least["phalanx", name] / least[plain],
            "peak_in_rows": peak(text, n, d, threads) if with_peaks else None,
            "others_ms": {who: 1e3 * s for who, s in others.items()},
            "times_faster_than": {who: s / own_s for who, s in others.items()},
        }
    setting = {"rows": n, "columns": d, "f": f, "threads": threads, "repeats": repeats, "dtype": "float32"}
    return {
        "setting": setting,
        "machine": machine("phalanx-train", "torch", "numba", "numpy", "byzfl", "flwr"),
        "plain_mean_ms": 1e3 * medians[plain],
        "rules": measured,
    }


def show(result: dict[str, Any]) -> None:
    """The report as a table."""
    from rich.console import Console
    from rich.table import Table

    setting = result["setting"]
    table = Table(
        title=f"{setting['rows']} x {setting['columns']:,} float32, f={setting['f']}, {setting['threads']} threads; "
        f"plain mean {result['plain_mean_ms']:.1f} ms"
    )
    table.add_column("rule")
    for head in ("ms", "x plain mean", "best", "peak / rows", "torch ms", "byzfl ms", "Flower ms", "times faster"):
        table.add_column(head, justify="right")
    for name, row in result["rules"].items():
        others, faster = row["others_ms"], row["times_faster_than"]
        cells = [f"{others[who]:.0f}" if who in others else "" for who in ("torch", "byzfl", "flower")]
        table.add_row(
            name,
            f"{row['ms']:.1f}",
            f"{row['ratio_to_plain_mean']:.1f}",
            f"{row['ratio_of_best']:.1f}",
            f"{row['peak_in_rows']:.2f}" if row["peak_in_rows"] else "",
            *cells,
            ", ".join(f"{who} {ratio:.0f}" if ratio >= 10 else f"{who} {ratio:.1f}" for who, ratio in faster.items()),
        )
    Console(width=130).print(table)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=45, help="n (default 45)")
    parser.add_argument("--columns", type=int, default=1_000_000, help="d (default 1,000,000)")
    parser.add_argument("--f", type=int, default=5, help="Byzantine rows that the rules are set to stand (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch and of the kernels (default 2)")
    parser.add_argument("--repeats", type=int, default=11, help="interleaved repetitions (default 11)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure peak memory")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print_peak(args.peak, args.rows, args.columns, args.threads)
        return
    # numpy's threads are set before it is imported
    use_threads(args.threads)
    result = report(args.rows, args.columns, args.f, args.threads, args.repeats, not args.no_memory)
    show(result)
    keep(args.json, result)


if __name__ == "__main__":
    main()
