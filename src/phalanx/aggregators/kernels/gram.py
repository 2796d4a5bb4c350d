# SPDX-License-Identifier: Apache-2.0
"""Distances between rows by matrix products, exact also for rows that are nearly equal, far from zero, or huge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phalanx.core.columns import Columns

_COLUMNS = 4112  # in one product; longer sums are taken in float64. Rows 4096 floats apart would share cache lines
_ENTRIES = 1 << 21  # in all products of one step
_NEAR = 1e-2  # share of the squared distances to the centre below which a pair needs a nearer centre
_SPREAD = 0.1  # share of the squared norms above which the origin is a good centre
TINY = 1e-18  # squared distance below which float32 products may be rounded to zero
_SAMPLE = 64


@dataclass(frozen=True)
class Distances:
    """Distances and inner products of n rows.

    Args:
        squared: (n, n) squared Euclidean distances.
        inner: (n, n) inner products of the rows minus a point, which is a row or the origin.
    """

    squared: np.ndarray
    inner: np.ndarray


def inner_products(
    rows: Tensor,
    centre: Tensor | None,
    picks: np.ndarray | None = None,
    in_float64: bool = False,
    columns: Columns | None = None,
) -> np.ndarray:
    """The inner products (x_i - c) . (x_j - c) in float64. Shapes: (n, d), (d,) -> (n, n).

    Args:
        centre: c; the origin when None.
        picks: positions of the rows; all when None.
        in_float64: computes all products in float64, at a third of the speed; else only pieces that overflow float32.
        columns: which columns the rows are, where each process has some; products are added up over all.
    """
    if columns is None:
        products = _products(rows, centre, picks, in_float64)
    else:
        n = len(rows) if picks is None else len(picks)
        products = columns.total(
            lambda part: _products(
                rows[:, part].contiguous(), None if centre is None else centre[part], picks, in_float64
            ),
            torch.empty(n, n, dtype=torch.float64, device=rows.device),
        )
    products = products.cpu()
    return ((products + products.T) / 2).numpy()


def _products(rows: Tensor, centre: Tensor | None, picks: np.ndarray | None, in_float64: bool) -> Tensor:
    """The inner products over these columns, which rounding may have left slightly asymmetric."""
    n, d = len(rows) if picks is None else len(picks), rows.shape[1]
    # an accelerator's float32 products may keep 10 bits only, and its speed is that of its memory
    in_float64 = in_float64 or rows.dtype == torch.float64 or rows.device.type != "cpu"
    batch = max(1, _ENTRIES // (n * _COLUMNS))
    num_full = d // _COLUMNS
    cuts = [(b * _COLUMNS, min(batch, num_full - b), _COLUMNS) for b in range(0, num_full, batch)]
    if d % _COLUMNS:
        cuts.append((num_full * _COLUMNS, 1, d % _COLUMNS))
    products = torch.zeros(n, n, dtype=torch.float64, device=rows.device)
    buffers: dict[tuple[int, int, torch.dtype], Tensor] = {}
    for start, blocks, columns in cuts:
        piece = slice(start, start + blocks * columns)
        part = rows[:, piece]
        if picks is not None:
            part = part[torch.as_tensor(picks, device=rows.device)]
        part = part.unflatten(1, (blocks, columns)).transpose(0, 1)
        part_of_centre = None if centre is None else centre[piece].reshape(blocks, 1, columns)
        for dtype in (torch.float64,) if in_float64 else (torch.float32, torch.float64):
            product = _product(part, part_of_centre, dtype, buffers)
            if dtype == torch.float64 or bool(product.isfinite().all()):
                products += product
                break
    return products


def lengths(inner: np.ndarray) -> np.ndarray:
    """The norms of rows, from their inner products. Shapes: (n, n) -> (n,)."""
    return np.sqrt(np.maximum(inner.diagonal(), 0))


def cosines(inner: np.ndarray) -> np.ndarray:
    """The cosines between rows, from their inner products; 0 for a row of zeros. Shapes: (n, n) -> same."""
    length_products = np.outer(lengths(inner), lengths(inner))
    return np.divide(inner, length_products, out=np.zeros_like(inner), where=length_products > 0)


def _product(
    part: Tensor, centre: Tensor | None, dtype: torch.dtype, buffers: dict[tuple[int, int, torch.dtype], Tensor]
) -> Tensor:
    if centre is None and part.dtype == dtype and part.stride(2) == 1:
        # from the rows themselves, without a copy
        return torch.bmm(part, part.transpose(1, 2)).sum(dim=0, dtype=torch.float64)
    key = (part.shape[0], part.shape[2], dtype)
    if key not in buffers:
        buffers[key] = torch.empty(part.shape, dtype=dtype, device=part.device)
    buffer = buffers[key]
    if centre is not None and part.dtype == dtype:
        torch.sub(part, centre, out=buffer)
    else:
        buffer.copy_(part)
        if centre is not None:
            buffer.sub_(centre)
    return torch.bmm(buffer, buffer.transpose(1, 2)).sum(dim=0, dtype=torch.float64)


def distances(rows: Tensor, columns: Columns | None = None) -> Distances:
    """Squared distances of all pairs, from products around the origin or, if all rows are alike, around a central row.

    If two rows are much closer to each other than to the centre, rounding of the products hides their distance. Such
    pairs are measured again, each cluster of them around one of its rows, until none is left. This ends, as a cluster
    can hold the centre that it was measured from only once, when it changes from float32 to float64.

    Args:
        columns: which columns the rows are, where each process has some; distances are those of the whole rows.
    """
    n = len(rows)
    squared = np.zeros((n, n))
    result: Distances | None = None
    clusters = [(np.arange(n), _first_centre(rows, columns), False)]
    while clusters:
        members, centre, in_float64 = clusters.pop()
        picks = None if len(members) == n else members
        inner = inner_products(rows, None if centre is None else rows[centre], picks, in_float64, columns)
        if picks is None:
            result = Distances(squared, inner)
        norms = inner.diagonal()
        norm_sums = norms[:, None] + norms[None, :]
        measured = np.maximum(norm_sums - 2 * inner, 0)
        is_near = measured < _NEAR * norm_sums
        if not in_float64:
            is_near |= norm_sums < TINY
        np.fill_diagonal(measured, 0)
        np.fill_diagonal(is_near, False)
        squared[np.ix_(members, members)] = measured
        for cluster in _components(is_near):
            central = cluster[measured[np.ix_(cluster, cluster)].sum(axis=1).argmin()]
            is_tiny = norm_sums[np.ix_(cluster, cluster)].min() < TINY
            clusters.append((members[cluster], int(members[central]), in_float64 or bool(is_tiny)))
    assert result is not None
    return result


def _first_centre(rows: Tensor, columns: Columns | None) -> int | None:
    """A row near many others, judged by a sample of rows and columns; None where the origin is about as near."""
    n, d = rows.shape
    sampled = range(0, n, max(1, n // _SAMPLE))
    chosen = list(sampled)
    if columns is None:
        sample = rows[:, :: max(1, d // _SAMPLE)][chosen].to(torch.float64)
        between, norms = _apart(sample), torch.linalg.vector_norm(sample, dim=1)
    else:
        # every owner adds the squares of a share of the sample
        def squares(part: slice) -> Tensor:
            few = rows[:, part].contiguous()[:, :: max(1, columns.whole.d // _SAMPLE)][chosen].to(torch.float64)
            return torch.cat([_apart(few).square(), few.square().sum(dim=1, keepdim=True)], dim=1)

        like = torch.empty(len(chosen), len(chosen) + 1, dtype=torch.float64, device=rows.device)
        totals = columns.total(squares, like).sqrt()
        between, norms = totals[:, :-1], totals[:, -1]
    median_distance = between.median(dim=1).values
    if float(median_distance.median()) ** 2 > _SPREAD * float(norms.median()) ** 2:
        return None
    return sampled[int(median_distance.argmin())]


def _apart(sample: Tensor) -> Tensor:
    return torch.cdist(sample, sample, compute_mode="donot_use_mm_for_euclid_dist")


def _components(linked: np.ndarray) -> list[np.ndarray]:
    """The connected components that have at least two nodes."""
    if not linked.any():
        return []
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    _, label = connected_components(csr_array(linked), directed=False)
    groups = [np.flatnonzero(label == value) for value in np.unique(label)]
    return [group for group in groups if len(group) > 1]
