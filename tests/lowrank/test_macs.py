# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import phalanx
from phalanx.tools.zoo import network
from tests.cases import draws, each

# of the dissertation, Tables 4.2, 4.4 and 4.5, one input
PUBLISHED = {"vgg19-cifar": 0.40e9, "resnet18-cifar": 0.56e9, "resnet50": 4.12e9, "wide-resnet50-2": 11.44e9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_macs(name):
    with torch.device("meta"):
        model = network(name).build().eval()
        total = phalanx.lowrank.macs(model, network(name).sample_input()).total
    assert total == pytest.approx(PUBLISHED[name], rel=0.02)


def test_the_lstm_multiplies_18_million_a_word_in_each_layer():
    # the table's 18M are one of the two layers, and its 9M one of the hybrid's: 8 matrices of 375 (1500 + 1500)
    with torch.device("meta"):
        counted = phalanx.lowrank.macs(network("lstm-wikitext2").build(), torch.zeros(1, 1, dtype=torch.int64))
    assert counted["lstm"] / 2 == pytest.approx(18e6, rel=0.02)
    # the last layer shares its matrix with the embedding, which is looked up
    assert counted.total == counted["lstm"] + 1500 * 33_278


def counted_by_pytorch(model: nn.Module, *inputs: object) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*inputs)
    return counter.get_total_flops() / 2


def check(model: nn.Module, *inputs: object) -> None:
    assert phalanx.lowrank.macs(model, *inputs).total == counted_by_pytorch(model, *inputs) > 0


@pytest.mark.parametrize("name", [*PUBLISHED, "transformer-multi30k"])
def test_the_networks_against_pytorchs_counter(name):
    with torch.device("meta"):
        check(network(name).build().eval(), network(name).sample_input(2))


@draws(25)
@given(st.sampled_from([1, 2, 3]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.data())
def test_convolutions(dims, stride, kernel, padding, transposed, data):
    groups = data.draw(st.sampled_from([1, 2, 4]))
    kinds = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if transposed
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    )
    # PyTorch's counter forgets the groups of a transposed convolution
    groups = 1 if transposed else groups
    layer = kinds[dims - 1](4, 8, kernel, stride, padding, groups=groups)
    check(layer, torch.randn(2, 4, *[data.draw(st.integers(5, 7)) for _ in range(dims)]))


@each("shape", [(3,), (2, 3), (2, 5, 3), (0, 3)])
def test_linear_layers_of_any_input(shape):
    assert phalanx.lowrank.macs(nn.Linear(3, 7), torch.zeros(shape)).total == torch.zeros(shape).numel() * 7


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@each("bidirectional", [False, True])
@each("batch_first", [False, True])
def test_recurrent_layers(kind, bidirectional, batch_first):
    gates, directions = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind], 1 + bidirectional
    layer = kind(3, 5, 2, bidirectional=bidirectional, batch_first=batch_first)
    a_word = directions * gates * 5 * ((3 + 5) + (5 * directions + 5))
    assert phalanx.lowrank.macs(layer, torch.zeros(6, 2, 3)).total == 12 * a_word
    assert phalanx.lowrank.macs(layer, torch.zeros(6, 3)).total == 6 * a_word
    packed = nn.utils.rnn.pack_sequence([torch.zeros(4, 3), torch.zeros(2, 3)])
    assert phalanx.lowrank.macs(layer, packed).total == 6 * a_word


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_cells_and_projections():
    assert phalanx.lowrank.macs(nn.LSTMCell(3, 5), torch.zeros(7, 3)).total == 7 * 20 * 8
    assert phalanx.lowrank.macs(nn.GRUCell(3, 5), torch.zeros(3)).total == 15 * 8
    assert phalanx.lowrank.macs(nn.LSTM(3, 5, proj_size=2), torch.zeros(6, 1, 3)).total == 6 * (20 * (3 + 2) + 2 * 5)


@draws(25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans())
def test_multi_head_attention(batch, asks, asked, batch_first, own_sizes):
    sizes = {"kdim": 6, "vdim": 10} if own_sizes else {}
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes).eval()
    query, key = torch.randn(batch, asks, 8), torch.randn(batch, asked, sizes.get("kdim", 8))
    value = torch.randn(batch, asked, sizes.get("vdim", 8))
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    check(layer, query, key, value)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self):
            return self.layer(value=value, key=key, query=query)

    assert phalanx.lowrank.macs(Named()).total == phalanx.lowrank.macs(layer, query, key, value).total
    if batch == 1:
        alone = [x.squeeze(0 if batch_first else 1) for x in (query, key, value)]
        assert phalanx.lowrank.macs(layer, *alone).total == phalanx.lowrank.macs(layer, query, key, value).total


def test_pytorchs_transformer():
    model, inputs = nn.Transformer(8, 2, 2, 2, 16, batch_first=True), (torch.randn(2, 5, 8), torch.randn(2, 3, 8))
    check(model, *inputs)
    # in evaluation PyTorch fuses whole layers, which its own counter does not see
    assert phalanx.lowrank.macs(model.eval(), *inputs).total == counted_by_pytorch(model.train(), *inputs)


class Thin(nn.Module):
    """Two layers that speak for themselves."""

    def __init__(self):
        super().__init__()
        self.u, self.v = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x, twice=False):
        out = self.v(self.u(x))
        return self.v(self.u(out)) if twice else out

    def macs(self, inputs, output):
        return 1000 + len(inputs)


def test_a_module_may_count_itself_and_what_is_within():
    counted = phalanx.lowrank.macs(nn.Sequential(Thin(), nn.Linear(4, 3)), torch.zeros(5, 4))
    assert [(layer.name, layer.kind, layer.macs) for layer in counted.layers] == [
        ("0", "Thin", 1001),
        ("1", "Linear", 60),
    ]
    assert phalanx.lowrank.macs(Thin(), torch.zeros(1, 4)).layers[0].name == ""


def test_names_calls_and_modules_of_two_names():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.Sequential(shared, shared), "ab": nn.Linear(4, 2), "idle": nn.Linear(4, 4)})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["ab"](self.parts["a"](x))

    net = Net()
    counted = phalanx.lowrank.macs(net, torch.zeros(3, 4))
    assert {layer.name: layer.macs for layer in counted.layers} == {"parts.a.0": 96, "parts.ab": 24}
    assert counted["parts.a"] == 96 and counted["parts"] == counted.total == counted[""] == 120
    assert counted["parts.idle"] == counted["nothing"] == 0
    assert not any(m._forward_hooks for m in net.modules())
    with pytest.raises(RuntimeError):
        phalanx.lowrank.macs(net, torch.zeros(3, 5))
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, groups=2), nn.Flatten(), nn.Linear(256, 32)), torch.zeros(3, 8, 7, 7)),
        (nn.LSTM(24, 20, 2, bidirectional=True), torch.zeros(5, 3, 24)),
        (nn.GRU(24, 20, batch_first=True), torch.zeros(3, 5, 24)),
        (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), torch.zeros(3, 5, 32)),
    ],
)
def test_a_low_rank_model_multiplies_what_its_plan_says(model, x):
    plan = phalanx.lowrank.plan(model, 1 / 4, classifier=False, sample_input=x)
    dense, low = phalanx.lowrank.macs(model, x).total, phalanx.lowrank.macs(phalanx.factorize(model, plan), x).total
    assert dense - low == plan.macs - plan.macs_after > 0


def test_a_low_rank_embedding_multiplies_by_one_factor():
    model = nn.Sequential(nn.Embedding(40, 32))
    low = phalanx.factorize(model, 1 / 4, embedding=True)
    assert phalanx.lowrank.macs(low, torch.zeros(3, 5, dtype=torch.long)).total == 15 * 8 * 32
