# SPDX-License-Identifier: Apache-2.0
"""A codec that sends the entries of largest magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from phalanx.core.codec import BadPayload, Codec, Payload
from phalanx.core.coded_rows import Adder, Checked
from phalanx.core.columns import Shard
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.payload import expect
from phalanx.core.pieces import blank, counts, offsets, spread
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Rng
from phalanx.core.stage import Scope
from phalanx.core.trees import State

MOST_SPARSE = 1 / 16  # of more sent entries the places of many rows take more memory than a row
_WINDOW = 1 << 16  # sums that stay in cache while the entries of all rows are added
_SAMPLE = 4096  # magnitudes from which the threshold is guessed
_MIN_GUESSED = 1 << 14  # smaller tensors are searched without a guess


@method("top_k", "codec")
class TopK(Codec):
    """Sends the entries of largest magnitude of each tensor, as they are; all others arrive as zero. Biased.

    Of equal magnitudes the first are sent; NaN counts as the largest. The other entries are lost unless it stands in
    `error_feedback(...)`. Places are sent as Rice-coded gaps, about 2.5 - log2(ratio) bits each.

    Args:
        ratio: kept fraction of each tensor in (0, 1], rounded, at least one entry; a lower one sends less.
    Source: Aji and Heafield, Sparse communication for distributed gradient descent, 2017, arXiv:1704.05021;
        Stich et al., Sparsified SGD with memory, 2018, arXiv:1809.07599. Differs: k entries of each tensor, not of the
        row, so that it works on parts of a row.
    """

    ratio: float = 0.01

    runs_on: ClassVar[Scope] = "tensor"

    def validate(self) -> None:
        require(0 < self.ratio <= 1, f"top_k needs 0 < ratio <= 1, got ratio={self.ratio}")

    @property
    def grain(self) -> int | None:
        return 1

    @property
    def result_code(self) -> str | None:
        """The same code with error feedback: the result has the entries of all workers, and most are sent later."""
        return f"error_feedback({self!r})"

    def split(self, payload: Payload, layout: Layout, shards: Sequence[Shard]) -> list[Payload]:
        values, places = self._read(payload, layout)
        blocks = sorted(((b.start, owner, b) for owner, shard in enumerate(shards) for b in shard.blocks))
        blocks = [(owner, block) for _, owner, block in blocks if block.stop > block.start]
        before, firsts = [0] * len(shards), list[int]()  # entries of the shard before each block
        for owner, block in blocks:
            firsts.append(before[owner])
            before[owner] += block.stop - block.start
        starts = np.array([block.start for _, block in blocks], np.int64)
        block_of = np.searchsorted(starts, places, side="right") - 1
        owner_of = np.array([owner for owner, _ in blocks], np.int64)[block_of] if len(places) else places
        inside = places - starts[block_of] + np.array(firsts, np.int64)[block_of] if len(places) else places
        parts = []
        for owner, shard in enumerate(shards):
            chosen = np.flatnonzero(owner_of == owner)
            part = {"values": values[torch.from_numpy(chosen)]}
            parts.append({**part, "places": self._stream(inside[chosen], shard.layout.d)})
        return parts

    def decode_part(self, payload: Payload, layout: Layout, shard: Shard) -> Tensor:
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
        ks, starts = counts(layout, self.ratio), offsets(layout.sizes)
        first_kept = offsets(ks)
        places = np.empty(sum(ks), np.int64)

        def work(tensor: int) -> None:
            part = words[starts[tensor] : starts[tensor] + layout.sizes[tensor]]
            places[first_kept[tensor] : first_kept[tensor] + ks[tensor]] = (
                largest_places(part, ks[tensor]) + starts[tensor]
            )

        spread(work, range(len(ks)), layout.sizes)
        return {"values": values[torch.from_numpy(places)], "places": self._stream(places, layout.d)}, state

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
        from phalanx.codecs import bit_streams

        ks, starts = counts(layout, self.ratio), offsets(layout.sizes)
        length = payload["places"].numel() if "places" in payload else 0
        values, stream = expect(payload, values=(layout.dtype, (sum(ks),)), places=(torch.uint8, (length,)))
        places = np.empty(sum(ks), np.int64)
        if not bit_streams.unrice(stream.cpu().contiguous().numpy(), self._parameter, layout.d, places):
            raise BadPayload("places that no encoder writes")
        if ((places < np.repeat(starts, ks)) | (places >= np.repeat(np.add(starts, layout.sizes), ks))).any():
            raise BadPayload("more or fewer entries of a tensor than its share")
        return values, places

    @property
    def _parameter(self) -> int:
        """The number of low bits of a gap, which makes codes short for gaps of 1 / ratio on average."""
        return min(30, max(0, math.floor(math.log2(math.log(2) / self.ratio))))


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
