# SPDX-License-Identifier: Apache-2.0
"""Puts other modules in the place of some modules of a model."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from phalanx.core._torch_private import copy_hooks, submodules


def exchanged(
    model: nn.Module, replaced: dict[int, nn.Module], made: dict[int, nn.Parameter], inplace: bool
) -> nn.Module:
    """The model with new modules wherever an old one stands.

    Args:
        replaced: new modules by the id of the old one.
        made: parameters by their id that exist for the new modules only, so that a copy would be one too many.
        inplace: change the model; otherwise it stays as it is, and what is replaced is not copied.
    Raises:
        ValueError: DDP holds the model, it cannot be copied, or it is itself to be replaced in place.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError("DDP holds the old parameters in its buckets; give its .module, and wrap the result anew")
    if not inplace:
        memo: dict[int, Any] = dict(made)
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


def carried(old: nn.Module, new: nn.Module) -> nn.Module:
    """The new module with the mode and the hooks of the old one."""
    copy_hooks(old, new)
    return new.train(old.training)
