# SPDX-License-Identifier: Apache-2.0
"""Hosts as network namespaces, joined by a bridge in a namespace of its own; outside them nothing is made or set.

Every host has one link to the bridge, `eth0`, limited in both directions by a token bucket: where the host sends, and
where the bridge sends to the host.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PREFIX = "phx"
SUBNET = "10.77.0"  # every network is closed in itself, so all of them may have this one
PORT = 29500
MAX_HOSTS = 250
GRACE_S = 10.0  # how long a process may take to end after another failed or it was asked to
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_NAME = re.compile(rf"{PREFIX}-(\d+)-(\d+)-")

_count = itertools.count()
_live: set[str] = set()  # networks of this process, as "pid-number"


class JobFailed(RuntimeError):
    """A job across the hosts ended badly or not at all."""


def bits_per_s(rate: str) -> float:
    """A rate as `tc` writes it, such as "100mbit", in bits a second.

    Raises:
        ValueError: not a positive number of kbit, mbit or gbit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", rate.lower())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"a rate is a positive number of kbit, mbit or gbit, such as 100mbit, got {rate!r}")
    return float(match[1]) * _UNITS[match[2]]


def burst_bytes(rate: str) -> int:
    """Bytes that a link may send at once after a pause: 1 ms of its rate, at least ten frames.

    The kernel's high-resolution timers need no more, and a compressed gradient would pass a larger bucket unlimited.
    """
    return max(16 * 1024, round(bits_per_s(rate) / 8 * 1e-3))


def check() -> None:
    """Raises ValueError if no hosts can be made here.

    Raises:
        ValueError: not root, or without iproute2.
    """
    absent = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if absent:
        raise ValueError(f"a network of namespaces needs iproute2, and there is no {absent[0]}; install iproute2")
    if os.geteuid() != 0:
        raise ValueError("a network of namespaces needs root; run this again under sudo")


class Hosts:
    """n hosts that exist inside a `with` block; what a killed process left behind is removed on entering.

    Args:
        n: hosts, in [1, 250].
        rate: of every link, each way, such as "100mbit".
        delay_ms: of every packet on its way from one host to another, >= 0.
    Raises:
        ValueError: this machine cannot make them, or a value out of range.
    """

    def __init__(self, n: int, rate: str, delay_ms: float = 0.0) -> None:
        bits_per_s(rate)
        if not 1 <= n <= MAX_HOSTS or delay_ms < 0:
            raise ValueError(f"hosts need n in [1, {MAX_HOSTS}] and delay_ms >= 0, got n={n}, delay_ms={delay_ms:g}")
        self.n, self.rate, self.delay_ms = n, rate.lower(), delay_ms
        self._key = f"{os.getpid()}-{next(_count)}"
        self.names = tuple(f"{PREFIX}-{self._key}-h{i}" for i in range(n))
        self.switch = f"{PREFIX}-{self._key}-switch"
        self._started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Hosts:
        check()
        sweep()
        _live.add(self._key)
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes on the hosts and removes them; a signal that arrives meanwhile waits."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            # one that was started just now may not have come to its host yet, and would be missed there
            for job in self._started:
                if job.poll() is None:
                    os.killpg(job.pid, signal.SIGKILL)
            have = set(namespaces())
            for name in (*self.names, self.switch):
                if name in have:
                    remove(name)
            _live.discard(self._key)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def address(self, i: int) -> str:
        """The address of host i on the network."""
        return f"{SUBNET}.{i + 1}"

    def _make(self) -> None:
        for name in (self.switch, *self.names):
            call("ip", "netns", "add", name)
            call("ip", "-n", name, "link", "set", "lo", "up")
        call("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
        call("ip", "-n", self.switch, "link", "set", "bridge", "up")
        for i, name in enumerate(self.names):
            pair = ("type", "veth", "peer", "name", f"port{i}", "netns", self.switch)
            call("ip", "link", "add", "eth0", "netns", name, *pair)
            call("ip", "-n", self.switch, "link", "set", f"port{i}", "master", "bridge", "up")
            call("ip", "-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
            call("ip", "-n", name, "link", "set", "eth0", "up")
            self._limit(name, "eth0", self.delay_ms)
            self._limit(self.switch, f"port{i}", 0.0)

    def _limit(self, namespace: str, device: str, delay_ms: float) -> None:
        bucket = ("tbf", "rate", self.rate, "burst", str(burst_bytes(self.rate)), "latency", "50ms")
        call("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "handle", "1:", *bucket)
        if delay_ms:
            # the queue holds what is under way: 4 times the rate's worth of full frames
            limit = max(1000, round(4 * bits_per_s(self.rate) / 8 * delay_ms / 1e3 / 1500))
            late = ("netem", "delay", f"{delay_ms:g}ms", "limit", str(limit))
            try:
                call("tc", "-n", namespace, "qdisc", "add", "dev", device, "parent", "1:1", "handle", "10:", *late)
            except ValueError as error:
                raise ValueError(
                    f"a delay needs the kernel's netem; leave it out where there is none ({error})"
                ) from None

    def start(self, i: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a process on host i, in a session of its own, so that Ctrl-C does not reach it directly."""
        command = ["ip", "netns", "exec", self.names[i], *command]
        self._started.append(subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, **options))
        return self._started[-1]

    def torchrun(self, *argv: str, logs: Path, limit_s: float, environment: dict[str, str] | None = None) -> None:
        """One torchrun job with a process on every host; rank i is on host i.

        Args:
            argv: what torchrun starts: a script and its arguments, or "-m" and a module.
            logs: folder of what the processes print, `rank-0.log` and so on.
            limit_s: the job is ended after these seconds.
        Raises:
            JobFailed: a process ended with an error, or the time was up; with the last lines of the logs.
        """
        environment = {**os.environ, **job_environment(), **(environment or {})}
        logs.mkdir(parents=True, exist_ok=True)
        files = [logs / f"rank-{i}.log" for i in range(self.n)]
        jobs: list[subprocess.Popen[Any]] = []
        try:
            for i, file in enumerate(files):
                with file.open("w") as log:
                    command = torchrun_command(self.n, i, self.address(0), argv)
                    jobs.append(self.start(i, command, stdout=log, stderr=subprocess.STDOUT, env=environment))
            fault = _wait(jobs, limit_s)
        finally:
            self.stop(jobs)
        if fault is not None:
            heads = "\n".join(f"rank {i}: {said(file)}" for i, file in enumerate(files))
            raise JobFailed(f"{' '.join(argv[:4])}: {fault}\n{heads}")

    def stop(self, jobs: Sequence[subprocess.Popen[Any]]) -> None:
        """Ends the processes, first with a request, and whatever else runs on the hosts."""
        for job in jobs:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for job in jobs:
            try:
                job.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
        for name in self.names:
            kill(name)


def torchrun_command(n: int, i: int, master: str, argv: Sequence[str]) -> list[str]:
    """The command that starts rank i of n."""
    where = ["--nnodes", str(n), "--node-rank", str(i), "--nproc-per-node", "1"]
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *(*where, "--master-addr", master, "--master-port", str(PORT)),
        *argv,
    ]


def job_environment() -> dict[str, str]:
    """The environment of a job: one thread a worker, and gloo on the link."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    # no name server can be reached from the hosts: do not wait for one
    return {**threads, "GLOO_SOCKET_IFNAME": "eth0", "RES_OPTIONS": "timeout:1 attempts:1", "PYTHONUNBUFFERED": "1"}


def said(log: Path, lines: int = 12) -> str:
    """The last lines of a log that torchrun's own traceback has not written."""
    words = log.read_text(errors="replace").splitlines()
    ends = [i for i, line in enumerate(words) if re.match(r"[EW]\d{4} .*torch/distributed/elastic", line)]
    return "\n".join(words[: ends[0] if ends else None][-lines:])


def _wait(jobs: Sequence[subprocess.Popen[Any]], limit_s: float) -> str | None:
    """Waits until all have ended; returns what went wrong, or None."""
    deadline, fault = time.monotonic() + limit_s, None
    while any(job.poll() is None for job in jobs):
        failed = [(i, job.returncode) for i, job in enumerate(jobs) if job.returncode]
        if failed and fault is None:
            fault = f"rank {failed[0][0]} ended with {failed[0][1]}"
            deadline = min(deadline, time.monotonic() + GRACE_S)
        if time.monotonic() > deadline:
            return fault or f"not done after {limit_s:.0f} s"
        time.sleep(0.05)
    failed = [(i, job.returncode) for i, job in enumerate(jobs) if job.returncode]
    return fault or (f"rank {failed[0][0]} ended with {failed[0][1]}" if failed else None)


def sweep() -> None:
    """Removes the namespaces of processes that have ended."""
    for name in namespaces():
        match = _NAME.match(name)
        if match is None or f"{match[1]}-{match[2]}" in _live:
            continue
        if int(match[1]) == os.getpid() or not Path(f"/proc/{match[1]}").exists():
            remove(name)


def namespaces() -> list[str]:
    """All named network namespaces."""
    return [line.split()[0] for line in call("ip", "netns", "list").splitlines() if line.strip()]


def remove(namespace: str) -> None:
    """Ends a namespace's processes and removes it with its links."""
    kill(namespace)
    call("ip", "netns", "delete", namespace)


def kill(namespace: str) -> None:
    """Ends all processes in a namespace at once, those included that they start meanwhile."""
    for _ in range(100):
        processes = [int(pid) for pid in call("ip", "netns", "pids", namespace).split()]
        if not processes:
            return
        for pid in processes:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def call(*command: str) -> str:
    """The output of a command of iproute2.

    Raises:
        ValueError: it failed, for example because a container may not make namespaces.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
