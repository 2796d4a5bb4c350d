# SPDX-License-Identifier: Apache-2.0
"""Layers to match, and partitions of their neurons."""

import torch

from phalanx.core.round import make_generator
from phalanx.matching.search import Pool

CALIBRATED = {"bias_mean": 0.0, "log_determinant": True, "popularity": 2, "cap": None}


def copies(clients, neurons, entries, noise=0.02, own=0, lost=0, seed=0):
    """Layers of permuted, noised copies of the same neurons, some lost and some of their own, and who is who."""
    rng = make_generator("test", seed, clients, neurons, entries)
    base = 0.05 * torch.randn(neurons, entries, generator=rng)
    layers, truth = [], []
    for j in range(clients):
        kept = torch.randperm(neurons, generator=rng)[: neurons - lost]
        shared = base[kept] + noise * torch.randn(len(kept), entries, generator=rng)
        layers.append(torch.cat([shared, 0.05 * torch.randn(own, entries, generator=rng)]))
        truth.append(torch.cat([kept, neurons + own * j + torch.arange(own)]))
    return layers, truth


def same_partition(found, wanted):
    """Whether two labellings put the same neurons together."""
    a, b = torch.cat(list(found)), torch.cat(list(wanted))
    return (a[:, None] == a[None]).equal(b[:, None] == b[None])


def small(seed, most=3):
    """Layers of a few clients with up to `most` neurons that are near each other, or not."""
    rng = make_generator("small", seed)
    clients, entries = (int(torch.randint(low, high, (1,), generator=rng)) for low, high in ((2, 5), (1, 4)))
    base = torch.randn(most, entries, generator=rng)
    sizes = torch.randint(1, most + 1, (clients,), generator=rng).tolist()
    return [base[torch.randperm(most, generator=rng)[:n]] + 0.3 * torch.randn(n, entries, generator=rng) for n in sizes]


def pooled(layers, labels, mean=None):
    pool = Pool(layers, torch.zeros(layers[0].shape[1], dtype=torch.float64) if mean is None else mean)
    for j, places in enumerate(labels):
        pool.put(j, pool.rows(j), places)
    return pool
