# SPDX-License-Identifier: Apache-2.0
"""When a worker is accused: exact evidence at once, a row that is much too long when that happens too often.

Two words, two things. A row is *far from the result* in a round when its distance is beyond those of most workers; that
describes the round and accuses nobody. A worker is *accused* when honest workers would not have done what it did:

- exact evidence: it lost a vote, its row breaks the code, or its row is not finite or absurdly large while most are
  not;
- its row was too long in so many rounds that this has a chance below `RUN_RATE` in a run of honest workers.

Both tests of a round compare a number of each worker with the lower majority, the h = n // 2 + 1 smallest: their
largest x_h and their standard deviation s. A number is beyond them above x_h + LIMITS[n] s, so at most a minority is.
The number is the distance to the result for *far* and the logarithm of the row's length for *too long*. A row up to
`MIN_RATIO` times as long as x_h is never too long, whatever its direction: clients whose data differ send other
directions, and nothing in a row tells an odd client from a liar who keeps to the usual length.

`LIMITS` is calibrated (`benchmarks/accusations.py`): where the numbers of the workers are normal or Laplace, of any
mean and spread, the chance that any honest worker is beyond is at most 0.004 a round, so `ROUND_RATE` a worker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

from phalanx.core.precision import accumulation_dtype
from phalanx.core.stack import Stack
from phalanx.core.stage import Stage

MIN_WORKERS = 4  # of three workers the majority is two, whose spread is no spread
MIN_RATIO = 3.0  # lengths up to this many times those of most workers are never too long
FAR_RATIO = 1.2  # likewise for distances: of rows that are nearly equal none is far
ROUND_RATE = 1e-3  # chance that an honest worker is beyond the limit in a round
RUN_RATE = 5e-3  # chance that rounds of an honest worker add up to an accusation, over all workers and rounds
LIMITS = {4: 31, 5: 49, 6: 24, 7: 29, 8: 20, 9: 23, 10: 18, 11: 20, 12: 17, 13: 18, 15: 17, 20: 15, 30: 13, 50: 12}
_PIECE = 1 << 14  # columns whose differences stay in cache; those of whole rows would be new memory each time

Sizes = dict[int, tuple[float, float]]  # by worker: squared length of the row, squared distance to the result


@dataclass(frozen=True)
class Evidence:
    """What speaks against a worker in one round, or why its row was left out of it.

    Args:
        rule: "outvoted" by a vote or a code, "false_row", "length", or "excluded" for a row that took no part.
        reason: a sentence.
        value: for "length", the length of its row in those of most workers; else None.
        limit: largest value that counts as honest.
    """

    round_index: int
    worker: int
    rule: str
    reason: str
    value: float | None = None
    limit: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The evidence as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Judgement:
    """What the tests of one round say.

    Args:
        tested: workers whose rows were compared.
        far: workers whose row is far from the result.
        too_long: by worker, the length of its row in those of most workers, and the limit.
        untold: why nothing was tested; empty if it was.
    """

    tested: tuple[int, ...] = ()
    far: tuple[int, ...] = ()
    too_long: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    untold: str = ""


def row_sizes(scheme: Stage, n: int, aggregate: Stack | None) -> Sizes | None:
    """The squared length and distance to the result of each row that arrived; None where rows are not comparable.

    Workers that share work send equal or coded rows, about which the vote or the code says more; other rows than those
    of `gather(...)` are never seen alone.
    """
    if aggregate is not None and aggregate.squares is not None and scheme.assign(n) is None:
        return dict(aggregate.squares)
    arrived = None if aggregate is None else aggregate.arrived
    if aggregate is None or arrived is None or arrived.layout != aggregate.layout or scheme.assign(n) is not None:
        return None
    squares = _squares(arrived.rows, aggregate.rows[0], arrived.layout.stepped)
    return {worker: (a, b) for worker, (a, b) in zip(arrived.ids, squares.tolist(), strict=True)}


def add_sizes(first: Sizes | None, second: Sizes | None) -> Sizes | None:
    """The sizes of rows that came in two pieces, of the workers that sent both; None where one is not comparable."""
    if first is None or second is None:
        return None
    return {w: (a + second[w][0], b + second[w][1]) for w, (a, b) in first.items() if w in second}


def judge(sizes: Sizes) -> Judgement:
    """The two tests of a round. A size that is no number counts as infinite."""
    sizes = {w: (_number(length), _number(distance)) for w, (length, distance) in sizes.items()}
    n = len(sizes)
    if n < MIN_WORKERS:
        return Judgement(untold=f"too few workers to tell: {n} rows, and the test needs {MIN_WORKERS}")
    distances = {w: math.sqrt(distance) for w, (_, distance) in sizes.items()}
    limit = max(_limit([*distances.values()]), FAR_RATIO * sorted(distances.values())[n // 2])
    far = tuple(w for w, distance in distances.items() if distance > limit)
    usual, too_long = sorted(length for length, _ in sizes.values())[n // 2], {}
    # most rows may be zero
    if 0 < usual < math.inf:
        logs = {w: 0.5 * math.log(max(length / usual, 1e-300)) for w, (length, _) in sizes.items()}
        limit = max(_limit([*logs.values()]), math.log(MIN_RATIO))
        too_long = {w: (_exp(x), _exp(limit)) for w, x in logs.items() if x > limit}
    return Judgement(tuple(sizes), far, too_long)


def is_certain(num_too_long: int, num_tested: int, workers: int) -> bool:
    """Whether so many rounds too long are beyond chance.

    If rounds are independent, k of t honest ones are with a probability below C(t, k) ROUND_RATE^k. Accusing where that
    is at most RUN_RATE over n t (t + 1) accuses any of n honest workers with a probability below RUN_RATE, however long
    the run is.
    """
    chance = math.lgamma(num_tested + 1) - math.lgamma(num_too_long + 1) - math.lgamma(num_tested - num_too_long + 1)
    chance += num_too_long * math.log(ROUND_RATE)
    return num_too_long > 0 and chance <= math.log(RUN_RATE / (workers * num_tested * (num_tested + 1)))


def _limit(values: list[float]) -> float:
    """x_h + LIMITS[n] s of the lower majority."""
    n = len(values)
    lower = sorted(values)[: n // 2 + 1]
    if not all(map(math.isfinite, lower)):
        return math.inf
    return lower[-1] + LIMITS[max(known for known in LIMITS if known <= n)] * stdev(lower)


def _number(x: float) -> float:
    return math.inf if math.isnan(x) else x


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))


def _squares(rows: Tensor, row: Tensor, stepped: int) -> Tensor:
    """Squared length of the directions and squared distance of each row, in float64 on the CPU.

    Shapes: (n, d), (d,) -> (n, 2).
    """
    out = torch.zeros(len(rows), 2, dtype=torch.float64, device=rows.device)
    dtype = accumulation_dtype(rows.dtype)
    for begin in range(0, len(row), _PIECE):
        # a slice of columns, as rows may be coded
        piece = slice(begin, min(begin + _PIECE, len(row)))
        wide = rows[:, piece].to(dtype)
        inside = wide[:, : max(0, stepped - begin)]
        for column, x in enumerate((inside, wide - row[piece].to(dtype))):
            out[:, column] += torch.linalg.vector_norm(x, dim=1).double().square()
    return out.cpu()
