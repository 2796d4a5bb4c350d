# SPDX-License-Identifier: Apache-2.0
"""Replacement of some modules of a model by others."""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from typing import Any

from torch import nn

from phalanx.core._torch_private import copy_hooks, submodules
from phalanx.lowrank.layer import guard_adapters


def replace_modules(
    model: nn.Module, replaced: dict[int, nn.Module], new_parameters: dict[int, nn.Parameter], inplace: bool
) -> nn.Module:
    """The model with a new module in every place of an old one.

    Args:
        replaced: new modules by the id of the old one.
        new_parameters: new parameters by their id; they belong to the result only, so they are not copied.
        inplace: change the model; otherwise it stays unchanged, and the modules that are replaced are not copied.
    Raises:
        ValueError: DDP holds the model, it cannot be copied, or the model itself would be replaced in place.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError("DDP holds the old parameters in its buckets; give its .module, and wrap the result again")
    if not inplace:
        memo: dict[int, Any] = dict(new_parameters)
        try:
            for old, new in replaced.items():
                memo[old] = copy.deepcopy(new, memo)
            return copy.deepcopy(model, memo)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"the model cannot be copied ({error}); change it with inplace=True") from error
    if id(model) in replaced:
        raise ValueError("the model is itself a layer, which cannot be replaced in place; use inplace=False")
    for module in list(model.modules()):
        for name, child in submodules(module).items():
            if child is not None and id(child) in replaced:
                submodules(module)[name] = replaced[id(child)]
    return model


def for_huggingface(model: nn.Module) -> nn.Module:
    """The model, ready for Hugging Face's `save_pretrained`, and with adapters that do not merge into factors."""
    guard_adapters(model)
    if "transformers" in sys.modules:
        import_module("phalanx.lowrank.huggingface").mark(model)
    return model


def keep_mode_and_hooks(old: nn.Module, new: nn.Module) -> nn.Module:
    """The new module, with the mode and the hooks of the old one."""
    copy_hooks(old, new)
    return new.train(old.training)
