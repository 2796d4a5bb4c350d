# SPDX-License-Identifier: Apache-2.0
"""The processes of a torchrun job, or the single process without torchrun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from phalanx.core.world import Collective, LocalCollective
from phalanx.distributed.process_group import ProcessGroupCollective
from phalanx.distributed.server_transport import ServerTransport

TIMEOUT = timedelta(minutes=10)  # of a process that waits for the others


@dataclass(frozen=True)
class Processes:
    """The processes that run a study together; rank 0 writes, prints and decides.

    Args:
        server: makes the transport of a run, in a job with a server; there only rank 0 runs the study.
    """

    rank: int = 0
    size: int = 1
    server: Callable[[int], ServerTransport] | None = None

    def world(self, workers: int) -> Collective | ServerTransport:
        """The workers of a run: of this job's server if it has one, else distributed over its processes."""
        return self.collective(workers) if self.server is None else self.server(workers)

    def collective(self, workers: int) -> Collective:
        """The workers of a run, distributed over the processes."""
        return LocalCollective(workers) if self.size == 1 else ProcessGroupCollective(workers)

    def broadcast_from_rank0(self, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Calls `decide` at rank 0 and returns its result, plain values, in every process.

        Raises:
            ValueError: `decide` raised one, or could not read or write a file; every process raises it.
        """
        if self.size == 1:
            return decide()
        answer: dict[str, Any] = {}
        if self.rank == 0:
            try:
                answer = {"decided": decide()}
            except (ValueError, OSError) as error:
                answer = {"error": str(error)}
        text = torch.frombuffer(bytearray(json.dumps(answer).encode()), dtype=torch.uint8)
        answer = json.loads(bytes(ProcessGroupCollective().all_gather_payloads({"answer": text})[0]["answer"].tolist()))
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["decided"]


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Joins the processes of a torchrun job to a process group, NCCL with a GPU for each, else gloo.

    Raises:
        ValueError: the processes cannot connect: the port is in use, or nobody listens there.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "gloo"
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        torch.cuda.set_device(local_rank)
        backend = "nccl"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except dist.DistNetworkError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        why = str(error).partition("\n")[0]
        raise ValueError(f"the processes cannot meet at {place} ({why}); give another --master-port") from None
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def hard_exit(code: int = 0) -> NoReturn:
    """Ends a process of a torch.distributed job at once, after its output is written.

    A thread of gloo may still release tensors; if it asks a finished interpreter for its lock, it aborts the
    process ("terminate called without an active exception"), and with it the job.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
