# SPDX-License-Identifier: Apache-2.0
"""The compiled loops that decode payloads into a sum; importing this file imports Numba.

Each loop goes over the payloads inside a block of entries, so that the block's sums stay in the first-level cache and
are written once. A payload is given by its address: Numba compiles a loop over a list of arrays for every length of
the list. Whoever calls has checked that each payload has the bytes that are read here, and keeps it alive.

A product and a sum are rounded one after the other and rows come in their order, as in a product of a vector and a
table of rows: the sum has the same bits as that of decoded rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from phalanx.core.pieces import BLOCK

_VOTE = 4096  # entries whose votes are counted together
_SPARE = 8  # entries behind a block that fit into the last bytes of its planes


def _pointer(number_type):
    """A compiled cast of an address to a pointer."""

    def cast_address(typing_context, address):
        def build(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(number_type)(types.uint64), build

    return intrinsic(cast_address)


_bytes_at: Any = _pointer(types.uint8)
_words_at: Any = _pointer(types.uint32)
_floats_at: Any = _pointer(types.float32)


@njit(nogil=True, cache=True, error_model="numpy")
def packed_bytes(count, width, bits):
    """The bytes of the codes of `count` entries in buckets of `width`."""
    full, rest = count // width, count % width
    total = 0
    for p in (8, 4, 2, 1):
        if bits & p:
            total += full * (width // BLOCK * (BLOCK * p // 8) + (width % BLOCK * p + 7) // 8)
            total += rest // BLOCK * (BLOCK * p // 8) + (rest % BLOCK * p + 7) // 8
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def ends_in_zeros(data, total, width, bits):
    """Whether no bit is set behind the last code of each block: whether some `quantize` writes these bytes."""
    offset = 0
    for begin in range(0, total, width):
        end = min(begin + width, total)
        count = (end - begin) % BLOCK
        offset += (end - begin) // BLOCK * (BLOCK * bits // 8)
        for p in (8, 4, 2, 1):
            if count == 0 or bits & p == 0:
                continue
            num_bytes = (count * p + 7) // 8
            mask = (1 << p) - 1
            for entry in range(count, 8 // p * num_bytes):
                if (np.int64(data[offset + entry % num_bytes]) >> (p * (entry // num_bytes))) & mask:
                    return False
            offset += num_bytes
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _unpack(data, count, bits, codes):
    """The codes of a block, without a look behind the last one."""
    offset, shift = 0, np.uint16(0)
    for p in (8, 4, 2, 1):
        if bits & p == 0:
            continue
        num_bytes = (count * p + 7) // 8
        mask = np.uint16((1 << p) - 1)
        plane = data[offset : offset + num_bytes]
        for t in range(8 // p):
            part = codes[t * num_bytes : (t + 1) * num_bytes]
            place = np.uint16(p * t)
            if shift == 0:
                for j in range(len(part)):
                    part[j] = (np.uint16(plane[j]) >> place) & mask
            else:
                for j in range(len(part)):
                    part[j] = part[j] | (((np.uint16(plane[j]) >> place) & mask) << shift)
        offset += num_bytes
        shift = np.uint16(shift + p)


def _plane_unpacker(p):
    """A compiled function that adds the plane of p bits of a whole block to its codes, 64 bytes at a time.

    Numba leaves loops this short to single numbers.
    """

    def unpack_plane(typing_context, source, target, shift):
        def build(context, builder, signature, arguments):
            numbers = ir.IntType(64)
            words = ir.VectorType(numbers, 8)
            mask = ir.Constant(words, [((1 << p) - 1) * 0x0101010101010101] * 8)
            lifted = builder.insert_element(ir.Constant(words, ir.Undefined), arguments[2], ir.Constant(numbers, 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
            lifted = builder.shuffle_vector(lifted, lifted, zeros)

            def at(address, chunk):
                return builder.inttoptr(builder.add(address, ir.Constant(numbers, 64 * chunk)), words.as_pointer())

            for chunk in range(p):
                plane = builder.load(at(arguments[0], chunk), align=1)
                for t in range(8 // p):
                    bits = builder.and_(builder.lshr(plane, ir.Constant(words, [p * t] * 8)), mask)
                    codes = at(arguments[1], t * p + chunk)
                    builder.store(builder.or_(builder.load(codes, align=1), builder.shl(bits, lifted)), codes, align=1)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64), build

    return intrinsic(unpack_plane)


_plane_of_8: Any = _plane_unpacker(8)
_plane_of_4: Any = _plane_unpacker(4)
_plane_of_2: Any = _plane_unpacker(2)
_plane_of_1: Any = _plane_unpacker(1)


@njit(nogil=True, cache=True, error_model="numpy")
def _unpack_block(address, bits, codes):
    """The codes of a whole block, at most 8 bits each, a byte for each. `address` is that of the block's bytes."""
    codes[:BLOCK] = np.uint8(0)
    target, shift = np.uint64(codes.ctypes.data), np.uint64(0)
    if bits & 8:
        _plane_of_8(address, target, shift)
    if bits & 4:
        _plane_of_4(address, target, shift)
        address, shift = address + np.uint64(BLOCK // 2), shift + np.uint64(4)
    if bits & 2:
        _plane_of_2(address, target, shift)
        address, shift = address + np.uint64(BLOCK // 4), shift + np.uint64(2)
    if bits & 1:
        _plane_of_1(address, target, shift)


@njit(nogil=True, cache=True, error_model="numpy")
def _sign(codes, bits, levels):
    """The levels that the codes of a block stand for, with their signs."""
    top = np.int16((1 << bits) - 1)
    for j in range(len(codes)):
        code = np.int16(codes[j])
        # a comparison, as a shift would be computed in 64 bits
        negative = np.int16(code > top)
        levels[j] = np.int16(np.int16(np.int16(code & top) ^ np.int16(-negative)) + negative)


@njit(nogil=True, cache=True, error_model="numpy")
def _add_scaled(levels, unit, share, sums):
    """sums[j] += share times level j times the unit."""
    for j in range(len(sums)):
        value = np.float32(levels[j]) * unit
        sums[j] += value * share


@njit(nogil=True, cache=True, error_model="numpy")
def add_levels(bodies, scales, shares, total, width, bits, low, high, out):
    """out[j] = sum_i shares[i] times entry low + j of a piece in payload i, for low + j < high.

    Args:
        bodies, scales: addresses of the codes and the scales of the piece, one for each payload.
        total: entries of the piece.
        width: entries of a bucket.
    """
    codes, small = np.zeros(BLOCK + _SPARE, np.uint16), np.zeros(BLOCK, np.uint8)
    levels = np.zeros(BLOCK + _SPARE, np.int16)
    top = (1 << bits) - 1
    num_bytes, num_buckets = packed_bytes(total, width, bits + 1), (total + width - 1) // width
    bucket_bytes, block_bytes = packed_bytes(width, width, bits + 1), BLOCK * (bits + 1) // 8
    for b in range(low // width, num_buckets):
        end = min((b + 1) * width, total)
        for start in range(b * width, end, BLOCK):
            count = min(BLOCK, end - start)
            first, last = max(start, low), min(start + count, high)
            if first >= last:
                continue
            offset = b * bucket_bytes + (start - b * width) // BLOCK * block_bytes
            sums = out[first - low : last - low]
            sums[:] = np.float32(0.0)
            for i in range(len(shares)):
                data = carray(_bytes_at(bodies[i]), num_bytes)
                unit = np.float32(carray(_floats_at(scales[i]), num_buckets)[b] / np.float64(top))
                if count == BLOCK and bits < 8:
                    _unpack_block(bodies[i] + np.uint64(offset), bits + 1, small)
                    _sign(small, bits, levels)
                else:
                    _unpack(data[offset:], count, bits + 1, codes)
                    _sign(codes, bits, levels)
                _add_scaled(levels[first - start : last - start], unit, shares[i], sums)
        if end >= high:
            break


@njit(nogil=True, cache=True, error_model="numpy")
def add_ends(bodies, lows, highs, shares, total, low, high, out):
    """out[j] = sum_i shares[i] times the end that bit low + j of a piece in payload i stands for, for low + j < high.

    Args:
        bodies: addresses of the bits of the piece, one for each payload.
        lows, highs: what a bit of 0 and of 1 stands for, one for each payload.
        total: entries of the piece.
    """
    codes, small = np.zeros(BLOCK + _SPARE, np.uint16), np.zeros(BLOCK, np.uint8)
    num_bytes = packed_bytes(total, max(total, 1), 1)
    for start in range(low // BLOCK * BLOCK, high, BLOCK):
        count = min(BLOCK, total - start)
        first, last = max(start, low), min(start + count, high)
        sums, offset = out[first - low : last - low], start // 8
        sums[:] = np.float32(0.0)
        for i in range(len(shares)):
            if count == BLOCK:
                _unpack_block(bodies[i] + np.uint64(offset), 1, small)
            else:
                _unpack(carray(_bytes_at(bodies[i]), num_bytes)[offset:], count, 1, codes)
                for j in range(count):
                    small[j] = np.uint8(codes[j])
            lower, upper = lows[i] * shares[i], highs[i] * shares[i]
            own = small[first - start : last - start]
            for j in range(len(sums)):
                sums[j] += upper if own[j] != 0 else lower


@njit(nogil=True, cache=True, error_model="numpy")
def _spread_bits(data, words):
    """The bits of each byte as eight bytes of 0 or 1, the lowest bit first."""
    for j in range(len(data)):
        word = np.uint64(data[j])
        word |= word << np.uint64(8)
        word |= word << np.uint64(16)
        word |= word << np.uint64(32)
        # byte t keeps bit t, and carries it to its highest bit
        word = (word & np.uint64(0x8040201008040201)) + np.uint64(0x7F7F7F7F7F7F7F7F)
        words[j] = (word >> np.uint64(7)) & np.uint64(0x0101010101010101)


@njit(nogil=True, cache=True, error_model="numpy")
def add_signs(bodies, factors, start, out):
    """out[j] = sum_i factors[i] times the sign, 1 or -1, that bit start + j of payload i stands for.

    Args:
        bodies: addresses of the bits, one for each payload.
    """
    end, words = start + len(out), np.zeros(BLOCK // 8, np.uint64)
    signs = words.view(np.int8)
    for begin in range(start // 8 * 8, end, BLOCK):
        first, last = max(begin, start), min(begin + BLOCK, end)
        sums, num_bytes = out[first - start : last - start], (last - begin + 7) // 8
        sums[:] = np.float32(0.0)
        for i in range(len(factors)):
            data = carray(_bytes_at(bodies[i]), begin // 8 + num_bytes)
            _spread_bits(data[begin // 8 :], words)
            for j in range(len(words)):
                # a byte of 1 stays so, and a byte of 0 becomes -1
                words[j] = ~((words[j] << np.uint64(8)) - words[j]) | np.uint64(0x0101010101010101)
            own, factor = signs[first - begin : last - begin], factors[i]
            for j in range(len(sums)):
                sums[j] += np.float32(own[j]) * factor


@njit(nogil=True, cache=True, error_model="numpy")
def vote(bodies, start, out):
    """out[j] = the sign of the sum of the signs that bits start + j stand for: 1, -1, or 0 for a tie.

    The votes for 1 are counted in binary, the same digit of 64 entries in one number.

    Args:
        start: a multiple of 8.
    """
    n, end = len(bodies), start + len(out)
    num_digits = 1
    while n + 1 >> num_digits:
        num_digits += 1
    digits, carry = np.zeros((num_digits, _VOTE // 64), np.uint64), np.zeros(_VOTE // 64, np.uint64)
    more, tie = np.zeros(_VOTE // 64, np.uint64), np.zeros(_VOTE // 64, np.uint64)
    second = np.zeros(_VOTE // 64, np.uint64)
    carried, joined = carry.view(np.uint8), second.view(np.uint8)
    more_words, tie_words = np.zeros(_VOTE // 8, np.uint64), np.zeros(_VOTE // 8, np.uint64)
    more_bytes, tie_bytes = more_words.view(np.uint8), tie_words.view(np.uint8)
    for begin in range(start, end, _VOTE):
        last = min(begin + _VOTE, end)
        num_bytes = (last - begin + 7) // 8
        digits[:] = np.uint64(0)
        ones = digits[0]
        for i in range(0, n, 2):
            data = carray(_bytes_at(bodies[i]), begin // 8 + num_bytes)[begin // 8 :]
            for j in range(num_bytes):
                carried[j] = data[j]
            if i + 1 < n:
                data = carray(_bytes_at(bodies[i + 1]), begin // 8 + num_bytes)[begin // 8 :]
                for j in range(num_bytes):
                    joined[j] = data[j]
            else:
                second[:] = np.uint64(0)
            # two votes at a time: of three digits of one place at most one is carried
            for j in range(len(carry)):
                either, both = carry[j] ^ second[j], carry[j] & second[j]
                carry[j] = both | (ones[j] & either)
                ones[j] ^= either
            digit = 1
            while i + 2 >> digit:
                own = digits[digit]
                for j in range(len(carry)):
                    both = own[j] & carry[j]
                    own[j] ^= carry[j]
                    carry[j] = both
                digit += 1
        more[:] = np.uint64(0)
        tie[:] = ~np.uint64(0)
        for digit in range(num_digits - 1, -1, -1):
            own = digits[digit]
            if (n // 2) >> digit & 1:
                for j in range(len(tie)):
                    tie[j] &= own[j]
            else:
                for j in range(len(tie)):
                    more[j] |= tie[j] & own[j]
                    tie[j] &= ~own[j]
        if n % 2:
            tie[:] = np.uint64(0)
        _spread_bits(more.view(np.uint8)[:num_bytes], more_words)
        _spread_bits(tie.view(np.uint8)[:num_bytes], tie_words)
        result = out[begin - start : last - start]
        for j in range(len(result)):
            result[j] = np.float32(np.int8(np.int8(more_bytes[j]) * np.int8(2) + np.int8(tie_bytes[j]) - np.int8(1)))


@njit(nogil=True, cache=True, error_model="numpy")
def add_entries(places, values, counts, shares, next_entries, start, stop, out):
    """out[p - start] = the sum of shares[i] times the value at place p of row i, for start <= p < stop.

    Args:
        places, values: addresses of ascending places (uint32) and values, one for each row of `counts[i]` entries.
        next_entries: the first entries that may lie behind `start`; takes those behind `stop`.
    """
    out[:] = np.float32(0.0)
    for i in range(len(shares)):
        own_places, own_values = carray(_words_at(places[i]), counts[i]), carray(_floats_at(values[i]), counts[i])
        entry, share = next_entries[i], shares[i]
        while entry < counts[i]:
            place = np.int64(own_places[entry])
            if place >= stop:
                break
            if place >= start:
                out[place - start] += own_values[entry] * share
            entry += 1
        next_entries[i] = entry
