# SPDX-License-Identifier: Apache-2.0
"""Codes an ascending list of indices in about 2 + log2(n / m) bits each.

The low bits of all indices are written one after the other, the high bits as gaps in unary. The length depends on n and
m only, so a receiver knows it beforehand.
Source: Elias, Efficient storage and retrieval by content and address of static files, 1974; Fano, 1971.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from phalanx.core.payload import BadPayload


def length(n: int, m: int) -> int:
    """The number of bytes of m different indices below n."""
    low = _low_bits(n, m)
    return 0 if m == 0 else _bytes(m * low) + _bytes(m + ((n - 1) >> low))


def write(indices: Tensor, n: int) -> Tensor:
    """Codes indices (m,), strictly ascending, in [0, n), as uint8."""
    m = len(indices)
    if m == 0:
        return torch.empty(0, dtype=torch.uint8, device=indices.device)
    low = _low_bits(n, m)
    places = torch.arange(low, device=indices.device)
    lows = (indices.unsqueeze(1) >> places) & 1
    unary = torch.zeros(m + ((n - 1) >> low), dtype=torch.uint8, device=indices.device)
    unary[(indices >> low) + torch.arange(m, device=indices.device)] = 1
    return torch.cat([pack_bits(lows.reshape(-1)), pack_bits(unary)])


def read(message: Tensor, n: int, m: int) -> Tensor:
    """Decodes the indices (m,) in a message of the right length.

    Raises:
        BadPayload: `write` does not write such a message.
    """
    if m == 0:
        return torch.empty(0, dtype=torch.int64, device=message.device)
    low = _low_bits(n, m)
    cut = _bytes(m * low)
    lows = unpack_bits(message[:cut], m * low).reshape(m, low).to(torch.int64)
    ones = unpack_bits(message[cut:], m + ((n - 1) >> low)).nonzero().flatten()
    if len(ones) != m:
        raise BadPayload(f"{len(ones)} indices where {m} belong")
    places = torch.arange(low, device=message.device)
    highs = (ones - torch.arange(m, device=message.device)) << low
    indices = highs + (lows << places).sum(dim=1)
    if bool((indices[1:] <= indices[:-1]).any()) or int(indices[-1]) >= n:
        raise BadPayload(f"indices that do not ascend, or one beyond {n - 1}")
    return indices


def pack_bits(bits: Tensor) -> Tensor:
    """Packs bits into bytes, the first bit lowest. Shapes: (d,) of 0 and 1 -> (ceil(d / 8),) uint8."""
    if bits.device.type == "cpu":
        return torch.from_numpy(np.packbits(bits.numpy(), bitorder="little"))
    eights = pad(bits.to(torch.uint8), (0, -len(bits) % 8)).reshape(-1, 8)
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (eights << places).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, d: int) -> Tensor:
    """Unpacks d bits from bytes. Shapes: (ceil(d / 8),) uint8 -> (d,) uint8 of 0 and 1.

    Raises:
        BadPayload: a bit is set beyond the end.
    """
    if packed.device.type == "cpu":
        bits = torch.from_numpy(np.unpackbits(packed.numpy(), bitorder="little"))
    else:
        places = torch.arange(8, dtype=torch.uint8, device=packed.device)
        bits = ((packed.unsqueeze(1) >> places) & 1).reshape(-1)
    if bool(bits[d:].any()):
        raise BadPayload("bits beyond the end")
    return bits[:d]


def _low_bits(n: int, m: int) -> int:
    return max(0, (n // max(m, 1)).bit_length() - 1)


def _bytes(bits: int) -> int:
    return -(-bits // 8)
