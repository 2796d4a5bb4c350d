# SPDX-License-Identifier: Apache-2.0
"""The layers of a model that have a low-rank form, and the reasons why others stay full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from phalanx.lowrank.attention import LowRankAttention
from phalanx.lowrank.conv import LowRankConv
from phalanx.lowrank.embedding import LowRankEmbedding
from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import LowRank, adapted_layer
from phalanx.lowrank.linear import LowRankLinear, is_transposed
from phalanx.lowrank.macs import expert_weights
from phalanx.lowrank.recurrent import LowRankGru, LowRankLstm

EXPERTS = "experts"

_FAMILIES: dict[type[nn.Module], type[LowRank]] = {
    nn.Linear: LowRankLinear,
    NonDynamicallyQuantizableLinear: LowRankLinear,
    nn.Conv1d: LowRankConv,
    nn.Conv2d: LowRankConv,
    nn.Embedding: LowRankEmbedding,
    nn.MultiheadAttention: LowRankAttention,
    nn.LSTM: LowRankLstm,
    nn.GRU: LowRankGru,
}


@dataclass(frozen=True)
class Layer:
    """A module with matrices.

    Args:
        name: path of the module in the model.
        module: the module itself.
        family: class of its low-rank form; None if there is none.
        factors: its matrices.
        refusal: the reason why it must stay full; empty if it need not.
    """

    name: str
    module: nn.Module
    family: type[LowRank] | None
    factors: tuple[Factor, ...]
    refusal: str

    @property
    def kind(self) -> str:
        """The family's kind, "experts" for those of a mixture in one tensor, or the module's class in lower case."""
        if self.family is None and any(factor.copies > 1 for factor in self.factors):
            return EXPERTS
        return self.family.kind if self.family is not None else type(self.module).__name__.lower()

    def path(self, factor: Factor) -> str:
        """The name of one of the module's matrices in the model."""
        return ".".join(part for part in (self.name, factor.name) if part)

    def owned(self, factor: Factor) -> nn.Parameter | None:
        """The dense parameter of a matrix; None if the weight is computed from other parameters."""
        path, _, last = factor.weight.rpartition(".")
        own = self.module.get_submodule(path).named_parameters(recurse=False, remove_duplicate=False)
        return dict(own).get(last)

    def weight(self, factor: Factor) -> nn.Parameter:
        """The dense parameter of a matrix that can be factorized."""
        return self.module.get_parameter(factor.weight)


def layers(model: nn.Module) -> list[Layer]:
    """The layers with matrices in the order in which the model registers them; a shared module appears once.

    Raises:
        ValueError: some layers are of low rank already, or have no shape yet.
    """
    model_layers = list(_walk(model, "", set()))
    done = [layer.name for layer in model_layers if isinstance(layer.module, LowRank)]
    if done:
        few = ", ".join(map(repr, done[:3])) + (", ..." if len(done) > 3 else "")
        raise ValueError(f"the model has low-rank layers already ({few}); make it dense first with merge(model)")
    return model_layers


def parameter_names(model: nn.Module) -> dict[int, list[str]]:
    """All names of every parameter, by its id; a shared parameter has more than one."""
    names: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            names.setdefault(id(parameter), []).append(f"{prefix}.{name}" if prefix else name)
    return names


def _walk(module: nn.Module, name: str, seen: set[int]) -> Iterator[Layer]:
    if id(module) in seen:
        return
    seen.add(id(module))
    layer = _layer(module, name)
    if layer is not None:
        yield layer
        if layer.kind != EXPERTS:
            return
    base = adapted_layer(module)
    for child, inner in module.named_children():
        for found in _walk(inner, f"{name}.{child}" if name else child, seen):
            yield found if base is None or inner is base else replace(found, refusal="an adapter of PEFT")


def _layer(module: nn.Module, name: str) -> Layer | None:
    if isinstance(module, LowRank):
        return Layer(name, module, None, (), "low rank already")
    family = LowRankLinear if is_transposed(module) else _FAMILIES.get(type(module))
    if family is not None:
        factors = family.dense_factors(module)
        layer = Layer(name, module, family, factors, family.refusal(module))
        return layer if layer.refusal else replace(layer, refusal=_unfit(layer))
    weight: Any = getattr(module, "weight", None)
    if isinstance(weight, UninitializedParameter):
        raise ValueError(f"layer {name!r} has no shape yet; run the model once before you plan or factorize it")
    changed = is_parametrized(module)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or (any(module.children()) and not changed):
        experts = expert_weights(module)
        factors = (
            Factor(key, key, (x.shape[0] * x.shape[1], x.shape[2]), copies=x.shape[0]) for key, x in experts.items()
        )
        refusal = "experts of a mixture in one tensor have no low-rank form"
        return Layer(name, module, None, tuple(factors), refusal) if experts else None
    kin = next((known for known in _FAMILIES if isinstance(module, known)), None)
    refusal = "no low-rank form"
    if changed:
        refusal = "its weight is parametrized"
    elif kin is not None:
        refusal = f"a subclass of {kin.__name__} with a forward that is not known"
    return Layer(name, module, None, (Factor("", "weight", tuple(weight.shape)),), refusal)


def _unfit(layer: Layer) -> str:
    """The reason why the weights of a layer cannot be replaced, apart from its class; empty if they can."""
    for factor in layer.factors:
        weight = layer.owned(factor)
        if weight is None:
            return f"its {factor.weight} is computed, by pruning or weight norm"
        if not weight.is_floating_point():
            return f"its {factor.weight} is of {weight.dtype}"
        if weight.numel() == 0:
            return f"its {factor.weight} is empty"
        if weight.layout != torch.strided:
            return f"its {factor.weight} is not strided"
    return ""
