# SPDX-License-Identifier: Apache-2.0
"""An attack that sends messages which no codec writes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from phalanx.core.codec import WEIGHT, Payload, PayloadAttack
from phalanx.core.expression import method


@method("malformed", "forgery")
class Malformed(PayloadAttack):
    """A Byzantine worker sends a broken message in place of its coded row; put it in `gather(codec, forge=...)`.

    Args:
        how: "short", "long" (an entry too few or too many in every tensor), "dtype", "keys" (other dtypes or names),
            "missing" (nothing at all), "random" (random bytes of the right form, which a codec may well read),
            "weight" (claims 1e12 examples), "negative_weight" (claims -1).
    Source: folklore; a crash, a version mismatch or a fuzzer sends such messages.
    """

    how: Literal["short", "long", "dtype", "keys", "missing", "random", "weight", "negative_weight"] = "short"

    def forge(self, payload: Payload, rng: torch.Generator) -> Payload | None:
        if self.how == "missing":
            return None
        if self.how in ("weight", "negative_weight"):
            claimed = 1e12 if self.how == "weight" else -1.0
            return {**payload, WEIGHT: torch.full((1,), claimed, dtype=torch.float64)}
        if self.how == "keys":
            return {f"not_{key}": tensor for key, tensor in payload.items()}
        body = {key: self._tensor(tensor, rng) for key, tensor in payload.items() if key != WEIGHT}
        return {**payload, **body}

    def _tensor(self, tensor: Tensor, rng: torch.Generator) -> Tensor:
        match self.how:
            case "short":
                flat = tensor.reshape(-1)
                # nothing is shorter than empty
                return flat[:-1] if len(flat) else flat.unsqueeze(0)
            case "long":
                flat = tensor.reshape(-1)
                return torch.cat([flat, flat.new_zeros(1)])
            case "dtype":
                return tensor.to(torch.float32 if tensor.dtype == torch.float64 else torch.float64)
            case _:
                size = tensor.numel() * tensor.element_size()
                if not size:
                    return tensor
                noise = torch.randint(256, (size,), dtype=torch.uint8, generator=rng)
                return noise.view(tensor.dtype).reshape(tensor.shape).to(tensor.device)
