# SPDX-License-Identifier: Apache-2.0
"""Workers that fail without malice, as a drill: in a server's job for real, in the simulation as missing messages."""

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
        """Whether it happens in round `index`."""
        return index >= self.at

    @abstractmethod
    def inject(self, body: Tensor) -> Tensor:
        """Lets the fault happen when the worker's message is due; returns the bytes that are sent in its place."""


@method("crash", "fault")
class Crash(Fault):
    """The worker's process dies by SIGKILL.

    Args:
        worker: its number.
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
        worker: its number.
        at: round, from 0.
    """

    worker: int
    at: int

    def inject(self, body: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGSTOP)
        return body


@method("delay", "fault")
class Delay(Fault):
    """The worker's message is late from a round on; within the server's patience that costs time only.

    In the simulation nobody waits, and it has no effect.

    Args:
        worker: its number.
        seconds: > 0.
        at: first round, from 0.
        rounds: how many; None for all that follow.
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
    """The worker's messages are random bytes from a round on: a broken memory, a foreign program, a fuzzer.

    Args:
        worker: its number.
        at: round, from 0.
    """

    worker: int
    at: int

    def inject(self, body: Tensor) -> Tensor:
        return torch.randint(256, body.shape, dtype=torch.uint8)


def inject_faults(faults: tuple[Fault, ...], workers: tuple[int, ...], index: int, body: Tensor) -> Tensor:
    """Lets the faults of these workers happen in a round; returns the bytes that their process sends."""
    for fault in faults:
        if fault.worker in workers and fault.due(index):
            body = fault.inject(body)
    return body


def silenced_workers(faults: tuple[Fault, ...], index: int) -> frozenset[int]:
    """The workers whose messages do not arrive in a round."""
    return frozenset(fault.worker for fault in faults if fault.drops_message(index))
