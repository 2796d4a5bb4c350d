# SPDX-License-Identifier: Apache-2.0
"""A codec that sends entries chosen at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from phalanx.codecs.top_k import sparse_adder
from phalanx.core.codec import BadPayload, Codec, Payload
from phalanx.core.coded_rows import Adder
from phalanx.core.columns import Shard
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.payload import expect
from phalanx.core.pieces import blank, counts, keys_of, offsets, seed_of, spread
from phalanx.core.precision import accumulation_dtype, cast, finite
from phalanx.core.round import Rng
from phalanx.core.stage import Kept, Scope
from phalanx.core.trees import State


@method("random_k", "codec")
class RandomK(Codec):
    """Sends k random entries of each tensor of d entries, times d / k; all others arrive as zero. Unbiased.

    A seed of 8 bytes determines the places of the entries, so no places are sent.

    Args:
        ratio: kept fraction of each tensor in (0, 1], rounded, at least one entry; a lower one sends less.
        scaled: False leaves out the factor d / k, which makes the codec biased; `error_feedback(...)` needs that.
    Source: Konecny et al., Federated learning: strategies for improving communication efficiency, 2016,
        arXiv:1610.05492 (random mask); Stich et al., 2018, arXiv:1809.07599 (random-k). Differs: k entries of each
        tensor, not of the row, so that it works on parts of a row.
    """

    ratio: float = 0.01
    scaled: bool = True

    runs_on: ClassVar[Scope] = "tensor"

    def validate(self) -> None:
        require(0 < self.ratio <= 1, f"random_k needs 0 < ratio <= 1, got ratio={self.ratio}")

    @property
    def keeps(self) -> Kept:
        return "nothing"

    @property
    def unbiased(self) -> bool:
        return self.scaled or self.ratio == 1

    @property
    def grain(self) -> int | None:
        return 1

    @property
    def result_code(self) -> str | None:
        return "qsgd(bits=8)"

    def split(self, payload: Payload, layout: Layout, shards: Sequence[Shard]) -> list[Payload]:
        values, seed = self._parts(payload, layout)
        places = torch.from_numpy(self._places(layout, int(seed)))
        is_sent = torch.zeros(layout.d, dtype=torch.bool)
        row = values.new_zeros(layout.d)
        is_sent[places], row[places.to(row.device)] = True, values
        return [{"values": shard.take(row)[shard.take(is_sent).to(row.device)], "seed": seed} for shard in shards]

    def decode_part(self, payload: Payload, layout: Layout, shard: Shard) -> Tensor:
        count = payload["values"].numel() if "values" in payload else 0
        values, seed = expect(payload, values=(layout.dtype, (count,)), seed=(torch.int64, (1,)))
        if int(seed) < 0:
            raise BadPayload("a negative seed")
        factors = torch.zeros(layout.d, dtype=accumulation_dtype(layout.dtype))
        factors[torch.from_numpy(self._places(layout, int(seed)))] = torch.from_numpy(self._factors(layout)).to(factors)
        own = shard.take(factors).to(values.device)
        if int((own > 0).sum()) != count:
            raise BadPayload(f"{count} entries where the seed has {int((own > 0).sum())}")
        own[own > 0] *= values.to(own)
        return cast(own, layout.dtype)

    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        seed = seed_of(rng)
        places = torch.from_numpy(self._places(layout, seed)).to(row.device)
        values = row[places]
        if not finite(row):
            # an entry that is not sent must not hide: the whole row is worth nothing
            values = torch.full_like(values, torch.nan)
        return {"values": values, "seed": torch.tensor([seed])}, state

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        values, places = self._read(payload, layout)
        row = blank(layout.d, values.dtype, values.device)
        row[torch.from_numpy(places).to(row.device)] = values
        return cast(row, layout.dtype)

    def adder(self, layout: Layout) -> Adder | None:
        return sparse_adder(self._read, layout, self.ratio)

    def _read(self, payload: Payload, layout: Layout) -> tuple[Tensor, np.ndarray]:
        """The entries that are sent and their places in the row; raises BadPayload as `_parts` does."""
        values, seed = self._parts(payload, layout)
        if self.scaled:
            values = values.to(accumulation_dtype(values.dtype)) * torch.from_numpy(self._factors(layout)).to(
                values.device, accumulation_dtype(values.dtype)
            )
        return values, self._places(layout, int(seed))

    def _parts(self, payload: Payload, layout: Layout) -> tuple[Tensor, Tensor]:
        """The values and the seed; raises BadPayload where `encode` writes no such ones."""
        form = (layout.dtype, (sum(counts(layout, self.ratio)),))
        values, seed = expect(payload, values=form, seed=(torch.int64, (1,)))
        if int(seed) < 0:
            raise BadPayload("a negative seed")
        return values, seed

    def _factors(self, layout: Layout) -> np.ndarray:
        """What each sent entry is multiplied by."""
        ks = counts(layout, self.ratio)
        scales = [size / max(k, 1) if self.scaled else 1.0 for size, k in zip(layout.sizes, ks, strict=True)]
        return np.repeat(scales, ks)

    def _places(self, layout: Layout, seed: int) -> np.ndarray:
        from phalanx.codecs import quantizer_kernels

        ks, starts, key = counts(layout, self.ratio), offsets(layout.sizes), keys_of(layout, seed)
        first_kept = offsets(ks)
        places = np.empty(sum(ks), np.int64)

        def work(tensor: int) -> None:
            kept_places = places[first_kept[tensor] : first_kept[tensor] + ks[tensor]]
            quantizer_kernels.subset(layout.sizes[tensor], key[tensor], kept_places)
            kept_places += starts[tensor]

        spread(work, range(len(ks)), layout.sizes)
        return places
