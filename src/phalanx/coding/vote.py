# SPDX-License-Identifier: Apache-2.0
"""The wire stage that asks for digests first and then for one payload of each group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from phalanx.coding.group_vote import GroupVote
from phalanx.coding.majority_vote import Ballot, ballot_notes, by_equality, check_vote, vote_allocation, vote_groups
from phalanx.coding.rounding_notice import rounding_notes, watched
from phalanx.core.allocation import Allocation
from phalanx.core.clock import Clock
from phalanx.core.codec import Codec, Gather, PayloadAttack, forged, open_row, open_rows, payload_limit, send_rows
from phalanx.core.expression import method
from phalanx.core.gate import Gate
from phalanx.core.packing import digest
from phalanx.core.parallel import parallel_map
from phalanx.core.payload import BadPayload, Payload, expect
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State
from phalanx.core.wire_stage import Upload, WireStage, without_absent
from phalanx.distributed.determinism import BUCKETS, apart, sketch

DIGEST, DIGEST_BYTES = "digest", 32
SKETCH = "sketch"
_DIGEST_LIMIT = 4096  # bytes that a message with a digest may have


@method("vote", "wire")
class Vote(WireStage):
    """One row for each group of workers with the same work: the one that more than half of those present offer.

    Each worker sends the BLAKE3 digest of its payload, 32 bytes. The server decides from the digests, asks one member
    of each majority for its payload, checks it against the digest, and asks the next one where it does not match. So n
    digests and n / r payloads reach the server in place of n payloads. A group shares its random stream, so that
    compressed payloads of the same row are equal as well.

    In the scheme's first round each worker of a job sends a sketch of its row too, 2 KiB that are not metered: where
    rows of a group differ by no more than rounding, a notice says so.

    Groups, weights and notes are those of `group_vote`. A worker whose payload does not match its digest is excluded.

    Shapes: (k, d) -> (groups, d), n >= r.
    Args:
        codec: how a row becomes bytes.
        r: workers in a group; odd r stands (r - 1) / 2 Byzantine ones in each, or twice as many that send nothing.
        none: the vote without a majority: "zero" is a zero row, "exclude" none, which counts as an erased row.
        atol, rtol: of `group_vote`. Above zero all n payloads are sent and compared as rows: digests know no nearness.
        gate: which votes may enter.
        forge: what Byzantine workers send when asked, after a digest of what they should send.
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

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        check_vote("vote", self.r, self.atol, self.rtol)

    @property
    def tolerant(self) -> bool:
        """Whether all payloads are sent and compared as rows."""
        return self.atol > 0 or self.rtol > 0

    def rows_out(self, n: int) -> int:
        return len(vote_groups(n, self.r, "vote"))

    def assign(self, n: int) -> Allocation:
        return vote_allocation(vote_groups(n, self.r, "vote"))

    def upload(self, stack: Stack, state: State | None, round: Round) -> tuple[list[Upload], State]:
        group = self.assign(round.world.size).unit
        coded, state = send_rows(self.codec, stack, state, lambda worker: round.rng(group=group(worker)))
        held = forged(self.forge, coded, stack.ids, round)
        if self.tolerant:
            uploads = [Upload(payload) for payload in held]
        else:
            firsts = [{DIGEST: torch.frombuffer(bytearray(d), dtype=torch.uint8)} for d in parallel_map(digest, coded)]
            if watched(round):
                firsts = [{**first, **self._shown(p, stack)} for first, p in zip(firsts, coded, strict=True)]
            uploads = [Upload(first, h) for first, h in zip(firsts, held, strict=True)]
        return without_absent(uploads, stack.ids, round), state

    def receive(self, uploads: Sequence[Upload], sent: Stack, round: Round) -> Stack:
        if self.tolerant:
            received = Gather(self.codec, self.gate).receive(uploads, sent, round)
            return GroupVote(self.r, self.none, self.atol, self.rtol)(received, None, round)[0]
        clock = Clock()
        digests, sketches, notes = self._digests(uploads, round)
        groups = vote_groups(round.world.size, self.r, "vote")

        def same(a: int, b: int) -> bool:
            return digests[a] == digests[b]

        def distance(a: int, b: int) -> float:
            return apart(sketches[a], sketches[b]) if a in sketches and b in sketches else math.inf

        ballots = [by_equality([worker for worker in group if worker in digests], same) for group in groups]
        found, bad = self._fetch(ballots, digests, [upload.on_request for upload in uploads], sent, round)
        clock.lap("wire_s")
        opened = open_rows(
            self.codec,
            [payload for _, payload in found.values()],
            [(worker, *(w for w in ballots[g].winners if w != worker)) for g, (worker, _) in found.items()],
            sent,
        )
        opened = replace(opened, sources=tuple(tuple(sorted(source)) for source in opened.sources))
        zeros = [b for b in ballots if b.members and not b.winners] if self.none == "zero" else []
        stack = self.gate.admit(_with_zeros(opened, zeros))
        clock.lap("decode_s")
        # groups of which nothing came: nobody was there, no majority, or no payload that matches
        stack = replace(stack, erased=len(groups) - len(stack.rows))
        notes += [Note("excluded", worker, reason=reason) for worker, reason in bad.items()]
        notes += ballot_notes(ballots, round, len(groups))
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

    def _fetch(
        self,
        ballots: Sequence[Ballot],
        digests: dict[int, bytes],
        held: Sequence[Payload | None],
        sent: Stack,
        round: Round,
    ) -> tuple[dict[int, tuple[int, Payload]], dict[int, str]]:
        """By group the payload that matches and who sent it; and who sent another, with the reason."""
        found: dict[int, tuple[int, Payload]] = {}
        bad: dict[int, str] = {}
        # by turns, so that not the same member sends its payload every time
        left = {g: _turned(ballot.winners, round.index) for g, ballot in enumerate(ballots) if ballot.winners}
        while left:
            asked = {g: winners.pop(0) for g, winners in left.items()}
            arrived = round.world.fetch(held, list(asked.values()), payload_limit(sent))
            seen = parallel_map(lambda payload: None if isinstance(payload, BadPayload) else digest(payload), arrived)
            for (g, worker), payload, own in zip(asked.items(), arrived, seen, strict=True):
                if isinstance(payload, BadPayload):
                    bad[worker] = str(payload)
                elif own != digests[worker]:
                    bad[worker] = "a payload that does not match its digest"
                else:
                    found[g] = worker, payload
            left = {g: winners for g, winners in left.items() if g not in found and winners}
        return dict(sorted(found.items())), bad


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
    )
    return both.pick(sorted(range(len(both.rows)), key=lambda i: both.sources[i]))
