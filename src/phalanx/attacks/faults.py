# SPDX-License-Identifier: Apache-2.0
"""Injected failures of workers: real ones in a server's job, missing messages in the simulation."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from phalanx.core.expression import Expression, method, require


class Fault(Expression, ABC):
    """A failure of one worker."""

    worker: int
    at: int

    def validate(self) -> None:
        name = self.expression_name
        require(self.worker >= 0, f"{name} needs a worker >= 0, got worker={self.worker}")
        require(self.at >= 0, f"{name} needs a round at >= 0, got at={self.at}")

    def drops_message(self, index: int) -> bool:
        """Whether the worker's message does not arrive in round `index`."""
        return index >= self.at

    def due(self, index: int) -> bool:
        """Whether the fault happens in round `index`."""
        return index >= self.at

    @abstractmethod
    def inject(self, body: Tensor) -> Tensor:
        """Makes the fault happen when the worker sends its message; returns the bytes that are sent."""


@method("crash", "fault")
class Crash(Fault):
    """The worker's process dies by SIGKILL.

    Args:
        worker: the worker that fails.
        at: round, from 0.
    """

    worker: int
    at: int

    def inject(self, body: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return body


@method("hang", "fault")
class Hang(Fault):
    """The worker's process stops by SIGSTOP, with its connections open.

    Args:
        worker: the worker that fails.
        at: round, from 0.
    """

    worker: int
    at: int

    def inject(self, body: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGSTOP)
        return body


@method("delay", "fault")
class Delay(Fault):
    """The worker's messages are late from a round on; within the server's timeout that costs time only.

    In the simulation it has no effect, as nobody waits.

    Args:
        worker: the worker that fails.
        seconds: > 0.
        at: first round, from 0.
        rounds: number of rounds; None for all that follow.
    """

    worker: int
    seconds: float
    at: int = 0
    rounds: int | None = None

    def validate(self) -> None:
        super().validate()
        require(self.seconds > 0, f"delay needs seconds > 0, got seconds={self.seconds}")

    def drops_message(self, index: int) -> bool:
        return False

    def due(self, index: int) -> bool:
        return index >= self.at and (self.rounds is None or index < self.at + self.rounds)

    def inject(self, body: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return body


@method("garble", "fault")
class Garble(Fault):
    """The worker's messages are random bytes from a round on, as from broken memory, a foreign program or a fuzzer.

    Args:
        worker: the worker that fails.
        at: round, from 0.
    """

    worker: int
    at: int

    def inject(self, body: Tensor) -> Tensor:
        return torch.randint(256, body.shape, dtype=torch.uint8)


def inject_faults(faults: tuple[Fault, ...], workers: tuple[int, ...], index: int, body: Tensor) -> Tensor:
    """Makes the faults of these workers happen in a round; returns the bytes that their process sends."""
    for fault in faults:
        if fault.worker in workers and fault.due(index):
            body = fault.inject(body)
    return body


def silenced_workers(faults: tuple[Fault, ...], index: int) -> frozenset[int]:
    """The workers whose messages do not arrive in a round."""
    return frozenset(fault.worker for fault in faults if fault.drops_message(index))
