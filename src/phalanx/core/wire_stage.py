# SPDX-License-Identifier: Apache-2.0
"""The stage that crosses the wire, and a scheme cut in two there: a worker's half and the server's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from phalanx.core.attack import Attack
from phalanx.core.clock import Clock
from phalanx.core.payload import Payload
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Chain, Stage, TooFewRows
from phalanx.core.trees import State


@dataclass(frozen=True)
class Upload:
    """What a worker has for the server in a round.

    Args:
        first: sent unasked; None for nothing.
        held: kept until the server asks for it.
    """

    first: Payload | None
    held: Payload | None = None


class WireStage(Stage):
    """A stage whose rows cross the wire one by one.

    `offer` runs where the workers are, `receive` at the server. In a world without a server every process runs both.
    """

    @property
    def num_wires(self) -> int:
        return 1

    @abstractmethod
    def offer(self, stack: Stack, state: State | None, round: Round) -> tuple[list[Upload], State]:
        """The worker's half: an offer for each row held here, and the next memories."""

    @abstractmethod
    def receive(self, offers: Sequence[Upload], sent: Stack, round: Round) -> Stack:
        """The server's half: the rows that arrive through `round.world`.

        Args:
            offers: of the rows held in this process; none at a server that plays no worker.
            sent: for its layout, dtype and notes.
        """

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        clock = Clock()
        offers, state = self.offer(stack, state, round)
        clock.lap("encode_s")
        return self.receive(offers, stack.note(clock.notes), round), state


def present(offers: Sequence[Upload], workers: Sequence[int], round: Round) -> list[Upload]:
    """The offers, with nothing from the workers that are absent in this round."""
    return [Upload(None) if w in round.absent else offer for w, offer in zip(workers, offers, strict=True)]


def check_server(scheme: Stage, secure: bool = False) -> None:
    """Raises ValueError unless a scheme can be cut into a worker's half and a server's that may see single rows."""
    if secure:
        raise ValueError(
            "a server takes rows one by one, and secure=True shows it their sum only; run it in the simulation or "
            "under torchrun without a server"
        )
    stages = stages_of(scheme)
    for stage in stages:
        if isinstance(stage, Attack) and stage.asks_all:
            raise ValueError(
                f"{stage!r} sees the rows or the examples of all workers, which no process of a server's job has; "
                "run it in the simulation or under torchrun without a server"
            )
    if not any(isinstance(stage, WireStage) for stage in stages):
        raise ValueError(
            f"a server takes rows one by one, and {scheme!r} has no gather(...) or vote(...) among its stages; "
            "write chain(gather(codec), mean()) in place of an all-reduce"
        )


def worker_half(scheme: Stage, stack: Stack, state: State | None, round: Round) -> tuple[list[Upload], State]:
    """The stages before the wire, and the wire's offers."""
    state = dict(state or {})
    for i, stage in enumerate(stages_of(scheme)):
        key, inside = str(i), round.inside(i) if isinstance(scheme, Chain) else round
        before = state.get(key) if isinstance(scheme, Chain) else state
        if isinstance(stage, WireStage):
            offers, after = stage.offer(stack, before, inside)
        else:
            offers, (stack, after) = None, stage(stack, before, inside)
        if not isinstance(scheme, Chain):
            state = after
        elif after:
            state[key] = after
        if offers is not None:
            return offers, state
    raise AssertionError(f"{scheme!r} has no wire")


def server_half(scheme: Stage, empty: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
    """What arrives, and the stages behind the wire.

    Args:
        empty: a stack of no rows, for its layout and dtype.
    """
    state, stack = dict(state or {}), empty
    arrived = False
    for i, stage in enumerate(stages_of(scheme)):
        inside = round.inside(i) if isinstance(scheme, Chain) else round
        if isinstance(stage, WireStage):
            stack, arrived = stage.receive([], stack, inside), True
        elif arrived:
            try:
                stack, after = stage(stack, state.get(str(i)), inside)
            except TooFewRows as error:
                if error.state:
                    state[str(i)] = error.state
                error.state = state
                raise
            if after:
                state[str(i)] = after
    return stack, state


def stages_of(scheme: Stage) -> tuple[Stage, ...]:
    """The stages of a chain, or the one there is."""
    return scheme.stages if isinstance(scheme, Chain) else (scheme,)
