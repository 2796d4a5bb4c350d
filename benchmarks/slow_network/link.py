# SPDX-License-Identifier: Apache-2.0
"""Measures whether a link has its rate, and whether gloo's collectives use all of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from slow_network.hosts import Hosts, JobFailed, bits_per_s

HERE = Path(__file__).parent
PORT = 29600
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def throughput(hosts: Hosts, sender: int = 1, receiver: int = 0, seconds: float = 1.0) -> dict[str, float]:
    """One TCP transfer between two hosts that should take so many seconds, 1 GB at most.

    Returns:
        bytes, timed_bytes (behind the first piece), seconds, bits_per_s.
    """
    size = round(min(1e9, bits_per_s(hosts.rate) / 8 * seconds))
    script = str(HERE / "job_transfer.py")
    receive = hosts.start(
        receiver,
        [sys.executable, script, "receive", str(PORT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    jobs = [receive]
    try:
        assert receive.stdout is not None
        receive.stdout.readline()
        target = (hosts.address(receiver), str(PORT), str(size))
        jobs.append(hosts.start(sender, [sys.executable, script, "send", *target], stderr=subprocess.DEVNULL))
        out, err = receive.communicate(timeout=60 + 5 * seconds)
    except subprocess.TimeoutExpired:
        raise JobFailed(f"{size} bytes did not arrive at {hosts.rate}") from None
    finally:
        hosts.stop(jobs)
    if receive.returncode:
        raise JobFailed(f"a transfer of {size} bytes failed\n{err}")
    measured = json.loads(out)
    return {**measured, "bits_per_s": 8 * measured["timed_bytes"] / measured["seconds"]}


def collectives(hosts: Hosts, sizes: tuple[int, ...] = SIZES, repeats: int = 5) -> list[dict[str, float]]:
    """Seconds of gloo's all-reduce and all-gather by size, beside the least that n links of this rate allow.

    A ring all-reduce of b bytes sends 2 (n-1)/n b on every link, a ring all-gather of n messages of b bytes (n-1) b.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "collectives.json"
        script = str(HERE / "job_collectives.py")
        argv = (script, str(out), str(repeats), *map(str, sizes))
        hosts.torchrun(*argv, logs=Path(folder) / "logs", limit_s=300)
        rows = json.loads(out.read_text())
    for row in rows:
        row |= ideal(row["bytes"], hosts.n, bits_per_s(hosts.rate))
    return rows


def ideal(size: float, n: int, rate: float) -> dict[str, float]:
    """Seconds of the ring collectives of `size` bytes over n links that carry nothing but payload."""
    return {
        "ideal_all_reduce_s": 2 * (n - 1) / n * size * 8 / rate,
        "ideal_all_gather_s": (n - 1) * size * 8 / rate,
    }


def measure(rates: list[str], workers: list[int], delay_ms: float) -> list[dict[str, Any]]:
    """Throughput and collectives for every number of hosts and rate."""
    rows = []
    for n in workers:
        for rate in rates:
            with Hosts(n, rate, delay_ms) as hosts:
                row = {"workers": n, "rate": rate, "throughput": throughput(hosts), "collectives": collectives(hosts)}
            rows.append(row)
    return rows
