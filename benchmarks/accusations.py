# SPDX-License-Identifier: Apache-2.0
"""How often honest workers are accused, and in how many rounds attackers are: simulated rows and real training.

python benchmarks/accusations.py --json experiments/results/accusations/results.json

`limits` are quantiles behind `phalanx.training.accusation.LIMITS`; `rates` are chances of an honest worker to be too
long in a round, by family and spread of the log lengths; `runs` are runs of 1,000 honest rounds with an accusation,
where a worker's length is its own for good, new in each round, or both; `training` and `attacks` are runs on the
digits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from record import keep, machine

FAMILIES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape) / math.sqrt(2),
    "student 3": lambda rng, shape: rng.standard_t(3, size=shape) / math.sqrt(3),
    "gumbel": lambda rng, shape: rng.gumbel(size=shape) * math.sqrt(6) / math.pi,
}
SPREADS = (0.1, 0.3, 1.0)
COUNTS = (4, 5, 7, 10, 15, 30, 100)
ATTACKS = ("reverse()", "reverse(c=1)", "constant()", "gaussian()", "alie()", "ipm()", "mimic()")
PARTITIONS = ("iid()", "dirichlet(alpha=0.1)", "shards()")


def beyond(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By round and worker, the log length above the lower majority's largest; and that in the majority's deviations."""
    n = logs.shape[-1]
    lower = np.sort(logs, axis=-1)[..., : n // 2 + 1]
    gap = logs - lower[..., -1:]
    return gap, gap / lower.std(axis=-1, ddof=1, keepdims=True)


def too_long(logs: np.ndarray) -> np.ndarray:
    """Whether each worker's row is too long in each round, as `phalanx.training.accusation.judge` says."""
    from phalanx.training.accusation import LIMITS, MIN_RATIO

    gap, deviations = beyond(logs)
    limit = LIMITS[max(known for known in LIMITS if known <= logs.shape[-1])]
    return (gap > math.log(MIN_RATIO)) & (deviations > limit)


def limits(rng: np.random.Generator, tries: int) -> dict[str, dict[int, float]]:
    """The 0.996 quantiles of the largest of a round."""
    families = ("normal", "laplace")
    counts = (*range(4, 18), 20, 21, 30, 31, 50, 51, 100)
    return {
        name: {
            n: round(float(np.quantile(beyond(FAMILIES[name](rng, (tries, n)))[1].max(1), 0.996)), 1) for n in counts
        }
        for name in families
    }


def rates(rng: np.random.Generator, tries: int) -> dict[str, dict[str, dict[int, float]]]:
    """The chance of an honest worker's row to be too long in a round."""
    return {
        name: {
            str(spread): {n: float(too_long(spread * draw(rng, (tries, n))).mean()) for n in COUNTS}
            for spread in SPREADS
        }
        for name, draw in FAMILIES.items()
    }


def runs(rng: np.random.Generator, tries: int, rounds: int = 1000) -> dict[str, dict[str, dict[int, float]]]:
    """The share of honest runs in which somebody is accused; spread 0.5."""
    from phalanx.training.accusation import is_certain

    out: dict[str, dict[str, dict[int, float]]] = {}
    for name, draw in FAMILIES.items():
        for how, lasting in (("in each round", 0.0), ("both", 0.7), ("for good", 1.0)):
            shares = out.setdefault(name, {}).setdefault(how, {})
            for n in COUNTS:
                accused = 0
                for _ in range(tries):
                    logs = 0.5 * (lasting * draw(rng, (1, n)) + math.sqrt(1 - lasting**2) * draw(rng, (rounds, n)))
                    flags = too_long(logs)
                    counts = flags.cumsum(0)
                    moments = zip(*flags.nonzero(), strict=True)
                    accused += any(is_certain(int(counts[t, w]), int(t) + 1, n) for t, w in moments)
                shares[n] = accused / tries
    return out


def run_of(scheme: str, n: int, rounds: int, byzantine: str, partition: str, seed: int) -> Any:
    """A run on the digits, 20 examples a worker and round."""
    import phalanx as px

    return px.parse(
        f"run(data=digits(), model=mlp(hidden=(32,)), phases=(phase(work=gradient(batch={20 * n}), scheme={scheme}, "
        f"optimizer=sgd(lr=0.1), rounds={rounds}),), workers={n}, byzantine={byzantine}, partition={partition}, "
        f"evaluate_every={rounds}, seed={seed})"
    )


def training(rounds: int) -> list[dict[str, Any]]:
    """Honest runs: rows that were far or too long, of all, and workers that were accused."""
    import phalanx as px

    out = []
    for n in (4, 10, 15):
        for partition in PARTITIONS:
            for rule in ("mean()", "median()"):
                run = run_of(f"chain(gather(dense()), {rule})", n, rounds, "none()", partition, 0)
                stats = px.train(run).worker_stats
                counts = {"far": stats.far.total(), "too_long": stats.too_long.total(), "accused": len(stats.accused)}
                out.append({"n": n, "partition": partition, "rule": rule, "rows": n * rounds, **counts})
    return out


def attacks(rounds: int) -> list[dict[str, Any]]:
    """Runs with liars: the shares of their rounds in which they were far and accused, and when they first were."""
    import phalanx as px

    out = []
    for n, liars in ((4, 1), (10, 2), (15, 3)):
        for attack in ATTACKS:
            scheme = f"chain({attack}, gather(dense()), median())"
            stats = px.train(run_of(scheme, n, rounds, f"evenly_spaced({liars})", "iid()", 0)).worker_stats
            bad = set(stats.byzantine)
            first = min((e["round_index"] + 1 for e in stats.evidence if e["worker"] in bad), default=None)
            out.append(
                {
                    "n": n,
                    "liars": liars,
                    "attack": attack,
                    "far": sum(stats.far[w] for w in bad) / (liars * rounds),
                    "accused": sum(stats.accused[w] for w in bad) / (liars * rounds),
                    "first_round": first,
                    "honest_accused": len(set(stats.accused) - bad),
                }
            )
    return out


def main() -> None:
    """Measures, prints and keeps."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path)
    options.add_argument("--tries", type=int, default=200_000, help="simulated rounds of each count")
    options.add_argument("--runs", type=int, default=300, help="simulated runs of each count")
    options.add_argument("--rounds", type=int, default=600, help="rounds of each real run")
    given = options.parse_args()
    rng = np.random.default_rng(0)
    result = {
        "machine": machine("torch", "numpy"),
        "tries": given.tries,
        "runs_tried": given.runs,
        "rounds": given.rounds,
        "limits": limits(rng, given.tries),
        "rates": rates(rng, given.tries),
        "runs": runs(rng, given.runs),
        "training": training(given.rounds),
        "attacks": attacks(given.rounds // 6),
    }
    for name, part in result.items():
        print(name, part)
    keep(given.json, result)


if __name__ == "__main__":
    main()
