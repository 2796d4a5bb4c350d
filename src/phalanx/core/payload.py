# SPDX-License-Identifier: Apache-2.0
"""What one worker puts on the wire: named tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Payload = dict[str, Tensor]


class BadPayload(ValueError):
    """A message that its codec did not write; the worker's row becomes an erasure."""


def payload_bytes(payload: Payload) -> int:
    """Bytes of the buffers in a payload."""
    return sum(t.numel() * t.element_size() for t in payload.values())


def expect(payload: Payload, **tensors: tuple[torch.dtype, tuple[int, ...]]) -> tuple[Tensor, ...]:
    """The tensors of a payload in the order asked for.

    Raises:
        BadPayload: other keys, dtypes or shapes than these.
    """
    if set(payload) != set(tensors):
        raise BadPayload(f"keys {sorted(payload)} where {sorted(tensors)} belong")
    for name, (dtype, shape) in tensors.items():
        got = payload[name]
        if got.dtype != dtype or tuple(got.shape) != tuple(shape):
            raise BadPayload(f"{name} is {_form(got.dtype, got.shape)} where {_form(dtype, shape)} belongs")
    return tuple(payload[name] for name in tensors)


def _form(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
