# SPDX-License-Identifier: Apache-2.0
"""An observer that compares the variance of entrywise and spectral sparsification at equal cost."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from phalanx.codecs.atomo.atomo import Atomo
from phalanx.codecs.atomo.atoms import Atoms
from phalanx.codecs.atomo.dictionary import Entries
from phalanx.codecs.atomo.probabilities import atomo_probabilities
from phalanx.codecs.atomo.spectral import Spectral
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.payload import payload_bytes
from phalanx.core.round import Rng, Round, make_generator
from phalanx.training.observers.observer import LayerObserver

RESHAPES = ("paper", "matrix", "square")
_STEPS = 20  # of a bisection between no atom and all


@method("variance", "observer")
class Variance(LayerObserver):
    """Second moments E|Xhat|^2 / |X|^2 of ATOMO on a worker's gradient, of entries and of singular values.

    For each tensor X: its norm `frobenius`; for `entries` |X|_{1,1} as `norm`; for each reshape of `spectral` |X|_* as
    `norm`, rows n, columns m and whether (n + m) |X|_*^2 <= |X|_{1,1}^2 `holds`. The budgets spend `share` of the
    tensor's bytes. `floats` counts a float for each entry, as the theorem does; `bytes` counts what is sent. `measured`
    is the mean of |decode(encode(X))|^2 / |X|^2 over the draws, with its standard error and the bytes sent.

    Args:
        layer: name of a parameter; all of two or more dimensions when None.
        share: bytes of the code over bytes of the tensor, in (0, 1).
        draws: of each code, >= 2.
        every: rounds between two looks, >= 1.
        worker: whose row it is.
    Source: Wang et al., ATOMO, 2018, arXiv:1806.04090, Table 1 and Theorem 5.
    """

    layer: str | None = None
    share: float = 0.1
    draws: int = 20
    every: int = 100
    worker: int = 0

    def validate(self) -> None:
        super().validate()
        require(0 < self.share < 1, f"variance needs share in (0, 1), got share={self.share}")
        require(self.draws >= 2, f"variance needs draws >= 2, got draws={self.draws}")

    def measure(self, x: Tensor, name: str, round: Round) -> Any:
        square = float(x.to(torch.float64).square().sum())
        if not math.isfinite(square) or square == 0.0:
            return None
        unit, floats = x / math.sqrt(square), self.share * x.numel()
        key = ("variance", round.seed, round.index, self.worker, name)
        lam = unit.reshape(-1).to(torch.float64)
        afforded = budget_of(Entries(), lam, unit.shape, 4 * floats)
        entries = {
            "norm": math.sqrt(square) * float(lam.abs().sum()),
            "floats": second_moment(lam, floats),
            "budget": afforded,
            "bytes": second_moment(lam, afforded),
            **self._measured(Entries(), afforded, unit, key),
        }
        spectral: dict[str, Any] = {}
        for reshape in RESHAPES:
            atoms = Spectral(reshape)
            rows, columns = atoms.sides(unit.shape)
            sigma = torch.linalg.svdvals(atoms.matrix(unit.to(torch.float64)))
            norm = math.sqrt(square) * float(sigma.sum())
            budget = floats / (rows + columns)
            spectral[reshape] = {
                "norm": norm,
                "rows": rows,
                "columns": columns,
                "holds": (rows + columns) * norm**2 <= entries["norm"] ** 2,
                "budget": budget,
                # an atom is rows + columns floats of four bytes, so both ways of counting give one budget
                "bytes": second_moment(sigma, budget),
                **self._measured(atoms, budget, unit, (*key, reshape)),
            }
        return {"frobenius": math.sqrt(square), "shape": list(x.shape), "entries": entries, "spectral": spectral}

    def _measured(self, atoms: Atoms, budget: float, unit: Tensor, key: tuple[object, ...]) -> dict[str, Any]:
        codec, layout = Atomo(atoms, budget=budget), Layout(("x",), (unit.shape,))
        row, squares, sizes = unit.reshape(-1), [], []
        for draw in range(self.draws):
            rng: Rng = partial(make_generator, *key, draw)
            payload, _ = codec.encode(row, layout, {}, rng)
            squares.append(codec.decode(payload, layout).to(torch.float64).square().sum())
            sizes.append(payload_bytes(payload))
        stacked = torch.stack(squares)
        return {
            "measured": float(stacked.mean()),
            "error": float(stacked.std()) / math.sqrt(self.draws),
            "sent": sum(sizes) / self.draws,
        }


def second_moment(lam: Tensor, budget: float) -> float:
    """sum lam^2 / p of orthonormal atoms, with the best probabilities of this budget."""
    p = atomo_probabilities(lam, budget)
    kept = p > 0
    return float((lam[kept].to(torch.float64).square() / p[kept]).sum())


def expected_bytes(atoms: Atoms, lam: Tensor, shape: torch.Size, budget: float) -> float:
    """Bytes of float32 atoms kept with the best probabilities of this budget, at their expected number."""
    p = atomo_probabilities(lam, budget)
    ones = int((p >= 1).sum())
    others = max(0.0, float(p.sum()) - ones)
    whole = math.floor(others)
    low, high = (atoms.num_bytes(shape, torch.float32, ones, whole + i) for i in (0, 1))
    return low + (others - whole) * (high - low)


def budget_of(atoms: Atoms, lam: Tensor, shape: torch.Size, num_bytes: float) -> float:
    """The largest budget at which the code of a tensor is expected to be no longer than that."""
    low, high = 0.0, float(atoms.most(shape))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_bytes(atoms, lam, shape, middle) <= num_bytes else (low, middle)
    return low or high
