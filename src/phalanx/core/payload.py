# SPDX-License-Identifier: Apache-2.0
"""The payload: the named tensors that one worker sends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Payload = dict[str, Tensor]


class BadPayload(ValueError):
    """A message that its codec did not write; the worker's row becomes an erasure."""


def payload_bytes(payload: Payload) -> int:
    """The number of bytes of a payload's tensors."""
    return sum(t.numel() * t.element_size() for t in payload.values())


def expect(payload: Payload, **tensors: tuple[torch.dtype, tuple[int, ...]]) -> tuple[Tensor, ...]:
    """The tensors of a payload in the order of the arguments.

    Raises:
        BadPayload: other keys, dtypes or shapes than these.
    """
    if set(payload) != set(tensors):
        raise BadPayload(f"keys {sorted(payload)} where {sorted(tensors)} belong")
    for name, (dtype, shape) in tensors.items():
        tensor = payload[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
            raise BadPayload(f"{name} is {_form(tensor.dtype, tensor.shape)} where {_form(dtype, shape)} belongs")
    return tuple(payload[name] for name in tensors)


def _form(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
