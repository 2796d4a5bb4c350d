"""Forks the processes of jobs, one job after the other, from a process that has imported torch once for all of them.

Each line of its input is an order, each line of its output a job's exit code. A job's processes see what torchrun would
show them: ranks, an address, a store that its agent keeps; when one fails, the others are ended.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress

import torch.distributed as dist

from phalanx.distributed.job import hard_exit
from tests.distributed.launch import TIMED_OUT

PRELOADED = ("numba", "phalanx", "sklearn.datasets", "torch._dynamo")  # what takes long and jobs import

ADDRESS = "127.0.0.1"
_LOOK_S = 0.01
_GRACE_S = 10.0  # for a process that is asked to end


def job(order: dict) -> int:
    """The exit code of a job; its output is in the files that the order names."""
    os.setsid()
    for name, target in (("out", 1), ("err", 2)):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), target)
    os.environ.clear()
    os.environ.update(order["environment"])
    listener = socket.create_server((ADDRESS, 0))
    port, size = listener.getsockname()[1], order["processes"]
    running = {fork(rank, size, port, order["argv"]) for rank in range(size)}
    store = dist.TCPStore(ADDRESS, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    code, until = 0, time.monotonic() + order["limit_s"]
    while running and not code:
        code = code or ended(running) or (TIMED_OUT if time.monotonic() > until else 0)
        time.sleep(_LOOK_S)
    until = time.monotonic() + _GRACE_S
    tell(running, signal.SIGTERM)
    while running and time.monotonic() < until:
        ended(running)
        time.sleep(_LOOK_S)
    tell(running, signal.SIGKILL)
    del store
    return code


def fork(rank: int, size: int, port: int, argv: list[str]) -> int:
    """A process of a job, which runs the script and leaves."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()})
        os.environ.update({"MASTER_ADDR": ADDRESS, "TORCHELASTIC_USE_AGENT_STORE": "True"})
        sys.argv = list(argv)
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    hard_exit(code)


def ended(running: set[int]) -> int:
    """Takes those that have ended from the set; the first exit code that is not 0."""
    code = 0
    for child in list(running):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            running.remove(child)
            code = code or os.waitstatus_to_exitcode(status)
    return code


def tell(running: set[int], number: signal.Signals) -> None:
    for child in running:
        with suppress(ProcessLookupError):
            os.kill(child, number)


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        agent = os.fork()
        if not agent:
            code = 1
            try:
                code = job(json.loads(line))
            except BaseException:
                traceback.print_exc()
            hard_exit(code % 256)
        print(os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1]), flush=True)
