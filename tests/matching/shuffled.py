# SPDX-License-Identifier: Apache-2.0
"""Small networks, and copies of them whose neurons are in another order."""

import copy

import torch
from torch import nn

import phalanx as px
from phalanx.matching.graph import Graph, permuted


class CharLstm(nn.Module):
    """Scores of the next character after a text."""

    def __init__(self, vocabulary=20, kind=nn.LSTM, layers=1):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.recurrent = kind(8, 16, layers, batch_first=True)
        self.decoder = nn.Linear(16, vocabulary)

    def forward(self, x):
        return self.decoder(self.recurrent(self.embedding(x))[0][:, -1])


IMAGE = (1, 16, 16)
NETWORKS = {
    "fc": (lambda: px.models.mlp(hidden=(7, 5)).build(IMAGE, 10), IMAGE),
    "lenet": (lambda: px.models.lenet(channels=(4, 6), hidden=12).build(IMAGE, 10), IMAGE),
    "vgg9": (lambda: px.models.vgg9(width=0.25).build((3, 8, 8), 10), (3, 8, 8)),
    "resnet": (lambda: px.models.resnet(widths=(4, 6), blocks=2).build((3, 8, 8), 10), (3, 8, 8)),
    "lstm": (CharLstm, (5,)),
    "gru": (lambda: CharLstm(kind=nn.GRU, layers=2), (5,)),
    "tied": (lambda: px.models.tied_lstm(width=6).build(px.data.Passage(9, 20), 20), (5,)),
}


def network(kind, seed=0):
    """A network in evaluation, its weights, scales and statistics all different, and an input."""
    build, shape = NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval()
        for name, tensor in model.state_dict().items():
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5).mul_(0.1 if "bias" in name else 1)
        return model, torch.randint(20, (3, *shape)) if len(shape) == 1 else torch.randn(3, *shape)


def shuffled(model, graph, seed, noise=0.0):
    """A copy whose neurons are in another order, each weight with some noise of its own."""
    rng = torch.Generator().manual_seed(seed)
    places = {group: torch.randperm(size, generator=rng) for group, size in enumerate(graph.sizes)}
    state = model.state_dict()
    for name, tensor in state.items():
        if noise and tensor.is_floating_point() and "running" not in name:
            state[name] = tensor + noise * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=rng)
    made = copy.deepcopy(model)
    made.load_state_dict(permuted(state, graph, places))
    return made


def copies(model, x, count, noise=0.0):
    graph = Graph.of(model, x)
    return [shuffled(model, graph, seed, noise) for seed in range(count)]


def apart(a, b, x):
    """The largest difference of two networks' outputs."""
    with torch.no_grad():
        return float((a.eval()(x) - b.eval()(x)).abs().max())
