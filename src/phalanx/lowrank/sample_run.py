# SPDX-License-Identifier: Apache-2.0
"""How often a forward multiplies by each matrix, counted by running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from phalanx.lowrank.layer_types import Layer

Watch = Callable[[Layer, tuple[Any, ...], dict[str, Any], Any], None]  # a layer, its arguments, and its output


def positions_of(model: nn.Module, found: list[Layer], sample_input: Any) -> dict[str, int]:
    """The number of vectors that meet each matrix in one forward, by its name; layers that do not run have 0.

    Args:
        sample_input: a tensor, a tuple of arguments, or a dictionary of them.
    """
    counts = {layer.path(factor): 0 for layer in found for factor in layer.factors}

    def count(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for factor in layer.factors:
            counts[layer.path(factor)] += _vectors(layer, factor.name, args, kwargs, output)

    with torch.no_grad():
        run_sample(model, found, sample_input, count)
    return counts


def run_sample(model: nn.Module, found: list[Layer], sample_input: Any, watch: Watch) -> None:
    """Runs the model once in evaluation mode, showing every call of a layer; the modes are then as they were."""

    def hook(layer: Layer) -> Any:
        return lambda _, args, kwargs, output: watch(layer, args, kwargs, output)

    hooks = [layer.module.register_forward_hook(hook(layer), with_kwargs=True) for layer in found]
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
    """Every module is in the mode afterwards, training or evaluation, that it was in before."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _vectors(layer: Layer, part: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    if layer.kind == "attention":
        place, name = {"k_proj": (1, "key"), "v_proj": (2, "value")}.get(part, (0, "query"))
        given: Any = args[place] if place < len(args) else kwargs[name]
        return given.shape[:-1].numel()
    if layer.kind in ("lstm", "gru"):
        output = output[0].data if isinstance(output[0], PackedSequence) else output[0]
    if not isinstance(output, Tensor) or layer.family is None:
        return 0
    return output.numel() // (layer.factors[0].shape[0] if layer.kind == "conv" else output.shape[-1])
