# SPDX-License-Identifier: Apache-2.0
"""One row <-> one payload, and the two stages that carry payloads across the wire."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from phalanx.core.buffers import RowBuffer, together
from phalanx.core.clock import Clock
from phalanx.core.expression import Expression, method
from phalanx.core.gate import Gate
from phalanx.core.layout import Layout
from phalanx.core.payload import BadPayload, Payload, payload_bytes
from phalanx.core.round import Round, make_generator
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope, Stage, TooFewRows, check_remembers, memory_key
from phalanx.core.trees import State
from phalanx.core.wire_stage import Upload, WireStage, without_absent

__all__ = ["BadPayload", "Codec", "Gather", "Payload", "PayloadAttack", "Reduce"]

WEIGHT, INSTALLED = "weight", "installed"  # keys that the wire stage adds to a codec's own


class Codec(Expression, ABC):
    """A method that turns a row into a payload and back."""

    @property
    def scope(self) -> Scope:
        """The least piece of a row that can be coded alone."""
        return "coordinate"

    @property
    def linear(self) -> bool:
        """Decoding the mean of payloads gives the mean of the decoded rows."""
        return False

    @property
    def unbiased(self) -> bool:
        """The expectation of decode(encode(row)) is the row."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether a worker keeps a memory for it from round to round."""
        return False

    @abstractmethod
    def encode(
        self, row: Tensor, layout: Layout, state: State, rng: Callable[[], torch.Generator]
    ) -> tuple[Payload, State]:
        """What the worker sends for a row (d,), and its next memory. `rng()` makes the worker's random stream."""

    @abstractmethod
    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        """The row (d,) of the layout's dtype.

        Raises:
            BadPayload: this codec did not write the payload for this layout.
        """


class PayloadAttack(Expression, ABC):
    """A Byzantine worker that forges what is on the wire instead of the row before it."""

    @abstractmethod
    def forge(self, payload: Payload, rng: torch.Generator) -> Payload | None:
        """What the worker sends instead; None for nothing."""


@method("gather", "wire")
class Gather(WireStage):
    """Every worker's coded row at the server, decoded and gated.

    Shapes: (k, d) -> (n - erased, d).
    Args:
        codec: how a row becomes bytes.
        gate: which rows may enter.
        forge: what Byzantine workers do to their payloads.
    """

    codec: Codec
    gate: Gate = Gate()
    forge: PayloadAttack | None = None

    @property
    def scope(self) -> Scope:
        return self.codec.scope

    @property
    def remembers(self) -> bool:
        return self.codec.remembers

    def upload(self, stack: Stack, state: State | None, round: Round) -> tuple[list[Upload], State]:
        coded, state = send_rows(self.codec, stack, state, round.rng)
        uploads = [Upload(payload) for payload in forged(self.forge, coded, stack.ids, round)]
        return without_absent(uploads, stack.ids, round), state

    def receive(self, uploads: Sequence[Upload], sent: Stack, round: Round) -> Stack:
        clock = Clock()
        arrived = round.world.gather([upload.now for upload in uploads], payload_limit(sent))
        clock.lap("wire_s")
        received = self.gate.admit(open_rows(self.codec, arrived, [(worker,) for worker in round.world.workers], sent))
        clock.lap("decode_s")
        return replace(received, arrived=received).note(clock.notes)


def payload_limit(stack: Stack) -> int:
    """The bytes that a payload of these rows may have: several times those of the row, as codecs may lengthen it."""
    return 64 * 1024 + 16 * stack.rows.element_size() * stack.layout.d


def send_rows(
    codec: Codec, stack: Stack, state: State | None, rng: Callable[[int], torch.Generator]
) -> tuple[list[Payload], State]:
    """A payload for each row: the coded directions, the installed entries as they are, the weight.

    Args:
        rng: makes the random stream of a worker.
    """
    layout, state, payloads = stack.layout, dict(state or {}), []
    for i, worker in enumerate(stack.ids):
        key = memory_key(worker, received=False)
        payload, memory = codec.encode(
            stack.rows[i, : layout.stepped], layout.head, state.get(key, {}), lambda w=worker: rng(w)
        )
        assert WEIGHT not in payload and INSTALLED not in payload
        payload = {**payload, WEIGHT: stack.weights[i : i + 1]}
        if layout.num_installed:
            payload[INSTALLED] = stack.rows[i, layout.stepped :]
        payloads.append(payload)
        if memory:
            check_remembers(codec)
            state[key] = memory
    return payloads, state


def forged(
    forge: PayloadAttack | None, payloads: Sequence[Payload], workers: Sequence[int], round: Round
) -> list[Payload | None]:
    """The payloads, with a forgery in place of each Byzantine worker's."""
    if forge is None:
        return list(payloads)
    return [
        forge.forge(payload, round.rng(worker)) if worker in round.byzantine else payload
        for worker, payload in zip(workers, payloads, strict=True)
    ]


def open_rows(
    codec: Codec, arrived: Sequence[Payload | BadPayload], sources: Sequence[tuple[int, ...]], sent: Stack
) -> Stack:
    """The rows of these payloads, received but not gated; what the codec or the layout refuses is an erasure.

    Args:
        sources: the workers behind each payload; the first one sent it.
    """
    table = RowBuffer(len(arrived), sent.layout.d, sent.rows)
    good, weights = list[tuple[int, ...]](), list[float]()
    notes, excluded = list[Note](), list[Note]()
    for payload, source in zip(arrived, sources, strict=True):
        try:
            if isinstance(payload, BadPayload):
                raise payload
            notes.append(Note("bytes", source[0], payload_bytes(payload)))
            parts, weight = open_row(codec, payload, sent.layout)
        except BadPayload as error:
            excluded += [Note("excluded", worker, reason=str(error)) for worker in source]
            continue
        table.add(parts)
        good.append(source)
        weights.append(weight)
    return Stack(
        table.rows,
        sent.layout,
        tuple(good),
        torch.tensor(weights, dtype=torch.float64),
        received=True,
        erased=len(arrived) - len(good),
        notes=(*sent.notes, *notes, *excluded),
    )


def open_row(codec: Codec, payload: Payload, layout: Layout) -> tuple[list[Tensor], float]:
    """The row of a payload in parts, directions and what is installed, and the claimed weight.

    Raises:
        BadPayload: wrong keys, shapes or dtypes.
    """
    extras = {WEIGHT: (torch.float64, (1,))}
    if layout.num_installed:
        extras[INSTALLED] = (layout.dtype, (layout.d - layout.stepped,))
    for key, (dtype, shape) in extras.items():
        if key not in payload or payload[key].dtype != dtype or tuple(payload[key].shape) != shape:
            raise BadPayload(f"{key} is missing or malformed")
    row = codec.decode({k: v for k, v in payload.items() if k not in extras}, layout.head)
    if tuple(row.shape) != (layout.stepped,):
        raise BadPayload(f"a row of {tuple(row.shape)} where ({layout.stepped},) belongs")
    return [row, payload[INSTALLED]] if layout.num_installed else [row], float(payload[WEIGHT])


@method("reduce", "wire")
class Reduce(Stage):
    """The weighted mean of all workers' rows by all-reduce of their payloads.

    Cheaper than gather and mean for codecs that are linear, and blind: no row is seen alone, so no gate can stand
    before it, and one NaN spoils the mean (the run then skips the update and says so). Workers of whom nothing arrives
    have no part in it, and are named.

    Shapes: (k, d) -> (1, d).
    Raises:
        ValueError: the codec is not linear, or no row arrives.
    """

    codec: Codec

    def validate(self) -> None:
        if not self.codec.linear:
            raise ValueError(
                f"reduce needs a linear codec, and {self.codec!r} is not; use gather({self.codec!r}), mean()"
            )

    @property
    def scope(self) -> Scope:
        return self.codec.scope

    @property
    def remembers(self) -> bool:
        return self.codec.remembers

    @property
    def num_wires(self) -> int:
        return 1

    def rows_out(self, n: int) -> int:
        return 1

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        world, layout, clock = round.collective, stack.layout, Clock()
        coded, state = send_rows(self.codec, stack, state, round.rng)
        clock.lap("encode_s")
        silent = torch.tensor([worker in round.absent for worker in stack.ids], dtype=torch.bool)
        weights = stack.weights.masked_fill(silent, 0)
        heard = tuple(worker for worker in world.workers if worker not in round.absent)
        gone = [Note("excluded", worker, reason="nothing arrived") for worker in world.workers if worker not in heard]
        if not heard:
            raise TooFewRows("nothing arrived from any worker", (*stack.notes, *gone), state)
        # a process may play none of the workers that take part
        form = coded[0] if coded else self._form(stack)
        keys = [k for k in form if k != WEIGHT]
        every = world.all_gather(weights.reshape(-1, 1)).sum()
        mean = {}
        for key in keys:
            rows = together([payload[key] for payload in coded], form[key])
            if bool(silent.any()):
                # NaN times zero is NaN
                rows = rows.masked_fill(silent.to(rows.device).reshape(-1, 1), 0)
            mean[key] = world.mean(rows, weights, every)
        clock.lap("wire_s")
        parts, _ = open_row(self.codec, {**mean, WEIGHT: torch.ones(1, dtype=torch.float64)}, layout)
        row = torch.cat(parts).to(stack.rows)
        clock.lap("decode_s")
        size = payload_bytes(form)
        notes = [*clock.notes, *(Note("bytes", worker, size) for worker in heard), *gone]
        merged = replace(
            stack,
            rows=row.reshape(1, -1),
            sources=(heard,),
            weights=every.reshape(1),
            received=True,
            erased=len(gone),
        )
        return merged.note(notes), state

    def _form(self, stack: Stack) -> Payload:
        """A payload as the workers of other processes send it."""
        zeros = Stack.of(stack.rows.new_zeros(1, stack.layout.d), stack.layout)
        return send_rows(self.codec, zeros, None, make_generator)[0][0]
