# SPDX-License-Identifier: Apache-2.0
"""Neurons that were only permuted are found again; how many global ones there are; layers that nobody can match."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from matching import Published
from phalanx.core.round import make_generator
from phalanx.matching.search import objective
from phalanx.matching.spahm import initial_model
from tests.cases import draws, each
from tests.matching.neurons import CALIBRATED, copies, same_partition

RULES = (
    px.matching.bbp(),
    px.matching.bbp(sigma=0.04, log_determinant=True, popularity=2, cap=None),
    px.matching.spahm(),
)


@each(
    ("clients", "neurons", "square", "expected"),
    [(16, 32, 0.5, 47), (16, 64, 0.5, 79), (16, 256, 0.5, 271), (4, 64, 0.5, 73), (16, 128, 1.44, 158)],
)
def test_with_published_variances_the_prior_decides_the_size(clients, neurons, square, expected):
    rng = make_generator("noise", clients, neurons)
    # the closer a new neuron's gain is to a whole number of them, the less alike rows may be by chance
    layers = torch.randn(clients, neurons, 600 if square < 1 else 2400, generator=rng)
    layers *= square**0.5 / layers.norm(dim=2, keepdim=True)
    k = math.floor(7 / clients * math.sqrt(clients - 1) * math.exp(square / 6))
    assert expected == neurons + (clients - 1) * k
    matching = px.matching.match(layers, bias="none", matcher=px.matching.bbp(sweeps=2))
    assert len(matching.counts) == expected
    full = matching.counts == clients
    assert int(full.sum()) == neurons - k and bool((matching.counts[~full] == 1).all())


def test_with_their_own_variances_the_data_decide_the_size():
    layers = [0.05 * row for row in torch.randn(6, 24, 400, generator=make_generator("own"))]
    apart = px.matching.bbp(sigma=1e-4, sigma0=0.0025, **CALIBRATED).match(layers)
    assert len(apart.counts) == 6 * 24
    for gamma in (0.1, 7.0, 30.0):
        found, truth = copies(6, 24, 400, own=2, lost=3)
        for rule in (px.matching.bbp(gamma, sigma=4e-4, sigma0=0.0025, **CALIBRATED), px.matching.spahm(gamma)):
            assert same_partition(rule.match(found).assignments, truth)


@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_permuted_copies_are_found_again(noise):
    layers, truth = copies(8, 32, 577, noise)
    published = px.matching.match(layers, bias="none")
    # each neuron holds copies of one; all clients but the first open one that the prior asks for
    label, true = torch.cat(published.assignments), torch.cat(truth)
    assert all(len(true[label == i].unique()) == 1 for i in range(len(published.counts)))
    assert int((published.counts == 8).sum()) == 31 and len(published.counts) == 32 + 7
    for rule in (px.matching.bbp(sigma=noise**2, sigma0=0.0025, **CALIBRATED), px.matching.spahm()):
        matching = rule.match(layers)
        assert same_partition(matching.assignments, truth) and bool((matching.counts == 8).all())
    # normalised by habit only, the variances of the weights tear the copies apart
    torn = px.matching.bbp(sigma=noise**2, sigma0=0.0025, bias_mean=0.0).match(layers)
    assert len(torn.counts) > 100


@pytest.mark.parametrize("sweeps", [0, 1, 3])
def test_matching_goes_the_published_way_and_keeps_the_best(sweeps, monkeypatch):
    layers = [0.3 * torch.randn(n, 20, generator=make_generator("published", n)) for n in (7, 12, 5, 13)]
    met = []

    def noted(pool, *args):
        met.append((objective(pool, *args), pool.partition()))
        return met[-1][0]

    monkeypatch.setattr("phalanx.matching.search.objective", noted)
    matching = px.matching.match(layers, matcher=px.matching.bbp(sweeps=sweeps), seed=3)
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
    order = torch.randperm(len(layers[2]), generator=make_generator("order"))
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
@draws(40)
def test_every_layer_has_its_place_and_its_average(sizes, width, dtype, scale, text):
    rule = px.parse(text)
    sizes = [sizes[0]] * len(sizes) if text == "identity()" else sizes
    wide = [torch.randn(width, n, generator=make_generator("shape", n, j)) * scale for j, n in enumerate(sizes)]
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
    assert px.matching.match(layers, bias="none").global_rows.tolist() == [[1.5, 3.0, 0.75]]
    # the prior mean of a bias is 0.1
    torch.testing.assert_close(px.matching.match(layers).global_rows, torch.tensor([[1.5, 3.0, 3.1 / 4]]))
    torch.testing.assert_close(
        px.matching.match(layers, bias="first").global_rows, torch.tensor([[6.1 / 4, 3.0, 0.75]])
    )
    assert px.matching.bbp(average="plain").posterior(mean, counts, (2,)).equal(mean)
    assert px.matching.spahm().posterior(mean, counts, (2,)).equal(mean) and px.matching.identity().posterior(
        mean, counts
    ).equal(mean)
    # (mu0 / sigma0 + n mean / sigma) / (1 / sigma0 + n / sigma)
    got = px.matching.bbp(sigma=0.5, sigma0=2.0, bias_mean=3.0).posterior(mean, counts, (0,))
    torch.testing.assert_close(got, torch.tensor([[(1.5 + 12) / 6.5, 24 / 6.5, 6 / 6.5]]))


def test_arrays_are_layers_too():
    layers = [np.random.default_rng(j).normal(size=(4, 3)) for j in range(3)]
    found, wanted = px.matching.match(layers), px.matching.match([torch.from_numpy(layer) for layer in layers])
    assert found.global_rows.equal(wanted.global_rows) and found.objective == wanted.objective
    assert px.matching.match(np.stack(layers)).counts.equal(wanted.counts)


GOOD = torch.ones(3, 2)


@each(
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
@pytest.mark.parametrize("rule", [px.matching.bbp(), px.matching.spahm(), px.matching.identity()], ids=repr)
def test_what_cannot_be_matched_is_named(rule, layers, words):
    with pytest.raises(ValueError, match=words):
        rule.match(layers)
    with pytest.raises(ValueError, match=words):
        px.matching.match(layers, matcher=rule)


def test_settings_that_no_matching_can_use_are_named():
    for text in ("bbp(gamma=0)", "bbp(sigma=-1.0)", "bbp(sigma0=inf)", "bbp(popularity=0)", "spahm(gamma=-1.0)"):
        with pytest.raises(ValueError, match="> 0"):
            px.parse(text)
    for text in ("bbp(cap=0)", "bbp(limit=0)", "bbp(sweeps=-1)", "spahm(sweeps=-1)", "bbp(bias_mean=nan)"):
        with pytest.raises(ValueError, match="needs"):
            px.parse(text)
    with pytest.raises(ValueError, match="2 from client 1 and 3 from client 0"):
        px.matching.identity().match([GOOD, GOOD[:2]])
    with pytest.raises(ValueError, match="bias_columns"):
        px.matching.bbp().match([GOOD], (2,))
    with pytest.raises(ValueError, match="'last', 'none' or 'first'"):
        px.matching.match([GOOD], bias="middle")
    with pytest.raises(ValueError, match="a matcher such as"):
        px.matching.match([GOOD], matcher=px.aggregators.mean())
    with pytest.raises(ValueError, match="set them in the matcher"):
        px.matching.match([GOOD], gamma=1.0, matcher=px.matching.spahm())


def test_the_first_model_has_the_population_variance_of_the_neurons():
    """spahm: sigma from the better half of the best pairs, sigma0 what is left of the variance of all neurons."""
    rng = torch.Generator().manual_seed(3)
    first = torch.randn(4, 3, generator=rng, dtype=torch.float64) * 3
    noise = 0.1 * torch.randn(4, 3, generator=rng, dtype=torch.float64)
    layers = [first, (first + noise)[[2, 0, 3, 1]]]
    model = initial_model(layers)
    rows = torch.cat(layers)
    closest = noise.square().sum(dim=1).argsort()[:2]
    sigma = noise[closest].square().mean(dim=0) / 2
    total = rows.var(dim=0, correction=0)
    torch.testing.assert_close(model.sigma, sigma)
    torch.testing.assert_close(model.sigma0, total - sigma)
