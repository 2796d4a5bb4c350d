# SPDX-License-Identifier: Apache-2.0
"""A codec that sends the entries of largest magnitude, of each tensor or of each chunk of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from phalanx.core.codec import BadPayload, Codec, Payload
from phalanx.core.coded_rows import Adder, Checked
from phalanx.core.columns import Shard
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.payload import expect
from phalanx.core.pieces import blank, counts, spread
from phalanx.core.precision import accumulation_dtype, cast
from phalanx.core.round import Rng
from phalanx.core.stage import Scope
from phalanx.core.trees import State

MOST_SPARSE = 1 / 16  # of more sent entries the places of many rows take more memory than a row
_CHUNKS = 64  # chunks that one thread takes at a time
_FRACTION = np.uint64((1 << 20) - 1)  # bits of a float32 that an upper end does not send
_WINDOW = 1 << 16  # sums that stay in cache while the entries of all rows are added
_SAMPLE = 4096  # magnitudes from which the threshold is guessed
_MIN_GUESSED = 1 << 14  # smaller tensors are searched without a guess


@method("top_k", "codec")
class TopK(Codec):
    """Sends the entries of largest magnitude of each tensor, or of each chunk of one; others arrive as zero. Biased.

    Of equal magnitudes the first are sent; NaN counts as the largest. The other entries are lost unless it stands in
    `error_feedback(...)`. Places are sent as Rice-coded gaps, about 2.5 - log2(ratio) bits each.

    With `values` an entry is sent as its sign and a level between the least and the largest magnitude that are sent of
    its chunk, which take 16 bits together. With chunk=4096 and values=2 that makes 9.75 bits for each entry at ratio
    1/64 and 8.63 at 1/32, places included. Levels are computed in float32; a chunk that holds NaN or Inf arrives as
    NaN where entries are sent.

    Args:
        ratio: kept fraction of each tensor or chunk in (0, 1], rounded, at least one entry; a lower one sends less.
        chunk: number of neighbouring entries of a tensor among which the largest are sent, >= 1; None takes all.
        values: bits of a sent entry, 2 to 8, and only with a chunk; None sends entries as they are.
    Source: Aji and Heafield, Sparse communication for distributed gradient descent, 2017, arXiv:1704.05021;
        Stich et al., Sparsified SGD with memory, 2018, arXiv:1809.07599; with chunks and 2-bit values: Sarfi et al.,
        SparseLoCo, 2025, arXiv:2508.15706. Differs: k entries of each tensor, not of the row, so that it works on parts
        of a row; places are Rice-coded, not in 12 bits of a place in the chunk; levels lie evenly between the ends.
    """

    ratio: float = 0.01
    chunk: int | None = None
    values: int | None = None

    runs_on: ClassVar[Scope] = "tensor"

    def validate(self) -> None:
        require(0 < self.ratio <= 1, f"top_k needs 0 < ratio <= 1, got ratio={self.ratio}")
        require(self.chunk is None or self.chunk >= 1, f"top_k needs chunk >= 1 or None, got chunk={self.chunk}")
        require(self.values is None or 2 <= self.values <= 8, f"top_k needs 2 to 8 bits, got values={self.values}")
        require(
            self.values is None or self.chunk is not None,
            f"top_k has a scale for each chunk, got values={self.values} without a chunk; add chunk=4096",
        )

    @property
    def grain(self) -> int | None:
        return self.chunk or 1

    @property
    def result_code(self) -> str | None:
        """The same code with error feedback: the result has the entries of all workers, and most are sent later."""
        return f"error_feedback({self!r})"

    def split(self, payload: Payload, layout: Layout, shards: Sequence[Shard]) -> list[Payload]:
        runs = self._runs(layout)
        sent, scales, places = self._parts(payload, runs, layout)
        blocks = sorted(((b.start, owner, b) for owner, shard in enumerate(shards) for b in shard.blocks))
        blocks = [(owner, block) for _, owner, block in blocks if block.stop > block.start]
        before, firsts = [0] * len(shards), list[int]()  # entries of the shard before each block
        for owner, block in blocks:
            firsts.append(before[owner])
            before[owner] += block.stop - block.start
        starts = np.array([block.start for _, block in blocks], np.int64)
        owners = np.array([owner for owner, _ in blocks], np.int64)
        block_of = np.searchsorted(starts, places, side="right") - 1
        owner_of = owners[block_of] if len(places) else places
        inside = places - starts[block_of] + np.array(firsts, np.int64)[block_of] if len(places) else places
        owner_of_run = owners[np.searchsorted(starts, runs.starts, side="right") - 1] if len(starts) else runs.starts
        parts = []
        for owner, shard in enumerate(shards):
            chosen = np.flatnonzero(owner_of == owner)
            part = {"places": self._stream(inside[chosen], shard.layout.d)}
            if self.values is None:
                parts.append({"values": sent[torch.from_numpy(chosen)], **part})
            else:
                own = torch.from_numpy(np.flatnonzero(owner_of_run == owner))
                parts.append({"levels": self._packed(sent.numpy()[chosen]), "scales": scales[own], **part})
        return parts

    def decode_part(self, payload: Payload, layout: Layout, shard: Shard) -> Tensor:
        if self.chunk is not None:
            # blocks are cut between chunks
            return self.decode(payload, shard.layout)
        from phalanx.codecs import bit_streams

        count, d = payload["values"].numel() if "values" in payload else 0, shard.layout.d
        length = payload["places"].numel() if "places" in payload else 0
        values, stream = expect(payload, values=(layout.dtype, (count,)), places=(torch.uint8, (length,)))
        if count > min(d, sum(counts(layout, self.ratio))):
            raise BadPayload(f"{count} entries of {d}, more than the whole row sends")
        places = np.empty(count, np.int64)
        if not bit_streams.unrice(stream.cpu().contiguous().numpy(), self._parameter, d, places):
            raise BadPayload("places that no encoder writes")
        entries = blank(d, values.dtype, values.device)
        entries[torch.from_numpy(places).to(entries.device)] = values
        return entries

    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        values = row.detach().to("cpu").contiguous()
        ordered = values.to(accumulation_dtype(values.dtype))
        words = ordered.view(torch.int64 if ordered.dtype == torch.float64 else torch.int32).numpy()
        runs = self._runs(layout)
        places = np.empty(runs.num_sent, np.int64)
        if self.chunk is None:

            def work(run: int) -> None:
                part = words[runs.starts[run] : runs.starts[run] + runs.sizes[run]]
                kept = slice(runs.firsts[run], runs.firsts[run] + runs.ks[run])
                places[kept] = largest_places(part, int(runs.ks[run])) + runs.starts[run]

            spread(work, range(len(runs.ks)), runs.sizes.tolist())
        else:
            _choose_in_chunks(words, runs, places)
        stream = self._stream(places, layout.d)
        sent = values[torch.from_numpy(places)]
        if self.values is None:
            return {"values": sent, "places": stream}, state
        codes, scales = _quantized(cast(sent, torch.float32).numpy(), runs, self.values)
        return {"levels": self._packed(codes), "scales": torch.from_numpy(scales), "places": stream}, state

    def _runs(self, layout: Layout) -> _Runs:
        return _runs_of(layout, self.ratio, self.chunk)

    def _packed(self, codes: np.ndarray) -> Tensor:
        """Codes of `values` bits one after the other, eight bits to a byte."""
        assert self.values is not None
        digits = np.unpackbits(codes.reshape(-1, 1), axis=1, bitorder="little")[:, : self.values]
        return torch.from_numpy(np.packbits(digits.reshape(-1), bitorder="little"))

    def _stream(self, places: np.ndarray, d: int) -> Tensor:
        """Ascending places below d as Rice-coded gaps."""
        from phalanx.codecs import bit_streams

        stream = np.empty(_max_stream_bytes(len(places), d, self._parameter), np.uint8)
        size = bit_streams.rice(places, self._parameter, stream)
        # a view would keep the whole buffer alive
        return torch.from_numpy(stream[:size].copy())

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        values, places = self._read(payload, layout)
        row = blank(layout.d, values.dtype, values.device)
        row[torch.from_numpy(places).to(row.device)] = values
        return row

    def adder(self, layout: Layout) -> Adder | None:
        return sparse_adder(self._read, layout, self.ratio)

    def _read(self, payload: Payload, layout: Layout) -> tuple[Tensor, np.ndarray]:
        """The values and their places in the row; raises BadPayload where `encode` writes no such payload."""
        runs = self._runs(layout)
        sent, scales, places = self._parts(payload, runs, layout)
        if self.values is None:
            return sent, places
        numbers = _dequantized(sent.numpy(), scales.numpy(), runs, self.values)
        return cast(torch.from_numpy(numbers), layout.dtype), places

    def _parts(self, payload: Payload, runs: _Runs, layout: Layout) -> tuple[Tensor, Tensor, np.ndarray]:
        """The values as they are or their codes, the scales of the chunks, and the places in the row.

        Raises:
            BadPayload: `encode` writes no such payload.
        """
        from phalanx.codecs import bit_streams, selection_kernels

        count, scales = runs.num_sent, torch.empty(0, dtype=torch.int16)
        stream_form = {"places": (torch.uint8, (payload["places"].numel() if "places" in payload else 0,))}
        if self.values is None:
            sent, stream = expect(payload, values=(layout.dtype, (count,)), **stream_form)
        else:
            num_bytes = -(-count * self.values // 8)
            forms = {"levels": (torch.uint8, (num_bytes,)), "scales": (torch.int16, (len(runs.ks),)), **stream_form}
            packed, scales, stream = (tensor.cpu().contiguous() for tensor in expect(payload, **forms))
            digits = np.unpackbits(packed.numpy(), bitorder="little")
            if digits[count * self.values :].any():
                raise BadPayload("bits beyond the last entry")
            digits = digits[: count * self.values].reshape(count, self.values)
            sent = torch.from_numpy(np.packbits(digits, axis=1, bitorder="little").reshape(-1))
        places = np.empty(count, np.int64)
        if not bit_streams.unrice(stream.cpu().contiguous().numpy(), self._parameter, layout.d, places):
            raise BadPayload("places that no encoder writes")
        if not selection_kernels.each_in_its_run(places, runs.starts, runs.sizes, runs.ks):
            raise BadPayload("more or fewer entries of a tensor than its share")
        return sent, scales, places

    @property
    def _parameter(self) -> int:
        """The number of low bits of a gap, which makes codes short for gaps of 1 / ratio on average."""
        return min(30, max(0, math.floor(math.log2(math.log(2) / self.ratio))))


class _Runs(NamedTuple):
    """The runs of a row of which the largest entries are sent: whole tensors, or their chunks.

    Args:
        starts: in the row.
        ks: number of entries that are sent.
        firsts: the first of these among all that are sent.
    """

    starts: np.ndarray
    sizes: np.ndarray
    ks: np.ndarray
    firsts: np.ndarray

    @property
    def num_sent(self) -> int:
        return int(self.ks.sum())


@lru_cache(maxsize=64)
def _runs_of(layout: Layout, ratio: float, chunk: int | None) -> _Runs:
    starts, sizes, row = list[int](), list[int](), 0
    for size in layout.sizes:
        step = max(1, size) if chunk is None else chunk
        starts += range(row, row + size, step)
        sizes += (min(step, size - offset) for offset in range(0, size, step))
        row += size
    ks = np.array([min(size, max(1, round(ratio * size))) for size in sizes], np.int64)
    return _Runs(np.array(starts, np.int64), np.array(sizes, np.int64), ks, np.cumsum(ks) - ks)


def _choose_in_chunks(words: np.ndarray, runs: _Runs, places: np.ndarray) -> None:
    """Writes the places of the largest entries of all chunks."""
    from phalanx.codecs import selection_kernels

    def work(start: int) -> None:
        part = slice(start, start + _CHUNKS)
        ks = runs.ks[part]
        kept = places[runs.firsts[start] : runs.firsts[start] + ks.sum()]
        selection_kernels.largest_of_chunks(words, runs.starts[part], runs.sizes[part], ks, kept)

    starts = range(0, len(runs.ks), _CHUNKS)
    spread(work, starts, [int(runs.sizes[start : start + _CHUNKS].sum()) for start in starts])


def _quantized(values: np.ndarray, runs: _Runs, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A code of a sign and a level for each sent entry, and the ends of each run's magnitudes in 16 bits.

    The upper end takes 11 bits, the exponent and three bits of the fraction of a float32, rounded up; the lower end is
    a number of 1/32 of it, rounded down.

    Shapes: (num_sent,) float32 -> (num_sent,) uint8, (number of runs,) int16.
    """
    if not len(values):
        return np.empty(0, np.uint8), np.empty(0, np.int16)
    magnitudes = np.abs(values)
    least, largest = (end.reduceat(magnitudes, runs.firsts) for end in (np.minimum, np.maximum))
    words = (largest.view(np.uint32).astype(np.uint64) + _FRACTION) >> np.uint64(20)
    high = (words << np.uint64(20)).astype(np.uint32).view(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        share = np.floor(np.nan_to_num(least.astype(np.float64) / high * 32, nan=0.0, posinf=0.0))
        low, step = _ends(words.astype(np.uint32) << np.uint32(5) | np.clip(share, 0, 31).astype(np.uint32), bits)
        levels = (magnitudes - np.repeat(low, runs.ks)) / np.repeat(step, runs.ks)
    top = (1 << bits - 1) - 1
    codes = np.clip(np.nan_to_num(np.floor(levels), nan=0.0, posinf=0.0, neginf=0.0), 0, top).astype(np.uint8)
    scales = words.astype(np.uint32) << np.uint32(5) | np.clip(share, 0, 31).astype(np.uint32)
    return codes | (values < 0).astype(np.uint8) << np.uint8(bits - 1), scales.astype(np.uint16).view(np.int16)


def _dequantized(codes: np.ndarray, scales: np.ndarray, runs: _Runs, bits: int) -> np.ndarray:
    """The inverse of `_quantized`: the middle of each level."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        low, step = _ends(scales.view(np.uint16).astype(np.uint32), bits)
        levels = (codes & np.uint8((1 << bits - 1) - 1)).astype(np.float32) + np.float32(0.5)
        magnitudes = np.repeat(low, runs.ks) + levels * np.repeat(step, runs.ks)
    return np.where(codes >> np.uint8(bits - 1), -magnitudes, magnitudes).astype(np.float32)


def _ends(scales: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower end of each run's magnitudes, and the distance of two levels; NaN where a scale says so."""
    high = ((scales >> np.uint32(5)) << np.uint32(20)).view(np.float32)
    high = np.where(np.isfinite(high), high, np.float32(np.nan))
    low = high * ((scales & np.uint32(31)).astype(np.float32) / np.float32(32))
    return low, (high - low) / np.float32(1 << bits - 1)


class SparseAdder(Adder):
    """Adds up rows of which a few entries were sent.

    Args:
        read: makes the values and their ascending places of a payload.
    """

    def __init__(self, read: Callable[[Payload], tuple[Tensor, np.ndarray]]) -> None:
        self._read = read

    def check(self, payload: Payload) -> Checked:
        values, places = self._read(payload)
        entries = values.cpu().contiguous().numpy()
        return Checked(float(np.abs(entries).max(initial=0.0)), (entries, places.astype(np.uint32)))

    def sum(
        self, parts: Sequence[tuple[np.ndarray, np.ndarray]], shares: Sequence[float], out: Tensor, start: int = 0
    ) -> None:
        from phalanx.codecs import adding_kernels

        sums, factors = out.numpy(), np.array(shares, np.float32)
        values, places = (np.array([part[i].ctypes.data for part in parts], np.uint64) for i in range(2))
        sizes = np.array([len(part[0]) for part in parts], np.int64)
        entries = np.array([np.searchsorted(part[1], start) for part in parts], np.int64)
        for low in range(0, len(sums), _WINDOW):
            window = sums[low : low + _WINDOW]
            first, stop = start + low, start + low + len(window)
            adding_kernels.add_entries(places, values, sizes, factors, entries, first, stop, window)


def sparse_adder(
    read: Callable[[Payload, Layout], tuple[Tensor, np.ndarray]], layout: Layout, ratio: float
) -> SparseAdder | None:
    """The adder of rows of which this share of the entries was sent; None where their places would take too much."""
    if ratio > MOST_SPARSE or layout.d >= 1 << 32:
        return None
    return SparseAdder(lambda payload: read(payload, layout))


def _max_stream_bytes(k: int, d: int, parameter: int) -> int:
    """The most bytes that k Rice-coded places below d can take, and a few more."""
    return (k * (parameter + 1) + (d >> parameter)) // 8 + 16


def largest_places(words: np.ndarray, k: int) -> np.ndarray:
    """The places of the k largest magnitudes, ascending; of equal magnitudes the first.

    A threshold, guessed from a sample, leaves few candidates for the exact search. If it leaves too few or too many
    (ties, zeros), the search is over all entries.

    Shapes: (n,) -> (k,).
    Args:
        words: the bits of floating-point numbers as int32 or int64.
    """
    from phalanx.codecs import selection_kernels

    n = len(words)
    places = np.empty(k, np.int64)
    if k == n:
        places[:] = np.arange(n)
        return places
    candidates = np.empty(0, np.int64)
    if n >= _MIN_GUESSED and k <= n // 8:
        sample = np.empty(_SAMPLE, words.dtype)
        selection_kernels.sample(words, sample)
        # the share of the sample above the threshold is three standard deviations more than k / n
        share = k / n * _SAMPLE
        num_above = min(_SAMPLE - 1, math.ceil(share + 3 * math.sqrt(share) + 3))
        threshold = np.partition(sample, _SAMPLE - 1 - num_above)[_SAMPLE - 1 - num_above]
        buffer = np.empty(4 * k + n // 256 + 1, np.int64)
        count = selection_kernels.candidates(words, threshold, buffer)
        if k <= count < len(buffer):
            candidates = buffer[:count]
    threshold, larger = selection_kernels.kth_largest(words, candidates, k)
    selection_kernels.take(words, candidates, threshold, k - larger, places)
    return places
