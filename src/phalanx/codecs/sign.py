# SPDX-License-Identifier: Apache-2.0
"""A codec that sends the sign of each entry, one bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from phalanx.core.codec import BadPayload, Codec, Payload
from phalanx.core.coded_rows import Adder, Checked, VoteAdder
from phalanx.core.columns import Shard
from phalanx.core.expression import method
from phalanx.core.layout import Layout
from phalanx.core.payload import expect
from phalanx.core.pieces import PIECE, blank, offsets, spread
from phalanx.core.precision import accumulation_dtype, cast
from phalanx.core.round import Rng
from phalanx.core.stage import Scope
from phalanx.core.trees import State

_PIECE = 1 << 14  # entries that one thread adds up


@method("sign", "codec")
class Sign(Codec):
    """Sends the sign of every entry, eight to a byte; it decodes as +1 or -1, or as +-1 times the mean magnitude.

    Zero and NaN count as +, so without a scale nobody notices a worker's NaN.

    Args:
        scaled: also sends the mean sum |x| / d of every tensor, so that the row keeps its size; error feedback needs
            it.
    Source: Bernstein et al., signSGD, 2018, arXiv:1802.04434, Algorithm 1; scaled: Karimireddy et al., Error feedback
        fixes signSGD, 2019, arXiv:1901.09847, Algorithm 1. Differs: sign(0) is +, as a third value would take a second
        bit; one scale for each tensor, not for the row.
    """

    scaled: bool = False

    @property
    def scope(self) -> Scope:
        return "tensor" if self.scaled else "coordinate"

    @property
    def grain(self) -> int | None:
        return 1

    @property
    def result_code(self) -> str | None:
        """Three values, which the result of a majority has: they arrive as they are, anything else unbiased."""
        return "qsgd(bits=8)" if self.scaled else "terngrad(clip=inf)"

    def split(self, payload: Payload, layout: Layout, shards: Sequence[Shard]) -> list[Payload]:
        signs, *scales = self._parts(payload, layout)
        bits = torch.from_numpy(np.unpackbits(signs.cpu().contiguous().numpy(), count=layout.d, bitorder="little"))
        parts = []
        for shard in shards:
            packed = np.packbits(shard.take(bits).numpy(), bitorder="little")
            part = {"signs": torch.from_numpy(packed)}
            if scales:
                part["scales"] = scales[0][[block.tensor for block in shard.blocks]]
            parts.append(part)
        return parts

    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        payload = {"signs": _pack(row)}
        if self.scaled:
            parts = layout.split(row).values()
            means = [_sum_of_magnitudes(p.reshape(-1)) / max(1, p.numel()) for p in parts]
            payload["scales"] = torch.stack(means) if means else row.new_empty(0, dtype=accumulation_dtype(row.dtype))
        return payload, state

    def _parts(self, payload: Payload, layout: Layout) -> tuple[Tensor, ...]:
        """The packed signs and, if it is scaled, the scales; raises BadPayload where `encode` writes no such ones."""
        forms = {"signs": (torch.uint8, (-(-layout.d // 8),))}
        if self.scaled:
            forms["scales"] = (accumulation_dtype(layout.dtype), (len(layout.names),))
        parts = expect(payload, **forms)
        if layout.d % 8 and int(parts[0][-1]) >> layout.d % 8:
            raise BadPayload("bits beyond the end of the row")
        return parts

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        signs, *scales = self._parts(payload, layout)
        row = _unpack(signs, layout.d, accumulation_dtype(layout.dtype))
        if scales:
            if bool((scales[0] < 0).any()):
                raise BadPayload("a negative scale")
            # repeat_interleave starts threads for a handful of scales
            for part, scale in zip(row.split(layout.sizes), scales[0], strict=True):
                part *= scale
        return cast(row, layout.dtype)

    def adder(self, layout: Layout) -> Adder | None:
        return _ScaledAdder(self, layout) if self.scaled else _SignAdder(self, layout)


class _ScaledAdder(Adder):
    """Adds up signs times the scales of their tensors."""

    def __init__(self, codec: Sign, layout: Layout) -> None:
        self._codec, self._layout = codec, layout
        starts = offsets(layout.sizes)
        self._tensors = [(start, start + size) for start, size in zip(starts, layout.sizes, strict=True)]
        if not codec.scaled:
            self._tensors = [(0, layout.d)]

    def check(self, payload: Payload) -> Checked:
        signs, *scales = self._codec._parts(payload, self._layout)
        if scales and bool((scales[0] < 0).any()):
            raise BadPayload("a negative scale")
        factors = scales[0].cpu().contiguous().numpy() if scales else np.ones(1, np.float32)
        # a scale of a tensor without entries scales nothing
        sizes = np.array([stop - start for start, stop in self._tensors], np.int64)
        bound = float(factors[sizes > 0].max(initial=0.0))
        return Checked(bound, (signs.cpu().contiguous().numpy(), factors))

    def sum(
        self, parts: Sequence[tuple[np.ndarray, np.ndarray]], shares: Sequence[float], out: Tensor, start: int = 0
    ) -> None:
        from phalanx.codecs import adding_kernels

        sums, weights = out.numpy(), np.array(shares, np.float32)
        bodies = np.array([signs.ctypes.data for signs, _ in parts], np.uint64)
        items = [
            (tensor, low, min(low + PIECE, stop, start + len(sums)))
            for tensor, (first, stop) in enumerate(self._tensors)
            for low in range(max(first, start), min(stop, start + len(sums)), PIECE)
        ]

        def work(item: tuple[int, int, int]) -> None:
            tensor, low, high = item
            factors = np.array([scales[tensor] for _, scales in parts], np.float32) * weights
            adding_kernels.add_signs(bodies, factors, low, sums[low - start : high - start])

        spread(work, items, [len(parts) * (high - low) for _, low, high in items])


class _SignAdder(_ScaledAdder, VoteAdder):
    """Adds up signs as they are, and counts them."""

    def vote(self, parts: Sequence[tuple[np.ndarray, np.ndarray]], out: Tensor) -> None:
        from phalanx.codecs import adding_kernels

        votes, bodies = out.numpy(), np.array([signs.ctypes.data for signs, _ in parts], np.uint64)

        def work(start: int) -> None:
            adding_kernels.vote(bodies, start, votes[start : start + PIECE])

        starts = range(0, len(votes), PIECE)
        spread(work, starts, [len(parts) * PIECE] * len(starts))


def _pack(row: Tensor) -> Tensor:
    """Packs a bit for each entry, 1 where it is not negative. Shapes: (d,) -> (ceil(d / 8),) uint8."""
    d = len(row)
    if row.device.type == "cpu":
        # numpy compares faster than torch, and has no bfloat16
        values = (row.float() if row.dtype == torch.bfloat16 else row.detach()).numpy()
        out = np.empty(-(-d // 8), np.uint8)

        def work(start: int) -> None:
            negative = np.packbits(values[start : start + PIECE] < 0, bitorder="little")
            np.invert(negative, out=out[start // 8 : (start + PIECE) // 8])

        starts = range(0, d, PIECE)
        spread(work, starts, [PIECE] * len(starts))
        if d % 8:
            out[-1] &= (1 << d % 8) - 1
        return torch.from_numpy(out)
    eights = pad((~(row < 0)).to(torch.uint8), (0, -d % 8)).reshape(-1, 8)
    packed = eights[:, 0].clone()
    for i in range(1, 8):
        packed |= eights[:, i] << i
    return packed


def _unpack(signs: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    """Unpacks each bit to +1 or -1. Shapes: (ceil(d / 8),) uint8 -> (d,)."""
    bits = torch.arange(256, device=signs.device).unsqueeze(1) >> torch.arange(8, device=signs.device)
    table = (bits & 1).mul_(2).sub_(1).to(dtype)
    row = blank(8 * len(signs), dtype, signs.device)
    torch.index_select(table, 0, signs.int(), out=row.view(-1, 8))
    return row[:d]


def _sum_of_magnitudes(x: Tensor) -> Tensor:
    """sum_i |x_i|, added up by pieces in a fixed order: the same for any number of threads. (d,) -> ()."""
    dtype, whole = accumulation_dtype(x.dtype), x.numel() - x.numel() % _PIECE
    if not whole:
        return torch.linalg.vector_norm(x, 1, dtype=dtype)
    sums = [torch.linalg.vector_norm(x[:whole].reshape(-1, _PIECE), 1, dim=1, dtype=dtype)]
    if whole < x.numel():
        sums.append(torch.linalg.vector_norm(x[whole:], 1, dtype=dtype).reshape(1))
    return torch.cat(sums).sum()
