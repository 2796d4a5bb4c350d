# SPDX-License-Identifier: Apache-2.0
"""Does this machine have what a run needs?"""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from phalanx.data.dataset import locations
from phalanx.training.run_folder import versions


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        ok: None where absence is no fault: a GPU, a data set that can be downloaded.
    """

    name: str
    ok: bool | None
    words: str


def examine(runs: Path) -> list[Finding]:
    """All findings, in the order in which they help.

    Args:
        runs: folder of the results, which need not exist yet.
    """
    wanted = [Finding(name, words != "absent" or None, words) for name, words in versions().items()]
    machine = [
        _tried("threads", _threads),
        _tried("memory", _memory),
        _tried("gloo", _gloo),
        Finding("NCCL", dist.is_nccl_available() or None, "built in" if dist.is_nccl_available() else "not built in"),
        Finding("CUDA", torch.cuda.is_available() or None, _cuda()),
        _tried("numba compiles", _numba),
        _tried("compiled loops", _vectors),
        _tried("results folder", lambda: _writable(runs)),
    ]
    data = [
        Finding(f"data: {name}", os.path.exists(words) or name == "digits" or None, words)
        for name, words in locations().items()
    ]
    return [*wanted, *machine, *data]


def _tried(name: str, check: Callable[[], str]) -> Finding:
    """What a check says; whatever it raises is the finding."""
    try:
        return Finding(name, True, check())
    except Exception as error:
        return Finding(name, False, f"{type(error).__name__}: {error}")


def _threads() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"torch uses {torch.get_num_threads()}, {usable} cores for this process, {os.cpu_count()} in the machine"


def _memory() -> str:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return "unknown on this system"
    free = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return f"{int(free.split()[1]) * 1024 / 1e9:.1f} GB free"


def _gloo() -> str:
    """A process group of one on a free port, and a sum over it."""
    if dist.is_initialized():
        return f"this process is rank {dist.get_rank()} of {dist.get_world_size()} already"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        dist.all_reduce(torch.ones(1))
    finally:
        dist.destroy_process_group()
    return f"a group of one process on port {port} works"


def _cuda() -> str:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "no device; everything runs on the CPU"


def _vectors() -> str:
    """The processor that Numba compiles for, and the widest vectors that its loops have there."""
    llvm, config = importlib.import_module("llvmlite.binding"), importlib.import_module("numba").core.config
    cpu = config.CPU_NAME or llvm.get_host_cpu_name()
    has = llvm.get_host_cpu_features()
    wanted = config.CPU_FEATURES
    if wanted is not None:
        has = dict.fromkeys((word.strip().lstrip("+") for word in wanted.split(",") if word.strip()[:1] != "-"), True)
    kinds = (
        ("avx512f", "AVX-512, 512 bits"),
        ("avx2", "AVX2, 256 bits"),
        ("sse2", "SSE2, 128 bits"),
        ("neon", "NEON, 128 bits"),
    )
    widest = next((words for name, words in kinds if has.get(name)), "no vectors that we know")
    return f"for {cpu}: {widest}"


def _numba() -> str:
    numba = importlib.import_module("numba")
    return f"1 + 1 = {numba.njit(lambda x: x + 1)(1)}, {numba.get_num_threads()} threads"


def _writable(runs: Path) -> str:
    place = next(p for p in (runs.resolve(), *runs.resolve().parents) if p.exists())
    with tempfile.TemporaryFile(dir=place):
        free = shutil.disk_usage(place).free
    return f"{runs.resolve()} can be written, {free / 1e9:.1f} GB free"
