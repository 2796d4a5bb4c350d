# SPDX-License-Identifier: Apache-2.0
"""Search for the most probable partition of all neurons: each client in turn is removed and matched again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from phalanx.core.round import make_generator
from phalanx.matching.buffet import BuffetPrior
from phalanx.matching.matching import Assigned, by_size, linear_assignment, numbered
from phalanx.matching.normal import Normal

MaxNew = Callable[[int, int], int]  # (L_j, L) -> new global neurons that a client may open


class Pool:
    """The global neurons during the search: for each the sum of w - mean over its copies, and their number."""

    def __init__(self, layers: Sequence[Tensor], mean: Tensor) -> None:
        self.layers, self.mean = layers, mean
        self.ends = torch.tensor([len(layer) for layer in layers]).cumsum(0).tolist()
        self.labels = torch.full((self.ends[-1],), -1)
        self.sums = mean.new_zeros(0, len(mean))
        self.counts = torch.zeros(0, dtype=torch.int64)

    def rows(self, j: int) -> Tensor:
        """The rows of client j minus the mean. Shapes: -> (L_j, D) float64."""
        return self.layers[j].double() - self.mean

    def of(self, j: int) -> Tensor:
        """The labels of client j, as a view to read and to write."""
        return self.labels[self.ends[j] - len(self.layers[j]) : self.ends[j]]

    def take(self, j: int, rows: Tensor) -> None:
        """Removes client j, and the neurons that only it had."""
        client_places = self.of(j)
        self.counts[client_places] -= 1
        self.sums.index_add_(0, client_places.to(self.sums.device), rows, alpha=-1)
        client_places.fill_(-1)
        alive = self.counts > 0
        if not alive.all():
            # one entry behind the end, for the -1 of removed clients
            moved = torch.cat([alive.cumsum(0) - 1, torch.tensor([-1])])
            self.labels = moved[self.labels]
            self.counts, self.sums = self.counts[alive], self.sums[alive.to(self.sums.device)]

    def put(self, j: int, rows: Tensor, labels: Tensor) -> None:
        """Adds client j with these global neurons; those from L on are new."""
        opened = max(int(labels.max()) + 1 - len(self.counts), 0)
        self.counts = torch.cat([self.counts, self.counts.new_zeros(opened)])
        self.counts[labels] += 1
        self.sums = torch.cat([self.sums, self.sums.new_zeros(opened, self.sums.shape[1])])
        self.sums.index_add_(0, labels.to(self.sums.device), rows)
        self.of(j).copy_(labels)

    def centre(self, mean: Tensor) -> None:
        """Expresses the sums around another mean."""
        self.sums += self.counts[:, None].to(self.sums.device) * (self.mean - mean)
        self.mean = mean

    def alone(self) -> Tensor:
        """The number of neurons that only client j has. Shapes: -> (J,)."""
        single = (self.counts == 1)[self.labels].long()
        return torch.stack([part.sum() for part in single.tensor_split(self.ends[:-1])])

    def squares(self) -> Tensor:
        """The squares of w - mean, summed over all copies. Shapes: -> (D,)."""
        return torch.stack([self.rows(j).square().sum(dim=0) for j in range(len(self.layers))]).sum(dim=0)

    def partition(self) -> tuple[Tensor, ...]:
        """The labels of each client, numbered as they appear."""
        return numbered([self.of(j) for j in range(len(self.layers))])


def search(
    layers: Sequence[Tensor],
    model: Normal,
    prior: BuffetPrior,
    max_new: MaxNew,
    sweeps: int,
    seed: int,
    estimate: Callable[[Pool], Normal] | None = None,
) -> Assigned:
    """The best partition seen in one pass over the clients and in sweeps that match each client again.

    A rematch gives the neurons of a client their best places while all other clients stay. The search ends after a
    sweep that changes nothing.

    Args:
        layers: rows of each client.
        model: likelihood of neurons and their copies.
        prior: of the partition.
        max_new: limit of the new neurons of a client.
        sweeps: passes after the first one, at most.
        seed: of the order of clients in each sweep.
        estimate: makes a new likelihood from the partition after every pass; None keeps `model`.
    """
    pool = Pool(layers, model.mean)
    for j in by_size(layers):
        rematch(pool, j, model, prior, max_new)
    best = None
    done = 0
    before: Tensor | None = None
    while True:
        if estimate is not None:
            model = estimate(pool)
            pool.centre(model.mean)
        labels = pool.partition()
        value = objective(pool, model, prior)
        if best is None or value > best.objective:
            best = Assigned(labels, value)
        whole = torch.cat(labels)
        if done == sweeps or (before is not None and before.equal(whole)):
            return Assigned(best.labels, best.objective, done)
        before = whole
        for j in torch.randperm(len(layers), generator=make_generator("matching", seed, done)).tolist():
            rematch(pool, j, model, prior, max_new)
        done += 1


def rematch(pool: Pool, j: int, model: Normal, prior: BuffetPrior, max_new: MaxNew) -> None:
    """Moves the neurons of client j to the places that are best while all other clients stay."""
    rows = pool.rows(j)
    if int(pool.of(j)[0]) >= 0:
        pool.take(j, rows)
    gains = gain_table(pool, rows, model, prior, max_new)
    _, columns = linear_assignment(gains.numpy(), maximize=True)
    labels = torch.from_numpy(columns)
    # the k-th row that opens a neuron opens the k-th new one
    opens = labels >= len(pool.counts)
    labels[opens] = len(pool.counts) + torch.arange(int(opens.sum()))
    pool.put(j, rows, labels)


def gain_table(pool: Pool, rows: Tensor, model: Normal, prior: BuffetPrior, max_new: MaxNew) -> Tensor:
    """The gain of each neuron of a client at each global neuron, and at each of the K new ones that it may open.

    Terms that depend on the row alone are left out.

    Shapes: rows (L_j, D) -> (L_j, L + K).
    """
    num_rows, known = len(rows), len(pool.counts)
    # every row needs a column, whatever the limit
    most = max(max_new(num_rows, known), num_rows - known)
    counts = pool.counts.to(rows.device)
    joined = model.gains(rows, pool.sums, counts).cpu() + prior.joining(pool.counts)
    opened = model.gains(rows, rows.new_zeros(1, rows.shape[1]), counts.new_zeros(1)).cpu()
    return torch.cat([joined, opened + prior.opening(most)], dim=1)


def objective(pool: Pool, model: Normal, prior: BuffetPrior) -> float:
    """The value of the partition: its likelihood plus its prior."""
    counts = pool.counts.to(pool.sums.device)
    return model.evidence(pool.sums, counts, pool.squares()) + prior.value(pool.counts, pool.alone())
