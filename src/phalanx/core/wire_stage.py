# SPDX-License-Identifier: Apache-2.0
"""The stage whose rows cross the wire, and the two halves of a scheme: the workers' and the server's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from phalanx.core.attack import Attack
from phalanx.core.clock import Clock
from phalanx.core.payload import Payload
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Chain, Stage, TooFewRows
from phalanx.core.trees import State


@dataclass(frozen=True)
class Upload:
    """What a worker has for the server in a round.

    Args:
        now: the payload that it sends without being asked; None for nothing.
        on_request: the payload that it keeps until the server asks for it.
    """

    now: Payload | None
    on_request: Payload | None = None


class WireStage(Stage):
    """A stage whose rows cross the wire one by one.

    `upload` runs in the workers' processes, `receive` at the server. Without a server every process runs both.
    """

    @property
    def num_wires(self) -> int:
        return 1

    @abstractmethod
    def upload(self, stack: Stack, state: State | None, round: Round) -> tuple[list[Upload], State]:
        """The worker's half: an upload for each row of this process, and the next state."""

    @abstractmethod
    def receive(self, uploads: Sequence[Upload], sent: Stack, round: Round) -> Stack:
        """The server's half: the rows that arrive through `round.world`.

        Args:
            uploads: one for each worker of this process; none at a server.
            sent: has the layout, dtype and notes of the result.
        """

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        clock = Clock()
        uploads, state = self.upload(stack, state, round)
        clock.lap("encode_s")
        return self.receive(uploads, stack.note(clock.notes), round), state


def without_absent(uploads: Sequence[Upload], workers: Sequence[int], round: Round) -> list[Upload]:
    """The uploads, with an empty one for each worker that is absent in this round."""
    return [Upload(None) if w in round.absent else upload for w, upload in zip(workers, uploads, strict=True)]


def check_server(scheme: Stage, secure: bool = False) -> None:
    """Raises ValueError unless a scheme splits into a worker's half and the half of a server that sees single rows."""
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
    for stage in stages:
        if stage.divides:
            raise ValueError(
                f"{stage!r} divides the server's work among the workers, and a server's job has a server; write "
                "gather(...) in place of scatter(...), or run it under torchrun without a server"
            )
    if not any(isinstance(stage, WireStage) for stage in stages):
        raise ValueError(
            f"a server takes rows one by one, and {scheme!r} has no gather(...) or vote(...) among its stages; "
            "write chain(gather(codec), mean()) in place of an all-reduce"
        )


def check_quorum(clients: Sequence[int], notes: Sequence[Note]) -> None:
    """Raises TooFewRows unless the rows of more than half of the workers that were asked have come and were admitted.

    A server holds every rule to it: the few that are left after an attack on the others must not decide alone.
    """
    left_out = {note.worker for note in notes if note.kind == "excluded"} & set(clients)
    there = len(clients) - len(left_out)
    if 2 * there <= len(clients):
        raise TooFewRows(
            f"the rows of {there} of {len(clients)} workers have come; an update needs those of more than half",
            tuple(notes),
        )


def worker_half(scheme: Stage, stack: Stack, state: State | None, round: Round) -> tuple[list[Upload], State]:
    """Runs the stages before the wire; returns the uploads of the wire stage and the next state."""
    state = dict(state or {})
    if isinstance(scheme, WireStage):
        return scheme.upload(stack, state, round)
    for i, stage in enumerate(stages_of(scheme)):
        key, child = str(i), round.child(i)
        if isinstance(stage, WireStage):
            uploads, after = stage.upload(stack, state.get(key), child)
        else:
            uploads, (stack, after) = None, stage(stack, state.get(key), child)
        if after:
            state[key] = after
        if uploads is not None:
            return uploads, state
    raise AssertionError(f"{scheme!r} has no wire")


def server_half(scheme: Stage, empty: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
    """Receives the rows and runs the stages behind the wire.

    Args:
        empty: a stack of no rows; has the layout and dtype.
    """
    state, stack = dict(state or {}), empty
    if isinstance(scheme, WireStage):
        return scheme.receive([], stack, round), state
    crossed = False
    for i, stage in enumerate(stages_of(scheme)):
        if isinstance(stage, WireStage):
            stack, crossed = stage.receive([], stack, round.child(i)), True
        elif crossed:
            try:
                stack, after = stage(stack, state.get(str(i)), round.child(i))
            except TooFewRows as error:
                if error.state:
                    state[str(i)] = error.state
                error.state = state
                raise
            if after:
                state[str(i)] = after
    return stack, state


def stages_of(scheme: Stage) -> tuple[Stage, ...]:
    """The stages of a chain, or the single stage itself."""
    return scheme.stages if isinstance(scheme, Chain) else (scheme,)
