# SPDX-License-Identifier: Apache-2.0
"""One bit an entry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from phalanx.codec import BadPayload, Codec, Payload
from phalanx.expression import method
from phalanx.layout import Layout
from phalanx.precision import cast, wide
from phalanx.stage import Scope, State
from phalanx.world import expect


@method("sign", "codec")
class Sign(Codec):
    """The sign of every entry, eight a byte; decoded as +1 and -1, or as plus and minus the tensor's mean magnitude.

    Zero counts as +, and so does NaN, which has no sign: without a scale a worker's NaN goes unseen.

    Args:
        scaled: sends sum |x| / d of every tensor too, so that the row keeps its size; what error feedback needs.
    Source: Bernstein et al., signSGD, 2018, arXiv:1802.04434, Algorithm 1; scaled: Karimireddy et al., Error feedback
        fixes signSGD, 2019, arXiv:1901.09847, Algorithm 1. Differs: sign(0) is +, as a third value takes a second bit;
        one scale a tensor, not one a row.
    """

    scaled: bool = False

    @property
    def scope(self) -> Scope:
        return "tensor" if self.scaled else "coordinate"

    def encode(
        self, row: Tensor, layout: Layout, state: State, rng: Callable[[], torch.Generator]
    ) -> tuple[Payload, State]:
        payload = {"signs": _pack(~(row < 0))}
        if self.scaled:
            magnitudes = layout.split(row.to(wide(row.dtype)).abs()).values()
            means = [m.sum() / max(1, m.numel()) for m in magnitudes]
            payload["scales"] = torch.stack(means) if means else row.new_empty(0, dtype=wide(row.dtype))
        return payload, state

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        forms = {"signs": (torch.uint8, (-(-layout.d // 8),))}
        if self.scaled:
            forms["scales"] = (wide(layout.dtype), (len(layout.names),))
        signs, *scales = expect(payload, **forms)
        bits = _unpack(signs)
        if bits[layout.d :].any():
            raise BadPayload("bits beyond the end of the row")
        row = bits[: layout.d].to(wide(layout.dtype)).mul_(2).sub_(1)
        if scales:
            if bool((scales[0] < 0).any()):
                raise BadPayload("a negative scale")
            # repeat_interleave starts threads for a handful of scales
            for part, scale in zip(row.split(layout.sizes), scales[0], strict=True):
                part *= scale
        return cast(row, layout.dtype)


def _pack(bits: Tensor) -> Tensor:
    """Shapes: (d,) bool -> (ceil(d / 8),) uint8, the first bit lowest."""
    eights = pad(bits.to(torch.uint8), (0, -len(bits) % 8)).reshape(-1, 8)
    out = eights[:, 0].clone()
    for i in range(1, 8):
        out |= eights[:, i] << i
    return out


def _unpack(packed: Tensor) -> Tensor:
    """Shapes: (m,) uint8 -> (8 m,) uint8 of 0 and 1."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(1) >> places) & 1).reshape(-1)
