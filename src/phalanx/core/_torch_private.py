# SPDX-License-Identifier: Apache-2.0
"""All private names of PyTorch that the library uses, each behind a function or a class of ours.

A new version of PyTorch may rename or remove them. `tests/core/test_torch_private.py` checks that each still exists
and still means what is said here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvBase
from torch.nn.modules.conv import _ConvTransposeNd as ConvTransposeBase

__all__ = [
    "BatchNormBase",
    "ConvBase",
    "ConvTransposeBase",
    "NoFusedAttention",
    "NormBase",
    "copy_hooks",
    "eager",
    "group_timeout",
    "is_persistent",
    "refresh_flat_weights",
    "submodules",
]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class NoFusedAttention:
    """Base of an attention layer whose projections are not plain weights.

    In evaluation mode `nn.TransformerEncoderLayer` reads these two attributes of its attention. With these values it
    calls the attention's forward, and does not pass the weights to its fused kernel.
    """

    _qkv_same_embed_dim = False
    in_proj_weight = None


def submodules(module: nn.Module) -> dict[str, nn.Module | None]:
    """The dictionary in which a module keeps its direct children, to read and to write.

    Unlike `named_children` it lists a child with two names twice.
    """
    return module._modules


def copy_hooks(old: nn.Module, new: nn.Module) -> None:
    """Makes a module share the forward and backward hooks of another one."""
    for hooks in _HOOKS:
        new.__dict__[hooks] = old.__dict__[hooks]
    new._is_full_backward_hook = old._is_full_backward_hook


def is_persistent(module: nn.Module, name: str) -> bool:
    """Whether a buffer of a module is saved in its state."""
    return name not in module._non_persistent_buffers_set


def refresh_flat_weights(recurrent: nn.RNNBase) -> None:
    """Brings the list from which the kernels of a recurrent layer read its tensors up to date.

    The list keeps the old tensor of an attribute that was deleted and registered anew.
    """
    recurrent._flat_weights = [getattr(recurrent, name) for name in recurrent._flat_weights_names]


def group_timeout(group: Any) -> timedelta:
    """The timeout of a process group's collective operations, set when the group was created."""
    return group._get_backend(group._device_types[0]).options._timeout


@cache
def eager(optimizer: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """A subclass of an optimizer class whose methods do not import torch's compiler, which takes more than a second.

    torch.optim wraps its methods, so that torch.compile skips them. The subclass calls the functions inside the
    wrappers, which compute the same; it must not be used in a compiled function.
    """

    assert isinstance(optimizer, type)
    raw_step = inspect.unwrap(optimizer.step)

    def step(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        with torch.no_grad():
            return raw_step(self, closure)

    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    members = {**methods, "step": step, "__doc__": optimizer.__doc__}
    return cast(type[torch.optim.Optimizer], type(optimizer.__name__, (optimizer,), members))
