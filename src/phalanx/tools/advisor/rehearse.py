# SPDX-License-Identifier: Apache-2.0
"""A scheme that runs on real rows of one worker, as if there were n workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import torch

from phalanx.core.clock import PARTS
from phalanx.core.payload import Payload
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Stage
from phalanx.core.trees import State
from phalanx.distributed.backend import Call, CallKind, Loopback, Recording
from phalanx.distributed.process_group import ProcessGroupCollective
from phalanx.tools.advisor.model import Effort
from phalanx.training.phase import Phase
from phalanx.training.trainer import Trainer

# in round 0 a vote asks the first worker of each group for its payload, and all would send what this one sends
WORKER, ROUND = 0, 0


@dataclass(frozen=True)
class Sample:
    """One rehearsed step of this process.

    Args:
        sent_bytes: of the worker's payload, as the meter counts.
        calls: collectives with the bytes of this process's message.
    """

    effort: Effort
    sent_bytes: float
    calls: tuple[tuple[CallKind, int], ...]


def rehearse(
    trainer: Trainer, scheme: Stage, stacks: Sequence[Stack], n: int, ready: Callable[[], object] = lambda: None
) -> Iterator[Sample]:
    """Steps with the scheme on real rows, each with the payload of this process in place of all n, without end.

    Decoding, voting and aggregating meet n payloads of real size and content, only not different ones; so a rule that
    iterates until its rows agree is shown at its best. What the collectives themselves take is left out.

    Args:
        trainer: finishes the steps.
        stacks: one row each; taken in turn.
        ready: called before each step, such as to wait for the other processes.
    """
    phase = replace(trainer.config.phases[0], scheme=scheme)
    state: State = {}
    allocation = scheme.assign(n)
    units = allocation.units[WORKER] if allocation is not None and allocation.separate else ()
    places, announced = [0] * max(len(units), 1), dict[str, torch.Tensor]()
    for index, given in enumerate(cycle(stacks)):
        # the scheme may keep or change what it is given
        stack = replace(
            given,
            rows=given.rows[places],
            sources=((WORKER,),) * len(places),
            weights=given.weights[places],
            units=units or None,
        )
        ready()
        sample, state, announced = _step(trainer, phase, stack, state, n, index, announced)
        yield sample


def _step(
    trainer: Trainer, phase: Phase, stack: Stack, state: State, n: int, index: int, announced: Payload
) -> tuple[Sample, State, Payload]:
    lines = Recording(Loopback(WORKER, n, _device(trainer)))
    world = ProcessGroupCollective(n, backend=lines)
    round = Round(ROUND, trainer.config.seed + index, world=world, announced=announced)
    began = time.perf_counter()
    result, state = phase.scheme(stack, state, round)
    combined = time.perf_counter()
    trainer.update_model(trainer.config.position(0), result)
    ended = time.perf_counter()
    parts = dict.fromkeys(PARTS, 0.0)
    for note in result.notes:
        if note.kind == "seconds":
            parts[note.reason] += note.value
    carried = sum(call.seconds for call in lines.calls)
    effort = Effort(
        n,
        encode_s=parts["encode_s"],
        pack_s=max(0.0, parts["wire_s"] - carried),
        decode_s=parts["decode_s"],
        rule_s=max(0.0, combined - began - sum(parts.values())),
        finish_s=ended - combined,
    )
    sent = sum(note.value for note in result.notes if note.kind == "bytes" and note.worker == WORKER)
    return Sample(effort, sent, messages_of(lines.calls, n)), state, result.announcement


def messages_of(calls: Sequence[Call], n: int) -> tuple[tuple[CallKind, int], ...]:
    """The collectives of a step; behind an all-to-all the longest all-gather is that of the owners' shares."""
    messages: list[tuple[CallKind, int]] = [(call.kind, call.bytes) for call in calls]
    first = next((i for i, (kind, _) in enumerate(messages) if kind == "share"), len(messages))
    behind = [i for i in range(first, len(messages)) if messages[i][0] == "gather"]
    if behind:
        longest = max(behind, key=lambda i: messages[i][1])
        messages[longest] = ("share", n * messages[longest][1])
    return tuple(messages)


def _device(trainer: Trainer) -> torch.device:
    """Where the lines of the job want their tensors."""
    return trainer.world.device if isinstance(trainer.world, ProcessGroupCollective) else torch.device("cpu")
