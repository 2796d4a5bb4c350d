# SPDX-License-Identifier: Apache-2.0
"""Factorized models of Hugging Face's transformers: their own `save_pretrained` and `from_pretrained` keep the factors.

The plan is in `config.json`, where transformers keep what they must know before weights are loaded. A process that
loads such a folder imports this module first. Without it transformers refuse the folder: each factorized weight has an
empty tensor in the file, whose shape fits no dense layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import PathLike
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from phalanx.lowrank.factor import Factor
from phalanx.lowrank.factorize import apply
from phalanx.lowrank.layer import LowRank
from phalanx.lowrank.merge import applied, low_rank_layers
from phalanx.lowrank.plan import Plan

METHOD = "phalanx.lowrank.huggingface"  # in config.json; transformers name it where this module is not imported


@register_quantization_config(METHOD)
class LowRankConfig(QuantizationConfigMixin):
    """The plan of a factorized model, as a part of `config.json`.

    Args:
        plan: the plan as YAML.
    """

    def __init__(self, plan: str, quant_method: Any = METHOD, **_: Any) -> None:
        self.plan, self.quant_method = plan, quant_method


@register_quantizer(METHOD)
class LowRankQuantizer(HfQuantizer):
    """Applies the plan before transformers load the weights, and writes the factors when they save them."""

    def preprocess_model(self, model: Any, **_: Any) -> None:  # type: ignore[override]
        """Makes the layers of the plan, without data."""
        apply(model, Plan.from_yaml(self.quantization_config.plan), None, inplace=True)  # type: ignore[attr-defined]
        names = (re.escape(name) for name, _, _ in _factorized(model))
        model._keys_to_ignore_on_load_unexpected = {
            *(model._keys_to_ignore_on_load_unexpected or ()),
            *(f"^{name}$" for name in names),
        }

    def postprocess_model(self, model: Any, **__: Any) -> None:  # type: ignore[override]
        """Ties the factors that were tied when the model was saved; the model is not quantized."""
        paths = {
            ".".join(part for part in (name, factor.name) if part): (low, factor)
            for name, low in low_rank_layers(model).items()
            for factor in low.factors
        }
        for entry in Plan.from_yaml(self.quantization_config.plan):  # type: ignore[attr-defined]
            if entry.tied:
                (owner, first), (low, factor) = paths[entry.tied], paths[entry.name]
                for source, target in ((first.u, factor.u), (first.v, factor.v)):
                    path, _, last = target.rpartition(".")
                    setattr(low.get_submodule(path), last, owner.get_parameter(source))
        mark(model)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor] | None, dict[str, str]]:  # type: ignore[override]
        """The tensors to save; factors that layers share are written for each of them."""
        _mark(model, configure=True)
        state: dict[str, Tensor] = model.state_dict()
        seen: set[int] = set()
        for path, low in low_rank_layers(model).items():
            for key in (".".join(part for part in (path, name) if part) for name in low.state_dict()):
                if state[key].data_ptr() in seen:
                    state[key] = state[key].clone()
                seen.add(state[key].data_ptr())
        for name, _, _ in _factorized(model):
            state.setdefault(name, torch.empty(0))
        return state, {}

    def is_serializable(self) -> bool:  # type: ignore[override]
        """Whether it can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:  # type: ignore[override]
        return True


def mark(model: nn.Module) -> None:
    """Makes every model of transformers inside a model save its factors, or its dense weights if it has no factors."""
    configs: set[int] = set()
    for module in model.modules():
        if isinstance(module, transformers.PreTrainedModel):
            # a head and the network behind it have one configuration; it is for the outer one until the inner is saved
            _mark(module, id(module.config) not in configs)
            configs.add(id(module.config))


def _mark(model: Any, configure: bool) -> None:
    plan, other = applied(model), getattr(model, "hf_quantizer", None)
    if not len(plan):
        if isinstance(other, LowRankQuantizer):
            del model.hf_quantizer
        if configure and isinstance(getattr(model.config, "quantization_config", None), LowRankConfig):
            del model.config.quantization_config
        return
    if other is not None and not isinstance(other, LowRankQuantizer):
        raise ValueError(f"the model's weights are quantized ({type(other).__name__}); factorize it before that")
    config = LowRankConfig(plan.to_yaml())  # type: ignore[arg-type]
    model.hf_quantizer = LowRankQuantizer(config)
    if configure:
        model.config.quantization_config = config
    low = {name for name, _, _ in _factorized(model)}
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    model.all_tied_weights_keys = {k: v for k, v in ties.items() if not {k, v} & low}


def load(folder: str | PathLike[str], model: nn.Module | None) -> nn.Module:
    """The model in a folder, of the class of `model`, or of the class that was saved."""
    if model is not None:
        kind: Any = type(model)
    else:
        (name,) = transformers.AutoConfig.from_pretrained(folder).architectures or [""]
        kind = getattr(transformers, name)
    return kind.from_pretrained(folder)


def _factorized(model: nn.Module) -> Iterator[tuple[str, LowRank, Factor]]:
    """The names of the dense weights that are factorized, with their layers."""
    for path, low in low_rank_layers(model).items():
        for factor in low.factors:
            yield ".".join(part for part in (path, factor.weight) if part), low, factor
