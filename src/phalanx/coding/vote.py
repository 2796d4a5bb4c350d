# SPDX-License-Identifier: Apache-2.0
"""The wire stage that asks for digests first and then for one payload of each group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from phalanx.coding.group_vote import GroupVote
from phalanx.coding.majority_vote import Ballot, Redundant, ballot_notes, by_equality, check_vote, group_by, hold_votes
from phalanx.coding.placement import Placement, RandomOrder
from phalanx.coding.rounding_notice import rounding_notes, watched
from phalanx.core.clock import Clock
from phalanx.core.codec import Codec, Gather, PayloadAttack, forged, open_row, open_rows, payload_limit, send_rows
from phalanx.core.expression import method
from phalanx.core.gate import Gate
from phalanx.core.packing import digest
from phalanx.core.parallel import parallel_map
from phalanx.core.payload import BadPayload, Payload, expect, payload_bytes
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Kept, Scope
from phalanx.core.trees import State
from phalanx.core.wire_stage import Upload, WireStage, without_absent
from phalanx.distributed.determinism import BUCKETS, apart, sketch

DIGEST, DIGEST_BYTES = "digest", 32
SKETCH = "sketch"
_DIGEST_LIMIT = 4096  # bytes that a message with a digest may have
_PIECE = 1 << 18  # entries that are looked at together; a megabyte stays in a second-level cache


@method("vote", "wire")
class Vote(Redundant, WireStage):
    """One row for each group of workers with the same work: the one that more than half of those present offer.

    Each worker sends the BLAKE3 digest of its payload, 32 bytes. The server decides from the digests, asks one member
    of each majority for its payload, checks it against the digest, and asks the next one where it does not match. So n
    digests and n / r payloads reach the server in place of n payloads. A group shares its random stream, so that
    compressed payloads of the same row are equal as well.

    In the scheme's first round each worker of a job sends a sketch of its row too, 2 KiB that are not metered: where
    rows of a group differ by no more than rounding, a notice says so.

    Groups, erasures, weights and notes are those of `group_vote`. Erased are also a worker whose payload does not match
    its digest, and all that hold a payload which, once it was asked for, turns out not to pass the gate.
    Where no digest has a majority, one holder of each is asked, as some may turn out so.

    Shapes: (k, d) -> (groups, d), n >= r.
    Args:
        codec: how a row becomes bytes.
        r: workers in a group; odd r stands (r - 1) / 2 Byzantine ones in each, or twice as many that send nothing.
        none: the vote without a majority: "zero" is a zero row, "exclude" none, which counts as an erased row.
        atol, rtol: of `group_vote`. Above zero all n payloads are sent and compared as rows: digests know no nearness.
        gate: which votes may enter.
        forge: what Byzantine workers send when asked, after a digest of what they should send.
        placement: which workers share a group.
    Raises:
        ValueError: n < r.
    Source: the repetition code of Chen et al., DRACO: Byzantine-resilient Distributed Training via Redundant
        Gradients, 2018, arXiv:1803.09877, section 4.1. Differs: the vote is on digests, of whole payloads, and checks
        that there is a majority.
    """

    codec: Codec
    r: int
    none: Literal["zero", "exclude"] = "zero"
    atol: float = 0.0
    rtol: float = 0.0
    gate: Gate = Gate()
    forge: PayloadAttack | None = None
    placement: Placement = RandomOrder()

    @property
    def needs(self) -> Kept:
        return "nothing" if self.tolerant else "equality"

    @property
    def scope(self) -> Scope:
        return "vector"

    @property
    def remembers(self) -> bool:
        return self.codec.remembers

    def validate(self) -> None:
        check_vote("vote", self.r, self.atol, self.rtol)

    @property
    def tolerant(self) -> bool:
        """Whether all payloads are sent and compared as rows."""
        return self.atol > 0 or self.rtol > 0

    def tolerates(self, n: int) -> int:
        return (self.r - 1) // 2

    def rows_out(self, n: int) -> int:
        return self.num_groups(n)

    def upload(self, stack: Stack, state: State | None, round: Round) -> tuple[list[Upload], State]:
        group = self.assign(round.world.size, round.seed, round.index).unit
        coded, state = send_rows(self.codec, stack, state, lambda worker: round.rng(group=group(worker)))
        held = forged(self.forge, coded, stack.ids, round)
        if self.tolerant:
            uploads = [Upload(payload) for payload in held]
        else:
            firsts = [{DIGEST: torch.frombuffer(bytearray(d), dtype=torch.uint8)} for d in parallel_map(_digest, coded)]
            if watched(round):
                firsts = [{**first, **self._shown(p, stack)} for first, p in zip(firsts, coded, strict=True)]
            uploads = [Upload(first, h) for first, h in zip(firsts, held, strict=True)]
        return without_absent(uploads, stack.ids, round), state

    def receive(self, uploads: Sequence[Upload], sent: Stack, round: Round) -> Stack:
        if self.tolerant:
            received = Gather(self.codec, self.gate).receive(uploads, sent, round)
            return GroupVote(self.r, self.none, self.atol, self.rtol, self.placement)(received, None, round)[0]
        clock = Clock()
        digests, sketches, notes = self._digests(uploads, round)
        fetched = _Fetched(self, digests, [upload.on_request for upload in uploads], sent, round, clock)

        def same(a: int, b: int) -> bool:
            return digests[a] == digests[b]

        def distance(a: int, b: int) -> float:
            return apart(sketches[a], sketches[b]) if a in sketches and b in sketches else math.inf

        groups = self.groups(round.world.size, round.seed, round.index)
        ballots = hold_votes(groups, digests, lambda members: by_equality(members, same), fetched.refused)
        zeros = [b for b in ballots if b.members and not b.winners] if self.none == "zero" else []
        stack = _with_zeros(fetched.stack, zeros)
        clock.lap("decode_s")
        # groups of which nothing came: nobody was there, no majority, or no payload that may enter
        stack = replace(stack, erased=len(groups) - len(stack.rows), notes=sent.notes)
        notes += [*fetched.notes, *ballot_notes(ballots, round)]
        notes += rounding_notes(ballots, same, distance, round)
        return stack.note([*notes, *clock.notes])

    def _shown(self, payload: Payload, stack: Stack) -> Payload:
        """The sketch of the row that a payload stands for: what a tolerance would compare."""
        # a lie may be what no codec reads
        with suppress(BadPayload):
            parts, _ = open_row(self.codec, payload, stack.layout)
            return {SKETCH: sketch([("row", torch.cat(parts).to(stack.rows))])}
        return {}

    def _digests(
        self, uploads: Sequence[Upload], round: Round
    ) -> tuple[dict[int, bytes], dict[int, Tensor], list[Note]]:
        """The digest of each worker that sent one, the sketches of those that did, and notes on all."""
        digests: dict[int, bytes] = {}
        sketches: dict[int, Tensor] = {}
        notes = []
        for worker, message in enumerate(round.world.gather([upload.now for upload in uploads], _DIGEST_LIMIT)):
            try:
                if isinstance(message, BadPayload):
                    raise message
                also = {SKETCH: (torch.float64, (BUCKETS + 1,))} if SKETCH in message else {}
                body, *shown = expect(message, digest=(torch.uint8, (DIGEST_BYTES,)), **also)
            except BadPayload as error:
                notes.append(Note("excluded", worker, reason=str(error)))
                continue
            digests[worker] = bytes(body.tolist())
            if shown:
                sketches[worker] = shown[0]
            notes.append(Note("bytes", worker, DIGEST_BYTES))
        return digests, sketches, notes


class _Fetched:
    """The payloads that the server asked the winners of votes for: one for each group, by turns from its members.

    Attributes:
        stack: the rows that passed the gate, by group.
        notes: the bytes that came, and who was excluded for what it sent.
    """

    def __init__(
        self,
        stage: Vote,
        digests: Mapping[int, bytes],
        held: Sequence[Payload | None],
        sent: Stack,
        round: Round,
        clock: Clock,
    ) -> None:
        self._stage, self._digests, self._held, self._sent = stage, digests, held, sent
        self._round, self._clock = round, clock
        self._payloads: dict[int, Payload] = {}  # by the worker that sent it
        self.stack, self.notes = self._open([]), list[Note]()

    def refused(self, ballots: Sequence[Ballot]) -> set[int]:
        """Those who cannot have a vote; `stack` holds the winners' rows once nobody is left of them.

        Their payload does not match their digest, or is none that may enter. A group without a majority has one if that
        is so of some of its members, so one of all that hold the same is asked there.
        """
        decided = [ballot for ballot in ballots if ballot.winners]
        holders = [ballot.winners for ballot in decided]
        for ballot in ballots:
            if not ballot.winners:
                holders += map(tuple, group_by(ballot.members, lambda a, b: self._digests[a] == self._digests[b]))
        speakers = list(map(self._speaker, holders))
        reasons = self._ask([worker for worker in speakers if worker not in self._payloads])
        self._clock.lap("wire_s")
        good = [i for i, worker in enumerate(speakers) if worker in self._payloads]
        opened = self._open([speakers[i] for i in good])
        barred = {note.worker: note.reason for note in opened.notes if note.kind == "excluded"}
        for i in good:
            # who holds the digest holds the payload
            reasons |= dict.fromkeys(holders[i], barred[speakers[i]]) if speakers[i] in barred else {}
        self.notes += [Note("excluded", worker, reason=reason) for worker, reason in reasons.items()]
        if not reasons:
            winning = self._open(speakers[: len(decided)]) if len(decided) < len(speakers) else opened
            self.stack = replace(winning, sources=tuple(holders[: len(decided)]), units=tuple(b.unit for b in decided))
        self._clock.lap("decode_s")
        return set(reasons)

    def _ask(self, workers: Sequence[int]) -> dict[int, str]:
        """Keeps the payloads of these workers that match their digests; returns who sent another, with the reason."""
        reasons: dict[int, str] = {}
        arrived = self._round.world.fetch(self._held, workers, payload_limit(self._sent)) if workers else []
        seen = parallel_map(lambda payload: None if isinstance(payload, BadPayload) else _digest(payload), arrived)
        for worker, payload, found in zip(workers, arrived, seen, strict=True):
            if isinstance(payload, BadPayload):
                reasons[worker] = str(payload)
                continue
            self.notes.append(Note("bytes", worker, payload_bytes(payload)))
            if found == self._digests[worker]:
                self._payloads[worker] = payload
            else:
                reasons[worker] = "a payload that does not match its digest"
        return reasons

    def _speaker(self, holders: Sequence[int]) -> int:
        """Who is asked of those that hold the same: who has answered, else one by turns, so that all share the load."""
        turns = _turned(holders, self._round.index)
        return next((worker for worker in turns if worker in self._payloads), turns[0])

    def _open(self, workers: Sequence[int]) -> Stack:
        payloads = [_unsigned(self._payloads[worker]) for worker in workers]
        rows = open_rows(self._stage.codec, payloads, [(worker,) for worker in workers], self._sent)
        return self._stage.gate.admit(replace(rows, notes=rows.notes[len(self._sent.notes) :]))


def _unsigned(payload: Payload) -> Payload:
    """The payload with 0.0 in place of -0.0, so that rows which differ in nothing else are the same."""
    return {key: part + 0 if _has_negative_zero(part) else part for key, part in payload.items()}


def _has_negative_zero(part: Tensor) -> bool:
    pieces = part.reshape(-1).split(_PIECE) if part.is_floating_point() else ()
    return any(bool((piece.signbit() & (piece == 0)).any()) for piece in pieces)


def _digest(payload: Payload) -> bytes:
    """The digest of `_unsigned(payload)`."""
    return digest(payload, lambda piece: piece + 0 if piece.is_floating_point() else piece)


def _turned(winners: Sequence[int], turn: int) -> list[int]:
    start = turn % len(winners)
    return [*winners[start:], *winners[:start]]


def _with_zeros(stack: Stack, ballots: Sequence[Ballot]) -> Stack:
    """The stack and a zero row for each of these groups, of the weight that most have, in the order of the groups."""
    if not ballots:
        return stack
    weight = stack.weights.median() if len(stack.weights) else torch.ones((), dtype=torch.float64)
    both = replace(
        stack,
        rows=torch.cat([stack.rows, stack.rows.new_zeros(len(ballots), stack.layout.d)]),
        sources=(*stack.sources, *(ballot.members for ballot in ballots)),
        weights=torch.cat([stack.weights, weight.expand(len(ballots))]),
        units=(*(stack.units or ()), *(ballot.unit for ballot in ballots)),
    )
    return both.pick(sorted(range(len(both.rows)), key=both.order_key))
