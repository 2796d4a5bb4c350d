# SPDX-License-Identifier: Apache-2.0
"""Gains and objective of a matching are those of the formulas, and a rematch is the best that one client can do."""

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

import phalanx as px
from phalanx.core.round import make_generator
from phalanx.matching.buffet import BuffetPrior
from phalanx.matching.normal import Normal
from phalanx.matching.search import gain_table, objective, rematch, search
from tests.cases import draws, each
from tests.matching.neurons import CALIBRATED, copies, pooled, same_partition, small


@given(st.integers(0, 10_000))
@draws(25)
def test_gains_are_those_of_the_formulas(seed):
    rng = np.random.default_rng(seed)
    num, known, width, clients = rng.integers(1, 6), rng.integers(1, 6), rng.integers(1, 9), int(rng.integers(2, 20))
    rows, counts = rng.normal(size=(num, width)), rng.integers(1, clients, known)
    sums = np.array([rng.normal(size=(n, width)).sum(axis=0) for n in counts])
    gamma, popularity = rng.uniform(0.01, 10), int(rng.integers(1, 3))
    for by_entry, logs in product((False, True), (False, True)):
        s, s0 = (rng.uniform(0.05, 3, width if by_entry else 1) for _ in range(2))
        mu0 = rng.normal(size=width)
        a, a0 = np.broadcast_to(1 / s, width), np.broadcast_to(1 / s0, width)

        def log(x):
            return np.log(x) if logs else 0 * x  # noqa: B023

        wanted = np.zeros((num, known + num))
        for l, w in enumerate(rows):
            for i, n in enumerate(counts):
                big, total = mu0 * a0 + a * sums[i], a0 + n * a
                wanted[l, i] = np.sum((a * w + big) ** 2 / (a + total) - big**2 / total)
                wanted[l, i] += np.sum(log(total) - log(total + a))
                wanted[l, i] += popularity * np.log(min(n, 10) / (clients - min(n, 10)))
            for k in range(1, num + 1):
                wanted[l, known + k - 1] = np.sum((a * w + mu0 * a0) ** 2 / (a0 + a)) - np.sum((mu0 * a0) ** 2 / a0)
                wanted[l, known + k - 1] += np.sum(log(a0) - log(a0 + a))
                wanted[l, known + k - 1] += 2 * np.log(gamma / clients) - 2 * np.log(k)
        mean = torch.from_numpy(mu0)
        model = Normal(mean, torch.from_numpy(s), torch.from_numpy(s0), logs)
        pool = pooled([torch.from_numpy(rows)], [], mean)
        pool.counts = torch.from_numpy(counts)
        pool.sums = torch.from_numpy(sums) - pool.counts[:, None] * mean
        prior = BuffetPrior(gamma, popularity, 10, clients)
        got = gain_table(pool, pool.rows(0), model, prior, lambda num, known: num).numpy()
        # what only the row decides is left out
        only = np.sum(a * rows**2, axis=1)
        np.testing.assert_allclose(got + only[:, None], wanted, rtol=1e-5, atol=1e-5)


def test_spahm_gains_are_those_of_its_formulas():
    rng = np.random.default_rng(0)
    w, total, n, clients = rng.normal(size=7), rng.normal(size=7), 3, 5
    mu0, s, s0 = rng.normal(size=7), rng.uniform(0.1, 1, 7), rng.uniform(0.1, 1, 7)
    r, one, more = s0 / s, n * s0 + s, (n + 1) * s0 + s
    joined = np.sum((r * (w + total) ** 2 + 2 * mu0 * (w + total)) / more - (r * total**2 + 2 * mu0 * total) / one)
    joined += np.sum(np.log(one) - np.log(more) + n * mu0**2 / one - (n + 1) * mu0**2 / more)
    joined += 2 * np.log(n / (clients - n))
    opened = np.sum((r * w**2 + 2 * mu0 * w - mu0**2) / (s0 + s) + np.log(s) - np.log(s0 + s))
    opened += 2 * np.log(7 / clients)
    mean = torch.from_numpy(mu0)
    model = Normal(mean, torch.from_numpy(s), torch.from_numpy(s0), True)
    pool = pooled([torch.from_numpy(w[None])], [], mean)
    pool.counts, pool.sums = torch.tensor([n]), torch.from_numpy(total - n * mu0)[None]
    got = gain_table(pool, pool.rows(0), model, BuffetPrior(7.0, 2, None, clients), lambda num, known: num)
    assert float(got[0, 0] - got[0, 1]) == pytest.approx(joined - opened, abs=1e-9)


@given(st.integers(0, 10_000))
@draws(30)
def test_a_rematch_is_the_best_of_all_placements_and_moves_the_objective_by_its_gain(seed):
    layers = small(seed)
    clients = len(layers)
    rng = make_generator("placed", seed)
    prior = BuffetPrior(float(torch.rand((), generator=rng)) * 8 + 0.1, 2 if seed % 2 else 1, 10, clients)
    variances = torch.rand(2, generator=rng, dtype=torch.float64) + 0.1
    model = Normal(torch.zeros(layers[0].shape[1], dtype=torch.float64), variances[:1], variances[1:], seed % 3 > 0)
    labels = [torch.randperm(4, generator=rng)[: len(layer)] for layer in layers]
    places = torch.cat(labels).unique(return_inverse=True)[1].split([len(layer) for layer in layers])
    pool = pooled(layers, places)
    for j in range(clients):
        before, alone, mine = objective(pool, model, prior), pool.alone(), pool.of(j).clone()
        single = pool.counts[mine] == 1
        out, rows = pooled(layers, [pool.of(i) for i in range(clients)]), pool.rows(j)
        out.take(j, rows)
        gains = gain_table(out, rows, model, prior, lambda num, known: num)
        num, columns = gains.shape
        best = max(sum(float(gains[l, c]) for l, c in enumerate(to)) for to in permutations(range(columns), num))
        # where the client was: neurons of its own were new ones, the others have moved up into their gaps
        gone = torch.zeros(len(pool.counts), dtype=torch.long)
        gone[mine[single]] = 1
        was = torch.where(single, len(out.counts) + single.cumsum(0) - 1, mine - gone.cumsum(0)[mine])
        rematch(pool, j, model, prior, lambda num, known: num)
        others = [i for i in range(clients) if i != j]
        shift = 2 * float((torch.lgamma(alone + 1.0) - torch.lgamma(pool.alone() + 1.0))[others].double().sum())
        moved = best - float(gains[torch.arange(num), was].sum()) + shift
        assert objective(pool, model, prior) - before == pytest.approx(moved, abs=1e-4)


def doubled_log_probability(layers, labels, sigma, sigma0, gamma):
    """Of weights and partition, from densities of all copies of a neuron together and factorials."""
    clients, value = len(layers), 0.0
    label, rows = torch.cat(list(labels)).tolist(), torch.cat(layers).double().numpy()
    for i in set(label):
        of = rows[[k for k, other in enumerate(label) if other == i]]
        n = len(of)
        covariance = sigma * np.eye(n) + sigma0 * np.ones((n, n))
        value += 2 * sum(multivariate_normal(np.zeros(n), covariance).logpdf(column) for column in of.T)
        value += 2 * (math.log(gamma) + math.lgamma(clients - n + 1) + math.lgamma(n) - math.lgamma(clients + 1))
    for mine in labels:
        value -= 2 * math.lgamma(sum(label.count(i) == 1 for i in mine.tolist()) + 1)
    return value + rows.size * math.log(2 * math.pi)


def partitions(sizes):
    """All labellings in which no client has a neuron twice."""
    if not sizes:
        yield []
        return
    for before in partitions(sizes[:-1]):
        known = len(set(x for part in before for x in part))
        for joined in range(min(sizes[-1], known) + 1):
            for who in combinations(range(sizes[-1]), joined):
                for places in permutations(range(known), joined):
                    mine = [-1] * sizes[-1]
                    for l, place in zip(who, places, strict=True):
                        mine[l] = place
                    fresh = iter(range(known, known + sizes[-1]))
                    yield [*before, [next(fresh) if place < 0 else place for place in mine]]


@pytest.mark.parametrize("seed", range(2))
def test_the_objective_is_the_probability_and_clear_cases_end_at_its_maximum(seed):
    layers, truth = copies(3, 3, 12, noise=0.01, lost=1, seed=seed)
    given = {"gamma": 2.0, "sigma": 1e-4, "sigma0": 0.0025}
    matching = px.matching.bbp(**given, **CALIBRATED).match(layers)
    assert same_partition(matching.assignments, truth)
    highest = -math.inf
    for labels in partitions([2, 2, 2]):
        value = doubled_log_probability(layers, [torch.tensor(mine) for mine in labels], **given)
        highest = max(highest, value)
    assert matching.objective == pytest.approx(highest, rel=1e-9)


class Unordered(BuffetPrior):
    """Without the log k: new neurons are worth the same, however many."""

    def opening(self, most):
        return super().opening(1).expand(most)

    def value(self, counts, alone):
        return super().value(counts, torch.zeros_like(alone))


@each("seed", range(20))
@each("popularity", [1, 2])
def test_but_for_the_log_k_no_rematch_is_worse_and_at_rest_none_is_better(seed, popularity):
    layers = small(seed, most=4)
    rule, prior = px.matching.bbp(sigma=0.09, log_determinant=True), Unordered(2.0, popularity, 2, len(layers))
    model = rule.model(layers[0], ())
    found = search(layers, model, prior, rule.max_new, 50, seed)
    assert found.sweeps < 50
    start = [torch.arange(len(layer)) for layer in layers]
    for labels in (start, found.labels):
        pool = pooled(layers, labels)
        value = objective(pool, model, prior)
        for j in range(len(layers)):
            rematch(pool, j, model, prior, rule.max_new)
            after = objective(pool, model, prior)
            assert after >= value - 1e-9
            value = after
    assert same_partition(pool.partition(), found.labels) and value == pytest.approx(found.objective)
