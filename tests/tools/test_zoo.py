# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch
from torch import nn

from phalanx.data.shape import Pairs, Passage
from phalanx.lowrank.factorize import factorize
from phalanx.lowrank.merge import merge
from phalanx.lowrank.planner import plan
from phalanx.lowrank.pretrained import from_pretrained, save_pretrained
from phalanx.models.lstm import TiedLstm
from phalanx.models.transformer import Transformer
from phalanx.tools.zoo import NETWORKS, network
from phalanx.training.score import cross_entropy

COUNTS = {
    "vgg19-cifar": (20_560_330, 8_370_634),
    "vgg19-lth": (20_035_018, 8_107_466),
    "resnet18-cifar": (11_173_962, 3_336_266),
    "resnet50": (25_557_032, 15_202_344),
    "wide-resnet50-2": (68_883_240, 40_047_400),
    "lstm-wikitext2": (85_962_278, 67_962_278),
    "transformer-multi30k": (48_978_432, 26_696_192),
}


def saved(layer: nn.Module, ratio: float) -> int:
    """Parameters that two thin factors have less than the layer's matrices."""
    if isinstance(layer, nn.Conv2d):
        inside, out, k2 = layer.in_channels, layer.out_channels, layer.weight[0, 0].numel()
        r = int(ratio * min(out, inside * k2))
        return inside * out * k2 - r * (inside * k2 + out)
    if isinstance(layer, nn.Linear):
        inside, out = layer.in_features, layer.out_features
        r = int(ratio * min(inside, out))
        return inside * out - r * (inside + out)
    if isinstance(layer, nn.LSTM):
        less, hidden = 0, layer.hidden_size
        for name, weight in layer.named_parameters():
            if name.startswith("weight"):
                r = int(ratio * min(hidden, weight.shape[1]))
                less += 4 * (hidden * weight.shape[1] - r * (hidden + weight.shape[1]))
        return less
    return 0


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_full_and_hybrid(name):
    with torch.device("meta"):
        model = network(name).build()
    full = sum(p.numel() for p in model.parameters())
    hybrid = full - sum(
        saved(m, network(name).ratio) for path, m in model.named_modules() if network(name).is_low(path)
    )
    assert (full, hybrid) == COUNTS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_pattern_names_a_layer(name):
    with torch.device("meta"):
        model = network(name).build()
    for pattern in network(name).low:
        alone = replace(network(name), low=(pattern,))
        assert any(saved(m, 0.25) > 0 for path, m in model.named_modules() if alone.is_low(path))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_reads_its_sample(name):
    with torch.device("meta"):
        out = network(name).build()(network(name).sample_input(2))
    assert out.shape[0] == 2 and out.shape[-1] == network(name).num_classes


MACS = {
    "vgg19-cifar": (0.40e9, 0.29e9),
    "resnet18-cifar": (0.56e9, 0.22e9),
    "resnet50": (4.12e9, 3.6e9),
    "wide-resnet50-2": (11.44e9, 9.99e9),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_hybrid_plan(name):
    found = network(name).hybrid()
    assert (found.parameters, found.parameters_after) == COUNTS[name]
    if name in MACS:
        assert (found.macs, found.macs_after) == pytest.approx(MACS[name], rel=0.02)


def test_a_hybrid_plan_can_be_given_to_factorize():
    torch.manual_seed(0)
    chosen = network("resnet18-cifar")
    model = chosen.build()
    low = factorize(model, chosen.hybrid(1 / 8), svd="randomized")
    assert (
        sum(p.numel() for p in low.parameters()) == chosen.hybrid(1 / 8).parameters_after < COUNTS["resnet18-cifar"][1]
    )
    assert low(chosen.sample_input(2)).shape == (2, 10)


SMALL = {
    "tied_lstm": (TiedLstm(width=32), Passage(7, 100)),
    "transformer": (Transformer(width=32, hidden=64, heads=4, layers=2), Pairs(7, 100)),
}


@pytest.mark.parametrize("name", SMALL)
def test_networks_of_texts_become_low_rank_and_dense_again(name, tmp_path):
    torch.manual_seed(0)
    model, shape = SMALL[name]
    dense = model.build(shape, 100).eval()
    text = torch.randint(4, 100, (3, 2, 7) if isinstance(shape, Pairs) else (3, 7))
    planned = plan(dense, 1 / 4)
    low = factorize(dense, planned)
    assert sum(p.numel() for p in low.parameters()) == planned.parameters_after < planned.parameters
    cross_entropy(low(text), torch.zeros(3, 7, dtype=torch.long)).backward()
    assert all(p.grad is not None for p in low.parameters())
    whole = factorize(dense, planned.with_ranks({e.name: e.largest_rank for e in planned if e.rank}))
    again = merge(whole)
    torch.testing.assert_close(whole(text), dense(text), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again(text), dense(text), rtol=1e-4, atol=1e-5)
    assert again.state_dict().keys() == dense.state_dict().keys()
    assert [n for n, _ in again.named_buffers()] == [n for n, _ in dense.named_buffers()]
    save_pretrained(low, tmp_path / "low")
    torch.testing.assert_close(from_pretrained(tmp_path / "low", model.build(shape, 100)).eval()(text), low(text))


def test_an_unknown_network():
    with pytest.raises(ValueError, match="did you mean resnet50"):
        network("resnet-50")
