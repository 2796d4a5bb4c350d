# SPDX-License-Identifier: Apache-2.0
"""The compiled loops of quantizers; importing this file imports Numba.

A block of entries is coded in the first-level cache: a code is a sign bit above the bits of the level. Codes are stored
in planes of 8, 4, 2 and 1 bits. A byte of a plane holds entries at a constant distance, so that every inner loop runs
on whole vectors. Random numbers are hashes of (key, place). All of this is in one file, as Numba's cache does not
notice a change in another file.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from phalanx.core.pieces import BLOCK

_SPARE = 8  # entries behind a block that fit into the last bytes of its planes
_LEAST = 1e-36  # smaller scales count as zero, so that every factor fits into float32


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def sum_squares(x):
    """The sum of squares in float64, where no square of a float32 overflows or vanishes."""
    total = 0.0
    for i in range(len(x)):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def largest(x):
    """The largest |x|; NaN if an entry is NaN."""
    words = x.view(np.uint32)
    top = np.uint32(0)
    for i in range(len(words)):
        # without its sign bit a float has the order of a whole number, and NaN is the largest
        top = max(top, np.uint32(words[i] & np.uint32(0x7FFFFFFF)))
    word = np.empty(1, np.uint32)
    word[0] = top
    return np.float64(word.view(np.float32)[0])


@njit(nogil=True, cache=True, error_model="numpy")
def norms(x, width, q, out):
    """out[b] = ||bucket b||_q in float32, NaN where it is not finite."""
    for b in range(len(out)):
        part = x[b * width : (b + 1) * width]
        if q == 2.0:
            norm = np.sqrt(sum_squares(part))
        else:
            norm = largest(part)
            if q < np.inf and norm > 0.0 and norm < np.inf:
                total = 0.0
                for i in range(len(part)):
                    total += (abs(np.float64(part[i])) / norm) ** q
                norm *= total ** (1.0 / q)
        out[b] = norm if norm < 3.4e38 else np.nan


@njit(nogil=True, cache=True, error_model="numpy")
def clipped_maxima(x, width, clip, out):
    """out[b] = the least of max |x| and clip times the root mean square of bucket b."""
    for b in range(len(out)):
        part = x[b * width : (b + 1) * width]
        top = largest(part)
        limit = clip * np.sqrt(sum_squares(part) / len(part))
        out[b] = np.nan if not top < np.inf else min(top, limit)


@njit(nogil=True, cache=True, error_model="numpy")
def random_bits(key, place):
    """64 random bits for a key and a place (splitmix64)."""
    z = np.uint64(np.uint64(key) + np.uint64(place) * np.uint64(0x9E3779B97F4A7C15))
    z = np.uint64((z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    z = np.uint64((z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64(z ^ (z >> np.uint64(31)))


@njit(nogil=True, cache=True, error_model="numpy")
def draw(x, low, factor, top, key, codes):
    """codes[i] = |x[i] - low| factor, at most top, rounded up with the probability of its fraction, else down.

    The negative ones add top + 1. Probabilities are multiples of 2^-24, rounded up.
    """
    first, second = np.uint32(key), np.uint32(key >> np.uint64(32))
    limit, sign = np.float32(top), np.int32(top + 1)
    for i in range(len(x)):
        h = np.uint32(np.uint32(i) + first)
        h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
        h = np.uint32(h ^ second)
        h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
        h = np.uint32(h ^ (h >> np.uint32(16)))
        u = np.float32(np.int32(h >> np.uint32(8))) * np.float32(2.0**-24)
        v = x[i] - low
        y = abs(v) * factor
        y = y if y < limit else limit
        level = np.int32(y)
        # exact, where the sum y + u would be rounded
        level += np.int32(u < np.float32(y - np.float32(level)))
        codes[i] = np.uint16(level + (sign if v < np.float32(0.0) else np.int32(0)))


@njit(nogil=True, cache=True, error_model="numpy")
def pack(codes, count, bits, out):
    """Writes the planes of `count` codes; returns their number of bytes."""
    offset, shift = 0, np.uint16(0)
    for p in (8, 4, 2, 1):
        if bits & p == 0:
            continue
        num_bytes = (count * p + 7) // 8
        mask = np.uint16((1 << p) - 1)
        plane = out[offset : offset + num_bytes]
        for t in range(8 // p):
            part = codes[t * num_bytes : (t + 1) * num_bytes]
            place = np.uint16(p * t)
            if t == 0:
                for j in range(len(plane)):
                    plane[j] = np.uint8((part[j] >> shift) & mask)
            else:
                for j in range(len(plane)):
                    plane[j] = plane[j] | np.uint8(((part[j] >> shift) & mask) << place)
        offset += num_bytes
        shift = np.uint16(shift + p)
    return offset


@njit(nogil=True, cache=True, error_model="numpy")
def unpack(data, count, bits, codes):
    """The inverse of `pack`; returns the number of bytes read, or -1 if bits behind the last code are set."""
    offset, shift = 0, np.uint16(0)
    codes[count:] = 0
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
    for j in range(count, len(codes)):
        if codes[j] != 0:
            return -1
    return offset


@njit(nogil=True, cache=True, error_model="numpy")
def factor_of(scale, top):
    """The number of levels per unit of x; 0 if every entry is sent as zero."""
    return np.float32(top / np.float64(scale)) if scale >= _LEAST and scale < np.inf else np.float32(0.0)


@njit(nogil=True, cache=True, error_model="numpy")
def codes_of(x, offset, width, scales, bits, key, out):
    """The codes that `quantize` packs."""
    top = (1 << bits) - 1
    for b in range(len(scales)):
        factor = factor_of(scales[b], top)
        stop = min((b + 1) * width, len(x))
        for start in range(b * width, stop, BLOCK):
            end = min(start + BLOCK, stop)
            if factor > 0:
                draw(x[start:end], np.float32(0.0), factor, top, random_bits(key, offset + start), out[start:end])
            else:
                out[start:end] = 0


@njit(nogil=True, cache=True, error_model="numpy")
def quantize(x, offset, width, scales, bits, key, out):
    """Packs codes of `bits` level bits and a sign, for buckets of `width` entries or a part of one."""
    codes = np.zeros(BLOCK + _SPARE, np.uint16)
    top = (1 << bits) - 1
    written = 0
    for b in range(len(scales)):
        factor = factor_of(scales[b], top)
        stop = min((b + 1) * width, len(x))
        for start in range(b * width, stop, BLOCK):
            count = min(BLOCK, stop - start)
            codes[count:] = 0
            if factor > 0:
                draw(x[start : start + count], np.float32(0.0), factor, top, random_bits(key, offset + start), codes)
            else:
                codes[:] = 0
            written += pack(codes, count, bits + 1, out[written:])


@njit(nogil=True, cache=True, error_model="numpy")
def dequantize(data, width, scales, bits, out):
    """The inverse of `quantize`; False if `quantize` writes no such bytes."""
    codes = np.zeros(BLOCK + _SPARE, np.uint16)
    top = (1 << bits) - 1
    read = 0
    for b in range(len(scales)):
        unit = np.float32(scales[b] / np.float64(top))
        stop = min((b + 1) * width, len(out))
        for start in range(b * width, stop, BLOCK):
            count = min(BLOCK, stop - start)
            size = unpack(data[read:], count, bits + 1, codes)
            if size < 0:
                return False
            read += size
            part = out[start : start + count]
            for i in range(count):
                code = np.int32(codes[i])
                sign = code >> bits
                part[i] = np.float32(np.int32(((code & top) ^ -sign) + sign)) * unit
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def ends(x):
    """The least and the largest entry; both are NaN if an entry is not finite."""
    low, high = x[0], x[0]
    for i in range(len(x)):
        low = x[i] if x[i] < low else low
        high = x[i] if x[i] > high else high
    return (low, high) if largest(x) < np.inf else (np.float32(np.nan), np.float32(np.nan))


@njit(nogil=True, cache=True, error_model="numpy")
def choose_end(x, offset, low, high, key, out):
    """Writes one bit an entry: 1 for the upper end, with probability (x - low) / (high - low)."""
    codes = np.zeros(BLOCK + _SPARE, np.uint16)
    factor = factor_of(np.float64(high) - np.float64(low), 1)
    written = 0
    for start in range(0, len(x), BLOCK):
        count = min(BLOCK, len(x) - start)
        codes[:] = 0
        if factor > 0:
            draw(x[start : start + count], low, factor, 1, random_bits(key, offset + start), codes)
            codes[count:] = 0
        written += pack(codes, count, 1, out[written:])


@njit(nogil=True, cache=True, error_model="numpy")
def take_end(data, low, high, out):
    """The inverse of `choose_end`; False if bits behind the last entry are set."""
    codes = np.zeros(BLOCK + _SPARE, np.uint16)
    read = 0
    for start in range(0, len(out), BLOCK):
        count = min(BLOCK, len(out) - start)
        size = unpack(data[read:], count, 1, codes)
        if size < 0:
            return False
        read += size
        part = out[start : start + count]
        for i in range(count):
            part[i] = high if codes[i] else low
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def subset(n, key, out):
    """Draws len(out) of n places, ascending; each subset is equally likely (Floyd's algorithm)."""
    k = len(out)
    chosen = np.zeros(n, np.bool_)
    for j in range(n - k, n):
        # 53 random bits
        i = np.int64(np.float64(random_bits(key, j) >> np.uint64(11)) * 2.0**-53 * (j + 1))
        chosen[j if chosen[i] else i] = True
    count = 0
    for i in range(n):
        if chosen[i]:
            out[count] = i
            count += 1
