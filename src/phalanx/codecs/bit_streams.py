# SPDX-License-Identifier: Apache-2.0
"""The compiled bit streams: Elias codes of zero runs and levels, Rice codes of gaps; importing this imports Numba.

Bits are written from the highest bit of each byte down; the last byte ends in zeros. Every reader checks the range of
each number, reads no byte twice and stops at the end of the data, so that no stream can keep it busy.
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
    """The number of zero bits above the highest set bit of 64; 64 for zero."""

    def build(context, builder, signature, arguments):
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), build


_leading_zeros: Any = intrinsic(_count_leading_zeros)


@njit(nogil=True, cache=True, error_model="numpy")
def _put(out, place, word, num_held, value, length):
    """Appends 1 to 32 bits; returns the next place, the bits that are not written yet, and their number, below 8.

    It always writes five bytes, full or not, as the processor would predict a branch too rarely.
    """
    word |= value << np.uint64(64 - num_held - length)
    num_held += length
    for byte in range(5):
        out[place + byte] = np.uint8(word >> np.uint64(56 - 8 * byte))
    full = num_held >> 3
    return place + full, word << np.uint64(8 * full), num_held & 7


@njit(nogil=True, cache=True, error_model="numpy")
def _bits(number):
    """The number of bits of a number >= 1. Its gamma code is one zero fewer than that, then the number."""
    return 64 - np.int64(_leading_zeros(number))


@njit(nogil=True, cache=True, error_model="numpy")
def elias(codes, bits, out):
    """Writes codes of `bits` level bits below a sign as runs of zeros and levels; returns the number of bytes.

    For every nonzero entry it writes gamma(zeros before it + 1), the sign, and gamma(level) if there are several
    levels; zeros at the end are one more run. At most 2 bits + 1 bits an entry; `out` needs 5 bytes beyond the last.
    """
    top = (1 << bits) - 1
    places = np.empty(_BLOCK, np.int64)
    place, word, num_held = 0, np.uint64(0), 0
    next_entry = 0
    for start in range(0, len(codes), _BLOCK):
        block = codes[start : start + _BLOCK]
        # the places of nonzero entries, without a branch that cannot be predicted
        count = 0
        for i in range(len(block)):
            places[count] = i
            count += np.int64((block[i] & top) != 0)
        for j in range(count):
            code = block[places[j]]
            run = np.uint64(start + places[j] + 1 - next_entry)
            next_entry = start + places[j] + 1
            level = np.uint64(code & top)
            more = 2 * _bits(level) - 1 if top > 1 else 0
            # at most 16 bits: the sign and the level
            tail = np.uint64(np.uint64(code >> bits) << np.uint64(more)) | (level if top > 1 else np.uint64(0))
            size = _bits(run)
            if 2 * size + more <= 32:
                place, word, num_held = _put(
                    out, place, word, num_held, (run << np.uint64(more + 1)) | tail, 2 * size + more
                )
            else:
                if size > 1:
                    place, word, num_held = _put(out, place, word, num_held, np.uint64(0), size - 1)
                place, word, num_held = _put(out, place, word, num_held, run, size)
                place, word, num_held = _put(out, place, word, num_held, tail, more + 1)
    run = np.uint64(len(codes) + 1 - next_entry)
    if run > _ONE:
        place, word, num_held = _put(out, place, word, num_held, np.uint64(0), _bits(run) - 1)
        place, word, num_held = _put(out, place, word, num_held, run, _bits(run))
    return place + (num_held > 0)


@njit(nogil=True, cache=True, error_model="numpy")
def _fill(data, offset, word, num_held):
    """Takes bits from the data, zeros behind its end, until the word holds at least 56.

    The word may contain more bits than are counted; the next call adds the same ones again.
    """
    if offset + 8 <= len(data):
        window, first = np.uint64(0), np.uint64(offset)
        for byte in range(8):
            # an index without a sign, which numba need not check, so that the eight loads become one
            window |= np.uint64(data[first + np.uint64(byte)]) << np.uint64(56 - 8 * byte)
        return offset + ((63 - num_held) >> 3), word | (window >> np.uint64(num_held)), num_held | 56
    while num_held <= 56:
        if offset < len(data):
            word |= np.uint64(data[offset]) << np.uint64(56 - num_held)
        offset += 1
        num_held += 8
    return offset, word, num_held


@njit(nogil=True, cache=True, error_model="numpy")
def unelias(data, width, scales, bits, out):
    """Decodes entries that `elias` wrote, in buckets of `width`; False if `elias` writes no such stream."""
    top = np.uint64((1 << bits) - 1)
    for b in range(len(scales)):
        # zero, or NaN where the scale is NaN
        out[b * width : (b + 1) * width] = np.float32(0.0) * scales[b]
    offset, word, num_held = 0, np.uint64(0), 0
    i = 0
    while i < len(out):
        # a run takes at most 2 x 19 - 1 bits, the sign and a level 16
        if num_held < 37:
            offset, word, num_held = _fill(data, offset, word, num_held)
        zeros = np.int64(_leading_zeros(word))
        if zeros > 18:
            return False
        run = np.int64(word >> np.uint64(63 - 2 * zeros)) - 1
        word = word << np.uint64(2 * zeros + 1)
        num_held -= 2 * zeros + 1
        if run > len(out) - i:
            return False
        i += run
        if i == len(out):
            if run == 0:
                return False
            break
        if num_held < 17:
            offset, word, num_held = _fill(data, offset, word, num_held)
        negative = (word >> np.uint64(63)) != 0
        word = word << _ONE
        num_held -= 1
        level = _ONE
        if top > _ONE:
            zeros = np.int64(_leading_zeros(word))
            if zeros > 7:
                return False
            level = word >> np.uint64(63 - 2 * zeros)
            word = word << np.uint64(2 * zeros + 1)
            num_held -= 2 * zeros + 1
            if level > top:
                return False
        value = np.float32(np.int64(level)) * np.float32(scales[i // width] / np.float64(top))
        out[i] = -value if negative else value
        i += 1
    spare = 8 * (len(data) - offset) + num_held
    return 0 <= spare < 8 and word == 0


@njit(nogil=True, cache=True, error_model="numpy")
def rice(positions, parameter, out):
    """Writes strictly increasing positions as gaps; returns the number of bytes. `out` needs 5 bytes beyond the last.

    A gap is the number of positions left out: (gap >> parameter) ones and a zero, then the `parameter` low bits.
    """
    place, word, num_held, next_position = 0, np.uint64(0), 0, np.int64(0)
    low = np.uint64((1 << parameter) - 1)
    for i in range(len(positions)):
        gap = np.uint64(positions[i] - next_position)
        next_position = positions[i] + 1
        ones = np.int64(gap >> np.uint64(parameter))
        while ones >= 16:
            place, word, num_held = _put(out, place, word, num_held, np.uint64(0xFFFF), 16)
            ones -= 16
        place, word, num_held = _put(out, place, word, num_held, np.uint64((1 << (ones + 1)) - 2), ones + 1)
        if parameter > 0:
            place, word, num_held = _put(out, place, word, num_held, gap & low, parameter)
    return place + (num_held > 0)


@njit(nogil=True, cache=True, error_model="numpy")
def unrice(data, parameter, limit, positions):
    """The inverse of `rice` for positions below a limit; False if `rice` writes no such stream."""
    offset, word, num_held, position = 0, np.uint64(0), 0, np.int64(0)
    for i in range(len(positions)):
        ones = np.int64(0)
        while True:
            offset, word, num_held = _fill(data, offset, word, num_held)
            num_ones = np.int64(_leading_zeros(~word))
            if num_ones < 32:
                break
            word = word << np.uint64(32)
            num_held -= 32
            ones += 32
            if (ones << parameter) >= limit or offset > len(data) + 8:
                return False
        ones += num_ones
        word = word << np.uint64(num_ones + 1)
        num_held -= num_ones + 1
        if num_held < parameter:
            offset, word, num_held = _fill(data, offset, word, num_held)
        gap = ones << parameter
        if parameter > 0:
            gap += np.int64(word >> np.uint64(64 - parameter))
            word = word << np.uint64(parameter)
            num_held -= parameter
        position += gap
        if gap >= limit or position >= limit:
            return False
        positions[i] = position
        position += 1
    spare = 8 * (len(data) - offset) + num_held
    return 0 <= spare < 8 and word == 0
