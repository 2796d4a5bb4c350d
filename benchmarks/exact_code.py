# SPDX-License-Identifier: Apache-2.0
"""Every case of the cyclic code within its tolerance: the faultless bits, and exactly the liars named.

    python benchmarks/exact_code.py                       # n = 5 to 61, every s, all numbers of lies and missing rows
    python benchmarks/exact_code.py --least 45 --most 45 --seconds 600
    python benchmarks/exact_code.py --least 37 --sample 8    # the most lies, the most missing rows, and 8 numbers drawn

For each n, s, number of missing rows and number of false ones: adjacent, spread and random workers, and twelve kinds of
lies, among them those of a codeword. Also s + 1 workers, who have to be noticed where anything can be.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import phalanx as px
from phalanx.coding.code import TooManyFaults
from phalanx.coding.cyclic import scales_of

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.coding.lies import KINDS, decode, encode, lie, names, places, unit_stack, units_of


def cases(n: int, s: int) -> Iterator[tuple[int, int]]:
    """Numbers of missing and of false rows within the tolerance."""
    return ((e, count) for e in range(2 * s + 1) for count in range((2 * s - e) // 2 + 1))


def drawn(n: int, s: int, sample: int | None) -> list[tuple[int, int]]:
    """All cases, or the extreme ones and some others."""
    every = list(cases(n, s))
    if sample is None or len(every) <= sample + 2:
        return every
    others = random.Random(1000 * n + s).sample(every, sample)
    return [*dict.fromkeys([(0, s), (2 * s, 0), *others])]


def check(n: int, s: int, d: int, sample: int | None = None) -> int:
    """Tries all of one code; returns the number of rounds.

    Raises:
        AssertionError: with the case.
    """
    code, units = px.coding.cyclic(s=s), units_of(n, d)
    stack = unit_stack(units, s)
    announced, rounds = scales_of(units, stack.layout), 0
    payloads = encode(code, stack, n, announced)
    truth = decode(code, payloads, n, stack, announced).rows
    for e, count in drawn(n, s, sample):
        for where in ("adjacent", "spread", "random"):
            order = places(n, e + count, where, 31 * e + count)
            gone, false = order[:e], order[e:]
            for kind in KINDS if count else KINDS[:1]:
                sent = lie(kind, payloads, false, s, rounds)
                for worker in gone:
                    sent[worker] = None
                out = decode(code, sent, n, stack, announced)
                told = n, s, kind, where, sorted(false), sorted(gone)
                assert out.rows.equal(truth), told
                assert names(out) == set(false) and names(out, "excluded") == set(gone), (*told, names(out))
                rounds += 1
    # s = 0 adds up what comes
    if 0 < s < n - s:
        for kind in KINDS:
            false = places(n, s + 1, "random", s)
            try:
                out = decode(code, lie(kind, payloads, false, s, rounds), n, stack, announced)
            except TooManyFaults:
                continue
            finally:
                rounds += 1
            # what looks like s lies of others is their lies to any decoder, and somebody is named
            assert names(out) and len(names(out)) <= s, (n, s, kind, sorted(false))
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", type=int, default=5)
    parser.add_argument("--most", type=int, default=61)
    parser.add_argument("--s", type=int, help="this s only")
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--sample", type=int, help="of all numbers of lies and missing rows, this many drawn")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no code after so long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, rounds, codes = time.monotonic(), 0, 0
    for n in range(options.least, options.most + 1):
        for s in range((n - 1) // 2 + 1) if options.s is None else [options.s]:
            if time.monotonic() - began > options.seconds:
                print(f"stopped before n={n}, s={s}: {codes} codes, {rounds} rounds, all exact")
                return
            rounds, codes = rounds + check(n, s, options.d, options.sample), codes + 1
        print(f"n={n}: {codes} codes, {rounds} rounds, all exact, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
