# SPDX-License-Identifier: Apache-2.0
"""Whole networks matched and averaged."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

import phalanx as px
from phalanx.core.expression import method
from phalanx.matching.graph import Graph
from phalanx.matching.match_models import own_tensors
from phalanx.matching.matching import Assigned, Matcher
from phalanx.matching.neuron_axes import OUTPUTS, Axis, scatter
from phalanx.matching.neuron_features import average_models, features_of_models, neuron_features
from phalanx.matching.refinement import refined, square_weights, total_distance
from tests.cases import draws
from tests.matching.shuffled import NETWORKS, CharLstm, apart, copies, network, shuffled


@method("nearest", "matcher", listed=False)
class Nearest(Matcher):
    """Each client's neurons are those of the first client that are least far away; there are no new ones."""

    def assign(self, layers, bias_columns, seed):
        labels = [linear_sum_assignment(torch.cdist(rows, layers[0]).numpy())[1] for rows in layers]
        return Assigned(tuple(map(torch.from_numpy, labels)))

    def posterior(self, mean, counts, bias_columns=()):
        return mean


SURE = px.matching.bbp(gamma=1e-6)  # joins whatever is near


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("matcher", [Nearest(), SURE], ids=["nearest", "bbp"])
def test_copies_with_their_neurons_in_another_order_are_the_network_again(kind, matcher):
    model, x = network(kind)
    made = px.match_models(copies(model, x, 2), x, matcher=matcher)
    assert Graph.of(made, x).sizes == Graph.of(model, x).sizes
    assert apart(made, model, x) <= 1e-5


@pytest.mark.parametrize("kind", NETWORKS)
def test_noise_is_averaged_away(kind):
    model, x = network(kind)
    noisy = copies(model, x, 4, noise=0.02)
    made = px.match_models(noisy, x, matcher=Nearest())
    assert apart(made, model, x) < max(apart(one, model, x) for one in noisy)


@draws(5)
@given(st.sampled_from(["fc", "lenet", "resnet", "lstm"]), st.integers(0, 99), st.integers(1, 4))
def test_neurons_that_are_found_twice_change_nothing(kind, seed, count):
    """Small weights make bbp() open places for copies of neurons that it has; their outputs are shared out then."""
    model, x = network(kind, seed)
    made = px.match_models(copies(model, x, count), x)
    sizes = Graph.of(model, x).sizes
    assert all(a <= b <= count * a for a, b in zip(sizes, Graph.of(made, x).sizes, strict=True))
    assert apart(made, model, x) <= 1e-5


def test_two_neurons_that_are_equal():
    torch.manual_seed(0)
    model, x = px.models.lenet(channels=(4, 6), hidden=12).build((1, 24, 24), 10).eval(), torch.randn(3, 1, 24, 24)
    with torch.no_grad():
        for tensor in (model[3].weight, model[3].bias):
            tensor[1] = tensor[4] = tensor[0]
    made = px.match_models(copies(model, x, 4), x, matcher=Nearest())
    assert apart(made, model, x) <= 1e-5


def test_models_of_other_widths():
    torch.manual_seed(0)
    models = [px.models.lenet(channels=c, hidden=h).build((1, 16, 16), 3).eval() for c, h in (((3, 5), 6), ((4, 4), 9))]
    x = torch.randn(2, 1, 16, 16)
    made = px.match_models(models, x, matcher=SURE)
    assert Graph.of(made, x).sizes == (4, 5, 9)
    alone = px.match_models(models[:1], x, matcher=SURE)
    assert apart(alone, models[0], x) <= 1e-6


def test_the_layers_of_one_lstm_grow_together():
    torch.manual_seed(0)
    models = [CharLstm(kind=nn.LSTM, layers=2).eval() for _ in range(3)]
    x = torch.randint(20, (3, 5))
    made = px.match_models(models, x)
    _, first, second = Graph.of(made, x).sizes
    assert first == second >= 16


def test_clients_that_learnt_other_classes_are_more_than_one_of_them():
    data = px.data.digits().load()
    x, y = data.train_x.flatten(1) / 16, data.train_y
    start, models = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 10)), []
    for half in (y < 5, y >= 5):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x[half]), y[half]).backward()
            optimizer.step()
        graph = Graph.of(model, x[:2])
        models.append(shuffled(model, graph, len(models)))
    made = px.match_models(models, x[:2])

    def score(model):
        return float((model(x).argmax(1) == y).float().mean())

    assert score(made) > max(map(score, models)) + 0.1


def test_statistics_are_estimated_anew_on_data():
    model, x = network("resnet")
    batches = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    made = px.match_models(copies(model, x, 2), x, matcher=Nearest(), data=batches)
    first = F.conv2d(torch.cat(batches), made[0].weight, padding=1)
    torch.testing.assert_close(made[1].running_mean, first.mean((0, 2, 3)))
    assert made[1].momentum == 0.1 and not made[1].training and made[1].num_batches_tracked == 3
    with pytest.raises(ValueError, match="data has none"):
        px.match_models([model], x, matcher=Nearest(), data=[])


def test_what_is_not_averaged_is_that_of_the_first():
    model, x = network("resnet")
    models = copies(model, x, 2)
    models[0][1].num_batches_tracked.fill_(7)
    models[0].train()
    made = px.match_models(models, x, matcher=Nearest())
    assert made[1].num_batches_tracked == 7 and made.training
    assert not models[1].training and all(p.requires_grad for p in made.parameters())


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([], "at least one model, got none"),
        ([nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), nn.Linear(4, 2)], "models 0 and 1 are of two architectures"),
    ],
)
def test_what_cannot_be_matched_is_said(models, words):
    with pytest.raises(ValueError, match=words):
        px.match_models(models, torch.randn(2, 4))


class Stiff(nn.Module):
    """Its forward has a number of neurons written in it, or takes their mean."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.a, self.b, self.norm = nn.Linear(4, 6), nn.Linear(6, 2), nn.LayerNorm(6)

    def forward(self, x):
        h = self.a(x)
        return self.b(self.norm(h) if self.way == "norm" else h.view(-1, 6))


@pytest.mark.parametrize("way", ["view", "norm"])
def test_a_forward_that_cannot_grow_is_refused_where_it_would(way):
    torch.manual_seed(0)
    models, x = [Stiff(way), Stiff(way)], torch.randn(3, 4)
    px.match_models(models, x, matcher=Nearest())
    with pytest.raises(ValueError, match="model 0 is another function in the shape of the match"):
        px.match_models(models, x, matcher=px.matching.bbp(gamma=100.0), max_growth=None)


def test_features_are_the_weights_that_make_a_neuron():
    model, x = network("lenet")
    graph, tensors = Graph.of(model, x), own_tensors(model)
    rows, biases = neuron_features(tensors, graph.axes, 1, {0})
    assert rows.equal(torch.cat([model[3].weight.flatten(1), model[3].bias[:, None]], 1)) and biases == (4 * 25,)
    rows, biases = neuron_features(tensors, graph.axes, 2, {0, 1}, outgoing=True)
    wanted = torch.cat([model[7].weight, model[7].bias[:, None], model[9].weight.T], 1)
    assert rows.equal(wanted) and biases == (6,)
    # the convolution behind it is not settled
    assert neuron_features(tensors, graph.axes, 0, set(), outgoing=True)[0].equal(
        neuron_features(tensors, graph.axes, 0, set())[0]
    )
    with pytest.raises(ValueError, match="neurons of group 1 out of settled ones"):
        neuron_features({"3.weight": model[3].weight}, graph.axes, 1, set())


def test_outgoing_weights_count_as_much_as_incoming_ones():
    parts, graph = [], None
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = network("lenet")
        graph = Graph.of(model, x)
        parts.append(own_tensors(model))
    rows, biases = features_of_models(parts, graph.axes, 2, {0, 1}, outgoing=True)
    plain = [neuron_features(part, graph.axes, 2, {0, 1}, outgoing=True)[0] for part in parts]
    making, going = (sum(row[:, cut].square().sum() for row in rows) for cut in (slice(0, 7), slice(7, None)))
    torch.testing.assert_close(making, going)
    factors = [(row / before)[:, 7:] for row, before in zip(rows, plain, strict=True)]
    assert all(row[:, :7].equal(before[:, :7]) for row, before in zip(rows, plain, strict=True)) and biases == (6,)
    torch.testing.assert_close(torch.cat(factors), factors[0][:1, :1].expand(sum(map(len, factors)), 10))
    alone, _ = features_of_models(parts, graph.axes, 0, set(), outgoing=True)
    assert all(
        row.equal(neuron_features(part, graph.axes, 0, set())[0]) for row, part in zip(alone, parts, strict=True)
    )


def test_features_of_an_lstm_and_of_batch_norm():
    model, x = network("lstm")
    graph, tensors = Graph.of(model, x), own_tensors(model)
    assert neuron_features(tensors, graph.axes, 0, set())[0].equal(model.embedding.weight.T)
    rows, biases = neuron_features(tensors, graph.axes, 1, {0})
    lstm = model.recurrent
    wanted = torch.cat([lstm.weight_ih_l0.view(4, 16, 8).transpose(0, 1).flatten(1), lstm.bias_ih_l0.view(4, 16).T], 1)
    assert rows.equal(wanted) and biases == (32, 33, 34, 35)
    table = square_weights(tensors, graph.axes, 1, {0})
    assert table.equal(lstm.weight_hh_l0.view(4, 16, 16)) and square_weights(tensors, graph.axes, 0, set()) is None
    model, x = network("resnet")
    rows, biases = neuron_features(own_tensors(model), Graph.of(model, x).axes, 0, set())
    norms = [vector[:, None] for norm in (model[1], model[3].bn2, model[4].bn2) for vector in (norm.weight, norm.bias)]
    assert rows.equal(torch.cat([model[0].weight.flatten(1), *norms], 1)) and biases == (28, 30, 32)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.data())
def test_the_mean_of_every_entry_is_over_those_who_have_it(count, outer, inner, padded, data):
    axes = {
        "square": (Axis(0, 0, outer=outer), Axis(1, 0, makes=False)),
        "flat": (Axis(0, OUTPUTS), Axis(1, 0, inner=inner, makes=False)),
        "scalar": (),
    }
    size, parts, places = data.draw(st.integers(1, 6)), [], []
    for _ in range(count):
        own = data.draw(st.integers(1, size))
        shapes = {"square": (outer * own, own), "flat": (2, own * inner), "scalar": ()}
        parts.append({name: torch.rand(shape) + 1 for name, shape in shapes.items()})
        places.append({0: torch.tensor(data.draw(st.permutations(range(size)))[:own])})
    weights = [data.draw(st.sampled_from([1.0, 2.5])) for _ in parts]
    found = average_models(parts, axes, places, {0: size}, weights, padded)
    assert float(found["scalar"]) == pytest.approx(
        sum(w * float(part["scalar"]) for w, part in zip(weights, parts, strict=True)) / sum(weights)
    )
    for name in ("square", "flat"):
        total, have = torch.zeros_like(found[name]), torch.zeros_like(found[name])
        for part, place, weight in zip(parts, places, weights, strict=True):
            wide = scatter(part[name], axes[name], 0, place[0], size)
            total += weight * wide
            if padded and name == "flat":
                have += weight
            elif padded:
                have += weight * (wide.view(outer, size, size) > 0).any(2)[..., None].float().expand(
                    -1, -1, size
                ).flatten(0, 1)
            else:
                have += weight * (wide > 0)
        torch.testing.assert_close(found[name], torch.where(have > 0, total / have.clamp(min=0.5), 0.0))


def recurrent_clients(seed, noise, count=4, size=10):
    """Copies of the weights of a recurrent layer, the square ones clean, with where their neurons stand in truth."""
    rng = torch.Generator().manual_seed(seed)
    rows, table = torch.randn(size, 6, generator=rng), torch.randn(4, size, size, generator=rng)
    truth = [torch.randperm(size, generator=rng) for _ in range(count)]
    layers = [rows[at] + noise * torch.randn(rows.shape, generator=rng) for at in truth]
    tables = [table[:, at][:, :, at] + 0.05 * torch.randn(table.shape, generator=rng) for at in truth]
    return layers, tables, truth


@draws(20)
@given(st.integers(0, 2**31), st.floats(0, 3), st.integers(1, 4), st.integers(1, 7))
def test_refinement_never_makes_a_matching_worse(seed, noise, count, size):
    layers, tables, _ = recurrent_clients(seed, noise, count, size)
    places = [torch.randperm(size + 2, generator=torch.Generator().manual_seed(seed + j))[:size] for j in range(count)]
    better = refined(layers, tables, places, size + 2)
    assert total_distance(layers, tables, better, size + 2) <= total_distance(layers, tables, places, size + 2) + 1e-9
    assert all(torch.equal(a.sort().values, b.sort().values) for a, b in zip(places, better, strict=True))


def test_recurrent_weights_find_neurons_that_input_weights_do_not():
    layers, tables, truth = recurrent_clients(0, noise=1.0)
    places = Nearest().match(layers).assignments
    wrong = sum(int((truth[0][at] != own).sum()) for at, own in zip(places, truth, strict=True))
    better = refined(layers, tables, places, 10)
    assert wrong > 10 and all(truth[0][at].equal(own) for at, own in zip(better, truth, strict=True))


def test_refined_models_are_nearer_to_the_network_they_come_from():
    model, x = network("lstm")
    rng, models = torch.Generator().manual_seed(0), copies(model, x, 3)
    for one in models[1:]:
        for tensor in (one.recurrent.weight_ih_l0.data, one.recurrent.bias_ih_l0.data):
            tensor += 3 * tensor.std() * torch.randn(tensor.shape, generator=rng)
    plain, better = (px.match_models(models, x, matcher=Nearest(), refine=refine) for refine in (False, True))
    clean = model.recurrent.weight_hh_l0.detach()
    size = [float(one.recurrent.weight_hh_l0.detach().norm()) for one in (plain, better)]
    assert size[0] < 0.95 * float(clean.norm()) and size[1] == pytest.approx(float(clean.norm()), rel=1e-5)
    assert [one.recurrent.weight_hh_l0.shape for one in (plain, better)] == [(64, 16)] * 2


class Branch(nn.Module):
    """A forward that depends on the numbers that it gets."""

    def __init__(self, read):
        super().__init__()
        self.first, self.last, self.read = nn.Linear(5, 7), nn.Linear(7, 3), read

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.last(hidden if self.read(hidden.mean()) else -hidden)


@pytest.mark.parametrize("read", [lambda m: m > 0, lambda m: m.item() > 0, lambda m: float(m) > 0, torch.is_nonzero])
def test_a_forward_that_branches_on_data_is_refused(read):
    with pytest.raises(ValueError, match=r"graph of Branch ends at Branch: .* reads numbers of a tensor, on which the"):
        px.match_models([Branch(read), Branch(read)], torch.randn(2, 5))


def unlike(count):
    return [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(count)]


def test_a_match_grows_no_more_than_is_said_and_says_how_much(caplog):
    models, x = unlike(5), torch.randn(3, 6)
    wide = px.match_models(models, x, matcher=px.matching.bbp(gamma=1e9), max_growth=None)
    assert wide[0].out_features > 30 and "times those of the largest of 5 models; max_growth=None" in caplog.text
    caplog.clear()
    capped = px.match_models(models, x, matcher=px.matching.bbp(gamma=1e9))
    assert 8 <= capped[0].out_features <= 12
    caplog.clear()
    same = px.match_models(models, x, matcher=px.matching.bbp(gamma=1e9), max_growth=1)
    assert same[0].out_features == 8 and not caplog.text
    with pytest.raises(ValueError, match=r"match_models needs max_growth >= 1 or None, got 0\.5"):
        px.match_models(models, x, max_growth=0.5)


def test_copies_stay_the_same_network_under_a_cap():
    model, x = unlike(1)[0], torch.randn(3, 6)
    moved = copies(model, x, 4)
    made = px.match_models(moved, x, matcher=px.matching.bbp(gamma=1e9), max_growth=1)
    assert made[0].out_features == 8
    torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)
