# SPDX-License-Identifier: Apache-2.0
"""The quantizer of QSGD, TernGrad and l_q quantization: signed whole levels, with a scale for every bucket."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from phalanx.core.codec import BadPayload, Codec, Payload
from phalanx.core.coded_rows import Adder, Checked
from phalanx.core.columns import Shard
from phalanx.core.layout import Layout
from phalanx.core.payload import expect
from phalanx.core.pieces import BLOCK, PIECE, Cut, Piece, blank, body_of, cut, first_pieces, float_array, keys, spread
from phalanx.core.precision import cast
from phalanx.core.round import Rng
from phalanx.core.stage import Kept, Scope
from phalanx.core.trees import State

Coding = Literal["packed", "elias"]
Measure = Callable[[np.ndarray, int, np.ndarray], None]  # entries, width of a bucket, scales to be written


class LevelFormat(NamedTuple):
    """The format of a quantized row.

    Args:
        bits: bits of a level, without the bit of the sign.
        bucket: number of entries that share a scale; None for all entries of a tensor.
        coding: "packed" gives every entry the same number of bits, "elias" codes runs of zeros and levels.
    """

    bits: int
    bucket: int | None
    coding: Coding


class QuantizerCodec(Codec):
    """Rounds each entry at random to a level of its bucket's scale; a subclass gives the format and the scales."""

    runs_on: ClassVar[Scope] = "tensor"

    @property
    @abstractmethod
    def level_format(self) -> LevelFormat:
        """The format of the payload."""

    @abstractmethod
    def measure_scales(self, entries: np.ndarray, width: int, scales: np.ndarray) -> None:
        """Writes the scale of each bucket of `width` entries, NaN for one that holds NaN or Inf."""

    @property
    def keeps(self) -> Kept:
        return "nothing"

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def grain(self) -> int | None:
        return level_grain(self.level_format)

    @property
    def result_code(self) -> str | None:
        """Eight bits, whose error is small beside that of any code that needs `scatter`; see docs/scaling.md."""
        return "qsgd(bits=8)"

    def split(self, payload: Payload, layout: Layout, shards: Sequence[Shard]) -> list[Payload]:
        return split_levels(payload, layout, self.level_format, shards)

    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        return encode_levels(row, layout, self.level_format, self.measure_scales, rng), state

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        return decode_levels(payload, layout, self.level_format)

    def adder(self, layout: Layout) -> Adder | None:
        # whether a stream is one is known only when it is decoded
        return LevelAdder(layout, self.level_format) if self.level_format.coding == "packed" else None


def encode_levels(
    row: Tensor,
    layout: Layout,
    form: LevelFormat,
    measure: Measure,
    rng: Rng,
) -> Payload:
    """Codes an entry x of scale c as sign(x) times a random whole number of mean min(|x| / c, 1) (2^bits - 1).

    Shapes: row (d,) -> "scales" (num_buckets,) float32, and "levels" uint8 of bits + 1 bits an entry or, with elias,
    "stream" uint8 and "ends" int64, the ends of the row's pieces in the stream.
    Args:
        measure: writes the scales of whole buckets.
    """
    from phalanx.codecs import bit_streams, quantizer_kernels

    bits, bucket, coding = form
    values, plan, key = float_array(row), cut(layout, bucket, bits + 1), keys(layout, rng)
    scales = np.empty(plan.num_buckets, np.float32)
    levels = np.empty(plan.num_bytes if coding == "packed" else 0, np.uint8)

    def measure_long(item: tuple[slice, int]) -> None:
        entries, index = item
        measure(values[entries], entries.stop - entries.start, scales[index : index + 1])

    def work(piece: Piece) -> np.ndarray:
        part, part_scales = values[piece.start : piece.stop], scales[piece.buckets]
        if piece.whole:
            measure(part, piece.width, part_scales)
        if coding == "packed":
            quantizer_kernels.quantize(
                part, piece.offset, piece.width, part_scales, bits, key[piece.tensor], levels[piece.body]
            )
            return levels
        codes = np.empty(len(part), np.uint16)
        quantizer_kernels.codes_of(part, piece.offset, piece.width, part_scales, bits, key[piece.tensor], codes)
        stream = np.empty(len(part) * (2 * bits + 1) // 8 + 16, np.uint8)
        return stream[: bit_streams.elias(codes, bits, stream)].copy()

    spread(measure_long, plan.long, [entries.stop - entries.start for entries, _ in plan.long])
    written = spread(work, plan.pieces, plan.sizes)
    sent = {"scales": torch.from_numpy(scales)}
    if coding == "packed":
        return {**sent, "levels": torch.from_numpy(levels)}
    ends = np.cumsum([len(stream) for stream in written], dtype=np.int64)
    stream = np.concatenate([levels, *written])
    return {**sent, "stream": torch.from_numpy(stream), "ends": torch.from_numpy(ends)}


def decode_levels(payload: Payload, layout: Layout, form: LevelFormat) -> Tensor:
    """Decodes a payload of `encode_levels` to a row (d,); NaN where a scale is NaN.

    Raises:
        BadPayload: `encode_levels` writes no such payload.
    """
    from phalanx.codecs import bit_streams, quantizer_kernels

    bits, bucket, coding = form
    plan = cut(layout, bucket, bits + 1)
    scales, body, bounds = _read_form(payload, plan, coding)
    measures, data = scales.cpu().contiguous().numpy(), body.cpu().contiguous().numpy()
    row = blank(layout.d, torch.float32)
    out = row.numpy()
    read = quantizer_kernels.dequantize if coding == "packed" else bit_streams.unelias

    def work(item: tuple[Piece, tuple[int, int]]) -> bool:
        piece, (start, stop) = item
        part = out[piece.start : piece.stop]
        return bool(read(data[start:stop], piece.width, measures[piece.buckets], bits, part))

    if not all(spread(work, list(zip(plan.pieces, bounds, strict=True)), plan.sizes)):
        raise BadPayload("levels that no encoder writes")
    return cast(row, layout.dtype)


class LevelAdder(Adder):
    """Adds up payloads of `encode_levels` whose levels are packed."""

    def __init__(self, layout: Layout, form: LevelFormat) -> None:
        self._bits = form.bits
        self._coding: Coding = form.coding
        self._plan = cut(layout, form.bucket, form.bits + 1)

    def check(self, payload: Payload) -> Checked:
        from phalanx.codecs import adding_kernels

        scales, body, _ = _read_form(payload, self._plan, self._coding)
        measures, data = scales.cpu().contiguous().numpy(), body.cpu().contiguous().numpy()
        for piece in self._plan.pieces:
            total = piece.stop - piece.start
            if not adding_kernels.ends_in_zeros(data[piece.body], total, piece.width, self._bits + 1):
                raise BadPayload("levels that no encoder writes")
        # the product of a level and its unit is rounded
        return Checked(float(measures.max(initial=0.0)) * (1 + 1e-6), (measures, data))

    def sum(
        self, parts: Sequence[tuple[np.ndarray, np.ndarray]], shares: Sequence[float], out: Tensor, start: int = 0
    ) -> None:
        from phalanx.codecs import adding_kernels

        sums, factors = out.numpy(), np.array(shares, np.float32)
        scales, bodies = (np.array([part[i].ctypes.data for part in parts], np.uint64) for i in range(2))
        pieces = self._plan.pieces
        first = max(0, bisect_right(pieces, start, key=lambda piece: piece.start) - 1)
        pieces = pieces[first : bisect_left(pieces, start + len(sums), key=lambda piece: piece.start)]

        def work(piece: Piece) -> None:
            low, high = max(piece.start, start), min(piece.stop, start + len(sums))
            if low < high:
                adding_kernels.add_levels(
                    bodies + np.uint64(piece.body.start),
                    scales + np.uint64(4 * piece.buckets.start),
                    factors,
                    piece.stop - piece.start,
                    piece.width,
                    self._bits,
                    low - piece.start,
                    high - piece.start,
                    sums[low - start : high - start],
                )

        spread(work, pieces, [len(parts) * (piece.stop - piece.start) for piece in pieces])


def level_grain(form: LevelFormat) -> int:
    """The number of entries between two places where a quantized tensor can be cut."""
    _, bucket, coding = form
    if bucket is not None and (coding == "packed" or bucket > PIECE):
        return bucket
    if coding == "packed":
        return BLOCK
    return PIECE if bucket is None else PIECE // bucket * bucket


def split_levels(payload: Payload, layout: Layout, form: LevelFormat, shards: Sequence[Shard]) -> list[Payload]:
    """Cuts a payload of `encode_levels` into those of shards; a scale is repeated in each shard with its entries.

    Raises:
        BadPayload: `encode_levels` writes no such payload.
    """
    bits, bucket, coding = form
    plan = cut(layout, bucket, bits + 1)
    scales, body, bounds = _read_form(payload, plan, coding)
    firsts = first_pieces(plan)
    places = {(piece.tensor, piece.offset): i for i, piece in enumerate(plan.pieces)}
    parts = []
    for shard in shards:
        own_scales, codes, sizes = [scales[:0]], [body[:0]], list[int]()
        for block in shard.blocks:
            if block.start == block.stop:
                continue
            first, count = firsts[block.tensor], block.stop - block.start
            low = first.buckets.start + block.offset // first.width
            own_scales.append(scales[low : low + -(-count // first.width)])
            if coding == "packed":
                codes.append(body[body_of(first, block, bits + 1)])
                continue
            i = places[block.tensor, block.offset]
            while i < len(plan.pieces) and plan.pieces[i].start < block.stop:
                start, stop = bounds[i]
                codes.append(body[start:stop])
                sizes.append(stop - start)
                i += 1
        part = {"scales": torch.cat(own_scales)}
        if coding == "packed":
            parts.append({**part, "levels": torch.cat(codes)})
        else:
            ends = torch.from_numpy(np.cumsum(sizes, dtype=np.int64))
            parts.append({**part, "stream": torch.cat(codes), "ends": ends})
    return parts


def _read_form(payload: Payload, plan: Cut, coding: Coding) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """The scales, the codes, and the first and last byte of each piece.

    Raises:
        BadPayload: `encode_levels` writes no payload of this form.
    """
    fields = {"scales": (torch.float32, (plan.num_buckets,))}
    if coding == "packed":
        scales, body = expect(payload, **fields, levels=(torch.uint8, (plan.num_bytes,)))
        bounds = [(piece.body.start, piece.body.stop) for piece in plan.pieces]
    else:
        length = payload["stream"].numel() if "stream" in payload else 0
        fields["ends"] = (torch.int64, (len(plan.pieces),))
        scales, ends, body = expect(payload, **fields, stream=(torch.uint8, (length,)))
        stops = ends.tolist()
        bounds = list(zip([0, *stops], stops, strict=False))
        if any(start > stop for start, stop in bounds) or (stops[-1] if stops else 0) != length:
            raise BadPayload("pieces that do not follow each other to the end of the stream")
    if bool((scales < 0).any()):
        raise BadPayload("a negative scale")
    return scales, body, bounds
