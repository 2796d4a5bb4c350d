# SPDX-License-Identifier: Apache-2.0
"""A quantizer that sends one of two values of the tensor for each entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from phalanx.core.codec import BadPayload, Codec, Payload
from phalanx.core.coded_rows import Adder, Checked
from phalanx.core.columns import Shard
from phalanx.core.expression import method
from phalanx.core.layout import Layout
from phalanx.core.payload import expect
from phalanx.core.pieces import BLOCK, Cut, Piece, blank, body_of, cut, first_pieces, float_array, keys, spread
from phalanx.core.precision import cast
from phalanx.core.round import Rng
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("stochastic_binary", "codec")
class StochasticBinary(Codec):
    """Sends each entry as its tensor's least or largest value, chosen at random: one bit; unbiased.

    An entry x is the largest with probability (x - least) / (largest - least). Small entries have a
    large error: a zero arrives as one of the two values. Computed in float32 on the CPU. A tensor that holds NaN or Inf
    arrives as NaN, one whose values differ by less than 1e-36 as its least value.

    Source: Suresh et al., Distributed mean estimation with limited communication, 2017, arXiv:1611.00429, section 2.
        Differs: least and largest values are those of each tensor, not of the row.
    """

    runs_on: ClassVar[Scope] = "tensor"

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def grain(self) -> int | None:
        return BLOCK

    @property
    def result_code(self) -> str | None:
        return "qsgd(bits=8)"

    def split(self, payload: Payload, layout: Layout, shards: Sequence[Shard]) -> list[Payload]:
        plan = cut(layout, None, 1)
        form = {"ends": (torch.float32, (plan.num_buckets, 2)), "bits": (torch.uint8, (plan.num_bytes,))}
        ends, bits = expect(payload, **form)
        firsts = first_pieces(plan)
        parts = []
        for shard in shards:
            blocks = [block for block in shard.blocks if block.stop > block.start]
            buckets = [firsts[block.tensor].buckets.start for block in blocks]
            bodies = [bits[body_of(firsts[block.tensor], block, 1)] for block in blocks]
            parts.append({"ends": ends[buckets], "bits": torch.cat([bits[:0], *bodies])})
        return parts

    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        from phalanx.codecs import quantizer_kernels

        values, plan, key = float_array(row), cut(layout, None, 1), keys(layout, rng)
        ends = np.zeros((len(plan.pieces), 2), np.float32)

        def measure(item: tuple[int, Piece]) -> None:
            index, piece = item
            ends[index] = quantizer_kernels.ends(values[piece.start : piece.stop])

        spread(measure, list(enumerate(plan.pieces)), plan.sizes)
        _, first = np.unique([piece.buckets.start for piece in plan.pieces], return_index=True)
        low, high = np.minimum.reduceat(ends[:, 0], first), np.maximum.reduceat(ends[:, 1], first)
        tensor_ends = np.stack([low, high], axis=1)
        bits = np.empty(plan.num_bytes, np.uint8)

        def work(piece: Piece) -> None:
            part, i = values[piece.start : piece.stop], piece.buckets.start
            quantizer_kernels.choose_end(part, piece.offset, low[i], high[i], key[piece.tensor], bits[piece.body])

        spread(work, plan.pieces, plan.sizes)
        return {"ends": torch.from_numpy(tensor_ends), "bits": torch.from_numpy(bits)}, state

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        from phalanx.codecs import quantizer_kernels

        plan = cut(layout, None, 1)
        tensor_ends, data = _read(payload, plan)
        row = blank(layout.d, torch.float32)
        out = row.numpy()

        def work(piece: Piece) -> bool:
            low, high = tensor_ends[piece.buckets.start]
            return bool(quantizer_kernels.take_end(data[piece.body], low, high, out[piece.start : piece.stop]))

        if not all(spread(work, plan.pieces, plan.sizes)):
            raise BadPayload("bits beyond the end of a tensor")
        return cast(row, layout.dtype)

    def adder(self, layout: Layout) -> Adder | None:
        return _EndAdder(layout)


def _read(payload: Payload, plan: Cut) -> tuple[np.ndarray, np.ndarray]:
    """The ends of each tensor and the bits; raises BadPayload where `encode` writes no such payload."""
    form = {"ends": (torch.float32, (plan.num_buckets, 2)), "bits": (torch.uint8, (plan.num_bytes,))}
    ends, bits = expect(payload, **form)
    if bool((ends[:, 0] > ends[:, 1]).any()):
        raise BadPayload("a least value above the largest")
    return ends.cpu().contiguous().numpy(), bits.cpu().contiguous().numpy()


class _EndAdder(Adder):
    """Adds up rows of two values for each tensor."""

    def __init__(self, layout: Layout) -> None:
        self._plan = cut(layout, None, 1)

    def check(self, payload: Payload) -> Checked:
        from phalanx.codecs import adding_kernels

        ends, data = _read(payload, self._plan)
        for piece in self._plan.pieces:
            total = piece.stop - piece.start
            if not adding_kernels.ends_in_zeros(data[piece.body], total, max(total, 1), 1):
                raise BadPayload("bits beyond the end of a tensor")
        return Checked(float(np.abs(ends).max(initial=0.0)), (ends, data))

    def sum(
        self, parts: Sequence[tuple[np.ndarray, np.ndarray]], shares: Sequence[float], out: Tensor, start: int = 0
    ) -> None:
        from phalanx.codecs import adding_kernels

        sums, factors = out.numpy(), np.array(shares, np.float32)
        bodies = np.array([data.ctypes.data for _, data in parts], np.uint64)
        pieces = [p for p in self._plan.pieces if p.start < start + len(sums) and start < p.stop]

        def work(piece: Piece) -> None:
            low, high = max(piece.start, start), min(piece.stop, start + len(sums))
            lows, highs = (np.array([ends[piece.buckets.start, i] for ends, _ in parts], np.float32) for i in range(2))
            adding_kernels.add_ends(
                bodies + np.uint64(piece.body.start),
                lows,
                highs,
                factors,
                piece.stop - piece.start,
                low - piece.start,
                high - piece.start,
                sums[low - start : high - start],
            )

        spread(work, pieces, [len(parts) * (piece.stop - piece.start) for piece in pieces])
