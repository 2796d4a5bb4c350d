# SPDX-License-Identifier: Apache-2.0
"""The codec, which turns a row into a payload and back, and the two stages that send payloads over the wire."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from phalanx.core.buffers import RowBuffer, stack_rows
from phalanx.core.clock import Clock
from phalanx.core.coded_rows import Adder, CodedRow, CodedRows, Coding
from phalanx.core.columns import Shard
from phalanx.core.expression import Expression, method
from phalanx.core.gate import Gate
from phalanx.core.layout import Layout
from phalanx.core.payload import BadPayload, Payload, payload_bytes
from phalanx.core.round import Rng, Round, make_generator
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Kept, Scope, Stage, TooFewRows, check_remembers, memory_key
from phalanx.core.trees import State
from phalanx.core.wire_stage import Upload, WireStage, without_absent

__all__ = ["BadPayload", "Codec", "Gather", "Payload", "PayloadAttack", "Reduce"]

WEIGHT, INSTALLED = "weight", "installed"  # keys that the wire stage adds to those of the codec


class Codec(Expression, ABC):
    """A method that turns a row into a payload and back."""

    runs_on: ClassVar[Scope] = "coordinate"

    @property
    def scope(self) -> Scope:
        """The smallest piece of a row that can be coded alone; `runs_on`, unless it depends on the fields."""
        return self.runs_on

    @property
    def linear(self) -> bool:
        """Whether decoding the mean of payloads gives the mean of the decoded rows."""
        return False

    @property
    def unbiased(self) -> bool:
        """Whether the expectation of decode(encode(row)) is the row."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether a worker keeps a memory for it from round to round."""
        return False

    @property
    def keeps(self) -> Kept:
        """What decoded rows of several workers keep: "nothing" where each worker draws random numbers of its own."""
        return "nothing" if self.unbiased else "equality"

    @property
    def grain(self) -> int | None:
        """The number of a tensor's entries between two places where `split` can cut its code.

        None where the code of a tensor is one piece: then a shard of a row is made of whole tensors.
        """
        return None

    @property
    def result_code(self) -> str | None:
        """The expression of the codec in which `scatter` sends results back unless it is told another one.

        None sends plain numbers.
        """
        return None

    def split(self, payload: Payload, layout: Layout, shards: Sequence[Shard]) -> list[Payload]:
        """Cuts a payload into a part for each shard; the parts decode to the bits to which the payload decodes.

        A codec with a `grain` has this method.

        Args:
            shards: of the layout, without installed values; they cut no tensor but at multiples of `grain`.
        Raises:
            BadPayload: this codec did not write the payload for this layout.
        """
        raise NotImplementedError(f"{self!r} has a grain and no method split")

    def decode_part(self, payload: Payload, layout: Layout, shard: Shard) -> Tensor:
        """The entries (shard.layout.d,) that a part from `split` stands for.

        Args:
            layout: of the whole row.
        Raises:
            BadPayload: `split` did not write the part for this shard.
        """
        return self.decode(payload, shard.layout)

    def adder(self, layout: Layout) -> Adder | None:
        """What checks payloads and adds up their rows without a table of rows; None where a code has to be decoded.

        With it a server decodes payloads only when their rows are read, and a mean adds them up one by one: see
        `phalanx.core.coded_rows`.

        Args:
            layout: of directions, in float32.
        """
        return None

    @abstractmethod
    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        """The payload of a worker's row (d,), and the worker's next state; `rng()` makes its random generator."""

    @abstractmethod
    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        """The row (d,) that a payload stands for, in the layout's dtype.

        Raises:
            BadPayload: this codec did not write the payload for this layout.
        """


class PayloadAttack(Expression, ABC):
    """An attack on the wire: a Byzantine worker sends a forged payload in place of its coded row."""

    @abstractmethod
    def forge(self, payload: Payload, rng: torch.Generator) -> Payload | None:
        """The payload that the worker sends; None when it sends nothing."""

    def collude(self, payload: Payload, worker: int, round: Round) -> Payload | None:
        """The same, for a forgery of several workers together, which know each other and the round."""
        return self.forge(payload, round.rng(worker))


@method("gather", "wire")
class Gather(WireStage):
    """The server receives the coded row of every worker, decodes it and passes it through the gate.

    Shapes: (k, d) -> (n - erased, d).
    Args:
        codec: turns a row into a payload.
        gate: decides which rows are admitted.
        forge: what Byzantine workers do to their payloads.
    """

    codec: Codec
    gate: Gate = Gate()
    forge: PayloadAttack | None = None

    @property
    def keeps(self) -> Kept:
        return self.codec.keeps

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
        opened = open_rows(self.codec, arrived, [(worker,) for worker in round.world.workers], sent)
        received = self.gate.admit(opened, in_place=round.world.gives_memory)
        clock.lap("decode_s")
        return replace(received, arrived=received).note(clock.notes)


def payload_limit(stack: Stack) -> int:
    """The most bytes that a payload of one of these rows may have: several times a row, as a codec may lengthen it."""
    return most_bytes(stack.layout.d)


def most_bytes(entries: int) -> int:
    """The most bytes that a payload may have: 16 an entry, which sparse codes of float64 rows may need, and 64 KiB."""
    return 64 * 1024 + 16 * entries


def send_rows(
    codec: Codec, stack: Stack, state: State | None, rng: Callable[[int], torch.Generator]
) -> tuple[list[Payload], State]:
    """A payload for each row: the coded directions, the installed values as they are, and the weight.

    Args:
        rng: makes the random generator of a worker.
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
    """The payloads, where each Byzantine worker's is replaced by a forged one."""
    if forge is None:
        return list(payloads)
    return [
        forge.collude(payload, worker, round) if worker in round.byzantine else payload
        for worker, payload in zip(workers, payloads, strict=True)
    ]


def open_rows(
    codec: Codec, arrived: Sequence[Payload | BadPayload], sources: Sequence[tuple[int, ...]], sent: Stack
) -> Stack:
    """Rows of payloads that have not passed the gate; a payload that the codec refuses is an erasure.

    They are decoded when they are read, if the codec has an adder.

    Args:
        sources: the workers behind each payload; the first one sent it.
    """
    layout, is_plain = sent.layout, sent.rows.device.type == "cpu" and sent.layout.dtype == torch.float32
    adder = codec.adder(layout.head) if is_plain else None
    table, coded = RowBuffer(len(arrived), layout.d, sent.rows), list[CodedRow]()
    good, weights = list[tuple[int, ...]](), list[float]()
    notes, excluded = list[Note](), list[Note]()
    for payload, source in zip(arrived, sources, strict=True):
        try:
            if isinstance(payload, BadPayload):
                raise payload
            notes.append(Note("bytes", source[0], payload_bytes(payload)))
            if adder is not None:
                row, weight = _check_row(adder, payload, layout)
                coded.append(row)
            else:
                parts, weight = open_row(codec, payload, layout)
                table.add(parts)
        except BadPayload as error:
            excluded += [Note("excluded", worker, reason=str(error)) for worker in source]
            continue
        good.append(source)
        weights.append(weight)
    if adder is None:
        rows = table.rows
    else:
        rows = CodedRows.of(coded, Coding(layout, adder, lambda payload: codec.decode(payload, layout.head)))
    return Stack(
        rows,
        layout,
        tuple(good),
        torch.tensor(weights, dtype=torch.float64),
        received=True,
        erased=len(arrived) - len(good),
        notes=(*sent.notes, *notes, *excluded),
    )


def open_row(codec: Codec, payload: Payload, layout: Layout) -> tuple[list[Tensor], float]:
    """Decodes a payload: the row in two parts, directions and installed values, and the claimed weight.

    Raises:
        BadPayload: wrong keys, shapes or dtypes.
    """
    body, installed, weight = _unwrapped(payload, layout)
    row = codec.decode(body, layout.head)
    if tuple(row.shape) != (layout.stepped,):
        raise BadPayload(f"a row of {tuple(row.shape)} where ({layout.stepped},) belongs")
    return [row, *installed], weight


def _check_row(adder: Adder, payload: Payload, layout: Layout) -> tuple[CodedRow, float]:
    """The same without decoding it."""
    body, installed, weight = _unwrapped(payload, layout)
    values = installed[0] if installed else torch.empty(0, dtype=layout.dtype)
    return CodedRow(adder.check(body), body, values), weight


def _unwrapped(payload: Payload, layout: Layout) -> tuple[Payload, list[Tensor], float]:
    """What the codec wrote, the installed values if there are any, and the claimed weight."""
    extras = {WEIGHT: (torch.float64, (1,))}
    if layout.num_installed:
        extras[INSTALLED] = (layout.dtype, (layout.d - layout.stepped,))
    for key, (dtype, shape) in extras.items():
        if key not in payload or payload[key].dtype != dtype or tuple(payload[key].shape) != shape:
            raise BadPayload(f"{key} is missing or malformed")
    body = {key: tensor for key, tensor in payload.items() if key not in extras}
    return body, [payload[INSTALLED]] if layout.num_installed else [], float(payload[WEIGHT])


@method("reduce", "wire")
class Reduce(Stage):
    """The weighted mean of all workers' rows, by an all-reduce of their payloads.

    With a linear codec this costs less than gather and mean. But nobody sees a single row, so no gate can check the
    rows, and one NaN makes the mean NaN (the run then skips the update and reports it). A worker from which nothing
    arrives is left out and named in a note.

    Shapes: (k, d) -> (1, d).
    Raises:
        ValueError: the codec is not linear, or no row arrives.
    """

    sums_rows = True

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
        is_absent = torch.tensor([worker in round.absent for worker in stack.ids], dtype=torch.bool)
        weights = stack.weights.masked_fill(is_absent, 0)
        present = tuple(worker for worker in world.workers if worker not in round.absent)
        absences = [
            Note("excluded", worker, reason="nothing arrived") for worker in world.workers if worker not in present
        ]
        if not present:
            raise TooFewRows("nothing arrived from any worker", (*stack.notes, *absences), state)
        # a process may have none of the workers that take part
        example = coded[0] if coded else self._example(stack)
        keys = [k for k in example if k != WEIGHT]
        total = world.all_gather(weights.reshape(-1, 1)).sum()
        mean = {}
        for key in keys:
            rows = stack_rows([payload[key] for payload in coded], example[key])
            if bool(is_absent.any()):
                # NaN times zero is NaN
                rows = rows.masked_fill(is_absent.to(rows.device).reshape(-1, 1), 0)
            mean[key] = world.mean(rows, weights, total)
        clock.lap("wire_s")
        parts, _ = open_row(self.codec, {**mean, WEIGHT: torch.ones(1, dtype=torch.float64)}, layout)
        row = torch.cat(parts).to(stack.rows)
        clock.lap("decode_s")
        size = payload_bytes(example)
        notes = [*clock.notes, *(Note("bytes", worker, size) for worker in present), *absences]
        merged = replace(
            stack,
            rows=row.reshape(1, -1),
            sources=(present,),
            weights=total.reshape(1),
            received=True,
            erased=len(absences),
        )
        return merged.note(notes), state

    def _example(self, stack: Stack) -> Payload:
        """A payload of the form that workers in other processes send."""
        zeros = Stack.of(stack.rows.new_zeros(1, stack.layout.d), stack.layout)
        return send_rows(self.codec, zeros, None, make_generator)[0][0]
