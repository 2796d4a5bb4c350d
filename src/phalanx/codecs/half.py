# SPDX-License-Identifier: Apache-2.0
"""A codec that sends each entry in two bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from phalanx.core.codec import Codec, Payload
from phalanx.core.coded_rows import Adder, Checked
from phalanx.core.columns import Shard
from phalanx.core.expression import method
from phalanx.core.layout import Layout
from phalanx.core.payload import expect
from phalanx.core.pieces import spread
from phalanx.core.precision import cast
from phalanx.core.round import Rng
from phalanx.core.trees import State

_PIECE = 1 << 15  # entries whose sums stay in cache
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@method("half", "codec")
class Half(Codec):
    """Sends the row in 16-bit floating point, two bytes an entry.

    Args:
        precision: "fp16" has 11 significant bits between 6e-8 and 65504, "bf16" has 8 in the range of float32.
    Source: Micikevicius et al., Mixed precision training, 2018, arXiv:1710.03740.
        Differs: a finite entry beyond the range becomes the largest number, where a plain cast gives Inf; NaN and Inf
        stay.
    """

    precision: Literal["fp16", "bf16"] = "fp16"

    @property
    def linear(self) -> bool:
        return True

    @property
    def grain(self) -> int | None:
        return 1

    @property
    def result_code(self) -> str | None:
        return repr(self)

    def split(self, payload: Payload, layout: Layout, shards: Sequence[Shard]) -> list[Payload]:
        (values,) = expect(payload, values=(_DTYPES[self.precision], (layout.d,)))
        return [{"values": shard.take(values)} for shard in shards]

    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        return {"values": cast(row, _DTYPES[self.precision])}, state

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        (values,) = expect(payload, values=(_DTYPES[self.precision], (layout.d,)))
        return cast(values, layout.dtype)

    def adder(self, layout: Layout) -> Adder | None:
        return _HalfAdder(self, layout)


class _HalfAdder(Adder):
    """Adds up rows of 16-bit numbers."""

    def __init__(self, codec: Half, layout: Layout) -> None:
        self._form = {"values": (_DTYPES[codec.precision], (layout.d,))}

    def check(self, payload: Payload) -> Checked:
        (values,) = expect(payload, **self._form)
        numbers = values.cpu().contiguous()
        # without its sign bit a number has the order of a whole number, and NaN is the largest
        words, top = numbers.view(torch.int16).numpy(), np.zeros(1, np.int16)
        for start in range(0, len(words), _PIECE):
            top = np.maximum(top, (words[start : start + _PIECE] & 0x7FFF).max())
        return Checked(float(torch.from_numpy(top).view(values.dtype)), numbers)

    def sum(self, parts: Sequence[Tensor], shares: Sequence[float], out: Tensor, start: int = 0) -> None:
        def work(low: int) -> None:
            sums = out[low : low + _PIECE].zero_()
            for values, share in zip(parts, shares, strict=True):
                sums += values[start + low : start + low + len(sums)].float() * share

        starts = range(0, len(out), _PIECE)
        spread(work, starts, [len(parts) * _PIECE] * len(starts))
