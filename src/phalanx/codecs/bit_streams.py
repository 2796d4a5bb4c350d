# SPDX-License-Identifier: Apache-2.0
"""The compiled bit streams: Elias codes of zero runs and levels, Rice codes of gaps; importing this imports Numba.

Bits are written from the highest of each byte down; the last byte ends in zeros. Every reader checks each number
against what may follow, reads no byte twice, and stops at the end of the data, so that no stream makes it run on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_ONE = np.uint64(1)
_BLOCK = 512


def _count_leading_zeros(typing_context, x):
    """Zero bits above the highest set bit of 64; 64 for zero."""

    def build(context, builder, signature, arguments):
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), build


_leading_zeros: Any = intrinsic(_count_leading_zeros)


@njit(nogil=True, cache=True, error_model="numpy")
def _put(out, at, word, held, value, length):
    """Appends 1 to 32 bits; returns the next place, the bits not yet written and how many they are, below 8.

    It writes five bytes whether or not they are full: a branch on that would be foreseen too rarely.
    """
    word |= value << np.uint64(64 - held - length)
    held += length
    for byte in range(5):
        out[at + byte] = np.uint8(word >> np.uint64(56 - 8 * byte))
    full = held >> 3
    return at + full, word << np.uint64(8 * full), held & 7


@njit(nogil=True, cache=True, error_model="numpy")
def _bits(number):
    """Bits of a number >= 1. Elias' gamma code of it: as many zeros as it has bits after the first, then it."""
    return 64 - np.int64(_leading_zeros(number))


@njit(nogil=True, cache=True, error_model="numpy")
def elias(codes, bits, out):
    """Codes of `bits` level bits below a sign, as runs of zeros and levels; returns the bytes written.

    For every nonzero entry gamma(zeros before it + 1), its sign, and with more than one level gamma(level); zeros at
    the end as one more run. At most 2 bits + 1 bits an entry; `out` needs 5 bytes beyond the last.
    """
    top = (1 << bits) - 1
    places = np.empty(_BLOCK, np.int64)
    place, word, held = 0, np.uint64(0), 0
    after = 0
    for start in range(0, len(codes), _BLOCK):
        block = codes[start : start + _BLOCK]
        # where the nonzero ones stand, without a branch that nobody can foresee
        count = 0
        for i in range(len(block)):
            places[count] = i
            count += np.int64((block[i] & top) != 0)
        for j in range(count):
            code = block[places[j]]
            run = np.uint64(start + places[j] + 1 - after)
            after = start + places[j] + 1
            level = np.uint64(code & top)
            more = 2 * _bits(level) - 1 if top > 1 else 0
            # at most 16 bits: the sign and the level
            tail = np.uint64(np.uint64(code >> bits) << np.uint64(more)) | (level if top > 1 else np.uint64(0))
            size = _bits(run)
            if 2 * size + more <= 32:
                place, word, held = _put(out, place, word, held, (run << np.uint64(more + 1)) | tail, 2 * size + more)
            else:
                if size > 1:
                    place, word, held = _put(out, place, word, held, np.uint64(0), size - 1)
                place, word, held = _put(out, place, word, held, run, size)
                place, word, held = _put(out, place, word, held, tail, more + 1)
    run = np.uint64(len(codes) + 1 - after)
    if run > _ONE:
        place, word, held = _put(out, place, word, held, np.uint64(0), _bits(run) - 1)
        place, word, held = _put(out, place, word, held, run, _bits(run))
    return place + (held > 0)


@njit(nogil=True, cache=True, error_model="numpy")
def _fill(data, at, word, held):
    """More bits from the data, zeros behind its end, until at least 56 are held.

    The word may show more bits of the data than are counted as held; the next call adds the same ones again.
    """
    if at + 8 <= len(data):
        window = np.uint64(0)
        for byte in range(8):
            window |= np.uint64(data[at + byte]) << np.uint64(56 - 8 * byte)
        return at + ((63 - held) >> 3), word | (window >> np.uint64(held)), held | 56
    while held <= 56:
        if at < len(data):
            word |= np.uint64(data[at]) << np.uint64(56 - held)
        at += 1
        held += 8
    return at, word, held


@njit(nogil=True, cache=True, error_model="numpy")
def unelias(data, width, scales, bits, out):
    """Entries whose codes `elias` wrote, in buckets of `width`; False where it wrote no such stream."""
    top = np.uint64((1 << bits) - 1)
    for b in range(len(scales)):
        # zero, or NaN where the scale is no number
        out[b * width : (b + 1) * width] = np.float32(0.0) * scales[b]
    at, word, held = 0, np.uint64(0), 0
    i = 0
    while i < len(out):
        # a run takes at most 2 x 19 - 1 bits, the sign and a level 16
        if held < 37:
            at, word, held = _fill(data, at, word, held)
        zeros = np.int64(_leading_zeros(word))
        if zeros > 18:
            return False
        run = np.int64(word >> np.uint64(63 - 2 * zeros)) - 1
        word = word << np.uint64(2 * zeros + 1)
        held -= 2 * zeros + 1
        if run > len(out) - i:
            return False
        i += run
        if i == len(out):
            if run == 0:
                return False
            break
        if held < 17:
            at, word, held = _fill(data, at, word, held)
        negative = (word >> np.uint64(63)) != 0
        word = word << _ONE
        held -= 1
        level = _ONE
        if top > _ONE:
            zeros = np.int64(_leading_zeros(word))
            if zeros > 7:
                return False
            level = word >> np.uint64(63 - 2 * zeros)
            word = word << np.uint64(2 * zeros + 1)
            held -= 2 * zeros + 1
            if level > top:
                return False
        value = np.float32(np.int64(level)) * np.float32(scales[i // width] / np.float64(top))
        out[i] = -value if negative else value
        i += 1
    spare = 8 * (len(data) - at) + held
    return 0 <= spare < 8 and word == 0


@njit(nogil=True, cache=True, error_model="numpy")
def rice(positions, parameter, out):
    """Strictly increasing positions as gaps; returns the bytes written. `out` needs 5 bytes beyond the last.

    A gap is the number of positions left out: gap >> parameter as so many ones and a zero, then `parameter` low bits.
    """
    place, word, held, after = 0, np.uint64(0), 0, np.int64(0)
    low = np.uint64((1 << parameter) - 1)
    for i in range(len(positions)):
        gap = np.uint64(positions[i] - after)
        after = positions[i] + 1
        ones = np.int64(gap >> np.uint64(parameter))
        while ones >= 16:
            place, word, held = _put(out, place, word, held, np.uint64(0xFFFF), 16)
            ones -= 16
        place, word, held = _put(out, place, word, held, np.uint64((1 << (ones + 1)) - 2), ones + 1)
        if parameter > 0:
            place, word, held = _put(out, place, word, held, gap & low, parameter)
    return place + (held > 0)


@njit(nogil=True, cache=True, error_model="numpy")
def unrice(data, parameter, limit, positions):
    """The inverse of `rice` for positions below a limit; False where it wrote no such stream."""
    at, word, held, after = 0, np.uint64(0), 0, np.int64(0)
    for i in range(len(positions)):
        ones = np.int64(0)
        while True:
            at, word, held = _fill(data, at, word, held)
            more = np.int64(_leading_zeros(~word))
            if more < 32:
                break
            word = word << np.uint64(32)
            held -= 32
            ones += 32
            if (ones << parameter) >= limit or at > len(data) + 8:
                return False
        ones += more
        word = word << np.uint64(more + 1)
        held -= more + 1
        at, word, held = _fill(data, at, word, held)
        gap = ones << parameter
        if parameter > 0:
            gap += np.int64(word >> np.uint64(64 - parameter))
            word = word << np.uint64(parameter)
            held -= parameter
        after += gap
        if gap >= limit or after >= limit:
            return False
        positions[i] = after
        after += 1
    spare = 8 * (len(data) - at) + held
    return 0 <= spare < 8 and word == 0
