# SPDX-License-Identifier: Apache-2.0
"""Distances between rows by matrix products, right where rows are nearly equal, far from zero, or huge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_COLUMNS = 4112  # of one product, longer sums are taken in float64; rows 4096 floats apart share cache lines
_ENTRIES = 1 << 21  # of all products in flight
_NEAR = 1e-2  # share of the squared distances to the centre below which a pair wants a nearer centre
_SPREAD = 0.1  # share of the squared norms above which the origin will do for a centre
TINY = 1e-18  # squared distance below which products in float32 may vanish
_SAMPLE = 64


@dataclass(frozen=True)
class Distances:
    """What is known of n rows.

    Args:
        squared: (n, n) squared Euclidean distances.
        inner: (n, n) inner products of the rows less some point, which is a row or the origin.
    """

    squared: np.ndarray
    inner: np.ndarray


def inner_products(
    rows: Tensor, centre: Tensor | None, picks: np.ndarray | None = None, wide: bool = False
) -> np.ndarray:
    """(x_i - c) . (x_j - c) in float64. Shapes: (n, d), (d,) -> (n, n).

    Args:
        centre: c; the origin when None.
        picks: positions of the rows; all when None.
        wide: products in float64 throughout, at a third of the speed; pieces that overflow float32 are so in any case.
    """
    n, d = len(rows) if picks is None else len(picks), rows.shape[1]
    # an accelerator waits for memory, and its float32 products may be cut to 10 bits
    wide = wide or rows.dtype == torch.float64 or rows.device.type != "cpu"
    batch = max(1, _ENTRIES // (n * _COLUMNS))
    whole = d // _COLUMNS
    cuts = [(b * _COLUMNS, min(batch, whole - b), _COLUMNS) for b in range(0, whole, batch)]
    if d % _COLUMNS:
        cuts.append((whole * _COLUMNS, 1, d % _COLUMNS))
    total = torch.zeros(n, n, dtype=torch.float64, device=rows.device)
    buffers: dict[tuple[int, int, torch.dtype], Tensor] = {}
    for start, blocks, columns in cuts:
        piece = slice(start, start + blocks * columns)
        part = rows[:, piece]
        if picks is not None:
            part = part[torch.as_tensor(picks, device=rows.device)]
        part = part.unflatten(1, (blocks, columns)).transpose(0, 1)
        middle = None if centre is None else centre[piece].reshape(blocks, 1, columns)
        for dtype in (torch.float64,) if wide else (torch.float32, torch.float64):
            product = _product(part, middle, dtype, buffers)
            if dtype == torch.float64 or bool(product.isfinite().all()):
                total += product
                break
    total = total.cpu()
    return ((total + total.T) / 2).numpy()


def lengths(inner: np.ndarray) -> np.ndarray:
    """The lengths of rows, from their inner products. Shapes: (n, n) -> (n,)."""
    return np.sqrt(np.maximum(inner.diagonal(), 0))


def cosines(inner: np.ndarray) -> np.ndarray:
    """The cosines between rows, from their inner products; 0 for a row of zeros. Shapes: (n, n) -> same."""
    both = np.outer(lengths(inner), lengths(inner))
    return np.divide(inner, both, out=np.zeros_like(inner), where=both > 0)


def _product(
    part: Tensor, middle: Tensor | None, dtype: torch.dtype, buffers: dict[tuple[int, int, torch.dtype], Tensor]
) -> Tensor:
    if middle is None and part.dtype == dtype and part.stride(2) == 1:
        # straight from the rows, without a copy
        return torch.bmm(part, part.transpose(1, 2)).sum(dim=0, dtype=torch.float64)
    key = (part.shape[0], part.shape[2], dtype)
    if key not in buffers:
        buffers[key] = torch.empty(part.shape, dtype=dtype, device=part.device)
    buffer = buffers[key]
    if middle is not None and part.dtype == dtype:
        torch.sub(part, middle, out=buffer)
    else:
        buffer.copy_(part)
        if middle is not None:
            buffer.sub_(middle)
    return torch.bmm(buffer, buffer.transpose(1, 2)).sum(dim=0, dtype=torch.float64)


def distances(rows: Tensor) -> Distances:
    """Squared distances of all pairs from products around the origin or, where rows have much in common, a central row.

    A pair much closer to each other than to the centre is lost in the rounding of the products. Such pairs are measured
    again, each cluster of them around one of its own rows, until none is left. This ends: only on its one way from
    float32 to float64 does a cluster hold the centre that it was measured from.
    """
    n = len(rows)
    squared = np.zeros((n, n))
    whole: Distances | None = None
    clusters = [(np.arange(n), _first_centre(rows), False)]
    while clusters:
        members, centre, wide = clusters.pop()
        picks = None if len(members) == n else members
        inner = inner_products(rows, None if centre is None else rows[centre], picks, wide)
        if picks is None:
            whole = Distances(squared, inner)
        norms = inner.diagonal()
        both = norms[:, None] + norms[None, :]
        found = np.maximum(both - 2 * inner, 0)
        near = found < _NEAR * both
        if not wide:
            near |= both < TINY
        np.fill_diagonal(found, 0)
        np.fill_diagonal(near, False)
        squared[np.ix_(members, members)] = found
        for cluster in _components(near):
            middle = cluster[found[np.ix_(cluster, cluster)].sum(axis=1).argmin()]
            tiny = both[np.ix_(cluster, cluster)].min() < TINY
            clusters.append((members[cluster], int(members[middle]), wide or bool(tiny)))
    assert whole is not None
    return whole


def _first_centre(rows: Tensor) -> int | None:
    """By a sample of rows and columns, a row with many others near it; None where the origin is about as near."""
    n, d = rows.shape
    some = range(0, n, max(1, n // _SAMPLE))
    sample = rows[:, :: max(1, d // _SAMPLE)][list(some)].to(torch.float64)
    apart = torch.cdist(sample, sample, compute_mode="donot_use_mm_for_euclid_dist").median(dim=1).values
    norms = torch.linalg.vector_norm(sample, dim=1)
    if float(apart.median()) ** 2 > _SPREAD * float(norms.median()) ** 2:
        return None
    return some[int(apart.argmin())]


def _components(linked: np.ndarray) -> list[np.ndarray]:
    """The connected components of two nodes or more."""
    if not linked.any():
        return []
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    _, label = connected_components(csr_array(linked), directed=False)
    groups = [np.flatnonzero(label == value) for value in np.unique(label)]
    return [group for group in groups if len(group) > 1]
