# SPDX-License-Identifier: Apache-2.0
"""The wire stage that divides the server's work: each owner gets some columns of all rows, and returns their result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from phalanx.core.buffers import empty_rows
from phalanx.core.clock import Clock
from phalanx.core.codec import INSTALLED, WEIGHT, Codec, PayloadAttack, most_bytes, payload_limit
from phalanx.core.columns import Columns, Shard, Undecided, divide, owners_of
from phalanx.core.expression import method, require
from phalanx.core.gate import Gate, bad_rows
from phalanx.core.layout import Layout
from phalanx.core.packing import digest
from phalanx.core.parser import parse
from phalanx.core.payload import BadPayload, Payload, expect, payload_bytes
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Kept, Scope, TooFewRows, check_remembers, memory_key
from phalanx.core.trees import State, copy_tree
from phalanx.core.wire_stage import Upload, WireStage, without_absent

_VALUES, _BACK = "values", "back"
_REPORT = 5  # whole numbers that an owner reports of a part: its size, and 32 bytes of digest
DIGEST_BYTES = 32
_HEAD_LIMIT = 4096  # bytes that a message with a weight may have


@method("scatter", "wire")
class Scatter(WireStage):
    """Each worker owns 1/n of the columns: it receives them of all rows, and sends their result to all.

    Every worker codes its row and sends each owner the part of the code for the owner's columns. The owners decode the
    parts and run the stages behind this one on their columns. What those stages need of whole rows, such as norms and
    inner products, the owners add up. At the end of the chain each owner codes its columns of the result and sends them
    to all. A line carries (n - 1) / n (P + B) bytes for payloads of P bytes and results of B bytes, where `gather`
    takes (n - 1) P, and a process decodes one row's worth of entries instead of n.

    The columns of an owner are blocks from all over the row. A codec that can cut the code of a tensor (`Codec.grain`)
    codes the row as for `gather`, with the same bits; any other codec has whole tensors coded one by one. So rows are
    those of `gather` to the bit, and so is the result of a rule of coordinates if it comes back as plain numbers.

    A row whose part an owner cannot decode, or finds not finite or absurdly large, is not excluded on the owner's word:
    its worker sends this part to all processes, and these exclude the row if the part is bad. All processes exclude the
    same rows.

    With r = 1 owners are trusted: one that sends a wrong result for its columns has it installed by all. With r owners
    of each column (r - 1) / 2 of them may lie, and a line carries (n - 1) / n (r P + B) bytes.

    Shapes: (k, d) -> (n - erased, columns held here).
    Args:
        codec: turns a row into a payload.
        back: turns an owner's columns of the result into a payload; None takes `codec.result_code`. With
            `error_feedback(...)` each owner keeps a memory for its blocks. dense() loses nothing.
        gate: decides which rows are admitted.
        forge: what Byzantine workers do to each part of their payloads.
        r: owners of each column, odd. More than half of them decide by digests what their columns' result is, and by
            the numbers themselves what they add to norms and inner products; the others are noted as "outvoted". A part
            of a row that is not the same at all owners is sent to all once more.
        lie: what Byzantine owners do to the results that they send.
    Raises:
        ValueError: a codec needs whole rows, or a stage behind this one does.
    """

    divides: ClassVar[bool] = True

    codec: Codec
    back: Codec | None = None
    gate: Gate = Gate()
    forge: PayloadAttack | None = None
    r: int = 1
    lie: PayloadAttack | None = None

    @property
    def keeps(self) -> Kept:
        return self.codec.keeps

    @property
    def scope(self) -> Scope:
        return self.codec.scope

    @property
    def remembers(self) -> bool:
        return self.codec.remembers

    @property
    def result_codec(self) -> Codec | None:
        """The code of results; None for plain numbers."""
        if self.back is not None or self.codec.result_code is None:
            return self.back
        return parse(self.codec.result_code)

    def rows_out(self, n: int) -> int:
        if n < self.r:
            raise TooFewRows(f"scatter needs n >= r workers, got n={n}, r={self.r}")
        return n

    def validate(self) -> None:
        require(
            self.r >= 1 and self.r % 2 == 1,
            f"scatter needs an odd number r >= 1 of owners for each column, got r={self.r}",
        )
        for codec in (self.codec, self.back):
            require(
                codec is None or codec.scope != "vector",
                f"{codec!r} codes whole rows, and scatter(...) sends each owner some columns; use gather(...)",
            )

    def upload(self, stack: Stack, state: State | None, round: Round) -> tuple[list[Upload], State]:
        require(
            hasattr(round.world, "all_to_all"),
            f"{self!r} needs a collective with all_to_all, left_out and echoes, and {round.world!r} has none; write "
            "gather(...) in place of scatter(...)",
        )
        state, uploads = dict(state or {}), list[Upload]()
        shards = self._shards(stack.layout, round)
        for i, worker in enumerate(stack.ids):
            key = memory_key(worker, received=False)
            parts, memory = self._code(stack.rows[i], stack.layout, shards, state.get(key, {}), round.rng, worker)
            if memory:
                check_remembers(self.codec)
                state[key] = memory
            message = [{**part, WEIGHT: stack.weights[i : i + 1]} for part in parts]
            if self.forge is not None and worker in round.byzantine:
                lies = [
                    self.forge.collude(part, worker, round.child(f"part {owner}")) for owner, part in enumerate(message)
                ]
                message = [lie for lie in lies if lie is not None]
            uploads.append(Upload(_joined(dict(enumerate(message))) if len(message) == len(parts) else None))
        return without_absent(uploads, stack.ids, round), state

    def _shards(self, layout: Layout, round: Round) -> tuple[Shard, ...]:
        world = round.collective
        without = frozenset(i for i, worker in enumerate(world.workers) if worker in world.left_out)
        return divide(layout, world.size, self.codec.grain, without)

    def _code(
        self,
        row: Tensor,
        layout: Layout,
        shards: Sequence[Shard],
        memory: State,
        rng_of: Callable[[int], torch.Generator],
        worker: int,
    ) -> tuple[list[Payload], State]:
        """A worker's part for each owner, and the worker's next memory."""

        def rng() -> torch.Generator:
            return rng_of(worker)

        parts = list[Payload]()
        if self.codec.grain is not None:
            payload, memory = self.codec.encode(row[: layout.stepped], layout.head, memory, rng)
            parts = self.codec.split(payload, layout.head, [shard.directions for shard in shards])
        else:
            for shard in shards:
                columns, part = shard.directions, Payload()
                if columns.blocks:
                    part, memory = self.codec.encode(columns.take(row), columns.layout, memory, rng)
                parts.append(part)
        parts = [part if shard.directions.blocks else Payload() for shard, part in zip(shards, parts, strict=True)]
        for shard, part in zip(shards, parts, strict=True):
            if shard.layout.num_installed:
                part[INSTALLED] = shard.take(row)[shard.layout.stepped :]
        return parts, memory

    def receive(self, uploads: Sequence[Upload], sent: Stack, round: Round) -> Stack:
        clock, world, n = Clock(), round.collective, round.world.size
        without = frozenset(i for i, worker in enumerate(world.workers) if worker in world.left_out)
        shards = self._shards(sent.layout, round)
        columns = Columns.of(sent.layout, shards, world, owners_of(shards, self.r, without))
        mine = [_parts_of(upload.now, n) for upload in uploads]
        # of an empty shard nothing is sent
        messages = [
            [_joined({shard: parts[shard] for shard in held if shards[shard].blocks}) for held in columns.holds]
            for parts in mine
        ]
        heads = world.gather([_head_of(upload.now) for upload in uploads], _HEAD_LIMIT)
        arrived = world.all_to_all(messages, payload_limit(sent))
        clock.lap("wire_s")
        weights, refused = _weights_of(heads)
        table = empty_rows(n, columns.layout.d, sent.rows)
        reports = self._read(arrived, table, columns, refused)
        clock.lap("decode_s")
        # every process learns of every complaint, and how long each part was
        like = torch.zeros(n, _REPORT if self.r > 1 else 1, dtype=torch.int64)
        reported = columns.reports(reports, like)
        complaints = _complaints(reported)
        bad, resent, sizes = self._settle(complaints, mine, sent, shards, round, refused)
        for (worker, shard), entries in resent.items():
            if shard in columns.held:
                _write(table[worker], columns.spans[columns.held.index(shard)], entries)
        clock.lap("wire_s")
        workers = world.workers
        for each in (report for reports_of in reported.values() for report in reports_of):
            for i, size in enumerate((each[:, 0] // 2).tolist()):
                sizes[i] = sizes.get(i, 0) + size
        notes = [
            Note("bytes", workers[i], 8 + sizes.get(i, 0)) for i in range(n) if not isinstance(heads[i], BadPayload)
        ]
        notes += [Note("excluded", workers[i], reason=reason) for i, reason in sorted(refused.items())]
        good = [i for i in range(n) if i not in refused]
        received = Stack(
            table if len(good) == n else table[good],
            columns.layout,
            tuple((workers[i],) for i in good),
            torch.tensor([weights[i] for i in good], dtype=torch.float64),
            received=True,
            erased=len(refused),
            notes=(*sent.notes, *notes),
            columns=columns,
        )
        received = self.gate.exclude(received, {good.index(i): reason for i, reason in bad.items()})
        clock.lap("decode_s")
        return replace(received, arrived=received).note(clock.notes)

    def _read(
        self,
        arrived: Sequence[Sequence[Payload | BadPayload]],
        table: Tensor,
        columns: Columns,
        refused: Mapping[int, str],
    ) -> dict[tuple[int, int], Tensor]:
        """Decodes the parts that the workers of this process got into its columns of all rows.

        Returns:
            by position of such a worker and by shard, its report on each row: twice the bytes of the part, one more
            where the part is bad, and with r > 1 the digest of the part.
        """
        reports, seen = dict[tuple[int, int], Tensor](), dict[tuple[int, int, bytes], bool]()
        for position, messages in zip(columns.local, arrived, strict=True):
            for shard in columns.holds[position]:
                report = torch.zeros(len(messages), _REPORT if self.r > 1 else 1, dtype=torch.int64)
                reports[position, shard] = report
                for worker, message in enumerate(messages):
                    if worker in refused or not columns.shards[shard].blocks:
                        continue
                    part = message if isinstance(message, BadPayload) else _part_of(message, shard)
                    part = part or BadPayload("nothing arrived")
                    text = digest(part) if self.r > 1 and not isinstance(part, BadPayload) else b""
                    # other owners in this process mostly got the same
                    if not text or (shard, worker, text) not in seen:
                        opened = self._open(part, columns.whole, columns.shards[shard])
                        is_bad = isinstance(opened, BadPayload) or bool(self._reason(opened))
                        seen[shard, worker, text] = is_bad
                        if isinstance(opened, Tensor):
                            _write(table[worker], columns.spans[columns.held.index(shard)], opened)
                    size = 0 if isinstance(part, BadPayload) else payload_bytes(part)
                    report[worker, 0] = 2 * size + seen[shard, worker, text]
                    if text:
                        report[worker, 1:] = torch.frombuffer(bytearray(text), dtype=torch.int64)
        return reports

    def _settle(
        self,
        complaints: Mapping[int, Sequence[int]],
        mine: Sequence[Sequence[Payload | None]],
        sent: Stack,
        shards: Sequence[Shard],
        round: Round,
        refused: dict[int, str],
    ) -> tuple[dict[int, str], dict[tuple[int, int], Tensor], dict[int, int]]:
        """Has workers send the parts that owners complained of to all processes, and decides.

        Args:
            complaints: by position of the worker, the owners that complain.
            refused: takes the rows that cannot be decoded, with the reason.
        Returns:
            The rows that are not finite or absurdly large, with the reason; and the entries of all parts that are good,
            by worker and owner; and the bytes that each worker sent.
        """
        bad, resent, sizes = dict[int, str](), dict[tuple[int, int], Tensor](), dict[int, int]()
        if not complaints:
            return bad, resent, sizes
        world = round.world
        positions = {worker: i for i, worker in enumerate(world.workers)}
        held = [
            _joined({owner: parts[owner] for owner in complaints.get(positions[worker], ())})
            for worker, parts in zip(world.local_workers, mine, strict=True)
        ]
        asked = sorted(complaints)
        answers = world.fetch(held, [world.workers[i] for i in asked], payload_limit(sent))
        for i, answer in zip(asked, answers, strict=True):
            reasons = list[str]()
            sizes[i] = 0 if isinstance(answer, BadPayload) else payload_bytes(answer)
            for owner in complaints[i]:
                part = answer if isinstance(answer, BadPayload) else _part_of(answer, owner)
                opened = self._open(part or BadPayload("nothing arrived"), sent.layout, shards[owner])
                if isinstance(opened, BadPayload):
                    refused.setdefault(i, str(opened))
                elif reason := self._reason(opened):
                    reasons.append(reason)
                else:
                    resent[i, owner] = opened
            if reasons and i not in refused:
                # as of the whole row: NaN before Inf, and the largest entry
                bad[i] = max(reasons, key=_rank)
        return bad, resent, sizes

    def _open(self, part: Payload | BadPayload, layout: Layout, shard: Shard) -> Tensor | BadPayload:
        """A part's entries (shard.layout.d,): directions and installed values; or why it cannot be decoded."""
        if isinstance(part, BadPayload):
            return part
        try:
            installed = list[Tensor]()
            if shard.layout.num_installed:
                form = (layout.dtype, (shard.layout.d - shard.layout.stepped,))
                installed = [*expect({INSTALLED: part[INSTALLED]} if INSTALLED in part else {}, **{INSTALLED: form})]
            body = {key: tensor for key, tensor in part.items() if not installed or key != INSTALLED}
            if shard.directions.blocks:
                entries = self.codec.decode_part(body, layout.head, shard.directions)
            else:
                expect(body)
                entries = torch.empty(0, dtype=layout.dtype)
            if tuple(entries.shape) != (shard.layout.stepped,):
                raise BadPayload(f"{tuple(entries.shape)} entries where ({shard.layout.stepped},) belong")
        except BadPayload as error:
            return error
        return torch.cat([entries, *installed]) if installed else entries

    def _reason(self, entries: Tensor) -> str:
        return bad_rows(entries.reshape(1, -1), self.gate.limit).get(0, "")

    def finish(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State | None]:
        columns = stack.columns
        if columns is None:
            return stack, state
        clock, layout = Clock(), columns.whole
        state = dict(state or {})
        memories: State = dict(state.get(_BACK, {}))
        results = dict[int, Payload]()
        for spans, shard in zip(columns.spans, columns.held, strict=True):
            if not columns.shards[shard].blocks:
                continue
            keys = [
                memory_key(columns.world.workers[position], received=False)
                for position in columns.owners[shard]
                if position in columns.local
            ]
            before = next((memories[key][str(shard)] for key in keys if str(shard) in memories.get(key, {})), {})
            entries = torch.cat([stack.rows[:, :0], *(stack.rows[:, span] for span in spans)], dim=1)
            # all owners of a shard draw the same numbers
            drawn = round.child(_BACK).child(shard)
            results[shard], memory = self._code_result(entries, columns.shards[shard], before, drawn)
            for i, key in enumerate(keys if memory else ()):
                memories[key] = {**memories.get(key, {}), str(shard): copy_tree(memory) if i else memory}
        if memories:
            state[_BACK] = memories
        clock.lap("encode_s")
        notes = [*stack.notes]
        try:
            payloads, sent_bytes = self._exchange_results(results, columns, len(stack.rows), round)
            clock.lap("wire_s")
            rows = empty_rows(len(stack.rows), layout.d, stack.rows)
            if columns.world.echoes:
                rows.zero_()
            for position, payload in payloads.items():
                shard = columns.shards[columns.held[0] if columns.world.echoes else position]
                try:
                    shard.put(rows, self._open_result(payload, shard, len(rows)))
                except BadPayload as error:
                    worker = columns.world.workers[columns.owners[position][0]]
                    raise Undecided(f"worker {worker} owns columns, and their result did not arrive: {error}") from None
            clock.lap("decode_s")
            squares = _squares(stack.arrived, rows[0]) if len(rows) == 1 else None
        except Undecided as error:
            raise TooFewRows(str(error), tuple(notes), state) from None
        notes += [Note("bytes", worker, size) for worker, size in sent_bytes.items()]
        notes += [Note("outvoted", worker) for worker in sorted(columns.outvoted)]
        whole = replace(
            stack,
            rows=rows,
            layout=layout,
            columns=None,
            arrived=None,
            squares=squares,
            notes=tuple(notes),
            gated=False,
        )
        return whole.note(clock.notes), state

    def _exchange_results(
        self, results: Mapping[int, Payload], columns: Columns, count: int, round: Round
    ) -> tuple[dict[int, Payload], dict[int, int]]:
        """The coded result of each shard, and the bytes that each worker sent.

        With r > 1 owners first send digests; then one of those that hold the digest of most sends the result.

        Args:
            results: of the shards in `columns.held`.
        Raises:
            Undecided: a result does not arrive, or no result of a shard has a majority.
        """
        world, limit = columns.world, count * most_bytes(columns.whole.d)
        mine = {position: self._told(position, results, columns, round) for position in columns.local}
        owned = {shard: positions for shard, positions in enumerate(columns.owners) if columns.shards[shard].blocks}
        winners, texts = {shard: [*positions] for shard, positions in owned.items()}, dict[int, bytes]()
        sizes: dict[int, int] = {}
        if self.r > 1:
            winners, texts = self._digest_vote(mine, owned, columns)
            sizes = {
                worker: DIGEST_BYTES * len(held) for worker, held in zip(world.workers, columns.holds, strict=True)
            }
        agreed = dict[int, Payload]()
        while missing := [shard for shard in owned if shard not in agreed]:
            lost = next((shard for shard in missing if not winners[shard]), None)
            if lost is not None:
                names = ", ".join(str(world.workers[position]) for position in owned[lost])
                raise Undecided(f"worker {names} owns columns, and their result did not arrive: {_lost(self.r)}")
            speakers = {shard: winners[shard].pop(0) for shard in missing}
            spoken = [
                _joined({shard: mine[position][shard] for shard, by in speakers.items() if by == position})
                for position in columns.local
            ]
            arrived = world.gather(spoken, limit)
            for shard, position in speakers.items():
                message, worker = arrived[position], world.workers[position]
                number = columns.held[0] if world.echoes else shard
                part = Payload() if isinstance(message, BadPayload) else _part_of(message, number)
                sizes[worker] = sizes.get(worker, 0) + payload_bytes(part)
                if part and (self.r == 1 or digest(part) == texts[shard]):
                    agreed[shard] = part
                elif part:
                    columns.outvoted.add(worker)
        return agreed, sizes

    def _told(
        self, position: int, results: Mapping[int, Payload], columns: Columns, round: Round
    ) -> dict[int, Payload]:
        """The results that a worker sends of its shards: what it computed, or lies."""
        worker = columns.world.workers[position]
        told = {shard: results[shard] for shard in columns.holds[position] if shard in results}
        if self.lie is None or worker not in round.byzantine:
            return told
        lies = {s: self.lie.collude(payload, worker, round.child(f"lie {s}")) for s, payload in told.items()}
        return {shard: lie or Payload() for shard, lie in lies.items()}

    def _digest_vote(
        self, mine: Mapping[int, Mapping[int, Payload]], owned: Mapping[int, Sequence[int]], columns: Columns
    ) -> tuple[dict[int, list[int]], dict[int, bytes]]:
        """By shard the owners with the result of most, and its digest."""
        like = torch.zeros(DIGEST_BYTES, dtype=torch.uint8)
        reports = {
            (position, shard): torch.frombuffer(bytearray(digest(mine[position][shard])), dtype=torch.uint8)
            if shard in mine[position]
            else like
            for position in columns.local
            for shard in columns.holds[position]
        }
        reported = columns.reports(reports, like)
        winners, texts = dict[int, list[int]](), dict[int, bytes]()
        for shard, positions in owned.items():
            text = columns.agreed(shard, reported[shard]).numpy().tobytes()
            texts[shard] = text
            winners[shard] = [
                p for p, each in zip(positions, reported[shard], strict=True) if each.numpy().tobytes() == text
            ]
        return winners, texts

    def _code_result(self, rows: Tensor, shard: Shard, memory: State, round: Round) -> tuple[Payload, State]:
        """An owner's columns of the result, (m, shard.layout.d), as a payload; and the owner's next memory."""
        codec, cut, payload = self.result_codec, shard.layout.stepped, Payload()
        if codec is None or not cut:
            return {_VALUES: rows.contiguous()}, memory
        memory = dict(memory)
        for i, row in enumerate(rows):
            coded, kept = codec.encode(
                row[:cut], shard.directions.by_tensor, memory.get(str(i), {}), lambda i=i: round.child(i).rng()
            )
            if kept:
                check_remembers(codec)
                memory[str(i)] = kept
            payload |= {f"{i} {key}": tensor for key, tensor in coded.items()}
        if shard.layout.num_installed:
            payload[INSTALLED] = rows[:, cut:].contiguous()
        return payload, memory

    def _open_result(self, payload: Payload, shard: Shard, count: int) -> Tensor:
        """The inverse of `_code_result`.

        Raises:
            BadPayload: `_code_result` did not write the payload for this shard.
        """
        layout, cut = shard.layout, shard.layout.stepped
        codec = self.result_codec
        if codec is None or not cut:
            return expect(payload, values=(layout.dtype, (count, layout.d)))[0]
        installed = list[Tensor]()
        if layout.num_installed:
            form = (layout.dtype, (count, layout.d - cut))
            installed = [*expect({INSTALLED: payload[INSTALLED]} if INSTALLED in payload else {}, **{INSTALLED: form})]
        rows = []
        for i in range(count):
            row = codec.decode(_part_of(payload, i), shard.directions.by_tensor)
            if tuple(row.shape) != (cut,):
                raise BadPayload(f"{tuple(row.shape)} entries where ({cut},) belong")
            rows.append(row)
        return torch.cat([torch.stack(rows) if rows else torch.empty(0, cut, dtype=layout.dtype), *installed], dim=1)


def _joined(parts: Mapping[int, Payload | None]) -> Payload | None:
    """Several payloads as one, with their numbers in the names of the tensors; None for none.

    A weight goes to all alike, so the one of the last part is that of the message.
    """
    whole = Payload()
    for number, part in parts.items():
        for key, tensor in (part or {}).items():
            whole[key if key == WEIGHT else f"{number} {key}"] = tensor
    return whole or None


def _part_of(payload: Payload, number: int) -> Payload:
    """The part with a number in a payload from `_joined`; empty if there is none."""
    start = f"{number} "
    return {key.removeprefix(start): tensor for key, tensor in payload.items() if key.startswith(start)}


def _parts_of(payload: Payload | None, count: int) -> list[Payload | None]:
    """All parts of a payload from `_joined`."""
    if payload is None:
        return [None] * count
    parts = [Payload() for _ in range(count)]
    for name, tensor in payload.items():
        number, _, key = name.partition(" ")
        if key:
            parts[int(number)][key] = tensor
    return [*parts]


def _head_of(payload: Payload | None) -> Payload | None:
    """What all processes get of a worker's message: its weight."""
    return None if payload is None else {key: tensor for key, tensor in payload.items() if key == WEIGHT}


def _weights_of(heads: Sequence[Payload | BadPayload]) -> tuple[dict[int, float], dict[int, str]]:
    """By position the weight of each worker that sent one, and why nothing is known of the others."""
    weights, refused = dict[int, float](), dict[int, str]()
    for i, head in enumerate(heads):
        if isinstance(head, BadPayload):
            refused[i] = str(head)
        elif WEIGHT not in head or head[WEIGHT].dtype != torch.float64 or tuple(head[WEIGHT].shape) != (1,):
            refused[i] = f"{WEIGHT} is missing or malformed"
        else:
            weights[i] = float(head[WEIGHT])
    return weights, refused


def _complaints(reported: Mapping[int, Sequence[Tensor]]) -> dict[int, list[int]]:
    """By position of a worker, the shards of which an owner has no good part, or owners have different parts."""
    complaints: dict[int, list[int]] = {}
    for shard, reports in reported.items():
        if reports:
            table = torch.stack([*reports])
            is_doubtful = (table[:, :, 0] % 2 == 1).any(dim=0) | (table != table[0]).any(dim=2).any(dim=0)
            for worker in is_doubtful.nonzero().flatten().tolist():
                complaints.setdefault(worker, []).append(shard)
    return complaints


def _lost(r: int) -> str:
    return "nothing arrived" if r == 1 else "none of them sent what they have in common"


def _write(row: Tensor, spans: Sequence[slice], entries: Tensor) -> None:
    """Writes an owner's entries into its columns of a row."""
    sizes = [span.stop - span.start for span in spans]
    for span, part in zip(spans, entries.split(sizes) if sizes else (), strict=True):
        row[span] = part


def _rank(reason: str) -> tuple[bool, bool, float]:
    """Orders the reasons against parts of a row as one look at the whole row would: NaN, Inf, the largest entry."""
    words = reason.split()
    return reason == "NaN", reason == "Inf", float(words[4]) if len(words) > 4 else 0.0


def _squares(arrived: Stack | None, row: Tensor) -> dict[int, tuple[float, float]] | None:
    """By worker, the squared length of its row's directions and the squared distance of its row to the result (d,)."""
    if arrived is None or arrived.columns is None:
        return None
    columns, rows, cut = arrived.columns, arrived.rows, arrived.layout.stepped
    dtype = accumulation_dtype(rows.dtype)
    starts = {
        (span.start, span.stop): start
        for spans, firsts in zip(columns.spans, columns.starts, strict=True)
        for span, start in zip(spans, firsts, strict=True)
    }

    def part(span: slice) -> Tensor:
        wide, start = rows[:, span].contiguous().to(dtype), starts[span.start, span.stop]
        result = row[start : start + span.stop - span.start].to(dtype)
        inside = wide if span.start < cut else wide[:, :0]
        norms = [torch.linalg.vector_norm(x, dim=1).double().square() for x in (inside, wide - result)]
        return torch.stack(norms, dim=1)

    squares = columns.total(part, torch.empty(len(rows), 2, dtype=torch.float64))
    return {worker: (a, b) for worker, (a, b) in zip(arrived.ids, squares.tolist(), strict=True)}
