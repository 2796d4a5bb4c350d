# SPDX-License-Identifier: Apache-2.0
"""Factorized models in folders."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import phalanx as px
from phalanx.lowrank.pretrained import PLAN, TENSORS


class Small(nn.Module):
    """Every family of layers, a buffer, and a tied weight."""

    def __init__(self, tied=True, width=16):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, width, 3, padding=1), nn.BatchNorm1d(width)
        self.rnn = nn.LSTM(width, width, bidirectional=True, batch_first=True)
        self.attention = nn.MultiheadAttention(2 * width, 2, batch_first=True)
        self.body, self.embed, self.head = nn.Linear(2 * width, width), nn.Embedding(30, width), nn.Linear(width, 30)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x):
        y = self.rnn(self.norm(self.conv(x)).mT)[0]
        return self.head(self.body(y + self.attention(y, y, y)[0]))


def saved(folder, **rules):
    torch.manual_seed(0)
    low = px.factorize(Small(), 0.25, **rules)
    low(torch.randn(4, 3, 6)).sum().backward()  # moves the statistics
    px.lowrank.save_pretrained(low.eval(), folder)
    return low


@pytest.mark.parametrize("rules", [{}, {"embedding": True}, {"first": 3}, {"keep": ["attention.q_proj", "rnn"]}])
def test_a_saved_model_is_the_same_with_its_ties(tmp_path, rules):
    low, x = saved(tmp_path / "deep" / "folder", **rules), torch.randn(2, 3, 5)
    for model in (Small, Small()):
        again = px.lowrank.from_pretrained(tmp_path / "deep" / "folder", model).eval()
        assert torch.equal(again(x), low(x))
        assert px.lowrank.Plan.from_yaml((tmp_path / "deep" / "folder" / PLAN).read_text()).parameters_after == sum(
            p.numel() for p in again.parameters()
        )
        if "embedding" in rules:
            assert again.head.v is again.embed.v and again.head.u is again.embed.u
        else:
            assert again.head.weight is again.embed.weight


def test_a_saved_model_loads_in_another_process(tmp_path):
    low = saved(tmp_path)
    x = torch.linspace(-1, 1, 30).reshape(2, 3, 5)
    code = (
        "import torch, phalanx as px\n"
        "from tests.lowrank.test_pretrained import Small\n"
        f"low = px.lowrank.from_pretrained({str(tmp_path)!r}, Small).eval()\n"
        "print(low(torch.linspace(-1, 1, 30).reshape(2, 3, 5)).double().sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(low(x).double().sum().item(), rel=1e-5)


def test_dense_and_half_models_are_saved_too(tmp_path):
    dense = Small().to(torch.bfloat16)
    px.lowrank.save_pretrained(dense, tmp_path)
    again = px.lowrank.from_pretrained(tmp_path, Small().to(torch.bfloat16))
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"is torch\.bfloat16, the model has torch\.float32; convert"):
        px.lowrank.from_pretrained(tmp_path, Small)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: Small(width=12), r"layer 'conv' has shape and copies \[12, 3, 3\] x 1"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), "'conv' is not in the model"),
        (lambda: Small(tied=False), "head.weight and embed.weight are one tensor in the file only; tie"),
        (lambda: nn.ModuleDict({**Small()._modules, "more": nn.Linear(2, 2)}), "lacks more.bias, more.weight"),
        (lambda: px.factorize(Small(), 0.25), "low-rank layers already"),
    ],
)
def test_another_model_is_refused(tmp_path, model, words):
    saved(tmp_path)
    with pytest.raises(ValueError, match=words):
        px.lowrank.from_pretrained(tmp_path, model)


def test_damaged_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"holds no {TENSORS}"):
        px.lowrank.from_pretrained(tmp_path, Small)
    saved(tmp_path)
    content = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(content[:-10])
    with pytest.raises(ValueError, match="not a whole file"):
        px.lowrank.from_pretrained(tmp_path, Small)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / TENSORS)
    with pytest.raises(ValueError, match="holds format None"):
        px.lowrank.from_pretrained(tmp_path, Small)
    assert sorted(path.name for path in tmp_path.iterdir()) == [TENSORS, PLAN]


def test_a_state_that_is_no_tensor_is_refused(tmp_path):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

    with pytest.raises(ValueError, match="'_extra_state', a dict; only tensors"):
        px.lowrank.save_pretrained(Counting(2, 2), tmp_path)
