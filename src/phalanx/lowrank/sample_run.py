# SPDX-License-Identifier: Apache-2.0
"""One run of a model on a sample input: the calls of its layers, and the vectors that each matrix multiplies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from phalanx.lowrank.layer_types import EXPERTS, Layer
from phalanx.lowrank.macs import expert_vectors

CallObserver = Callable[[Layer, tuple[Any, ...], dict[str, Any], Any], None]  # layer, arguments, output


def count_positions(model: nn.Module, model_layers: list[Layer], sample_input: Any) -> dict[str, int]:
    """The number of vectors that each matrix multiplies in one forward, by its name; 0 for layers that do not run.

    Args:
        model_layers: the layers of the model, from `layers`.
        sample_input: a tensor, a tuple of arguments, or a dictionary of them.
    """
    counts = {layer.path(factor): 0 for layer in model_layers for factor in layer.factors}

    def count(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for factor in layer.factors:
            counts[layer.path(factor)] += _vectors(layer, factor.name, args, kwargs, output)

    with torch.no_grad():
        run_sample(model, model_layers, sample_input, count)
    return counts


def run_sample(model: nn.Module, model_layers: list[Layer], sample_input: Any, observe: CallObserver) -> None:
    """Runs the model once in evaluation mode and passes every call of a layer to `observe`; the modes are restored."""

    def hook(layer: Layer) -> Any:
        return lambda _, args, kwargs, output: observe(layer, args, kwargs, output)

    hooks = [layer.module.register_forward_hook(hook(layer), with_kwargs=True) for layer in model_layers]
    try:
        with modes_kept(model):
            model.eval()
            if isinstance(sample_input, Mapping):
                model(**sample_input)
            elif isinstance(sample_input, tuple) and not isinstance(sample_input, PackedSequence):
                model(*sample_input)
            else:
                model(sample_input)
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restores the mode of every module, training or evaluation, at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _vectors(layer: Layer, part: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """The number of vectors that one matrix of a layer multiplies in a call."""
    if layer.kind == EXPERTS:
        return expert_vectors((*args, *kwargs.values()))
    if layer.kind == "attention":
        place, name = {"k_proj": (1, "key"), "v_proj": (2, "value")}.get(part, (0, "query"))
        argument: Any = args[place] if place < len(args) else kwargs[name]
        return argument.shape[:-1].numel()
    if layer.kind in ("lstm", "gru"):
        output = output[0].data if isinstance(output[0], PackedSequence) else output[0]
    if not isinstance(output, Tensor) or layer.family is None:
        return 0
    return output.numel() // (layer.factors[0].shape[0] if layer.kind == "conv" else output.shape[-1])
