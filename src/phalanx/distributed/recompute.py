# SPDX-License-Identifier: Apache-2.0
"""Computes loss and gradients of a micro-batch without changing anything that training uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from phalanx.core.seeding import seeded_globally

Loss = Callable[..., Tensor]  # (module, *inputs) -> scalar


def unwrap_module(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile, which a rank can compute alone.

    Raises:
        ValueError: it has no trained parameters, or a part of it communicates with other ranks.
    """
    module = wrapped_layers(model)[-1]
    for name, part in module.named_modules():
        if isinstance(part, nn.SyncBatchNorm | DistributedDataParallel):
            raise ValueError(
                f"no rank can compute this model alone: its {name or 'whole'} is a {type(part).__name__}, "
                "which waits for all ranks; compare a model without it"
            )
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("nothing can be compared: the model has no parameter that is trained")
    return module


def group_of(model: nn.Module) -> dist.ProcessGroup | None:
    """The process group of a model in DistributedDataParallel; None, the default one, for others."""
    return next(
        (layer.process_group for layer in wrapped_layers(model) if isinstance(layer, DistributedDataParallel)), None
    )


def snapshot(module: nn.Module) -> dict[str, Any]:
    """The state that a pass depends on besides parameters and inputs: buffers, and the training mode of each part."""
    return {"buffers": dict(module.named_buffers()), "training": [part.training for part in module.modules()]}


def recompute(
    model: nn.Module, loss_function: Loss, batch: tuple[Any, ...], state: dict[str, Any], seed: int
) -> LossAndGrads:
    """Computes loss and gradients of one micro-batch on the unwrapped module, in a given state and with a given seed.

    Gradients in `p.grad`, buffers, modes and random number generators are left alone, and so are the hooks by which
    DistributedDataParallel and optimizers learn of gradients; hooks on the parameters themselves act.

    Raises:
        ValueError: the loss is not one number, or the loss function calls the wrapped model.
    """
    module = unwrap_module(model)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    devices = {p.device for p in parameters.values() if p.is_cuda}
    with (
        _forward_refused(model),
        _state(module, state),
        seeded_globally(seed, devices),
        _same_kernels(),
        torch.enable_grad(),
    ):
        loss = loss_function(module, *batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError("the loss function must return one number, loss_function(module, *inputs) -> scalar")
        # backward() would run DDP's hooks and add to .grad
        gradients = torch.autograd.grad(loss.sum(), list(parameters.values()), allow_unused=True)
    return LossAndGrads(loss.detach(), dict(zip(parameters, gradients, strict=True)))


class LossAndGrads:
    """The result of a pass: the loss, and the gradient of each parameter or None."""

    def __init__(self, loss: Tensor, gradients: dict[str, Tensor | None]) -> None:
        self.loss, self.gradients = loss, gradients

    def __iter__(self) -> Iterator[tuple[str, Tensor | None]]:
        yield "loss", self.loss
        yield from self.gradients.items()


def wrapped_layers(model: nn.Module) -> list[nn.Module]:
    """The model and what DistributedDataParallel and torch.compile wrap in it, from the outside in."""
    layers = [model]
    while True:
        last = layers[-1]
        inner = last.module if isinstance(last, DistributedDataParallel) else getattr(last, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return layers
        layers.append(inner)


@contextmanager
def _forward_refused(model: nn.Module) -> Iterator[None]:
    """Refuses passes through DistributedDataParallel, which would wait for ranks that compute something else."""

    def refuse(*_: Any) -> None:
        raise ValueError(
            "the loss function calls the model in DistributedDataParallel; it must call the module that it is given, "
            "loss_function(module, *inputs)"
        )

    handles = [
        m.register_forward_pre_hook(refuse) for m in wrapped_layers(model) if isinstance(m, DistributedDataParallel)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _state(module: nn.Module, state: dict[str, Any]) -> Iterator[None]:
    """Replaces the buffers by copies: writing into the originals would break a graph that saved them."""
    parts = list(module.modules())
    modes = [part.training for part in parts]
    copies: dict[int, Tensor] = {}
    homes: list[tuple[nn.Module, str, Tensor]] = []
    for path, buffer in module.named_buffers(remove_duplicate=False):
        home, _, name = path.rpartition(".")
        homes.append((module.get_submodule(home), name, buffer))
        # of a shared buffer the state has the first name
        if id(buffer) not in copies:
            copies[id(buffer)] = state["buffers"][path].clone()
    try:
        for home, name, buffer in homes:
            setattr(home, name, copies[id(buffer)])
        for part, mode in zip(parts, state["training"], strict=True):
            part.training = mode
        yield
    finally:
        for home, name, buffer in homes:
            setattr(home, name, buffer)
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


@contextmanager
def _same_kernels() -> Iterator[None]:
    """Makes cuDNN choose the same kernels on every rank: by measured times two healthy ranks choose differently."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
