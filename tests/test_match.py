# SPDX-License-Identifier: Apache-2.0
"""Neurons of several networks are matched as the formulas say, and found again where they were only permuted."""

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

import phalanx as px
from matching import Published
from phalanx.matching.buffet import Buffet
from phalanx.matching.normal import Normal
from phalanx.matching.search import Pool, gain_table, objective, rematch, search
from phalanx.round import stream

RULES = (px.bbp(), px.bbp(sigma=0.04, log_determinant=True, popularity=2, cap=None), px.spahm())
CALIBRATED = {"bias_mean": 0.0, "log_determinant": True, "popularity": 2, "cap": None}


def copies(clients, neurons, entries, noise=0.02, own=0, lost=0, seed=0):
    """Layers of permuted, noised copies of the same neurons, some lost and some of their own, and who is who."""
    rng = stream("test", seed, clients, neurons, entries)
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
    rng = stream("small", seed)
    clients, entries = (int(torch.randint(low, high, (1,), generator=rng)) for low, high in ((2, 5), (1, 4)))
    base = torch.randn(most, entries, generator=rng)
    sizes = torch.randint(1, most + 1, (clients,), generator=rng).tolist()
    return [base[torch.randperm(most, generator=rng)[:n]] + 0.3 * torch.randn(n, entries, generator=rng) for n in sizes]


def pooled(layers, labels, mean=None):
    pool = Pool(layers, torch.zeros(layers[0].shape[1], dtype=torch.float64) if mean is None else mean)
    for j, places in enumerate(labels):
        pool.put(j, pool.rows(j), places)
    return pool


@pytest.mark.parametrize(
    ("clients", "neurons", "square", "expected"),
    [(16, 32, 0.5, 47), (16, 64, 0.5, 79), (16, 256, 0.5, 271), (4, 64, 0.5, 73), (16, 128, 1.44, 158)],
)
def test_with_published_variances_the_prior_decides_the_size(clients, neurons, square, expected):
    rng = stream("noise", clients, neurons)
    # the closer a new neuron's gain is to a whole number of them, the less alike rows may be by chance
    layers = torch.randn(clients, neurons, 600 if square < 1 else 2400, generator=rng)
    layers *= square**0.5 / layers.norm(dim=2, keepdim=True)
    k = math.floor(7 / clients * math.sqrt(clients - 1) * math.exp(square / 6))
    assert expected == neurons + (clients - 1) * k
    matching = px.match(layers, bias="none", matcher=px.bbp(sweeps=2))
    assert len(matching.counts) == expected
    full = matching.counts == clients
    assert int(full.sum()) == neurons - k and bool((matching.counts[~full] == 1).all())


def test_with_their_own_variances_the_data_decide_the_size():
    layers = [0.05 * row for row in torch.randn(6, 24, 400, generator=stream("own"))]
    apart = px.bbp(sigma=1e-4, sigma0=0.0025, **CALIBRATED).match(layers)
    assert len(apart.counts) == 6 * 24
    for gamma in (0.1, 7.0, 30.0):
        found, truth = copies(6, 24, 400, own=2, lost=3)
        for rule in (px.bbp(gamma, sigma=4e-4, sigma0=0.0025, **CALIBRATED), px.spahm(gamma)):
            assert same_partition(rule.match(found).assignments, truth)


@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_permuted_copies_are_found_again(noise):
    layers, truth = copies(8, 32, 577, noise)
    published = px.match(layers, bias="none")
    # each neuron holds copies of one; all clients but the first open one that the prior asks for
    label, true = torch.cat(published.assignments), torch.cat(truth)
    assert all(len(true[label == i].unique()) == 1 for i in range(len(published.counts)))
    assert int((published.counts == 8).sum()) == 31 and len(published.counts) == 32 + 7
    for rule in (px.bbp(sigma=noise**2, sigma0=0.0025, **CALIBRATED), px.spahm()):
        matching = rule.match(layers)
        assert same_partition(matching.assignments, truth) and bool((matching.counts == 8).all())
    # normalised by habit only, the variances of the weights tear the copies apart
    torn = px.bbp(sigma=noise**2, sigma0=0.0025, bias_mean=0.0).match(layers)
    assert len(torn.counts) > 100


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
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
        prior = Buffet(gamma, popularity, 10, clients)
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
    got = gain_table(pool, pool.rows(0), model, Buffet(7.0, 2, None, clients), lambda num, known: num)
    assert float(got[0, 0] - got[0, 1]) == pytest.approx(joined - opened, abs=1e-9)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_rematch_is_the_best_of_all_placements_and_moves_the_objective_by_its_gain(seed):
    layers = small(seed)
    clients = len(layers)
    rng = stream("placed", seed)
    prior = Buffet(float(torch.rand((), generator=rng)) * 8 + 0.1, 2 if seed % 2 else 1, 10, clients)
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
    matching = px.bbp(**given, **CALIBRATED).match(layers)
    assert same_partition(matching.assignments, truth)
    highest = -math.inf
    for labels in partitions([2, 2, 2]):
        value = doubled_log_probability(layers, [torch.tensor(mine) for mine in labels], **given)
        highest = max(highest, value)
    assert matching.objective == pytest.approx(highest, rel=1e-9)


class Unordered(Buffet):
    """Without the log k: new neurons are worth the same, however many."""

    def opening(self, most):
        return super().opening(1).expand(most)

    def value(self, counts, alone):
        return super().value(counts, torch.zeros_like(alone))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("popularity", [1, 2])
def test_but_for_the_log_k_no_rematch_is_worse_and_at_rest_none_is_better(seed, popularity):
    layers = small(seed, most=4)
    rule, prior = px.bbp(sigma=0.09, log_determinant=True), Unordered(2.0, popularity, 2, len(layers))
    model = rule.model(layers[0], ())
    found = search(layers, model, prior, rule.room, 50, seed)
    assert found.sweeps < 50
    start = [torch.arange(len(layer)) for layer in layers]
    for labels in (start, found.labels):
        pool = pooled(layers, labels)
        value = objective(pool, model, prior)
        for j in range(len(layers)):
            rematch(pool, j, model, prior, rule.room)
            after = objective(pool, model, prior)
            assert after >= value - 1e-9
            value = after
    assert same_partition(pool.partition(), found.labels) and value == pytest.approx(found.objective)


@pytest.mark.parametrize("sweeps", [0, 1, 3])
def test_matching_goes_the_published_way_and_keeps_the_best(sweeps, monkeypatch):
    layers = [0.3 * torch.randn(n, 20, generator=stream("published", n)) for n in (7, 12, 5, 13)]
    met = []

    def noted(pool, *args):
        met.append((objective(pool, *args), pool.partition()))
        return met[-1][0]

    monkeypatch.setattr("phalanx.matching.search.objective", noted)
    matching = px.match(layers, matcher=px.bbp(sweeps=sweeps), seed=3)
    assert matching.sweeps == sweeps and len(met) == sweeps + 1
    labels = Published([layer.double().numpy() for layer in layers]).run(sweeps, seed=3)
    assert same_partition(met[-1][1], [torch.tensor(mine) for mine in labels])
    assert matching.objective == max(value for value, _ in met)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_seed_decides_all_and_the_order_of_neurons_nothing(rule):
    layers, _ = copies(5, 16, 40, noise=0.03, own=3, lost=4)
    first, again = rule.match(layers, (39,), seed=4), rule.match(layers, (39,), seed=4)
    assert first.global_rows.equal(again.global_rows) and first.objective == again.objective
    assert all(map(torch.equal, first.assignments, again.assignments))
    order = torch.randperm(len(layers[2]), generator=stream("order"))
    turned = rule.match([*layers[:2], layers[2][order], *layers[3:]], (39,), seed=4)
    back = list(turned.assignments)
    back[2] = torch.empty_like(back[2]).scatter_(0, order, back[2])
    assert same_partition(back, first.assignments)
    assert turned.objective == pytest.approx(first.objective)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.integers(1, 5),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([1.0, 1e-30, 1e4, 0.0]),
    st.sampled_from(["identity()", "bbp()", "bbp(sigma=0.01, log_determinant=True, limit=1)", "spahm()"]),
)
@settings(max_examples=40, deadline=None)
def test_every_layer_has_its_place_and_its_average(sizes, width, dtype, scale, text):
    rule = px.parse(text)
    sizes = [sizes[0]] * len(sizes) if text == "identity()" else sizes
    wide = [torch.randn(width, n, generator=stream("shape", n, j)) * scale for j, n in enumerate(sizes)]
    layers = [layer.to(dtype).T for layer in wide]
    matching = rule.match(layers, (width - 1,))
    known = len(matching.counts)
    assert max(sizes) <= known <= sum(sizes) and matching.global_rows.shape == (known, width)
    assert matching.global_rows.dtype == dtype and math.isfinite(matching.objective)
    sums = torch.zeros(known, width, dtype=torch.float64)
    for layer, places in zip(layers, matching.assignments, strict=True):
        assert places.dtype == torch.int64 and len(places.unique()) == len(places) == len(layer)
        sums.index_add_(0, places, layer.double())
    assert matching.counts.equal(torch.cat(matching.assignments).bincount()) and int(matching.counts.min()) >= 1
    assert matching.assignments[sizes.index(max(sizes))].equal(torch.arange(max(sizes)))
    expected = rule.posterior(sums / matching.counts[:, None], matching.counts, (width - 1,))
    torch.testing.assert_close(matching.global_rows, expected.to(dtype))


def test_averages():
    layers = [torch.tensor([[2.0, 4.0, 1.0]])] * 3
    mean, counts = torch.tensor([[2.0, 4.0, 1.0]]), torch.tensor([3])
    assert px.match(layers, bias="none").global_rows.tolist() == [[1.5, 3.0, 0.75]]
    # the prior mean of a bias is 0.1
    torch.testing.assert_close(px.match(layers).global_rows, torch.tensor([[1.5, 3.0, 3.1 / 4]]))
    torch.testing.assert_close(px.match(layers, bias="first").global_rows, torch.tensor([[6.1 / 4, 3.0, 0.75]]))
    assert px.bbp(average="plain").posterior(mean, counts, (2,)).equal(mean)
    assert px.spahm().posterior(mean, counts, (2,)).equal(mean) and px.identity().posterior(mean, counts).equal(mean)
    # (mu0 / sigma0 + n mean / sigma) / (1 / sigma0 + n / sigma)
    got = px.bbp(sigma=0.5, sigma0=2.0, bias_mean=3.0).posterior(mean, counts, (0,))
    torch.testing.assert_close(got, torch.tensor([[(1.5 + 12) / 6.5, 24 / 6.5, 6 / 6.5]]))


def test_arrays_are_layers_too():
    layers = [np.random.default_rng(j).normal(size=(4, 3)) for j in range(3)]
    found, wanted = px.match(layers), px.match([torch.from_numpy(layer) for layer in layers])
    assert found.global_rows.equal(wanted.global_rows) and found.objective == wanted.objective
    assert px.match(np.stack(layers)).counts.equal(wanted.counts)


GOOD = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "at least one client"),
        ([GOOD, torch.ones(0, 2)], r"\(0, 2\) from client 1"),
        ([GOOD, torch.ones(3, 4)], "4 entries from client 1 and 2 from client 0"),
        ([GOOD, GOOD, torch.ones(2)], r"\(2,\) from client 2"),
        ([GOOD, GOOD.long()], "int64 from client 1"),
        ([GOOD, torch.tensor([[1.0, 1.0], [math.nan, 1.0]])], "neuron 1 of client 1"),
        ([torch.tensor([[1.0, -math.inf]])], "neuron 0 of client 0"),
        ([GOOD.double() * 1e200], "beyond 1e150"),
    ],
)
@pytest.mark.parametrize("rule", [px.bbp(), px.spahm(), px.identity()], ids=repr)
def test_what_cannot_be_matched_is_named(rule, layers, words):
    with pytest.raises(ValueError, match=words):
        rule.match(layers)
    with pytest.raises(ValueError, match=words):
        px.match(layers, matcher=rule)


def test_settings_that_no_matching_can_use_are_named():
    for text in ("bbp(gamma=0)", "bbp(sigma=-1.0)", "bbp(sigma0=inf)", "bbp(popularity=0)", "spahm(gamma=-1.0)"):
        with pytest.raises(ValueError, match="> 0"):
            px.parse(text)
    for text in ("bbp(cap=0)", "bbp(limit=0)", "bbp(sweeps=-1)", "spahm(sweeps=-1)", "bbp(bias_mean=nan)"):
        with pytest.raises(ValueError, match="needs"):
            px.parse(text)
    with pytest.raises(ValueError, match="2 from client 1 and 3 from client 0"):
        px.identity().match([GOOD, GOOD[:2]])
    with pytest.raises(ValueError, match="bias_columns"):
        px.bbp().match([GOOD], (2,))
    with pytest.raises(ValueError, match="'last', 'none' or 'first'"):
        px.match([GOOD], bias="middle")
    with pytest.raises(ValueError, match="a matcher such as"):
        px.match([GOOD], matcher=px.mean())
    with pytest.raises(ValueError, match="set them in the matcher"):
        px.match([GOOD], gamma=1.0, matcher=px.spahm())
