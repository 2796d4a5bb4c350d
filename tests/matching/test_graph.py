# SPDX-License-Identifier: Apache-2.0
"""The groups of neurons of a network."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import phalanx as px
from phalanx.matching.graph import Graph, resized
from phalanx.matching.neuron_axes import OUTPUTS, Axis
from tests.cases import draws, each
from tests.matching.shuffled import NETWORKS, CharLstm, apart, network, shuffled


class Plain(nn.Module):
    """A module of some layers and the forward that is given."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.how = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.how(self, x)


def goes_in(dim, group, outer=1, inner=1):
    return Axis(dim, group, outer, inner, makes=False)


def test_the_axes_of_lenet():
    model = px.models.lenet(channels=(3, 4), hidden=5).build((2, 32, 24), 10)
    graph = Graph.of(model, torch.randn(2, 2, 32, 24))
    assert graph.axes == {
        "0.weight": (Axis(0, 0),),
        "0.bias": (Axis(0, 0),),
        "3.weight": (Axis(0, 1), goes_in(1, 0)),
        "3.bias": (Axis(0, 1),),
        "7.weight": (Axis(0, 2), goes_in(1, 1, inner=5 * 3)),
        "7.bias": (Axis(0, 2),),
        "9.weight": (Axis(0, OUTPUTS), goes_in(1, 2)),
        "9.bias": (Axis(0, OUTPUTS),),
    }
    assert (graph.names, graph.sizes, graph.unsaved) == (("0", "3", "7"), (3, 4, 5), {})


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_the_axes_of_recurrent_layers(kind, gates):
    graph = Graph.of(CharLstm(kind=kind, layers=2), torch.randint(20, (2, 5)))
    assert graph.names == ("embedding", "recurrent layer 0", "recurrent layer 1")
    assert graph.axes["embedding.weight"] == (Axis(1, 0),)
    for layer in range(2):
        own = Axis(0, layer + 1, outer=gates)
        assert graph.axes[f"recurrent.weight_ih_l{layer}"] == (own, goes_in(1, layer))
        assert graph.axes[f"recurrent.weight_hh_l{layer}"] == (own, goes_in(1, layer + 1))
        assert graph.axes[f"recurrent.bias_ih_l{layer}"] == graph.axes[f"recurrent.bias_hh_l{layer}"] == (own,)
    assert graph.axes["decoder.weight"] == (Axis(0, OUTPUTS), goes_in(1, 2))


def test_shared_word_vectors_and_a_bias_that_is_not_saved():
    model, x = network("tied")
    graph = Graph.of(model, x)
    assert graph.names == ("embedding", "lstm layer 0")
    # the state of the last layer is compared with the word vectors
    assert graph.axes["embedding.weight"] == graph.axes["decoder.weight"] == (Axis(0, OUTPUTS), Axis(1, 0))
    assert graph.axes["lstm.weight_ih_l1"] == (Axis(0, 0, outer=4), goes_in(1, 1))
    assert graph.axes["lstm.weight_hh_l1"] == (Axis(0, 0, outer=4), goes_in(1, 0))
    assert graph.unsaved == {"lstm.bias_hh_l0": (Axis(0, 1, outer=4),), "lstm.bias_hh_l1": (Axis(0, 0, outer=4),)}
    wide = resized(model, graph, {0: 9, 1: 9})
    assert wide.decoder.weight is wide.embedding.weight and wide.lstm.bias_hh_l1.shape == (36,)


def test_the_streams_of_a_residual_network_are_a_group_each():
    model, x = network("resnet")
    graph = Graph.of(model, x)
    assert graph.names == ("0", "3.conv1", "4.conv1", "5.conv1", "5.conv2", "6.conv1")
    for name in ("1.running_var", "3.bn2.weight", "4.bn2.running_mean", "4.conv2.weight"):
        assert graph.axes[name][0] == Axis(0, 0)
    assert graph.axes["5.shortcut.0.weight"] == (Axis(0, 4), goes_in(1, 0))
    assert "1.num_batches_tracked" not in graph.axes
    assert set(graph.axes) == {name for name, t in model.state_dict().items() if t.is_floating_point()}


@draws(15)
@given(st.sampled_from(sorted(NETWORKS)), st.integers(0, 2**31))
def test_a_network_with_its_neurons_in_another_order_is_the_same_function(kind, seed):
    model, x = network(kind)
    graph = Graph.of(model, x)
    other = shuffled(model, graph, seed)
    assert apart(model, other, x) <= 1e-5
    assert Graph.of(other, x) == graph


@draws(25)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 7), st.integers(1, 5), st.data())
def test_sizes_can_be_others(widths, height, width, data):
    def built(widths):
        layers = []
        for a, b in pairwise((2, *widths)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * height * width, 3)).eval()

    model, x = built(widths), torch.randn(2, 2, height, width)
    graph = Graph.of(model, x)
    assert graph.sizes == tuple(widths)
    assert graph.axes[f"{3 * len(widths) + 1}.weight"][1] == goes_in(1, len(widths) - 1, inner=height * width)
    more = [data.draw(st.integers(size, size + 3)) for size in widths]
    large = resized(model, graph, dict(enumerate(more)))
    assert repr(large) == repr(built(more)) and apart(large, model, x) <= 1e-5
    again = resized(large, Graph.of(large, x), dict(enumerate(widths)))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_a_network_of_other_sizes_runs_and_trains(kind):
    model, x = network(kind)
    graph = Graph.of(model, x)
    sizes = graph.levelled({group: size + 1 + group for group, size in enumerate(graph.sizes)})
    large = resized(model, graph, sizes)
    assert apart(large, model, x) <= 1e-5
    assert Graph.of(large, x).sizes == tuple(sizes.values())
    assert set(large.state_dict()) == set(model.state_dict())
    large.train()
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    before = [p.detach().clone() for p in large.parameters()]
    large(x).square().sum().backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, large.parameters(), strict=True))
    assert apart(copy.deepcopy(large), large, x) == 0
    if kind != "vgg9":
        assert apart(pickle.loads(pickle.dumps(large)), large, x) == 0
    small = resized(model, graph, dict.fromkeys(range(len(graph.sizes)), 1))
    assert Graph.of(small, x).sizes == (1,) * len(graph.sizes)


def functional(self, x):
    h = F.max_pool2d(F.relu(self.a(x), inplace=True), 2)
    h = self.b(h).clamp(min=0) * 2 + 1
    h = F.adaptive_avg_pool2d(h, (3, 2)).view(x.size(0), -1)
    return F.log_softmax(self.d(torch.tanh(self.c(F.dropout(h, 0.5, self.training)))), dim=1)


def test_functions_are_followed_as_modules_are():
    layers = {
        "a": nn.Conv2d(1, 3, 3),
        "b": nn.Conv2d(3, 4, 3),
        "c": nn.Linear(24, 5),
        "d": nn.Linear(5, 2),
    }
    graph = Graph.of(Plain(functional, **layers), torch.randn(2, 1, 11, 9))
    assert graph.sizes == (3, 4, 5) and graph.names == ("a", "b", "c")
    assert graph.axes["c.weight"] == (Axis(0, 2), goes_in(1, 1, inner=6))


CONV, HEAD = {"a": nn.Conv2d(2, 4, 3, padding=1)}, {"head": nn.Linear(4, 3)}
MAPS = [
    ("mean", lambda m, x: m.head(m.a(x).mean((2, 3)))),
    ("mean of negative dims", lambda m, x: m.head(m.a(x).mean(dim=(-2, -1), keepdim=True).flatten(1))),
    ("maximum", lambda m, x: m.head(m.a(x).flatten(2).max(dim=2).values)),
    ("squeezed", lambda m, x: m.head(F.adaptive_avg_pool2d(m.a(x), 1).squeeze(3).squeeze(2))),
    ("permuted", lambda m, x: m.head(m.a(x).permute(0, 2, 3, 1)).mean((1, 2))),
    ("sequence", lambda m, x: m.head(m.a(x).flatten(2).transpose(1, 2)[:, -1])),
    ("cut and joined", lambda m, x: m.head(torch.cat(m.a(x).chunk(2, dim=2)[::-1], dim=2).sum((2, 3)))),
    ("there and back", lambda m, x: m.head(m.a(x).reshape(2, -1).unflatten(1, (4, 5, 7)).amax((2, 3)))),
    ("padded", lambda m, x: m.head(F.interpolate(F.pad(m.a(x), (1, 2)), scale_factor=2).sum((2, 3)))),
    ("gated", lambda m, x: m.head((m.a(x) * m.a(x).mean((2, 3), keepdim=True).sigmoid()).sum((2, 3)))),
    ("stacked", lambda m, x: m.head(torch.stack([m.a(x), m.a(x) + 1], dim=-1).mean((2, 3, 4)))),
    ("product", lambda m, x: m.a(x).mean((2, 3)) @ m.head.weight.T + m.head.bias),
    ("addmm", lambda m, x: torch.addmm(m.head.bias, m.a(x).mean((2, 3)), m.head.weight.t())),
    ("normalized", lambda m, x: m.head(F.normalize(m.a(x).mean((2, 3))))),
    ("norm of all channels", lambda m, x: m.head(m.a(x).mean((2, 3)) / m.a(x).mean((2, 3)).norm(dim=1, keepdim=True))),
]


@pytest.mark.parametrize(("kind", "forward"), MAPS, ids=[kind for kind, _ in MAPS])
def test_ways_from_a_map_to_the_outputs(kind, forward):
    graph = Graph.of(Plain(forward, **CONV, **HEAD), torch.randn(2, 2, 5, 7))
    assert graph.sizes == (4,)
    assert graph.axes["a.weight"] == (Axis(0, 0),)
    assert graph.axes["head.weight"] == (Axis(0, OUTPUTS), goes_in(1, 0))
    assert graph.axes["head.bias"] == (Axis(0, OUTPUTS),)


def test_layers_between_pass_the_neurons():
    x = torch.randn(3, 2, 5, 7)

    def axes_of(middle, after=None, way=lambda m, x: m.head(m.c(m.b(m.a(x))).flatten(1))):
        layers = {"a": nn.Conv2d(2, 4, 1), "b": middle, "c": after or nn.Identity(), "head": nn.Linear(4 * 35, 3)}
        return Graph.of(Plain(way, **layers), x).axes

    assert axes_of(nn.Conv2d(4, 4, 3, padding=1, groups=4))["b.weight"] == (Axis(0, 0),)
    assert axes_of(nn.GroupNorm(1, 4))["b.bias"] == axes_of(nn.PReLU(4))["b.weight"] == (Axis(0, 0),)
    assert axes_of(nn.PReLU())["b.weight"] == ()
    assert axes_of(nn.InstanceNorm2d(4, affine=True))["b.weight"] == (Axis(0, 0),)
    assert axes_of(nn.BatchNorm2d(4, affine=False))["b.running_var"] == (Axis(0, 0),)
    assert axes_of(nn.ConvTranspose2d(4, 4, 1))["b.weight"] == (goes_in(0, 0), Axis(1, 1))
    assert axes_of(nn.LayerNorm((4, 5, 7)))["b.weight"] == (Axis(0, 0),)
    assert axes_of(nn.Flatten(), nn.BatchNorm1d(140))["c.running_mean"] == (Axis(0, 0, inner=35),)
    scale = nn.ParameterList([nn.Parameter(torch.ones(4, 1, 1))])
    assert axes_of(scale, way=lambda m, x: m.head((m.b[0] * m.a(x)).flatten(1)))["b.0"] == (Axis(0, 0),)


def test_a_masked_weight_has_the_axes_of_the_weight():
    model = Plain(
        lambda m, x: m.c(F.linear(m.a(x), m.mask * m.b.weight, m.b.bias)), a=nn.Linear(2, 4), b=nn.Linear(4, 6)
    )
    model.register_buffer("mask", torch.randint(2, (6, 4)).float())
    model.c = nn.Linear(6, 3)
    axes = Graph.of(model, torch.randn(3, 2)).axes
    assert axes["b.weight"] == (Axis(0, 1), goes_in(1, 0))
    assert [(axis.dim, axis.group) for axis in axes["mask"]] == [(0, 1), (1, 0)]


def test_a_cell_that_is_called_at_every_step():
    def forward(m, x):
        h = x.new_zeros(len(x), 4)
        c = torch.zeros_like(h)
        for t in range(x.shape[1]):
            h, c = m.cell(x[:, t], (h, c))
        return m.head(h)

    graph = Graph.of(Plain(forward, cell=nn.LSTMCell(2, 4), **HEAD), torch.randn(3, 5, 2))
    assert graph.axes["cell.weight_hh"] == (Axis(0, 0, outer=4), goes_in(1, 0, 1))
    assert graph.sizes == (4,) and graph.names == ("cell",)


def test_a_layer_used_twice_has_one_group_before_and_behind_it():
    square = nn.Linear(4, 4)
    model = Plain(lambda m, x: m.head(m.b(m.b(m.a(x)).relu())), a=nn.Linear(2, 4), b=square, **HEAD)
    graph = Graph.of(model, torch.randn(3, 2))
    assert graph.sizes == (4,) and graph.axes["b.weight"] == (Axis(0, 0), goes_in(1, 0))
    assert graph.axes["a.weight"] == (Axis(0, 0),)


def test_what_has_an_order_of_its_own_has_no_axis():
    x = torch.randn(3, 4)
    residual = Plain(lambda m, x: m.head(x + m.b(m.a(x)).relu()), a=nn.Linear(4, 5), b=nn.Linear(5, 4), **HEAD)
    graph = Graph.of(residual, x)
    assert graph.sizes == (5,) and graph.axes["b.weight"] == (goes_in(1, 0),) and graph.axes["b.bias"] == ()
    assert graph.axes["head.weight"] == (Axis(0, OUTPUTS),)
    out = Plain(lambda m, x: m.a(x) + m.b(m.a(x)), a=nn.Linear(4, 5), b=nn.Linear(5, 5))
    assert not any(Graph.of(out, x).axes.values())
    # and so the input may be added to the outputs, which are those of the last layer still
    last = Plain(lambda m, x: x + m.b(m.a(x).relu()), a=nn.Linear(4, 5), b=nn.Linear(5, 4))
    assert Graph.of(last, x).axes["b.weight"] == (Axis(0, OUTPUTS), goes_in(1, 0))
    table = torch.arange(4.0)
    placed = Plain(lambda m, x: m.head(m.a(x) + table), a=nn.Linear(4, 4), **HEAD)
    assert Graph.of(placed, x).sizes == ()
    even = Plain(lambda m, x: m.head(m.a(x) + torch.ones(4)), a=nn.Linear(4, 4), **HEAD)
    assert Graph.of(even, x).sizes == (4,)


def test_a_linear_model_has_no_groups():
    graph = Graph.of(nn.Linear(3, 2), torch.randn(2, 3))
    assert graph.sizes == () and graph.axes == {"weight": (Axis(0, OUTPUTS),), "bias": (Axis(0, OUTPUTS),)}


def test_the_model_stays_as_it_was():
    model, x = network("resnet")
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    Graph.of(model, x)
    assert torch.get_rng_state().equal(state) and all(layer.training for layer in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def line(middle, after=None, width=4):
    return Plain(lambda m, x: m.head(m.b(m.a(x))), a=nn.Linear(2, 4), b=middle, head=after or nn.Linear(width, 3))


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


REFUSED = [
    (line(Call(lambda x: torch.cat([x, x], 1)), width=8), "at b: cat puts neurons of a beside others"),
    (line(Call(lambda x: x[:, :2]), width=2), "at b: getitem takes a part of the neurons of a"),
    (line(Call(lambda x: x[:, torch.tensor([0, 2, 1, 3])])), "picks by a tensor"),
    (line(Call(lambda x: x.view(-1, 2, 2).transpose(1, 2).flatten(1))), "view cuts the neurons of a into parts"),
    (line(Call(lambda x: x.cumsum(1))), "at b: cumsum is no function that is known to treat neurons alike"),
    (line(Call(lambda x: x.sort(1).values)), "sort is no function"),
    (line(Call(lambda x: F.glu(x)), width=2), "glu is no function"),
    (line(Call(lambda x: F.avg_pool1d(x, 2)), width=2), "avg_pool1d mixes the neurons of a with their neighbours"),
    (line(Call(lambda x: x.max(1, keepdim=True).indices * x)), "max tells neurons of a by their places"),
    (line(Call(lambda x: F.bilinear(x, x, torch.ones(4, 4, 4)))), "bilinear is no function"),
    (line(nn.LayerNorm(4, elementwise_affine=False)), "elementwise_affine=True"),
    (line(nn.GroupNorm(2, 4)), "a GroupNorm of 2 groups"),
    (Plain(lambda m, x: m.b(m.a(x[..., None])), a=nn.Conv1d(2, 4, 1), b=nn.Conv1d(4, 4, 1, groups=2)), "in 2 groups"),
    (
        Plain(lambda m, x: m.b(m.a(x))[0], a=nn.Linear(2, 4), b=nn.LSTM(4, 3, bidirectional=True)),
        "both directions .* choose bidirectional=False",
    ),
    (Plain(lambda m, x: m.b(m.a(x))[0], a=nn.Linear(2, 4), b=nn.LSTM(4, 3, proj_size=2)), "choose proj_size=0"),
    (Plain(lambda m, x: m.head(m.a(x)[1][-1]), a=nn.GRU(2, 4, 2), **HEAD), "the last states of all layers are in one"),
    (Plain(lambda m, x: m.b(*[m.a(x)] * 3)[0], a=nn.Linear(2, 4), b=nn.MultiheadAttention(4, 2)), "at b: attention"),
    (line(Call(lambda x: F.scaled_dot_product_attention(x, x, x))), "at b: attention cuts neurons into heads"),
    (line(Call(lambda x: F.dropout(x, 0.5))), "becomes another function when the neurons of a change places"),
    (Plain(lambda m, x: torch.ones(2, 2), **HEAD), "do not come from its input"),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@each(("model", "words"), REFUSED)
def test_what_cannot_be_followed_is_said(model, words):
    with pytest.raises(ValueError, match=words):
        Graph.of(model, torch.randn(3, 2))


def test_sizes_out_of_range_are_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    graph = Graph.of(model, torch.randn(3, 2))
    for sizes in ({0: 0}, {1: 2}, {OUTPUTS: 3}):
        with pytest.raises(ValueError, match="groups 0 to 0 can have sizes >= 1"):
            resized(model, graph, sizes)


def test_layers_of_one_module_have_one_size():
    model, x = network("gru")
    graph = Graph.of(model, x)
    assert graph.level == ({1, 2},) and graph.levelled({1: 20}) == {0: 8, 1: 20, 2: 20}
    with pytest.raises(ValueError, match=r"recurrent layer 1 must be as large .* give graph.levelled\(sizes\)"):
        resized(model, graph, {1: 20})


@each("outer", [1, 3])
@each("inner", [1, 2])
def test_neurons_go_to_their_places_and_those_without_one_are_dropped(outer, inner):
    axis = Axis(0, 0, outer, inner)
    tensor = torch.arange(outer * 4 * inner * 2, dtype=torch.float32).reshape(outer * 4 * inner, 2) + 1
    places = torch.tensor([0, -1, 5, 2])
    out = axis.scatter(tensor, places, 6)
    rows, given = axis.neurons_first(out), axis.neurons_first(tensor)
    assert out.shape == (outer * 6 * inner, 2)
    for place in range(6):
        here = (places == place).nonzero().flatten().tolist()
        assert rows[place].equal(given[here[0]] if here else torch.zeros_like(rows[place]))
    assert axis.scatter(tensor, torch.tensor([3, 1, 0, 2]), 4).equal(axis.pick(tensor, torch.tensor([2, 1, 3, 0])))
