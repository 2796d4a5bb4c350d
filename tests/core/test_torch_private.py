# SPDX-License-Identifier: Apache-2.0
"""Every private name of PyTorch that the library uses exists and means what `core/_torch_private.py` says."""

import re
import subprocess
import sys
from collections import OrderedDict
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import phalanx
from phalanx.core import _torch_private as private


def test_the_base_classes_have_the_layers_that_they_are_used_for() -> None:
    for layer in (nn.Conv1d(1, 2, 3), nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(1, 2, 3)):
        assert isinstance(layer, private.ConvBase)
        assert isinstance(layer, private.ConvTransposeBase) == isinstance(layer, nn.ConvTranspose2d)
        assert (layer.in_channels, layer.out_channels, layer.groups) == (1, 2, 1)
    # a transposed convolution stores its inputs first
    assert nn.ConvTranspose2d(4, 6, 3).weight.shape[:2] == (4, 6) and nn.Conv2d(4, 6, 3).weight.shape[:2] == (6, 4)
    for layer in (nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.SyncBatchNorm(3)):
        assert isinstance(layer, private.BatchNormBase) and layer.num_features == 3
    for layer in (nn.BatchNorm2d(3), nn.InstanceNorm2d(3)):
        assert isinstance(layer, private.NormBase) and layer.num_features == 3
    assert not isinstance(nn.InstanceNorm2d(3), private.BatchNormBase)
    assert not isinstance(nn.LayerNorm(3), private.NormBase)


def test_submodules_can_be_replaced_under_each_of_their_names() -> None:
    child, other = nn.Linear(2, 2), nn.ReLU()
    model = nn.Sequential(OrderedDict(a=child, b=child))
    assert list(private.submodules(model)) == ["a", "b"] and len(list(model.named_children())) == 1
    private.submodules(model)["b"] = other
    assert model.b is other and model.a is child


def test_hooks_are_copied_with_their_options() -> None:
    calls: list[str] = []
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    old.register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True)
    old.register_forward_hook(lambda module, args, kwargs, out: calls.append("after"), with_kwargs=True)
    old.register_forward_hook(lambda module, args, out: calls.append("always"), always_call=True)
    old.register_full_backward_pre_hook(lambda module, grad: calls.append("backward before"))
    old.register_full_backward_hook(lambda module, grad_in, grad_out: calls.append("backward"))
    private.copy_hooks(old, new)
    new(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "always", "backward before", "backward"]
    hooks = {name for name, value in vars(nn.Linear(2, 2)).items() if name.endswith("hooks") and value is not None}
    state = {"_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"}
    assert hooks - state == {name for name in private._HOOKS if name.endswith("hooks")}


@pytest.mark.parametrize("persistent", [True, False])
def test_persistence_of_a_buffer(persistent: bool) -> None:
    module = nn.Module()
    module.register_buffer("mean", torch.zeros(1), persistent=persistent)
    assert private.is_persistent(module, "mean") == persistent == ("mean" in module.state_dict())


def test_a_recurrent_layer_lists_the_tensors_of_its_names() -> None:
    lstm, x = nn.LSTM(2, 3), torch.ones(4, 1, 2)
    before = lstm(x)[0]
    old = lstm.bias_hh_l0
    del lstm.bias_hh_l0
    lstm.register_buffer("bias_hh_l0", old.detach() + 1.0)
    position = lstm._flat_weights_names.index("bias_hh_l0")
    assert lstm._flat_weights[position] is old
    private.refresh_flat_weights(lstm)
    assert all(lstm._flat_weights[i] is getattr(lstm, name) for i, name in enumerate(lstm._flat_weights_names))
    assert not lstm(x)[0].equal(before)


class Attention(private.NoFusedAttention, nn.Module):
    """An attention without weights that counts the calls of its forward."""

    batch_first, num_heads, in_proj_bias = True, 2, None

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, query: torch.Tensor, *args: object, **kwargs: object) -> tuple[torch.Tensor, None]:
        self.calls += 1
        return query, None


def test_an_encoder_layer_calls_the_forward_of_an_attention_without_plain_weights() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    layer.self_attn = Attention()
    with torch.no_grad():
        layer(torch.ones(1, 3, 4))
    assert layer.self_attn.calls == 1


def test_the_timeout_of_a_group_is_the_one_that_it_was_made_with(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        group = dist.new_group([0], timeout=timedelta(seconds=77))
        assert private.group_timeout(group) == timedelta(seconds=77)
    finally:
        dist.destroy_process_group()


def test_no_other_file_uses_private_names_of_torch() -> None:
    names = [*private._HOOKS, "_modules", "_parameters", "_buffers", "_flat_weights", "_get_backend", "_device_types"]
    field = re.compile(rf"(?<!self)\.(?:{'|'.join(names)})\b")
    imported = re.compile(r"from torch[\w.]* import .*\b_\w|\b(?:torch|nn)(?:\.\w+)*\._(?!dynamo\b)\w")
    root = Path(phalanx.__file__).parent
    found = [
        f"{path.relative_to(root)}:{number}"
        for path in sorted(root.rglob("*.py"))
        if path.name != "_torch_private.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if imported.search(line) or field.search(line)
    ]
    assert not found, "put these behind core/_torch_private.py"


OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.1, "weight_decay": 0.01},
    "AdamW": {"lr": 0.1, "weight_decay": 0.01},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_eager_optimizer_takes_the_steps_of_the_original(name: str) -> None:
    original = getattr(torch.optim, name)
    weights = []
    for kind in (original, private.eager(original)):
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(5, 3, generator=generator))
        optimizer = kind([weight], **OPTIMIZERS[name])
        for _ in range(3):
            weight.grad = torch.randn(5, 3, generator=generator)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state = optimizer.state_dict()
            optimizer = kind([weight], **OPTIMIZERS[name])
            optimizer.load_state_dict(state)
        weights.append(weight.detach())
        assert isinstance(optimizer, original) and type(optimizer).__name__ == name
    assert torch.equal(*weights)


def test_an_eager_optimizer_does_not_import_the_compiler() -> None:
    lines = """
import sys, torch
from phalanx.core._torch_private import eager
weight = torch.nn.Parameter(torch.zeros(2))
optimizer = eager(torch.optim.SGD)([weight], 0.1)
weight.grad = torch.ones(2)
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True).stdout == "False\n"
