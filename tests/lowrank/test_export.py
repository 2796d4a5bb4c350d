# SPDX-License-Identifier: Apache-2.0
"""Low-rank models as ONNX files, as onnxruntime computes them."""

import re
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import phalanx as px
from phalanx.lowrank.layer import LowRank

pytestmark = [
    # the exporter uses a name of PyTorch's own that is deprecated, and remarks that two inputs share their batch
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*axis name. batch:UserWarning"),
]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x, y):
        return self.inner(x, y, y)


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, groups=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)), [(3, 32)]),
    "convolutions": (cnn, [(3, 3, 9, 9)]),
    "attention": (Attention, [(3, 5, 16), (3, 4, 16)]),
    "encoder": (encoder, [(3, 5, 16)]),
    "transformer": (lambda: nn.Transformer(16, 2, 1, 1, 32, batch_first=True), [(3, 5, 16), (3, 4, 16)]),
    "lstm": (lambda: nn.LSTM(12, 12, batch_first=True, bidirectional=True), [(3, 3, 12)]),
    "gru": (lambda: nn.GRU(12, 12, 2, batch_first=True), [(3, 3, 12)]),
}


def leaves(x):
    return [x] if isinstance(x, torch.Tensor) else [t for part in x if part is not None for t in leaves(part)]


def agree(file: Path, model: nn.Module, *inputs: torch.Tensor) -> None:
    """Every output of the file is the model's, to 1e-4."""
    session = onnxruntime.InferenceSession(file)
    feed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        want = leaves(model(*inputs))
    for got, each in zip(session.run(None, feed), want, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), each, atol=1e-4, rtol=0)


def parameters(file: Path) -> int:
    """Numbers in the weights that the file holds."""
    weights = onnx.load(file).graph.initializer
    return sum(torch.Size(w.dims).numel() for w in weights if w.data_type == onnx.TensorProto.FLOAT)


@pytest.mark.parametrize("name", MODELS)
def test_the_file_computes_what_the_model_does_for_every_batch(name, tmp_path):
    torch.manual_seed(0)
    build, shapes = MODELS[name]
    low, file = px.factorize(build(), 0.25).eval(), tmp_path / "low.onnx"
    assert any(isinstance(module, LowRank) for module in low.modules())
    inputs = tuple(torch.randn(shape) for shape in shapes)
    batch = ({0: torch.export.Dim("batch", min=2)},) * len(inputs)
    torch.onnx.export(low, inputs, file, dynamo=True, verbose=False, dynamic_shapes=batch)
    for size in (3, 5):
        agree(file, low, *(torch.randn(size, *rest) for _, *rest in shapes))


@pytest.mark.parametrize(("model", "shape"), [
    (px.models.tied_lstm(width=12, layers=2), px.data.Passage(5, 20)),
    (px.models.transformer(width=16, hidden=32, heads=2, layers=2), px.data.Pairs(6, 20)),
])  # fmt: skip
def test_our_networks_of_texts(model, shape, tmp_path):
    torch.manual_seed(0)
    low, file = px.factorize(model.build(shape, 20), 0.25).eval(), tmp_path / "low.onnx"
    x = torch.randint(4, 20, (3, *((2,) if isinstance(shape, px.data.Pairs) else ()), shape.length))
    torch.onnx.export(low, (x,), file, dynamo=True, verbose=False)
    agree(file, low, x)


def test_factors_stay_factors_in_the_file(tmp_path):
    low, file = px.factorize(MODELS["linear"][0](), 0.25).eval(), tmp_path / "low.onnx"
    torch.onnx.export(low, (torch.zeros(2, 32),), file, dynamo=True, verbose=False)
    assert parameters(file) == sum(p.numel() for p in low.parameters())


def test_the_page_that_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "pufferfish.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    first, then, recipe, *_ = (block for block in blocks if "transformers" not in block)
    names: dict = {}
    for block in (first, then, recipe):
        exec(block, names)
    agree(tmp_path / "low.onnx", names["low"], torch.randn(7, 784))
