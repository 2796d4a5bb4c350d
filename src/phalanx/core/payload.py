# SPDX-License-Identifier: Apache-2.0
"""The payload: the named tensors that one worker sends."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

import torch
from torch import Tensor

Payload = dict[str, Tensor]
MOST_CHARACTERS = 300  # of a reason


class BadPayload(ValueError):
    """A message that its codec did not write; the worker's row becomes an erasure.

    The reason has at most 300 characters: a part of it may be the sender's own words.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason if len(reason) <= MOST_CHARACTERS else f"{reason[: MOST_CHARACTERS - 3]}...")


def payload_bytes(payload: Payload) -> int:
    """The number of bytes of a payload's tensors."""
    return sum(t.numel() * t.element_size() for t in payload.values())


def expect(payload: Payload, **tensors: tuple[torch.dtype, tuple[int, ...]]) -> tuple[Tensor, ...]:
    """The tensors of a payload in the order of the arguments.

    Raises:
        BadPayload: other keys, dtypes or shapes than these.
    """
    if set(payload) != set(tensors):
        raise BadPayload(f"keys {reprlib.repr(sorted(payload))} where {sorted(tensors)} belong")
    for name, (dtype, shape) in tensors.items():
        tensor = payload[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
            raise BadPayload(f"{name} is {_form(tensor.dtype, tensor.shape)} where {_form(dtype, shape)} belongs")
    return tuple(payload[name] for name in tensors)


def _form(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
