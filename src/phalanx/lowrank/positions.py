# SPDX-License-Identifier: Apache-2.0
"""How often a forward multiplies by each matrix, counted by running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from phalanx.lowrank.families import Layer


def positions_of(model: nn.Module, found: list[Layer], sample_input: Any) -> dict[str, int]:
    """The number of vectors that meet each matrix in one forward, by its name; layers that do not run have 0.

    The model runs once, in evaluation mode and without gradients, and is left in the modes that it was in.

    Args:
        sample_input: a tensor, a tuple of arguments, or a dictionary of them.
    """
    counts = {layer.path(factor): 0 for layer in found for factor in layer.factors}
    modes = {module: module.training for module in model.modules()}
    hooks = [layer.module.register_forward_hook(_counter(layer, counts), with_kwargs=True) for layer in found]
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(sample_input, Mapping):
                model(**sample_input)
            else:
                model(*(sample_input if isinstance(sample_input, tuple) else (sample_input,)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return counts


def _counter(layer: Layer, counts: dict[str, int]) -> Any:
    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for factor in layer.factors:
            counts[layer.path(factor)] += _vectors(layer, factor.name, args, kwargs, output)

    return count


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
