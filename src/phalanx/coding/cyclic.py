# SPDX-License-Identifier: Apache-2.0
"""The wire stage whose workers each send a combination of 2s + 1 units: their exact mean, whatever s workers send."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from phalanx.coding.code import TooManyFaults
from phalanx.coding.majority_vote import by_equality
from phalanx.coding.reed_solomon import P, Unexplained, factors, locate, supports, weights
from phalanx.coding.rounding_notice import rounding_notes, watched
from phalanx.core.allocation import Allocation
from phalanx.core.buffers import stack_rows
from phalanx.core.clock import Clock
from phalanx.core.codec import PayloadAttack, forged
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.packing import digest
from phalanx.core.parallel import parallel_map
from phalanx.core.payload import BadPayload, Payload, expect, payload_bytes
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Kept, Scope, TooFewRows
from phalanx.core.trees import State
from phalanx.core.wire_stage import Upload, WireStage, without_absent
from phalanx.distributed.determinism import BUCKETS, apart, sketch

ROW, CLAIMS, SKETCH, SCALES = "row", "claims", "sketch", "scales"
MARGIN = 2  # bits between the largest entry of a round and the scale of the next one
_WIDE_TOP, _WIDE_BITS = 24, 64  # without a scale: entries up to 2^24, in steps of 2^-40 or finer
_FINEST, _COARSEST = -120, 1024  # exponents of the smallest and the largest scale
_ZERO, _NOT_FINITE = -(1 << 15), (1 << 15) - 1  # in place of the exponent of a largest entry
_PIECE = 1 << 15  # columns that are coded at a time
_KEY_BITS, _KEYS = 21, 3


@method("cyclic", "wire")
class Cyclic(WireStage):
    """The exact mean of n units, of which each worker computes 2s + 1 and sends one combination over a prime field.

    Units become whole numbers of `bits` bits with a power of two as the scale of each tensor. Worker i sends
    sum_j f_j(a_i) unit_j mod p = 2^31 - 1, four bytes an entry, where f_j is the monic polynomial that vanishes at the
    points of the workers without unit j. Of one entry, honest rows are values of one polynomial of degree below
    k = n - 2s, whose leading coefficient is the sum of the units: any k rows give it. l lies and e missing rows are
    recovered from while 2 l + e <= 2 s, whoever they are and whatever they know of each other.

    False rows are found once for whole rows, from three projections of each on 21 random bits an entry: a lie is unseen
    with a chance of 2^-60. The key is a hash of the round and of a random number of each process that decodes, sent
    after all rows have arrived, so that no worker can choose its row against it, or the key against its row in fewer
    than 2^60 trials. The smallest set of workers that explains all three projections is named.

    The scale follows the tensors, and no worker can move it. With its row each worker sends the binary exponent of the
    largest entry of each tensor of each of its units, and how many entries were cut. Each unit has 2s + 1 workers, so
    that the majority tells the truth, and the decoder announces as the next scale the largest exponent of a unit plus
    2, or, where that is less than the last scale, the middle of the two. What is announced goes out with the request of
    the next round, is in every checkpoint, and is all the memory there is: a worker that missed rounds misses nothing.
    An entry beyond the scale is cut and counted. In a round without an announcement, such as the first one, entries up
    to 2^24 are sent in several numbers of `bits` bits, in steps of 2^-40 or finer: nothing has to be agreed on before.

    An attack before this stage rewrites the units that a Byzantine worker adds up; `forge` rewrites what it sends.
    Units must be equal to the bit across workers, as for votes: in the scheme's first round each worker of a job sends
    sketches of them, not metered, and a notice says where they differ by rounding.

    Notes: "outvoted" for each worker whose row or word is false, "unprotected" where so many rows are missing that one
    lie more would be believed or end the round, "saturated" with the number of entries of all units
    that were cut, where there are any.

    Shapes: a row for each unit of each worker -> (1, d), n > 2s.
    Args:
        s: lies to stand, >= 0.
        bits: of an entry, in [8, 28]; n 2^bits must stay below p / 2, so 23 for at most 127 workers.
        forge: what Byzantine workers send in place of their payloads.
    Raises:
        TooManyFaults: more than s rows are false or twice as many missing.
        ValueError: n <= 2s, or too many bits for n workers.
    Source: Chen et al., DRACO: Byzantine-resilient Distributed Training via Redundant Gradients, 2018,
        arXiv:1803.09877, section 4.2. Differs: a generalized Reed-Solomon code over a prime field in place of complex
        Fourier coefficients, so that recovery is exact; projections are new and unknown before in every round.
    """

    runs_on: ClassVar[Scope] = "vector"

    s: int
    bits: int = 23
    forge: PayloadAttack | None = None

    def validate(self) -> None:
        require(self.s >= 0, f"cyclic needs s >= 0, got s={self.s}")
        require(8 <= self.bits <= 28, f"cyclic needs bits in [8, 28], got bits={self.bits}")

    @property
    def needs(self) -> Kept:
        return "equality"

    def tolerates(self, n: int) -> int:
        """The number of false rows that are recovered from."""
        return self.s

    def rows_out(self, n: int) -> int:
        if n <= 2 * self.s:
            raise TooFewRows(f"cyclic needs n > 2s workers, got n={n}, s={self.s}; take more workers or a smaller s")
        most = (P // 2) >> self.bits
        require(
            n <= most,
            f"cyclic(s={self.s}, bits={self.bits}) adds up at most {most} workers, as n 2^bits stays below half of "
            f"2^31 - 1, got n={n}; take bits={max(8, (P // 2 // n).bit_length() - 1)} or fewer workers",
        )
        return 1

    def assign(self, n: int, seed: int = 0, index: int = 0) -> Allocation:
        self.rows_out(n)
        units = supports(n, self.s)
        return Allocation(units, ((1.0,) * len(units[0]),) * n, separate=True)

    def upload(self, stack: Stack, state: State | None, round: Round) -> tuple[list[Upload], State]:
        places, units, allocation = (
            stack.places,
            stack.units or (),
            self.assign(round.world.size, round.seed, round.index),
        )
        for worker, rows in places.items():
            if tuple(units[i] for i in rows) != allocation.units[worker]:
                raise ValueError(
                    f"{self!r} adds up units itself and needs a row for each of the {2 * self.s + 1} units of worker "
                    f"{worker}, got {len(rows)}; see `exchange.hold` for a training loop of your own"
                )
        if not places:
            return [], {}
        payloads = self.encode(stack, round.world.size, round.announced)
        if watched(round):
            shown = torch.stack([sketch([("row", row)]) for row in stack.rows])
            payloads = [{**p, SKETCH: shown[rows]} for p, rows in zip(payloads, places.values(), strict=True)]
        workers = tuple(places)
        held = forged(self.forge, payloads, workers, round)
        return without_absent([Upload(payload) for payload in held], workers, round), {}

    def receive(self, uploads: Sequence[Upload], sent: Stack, round: Round) -> Stack:
        clock, n, layout = Clock(), round.world.size, sent.layout
        scales, tensors = self._scales(round.announced, layout), len(layout.sizes)
        digits = 1 if scales is not None else self._wide_digits
        form = {
            ROW: (torch.int32, (digits, layout.d)),
            CLAIMS: (torch.int64, (2 * self.s + 1, tensors)),
        }
        shown = {SKETCH: (torch.float64, (2 * self.s + 1, BUCKETS + 1))}
        limit = 65536 + 4 * digits * layout.d + 8 * (2 * self.s + 1) * (tensors + BUCKETS + 1)
        rows, claims, sketches = dict[int, Tensor](), dict[int, Tensor](), dict[int, Tensor]()
        notes = list(sent.notes)
        for worker, payload in enumerate(round.world.gather([upload.now for upload in uploads], limit)):
            try:
                if isinstance(payload, BadPayload):
                    raise payload
                rows[worker], claims[worker], *more = expect(payload, **form, **(shown if SKETCH in payload else {}))
            except BadPayload as error:
                rows.pop(worker, None)
                notes.append(Note("excluded", worker, reason=str(error)))
                continue
            sketches |= {worker: more[0]} if more else {}
            size = payload_bytes({name: tensor for name, tensor in payload.items() if name != SKETCH})
            notes.append(Note("bytes", worker, size))
        key = _key(round)  # also where too few rows came: other processes wait for this one
        clock.lap("wire_s")
        notes += self._rounding(sketches, n, round)
        decoded = self._decode(rows, claims, scales, sent, key, notes, n)
        clock.lap("decode_s")
        return decoded.note(clock.notes)

    def _decode(
        self,
        rows: Mapping[int, Tensor],
        claims: Mapping[int, Tensor],
        scales: Tensor | None,
        sent: Stack,
        key: bytes,
        notes: list[Note],
        n: int,
    ) -> Stack:
        layout, present = sent.layout, tuple(rows)
        k, missing = n - 2 * self.s, n - len(rows)
        if len(present) < k:
            raise TooManyFaults(f"cyclic(s={self.s}): {missing} of n={n} rows are missing", tuple(notes))
        table = stack_rows([row.reshape(-1) for row in rows.values()], next(iter(rows.values())).reshape(-1))
        try:
            false = locate(_projections(table, key), present, k)
            truth, liars = self._majority(claims, false, layout, n)
            if 2 * (len(false) + len(liars)) > len(present) - k:
                raise Unexplained
        except Unexplained:
            also = f" and {missing} missing" if missing else ""
            raise TooManyFaults(
                f"cyclic(s={self.s}): more than {(len(present) - k) // 2} of n={n} rows are false{also}; nothing fits "
                "them",
                tuple(notes),
            ) from None
        if self.s and len(present) - k < 2:
            notes.append(Note("unprotected"))
        notes += [Note("outvoted", worker, reason="its row breaks the code") for worker in false]
        notes += [Note("outvoted", worker, reason="its word on its units has no majority") for worker in liars]
        exponents, cut = (truth & 0xFFFF) - (1 << 15), int((truth >> 16).sum())
        if cut:
            notes.append(Note("saturated", value=float(cut), reason=f"{cut} entries lie beyond the scale"))
        healthy = {worker: i for i, worker in enumerate(present) if worker not in false}
        row = self._mean(table, dict(list(healthy.items())[:k]), scales, sent, n)
        for part, bad in zip(row.split(layout.sizes), (exponents == _NOT_FINITE).any(dim=0).tolist(), strict=True):
            if bad:
                part.fill_(math.nan)
        return replace(
            sent,
            rows=row.to(sent.rows.device).reshape(1, -1),
            sources=(tuple(worker for worker in healthy if worker not in liars),),
            weights=torch.tensor([float(n)], dtype=torch.float64),
            received=True,
            notes=tuple(notes),
            units=None,
            announcement={SCALES: _next_scales(exponents, scales)},
        )

    @property
    def _wide_digits(self) -> int:
        return -(-_WIDE_BITS // self.bits)

    def _scales(self, announced: Payload, layout: Layout) -> Tensor | None:
        """The announced exponents (number of tensors,); None where there are none for this layout."""
        scales = announced.get(SCALES)
        if scales is None or len(scales) != len(layout.sizes):
            return None
        return scales if bool(((scales >= _FINEST) & (scales <= _COARSEST)).all()) else None

    def _factors(self, scale: int | None) -> list[float]:
        """What one of each digit of an entry stands for."""
        top, digits = (_WIDE_TOP, self._wide_digits) if scale is None else (scale, 1)
        return [2.0 ** (top - (i + 1) * self.bits) for i in range(digits)]

    def encode(self, stack: Stack, n: int, announced: Payload, out: Tensor | None = None) -> list[Payload]:
        """What each worker in a stack of units sends among n workers, ascending.

        Args:
            announced: `Round.announced`.
            out: (workers, digits, d) int32, memory for the rows; it may be that of the stack's rows.
        """
        from phalanx.coding import field_kernels

        places, units, scales = stack.places, stack.units or (), self._scales(announced, stack.layout)
        layout, floats = stack.layout, torch.float64 if stack.rows.dtype == torch.float64 else torch.float32
        digits, top = 1 if scales is not None else self._wide_digits, float(1 << self.bits)
        table = torch.empty(len(places), digits, layout.d, dtype=torch.int32) if out is None else out
        rows_out, code = table.numpy(), factors(n, self.s)
        parts = [(np.array(rows), np.array([code[worker, units[i]] for i in rows])) for worker, rows in places.items()]
        pieces = _pieces(layout)

        def coded(piece: tuple[int, int, int]) -> np.ndarray:
            tensor, start, stop = piece
            steps = self._factors(None if scales is None else int(scales[tensor]))
            whole = np.empty((digits, len(stack.rows), stop - start), dtype=np.int32)
            seen = np.empty((len(stack.rows), 2), dtype=np.int64)
            for i, row in enumerate(stack.rows):
                x = row[start:stop].to("cpu", floats).contiguous().numpy()
                words = x.view(np.int32 if floats == torch.float32 else np.int64)
                seen[i] = field_kernels.quantize(x, words, 1 / steps[0], top, whole[0, i])
                for digit in range(1, digits):
                    x = x.astype(np.float64) - whole[digit - 1, i] * steps[digit - 1]
                    field_kernels.quantize(x, x.view(np.int64), 1 / steps[digit], top, whole[digit, i])
            for digit in range(digits):
                for worker, (rows, combination) in enumerate(parts):
                    field_kernels.encode(whole[digit], rows, combination, rows_out[worker, digit, start:stop])
            return seen

        claims = np.zeros((len(stack.rows), len(layout.sizes)), dtype=np.int64)
        largest = np.zeros_like(claims)
        for (tensor, _, _), seen in zip(pieces, parallel_map(coded, pieces), strict=True):
            largest[:, tensor] = np.maximum(largest[:, tensor], seen[:, 0])
            claims[:, tensor] += seen[:, 1]
        magnitudes = torch.from_numpy(largest.astype(np.int32 if floats == torch.float32 else np.int64)).view(floats)
        exponents = torch.frexp(magnitudes).exponent.long().clamp(min=_FINEST)
        exponents[magnitudes == 0] = _ZERO
        exponents[~magnitudes.isfinite()] = _NOT_FINITE
        words = (torch.from_numpy(claims) << 16) + exponents + (1 << 15)
        return [{ROW: row, CLAIMS: words[rows]} for row, rows in zip(table, places.values(), strict=True)]

    def _majority(
        self, claims: Mapping[int, Tensor], false: Sequence[int], layout: Layout, n: int
    ) -> tuple[Tensor, tuple[int, ...]]:
        """What most workers with a unit say of it, (n, number of tensors), and who says something else."""
        units, sizes = supports(n, self.s), torch.tensor(layout.sizes)
        # words that no unit has are nobody's: a lone one would otherwise set the next scale
        liars = {worker for worker, words in claims.items() if worker not in false and not _possible(words, sizes)}
        holders: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        for worker in claims:
            if worker not in false and worker not in liars:
                for place, unit in enumerate(units[worker]):
                    holders[unit].append((worker, place))
        truth = []
        for members in holders:
            if not members:
                raise Unexplained
            said = torch.stack([claims[worker][place] for worker, place in members])
            middle = said.median(dim=0).values
            agree = (said == middle).all(dim=1)
            if 2 * int((said == middle).sum(dim=0).min() if said.shape[1] else len(said)) <= len(said):
                raise Unexplained
            liars |= {worker for (worker, _), ok in zip(members, agree.tolist(), strict=True) if not ok}
            truth.append(middle)
        return torch.stack(truth), tuple(sorted(liars))

    def _mean(self, table: Tensor, workers: Mapping[int, int], scales: Tensor | None, sent: Stack, n: int) -> Tensor:
        """The mean of the units, (d,), from the rows of k healthy workers, whose positions in the table are given."""
        from phalanx.coding import field_kernels

        d, row = sent.layout.d, sent.rows.new_empty(sent.layout.d, device="cpu")
        flat, shares, more = table.numpy().view(np.uint32).reshape(-1), weights(tuple(workers)), -len(workers) % 4
        # four rows at a time, the last ones for nothing
        picks = np.array([*workers.values(), *[0] * more], dtype=np.int64)
        numbers = np.array([*shares, *[0] * more], dtype=np.uint32)

        def combined(piece: tuple[int, int, int]) -> None:
            tensor, start, stop = piece
            total, sums = np.zeros(stop - start), np.empty(stop - start, dtype=np.int32)
            for digit, unit in enumerate(self._factors(None if scales is None else int(scales[tensor]))):
                field_kernels.combine(flat[digit * d + start :], table.shape[1], picks, numbers, sums)
                total += sums * unit
            row[start:stop] = torch.from_numpy(total / n)

        parallel_map(combined, _pieces(sent.layout))
        return row

    def _rounding(self, sketches: Mapping[int, Tensor], n: int, round: Round) -> list[Note]:
        """A notice where workers hold units that differ by rounding."""
        if not watched(round):
            return []
        found: dict[tuple[int, int], Tensor] = {}
        holders: list[list[int]] = [[] for _ in range(n)]
        for worker, shown in sketches.items():
            for place, unit in enumerate(supports(n, self.s)[worker]):
                found[worker, unit] = shown[place]
                holders[unit].append(worker)
        notes: list[Note] = []
        for unit, members in enumerate(holders):

            def same(a: int, b: int, unit: int = unit) -> bool:
                return torch.equal(found[a, unit], found[b, unit])

            def distance(a: int, b: int, unit: int = unit) -> float:
                return apart(found[a, unit], found[b, unit])

            notes = notes or rounding_notes([by_equality(members, same)], same, distance, round, "codes")
        return notes


def _possible(words: Tensor, sizes: Tensor) -> bool:
    """Whether a worker's words on its units, (units, number of tensors), are exponents and counts that units have."""
    exponents, cut = (words & 0xFFFF) - (1 << 15), words >> 16
    known = (exponents == _ZERO) | (exponents == _NOT_FINITE) | ((exponents >= _FINEST) & (exponents <= _COARSEST))
    return bool((known & (cut >= 0) & (cut <= sizes)).all())


def scales_of(rows: Tensor, layout: Layout) -> Payload:
    """The announcement behind a round whose units had these rows, (n, d)."""
    largest = torch.tensor([float(p.abs().max()) if p.numel() else 0.0 for p in rows.split(layout.sizes, dim=1)])
    exponents = torch.frexp(largest.double()).exponent.long().masked_fill(largest == 0, _ZERO)
    return {SCALES: _next_scales(exponents.reshape(1, -1), None)}


def _key(round: Round) -> bytes:
    """A key that no worker knew when it sent its row, the same in all processes that decode."""
    from blake3 import blake3

    mine = torch.frombuffer(bytearray(secrets.token_bytes(32)), dtype=torch.uint8)
    hasher = blake3(repr((round.seed, round.index, round.path)).encode())
    for part in round.world.all_gather_payloads({"key": mine}):
        hasher.update(digest(part))
    return hasher.digest()


def _projections(table: Tensor, key: bytes) -> list[list[int]]:
    """Three random projections of each row mod p; the same for any number of threads."""
    from blake3 import blake3

    from phalanx.coding import field_kernels

    n, d = table.shape
    blocks = -(-d // field_kernels.BLOCK)
    drawn = np.frombuffer(blake3(key).digest(length=8 * _KEYS * (field_kernels.BLOCK + blocks)), dtype="<u8")
    inner = (drawn[: _KEYS * field_kernels.BLOCK] >> (64 - _KEY_BITS)).astype(np.uint32).reshape(_KEYS, -1)
    outer = (drawn[_KEYS * field_kernels.BLOCK :] % P).astype(np.uint32).reshape(_KEYS, -1)
    flat, width = table.numpy().view(np.uint32).reshape(-1), 64 * field_kernels.BLOCK

    def projected(start: int) -> np.ndarray:
        sums = np.zeros((n, _KEYS), dtype=np.int64)
        part = outer[:, start // field_kernels.BLOCK :]
        field_kernels.project(flat[start:], d, n, min(width, d - start), inner, part, sums)
        return sums

    total = sum(parallel_map(projected, range(0, d, width)), np.zeros((n, _KEYS), dtype=np.int64))
    return (total % P).tolist()


def _pieces(layout: Layout) -> list[tuple[int, int, int]]:
    """Tensor, first and last column of pieces that lie in one tensor each."""
    pieces, begin = [], 0
    for tensor, size in enumerate(layout.sizes):
        pieces += [(tensor, start, min(start + _PIECE, begin + size)) for start in range(begin, begin + size, _PIECE)]
        begin += size
    return pieces


def _next_scales(exponents: Tensor, scales: Tensor | None) -> Tensor:
    """The exponents to announce, from those of all units (n, number of tensors) and the last ones."""
    known = exponents.masked_fill(exponents == _NOT_FINITE, _ZERO)
    largest = known.max(dim=0).values
    wanted = largest + MARGIN
    if scales is not None:
        # half of the way down, so that one large entry does not leave later rounds without bits
        gap = torch.where(largest == _ZERO, 1, scales.long() - wanted)
        wanted = torch.maximum(wanted, scales.long() - (gap + 1).div(2, rounding_mode="floor").clamp(min=1))
    # of a tensor without an entry above zero nothing is known yet: the widest of the others will do
    unknown = wanted <= _ZERO + MARGIN
    spare = int(wanted[~unknown].max()) if bool((~unknown).any()) else 0
    return wanted.masked_fill(unknown, spare).clamp(min=_FINEST, max=_COARSEST).to(torch.int16)
