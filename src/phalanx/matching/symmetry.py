# SPDX-License-Identifier: Apache-2.0
"""A check that a network stays the same function when its neurons change places."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from phalanx.matching.neuron_axes import Axes, scatter
from phalanx.matching.trace import tensors_in


@torch.no_grad()
def check(
    model: nn.Module, axes: Mapping[str, Axes], names: Sequence[str], sizes: Sequence[int], example: Tensor
) -> None:
    """Draws random weights, puts the neurons of every group in a random order, and compares the outputs.

    Args:
        axes: the neuron axes of each tensor of the model's state, by its name.
        names: of the groups.
        sizes: neurons of each group.
        example: a small batch of inputs.
    Raises:
        ValueError: the function is another one; the sentence names the groups at fault.
    """
    rng = torch.Generator().manual_seed(0)
    model, example = double_precision(model, example)
    buffers = dict(model.named_buffers())
    state = {name: tensor for name, tensor in model.state_dict().items() if axes.get(name)}
    for name, tensor in state.items():
        size = float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0
        noise = torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
        # a statistic may be a variance
        tensor.copy_((size or 0.1) * (0.5 + noise.abs() if name in buffers else noise))
    weights = {name: tensor.clone() for name, tensor in state.items()}
    places = [torch.randperm(size, generator=rng) for size in sizes]
    wanted = output(model, example)

    def unchanged(groups: Iterable[int]) -> bool:
        """Whether the output stays the same when the neurons of these groups change places."""
        for name, tensor in state.items():
            permuted = weights[name]
            for group in groups:
                permuted = scatter(permuted, axes[name], group, places[group], sizes[group])
            tensor.copy_(permuted)
        return same_output(output(model, example), wanted)

    if not unchanged(range(len(sizes))):
        wrong = [name for group, name in enumerate(names) if not unchanged([group])] or list(names)
        raise ValueError(
            f"{type(model).__name__} becomes another function when the neurons of {', '.join(wrong)} change places, so "
            "something in its forward tells them apart; take that out, or make it of plain layers"
        )


def output(model: nn.Module, example: Tensor) -> Tensor:
    """The first tensor that a model returns; a second call draws the same random numbers."""
    with torch.no_grad(), torch.random.fork_rng(devices=[example.device] if example.is_cuda else []):
        torch.manual_seed(0)
        return next(tensors_in(model(example)))


def same_output(output: Tensor, wanted: Tensor) -> bool:
    """Whether two outputs are equal up to rounding."""
    size = float(wanted.abs().nan_to_num(0, 0, 0).max()) if wanted.numel() else 0.0
    tolerance = 1e-6 if wanted.dtype == torch.float64 else 1e-3
    return torch.allclose(output, wanted, rtol=tolerance, atol=tolerance * size, equal_nan=True)


def double_precision(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of the model in evaluation mode and double precision, and its input.

    Both are in single precision if the forward does not work in double precision.
    """
    copied = copy.deepcopy(model).eval().double()
    try:
        inputs = example.double() if example.is_floating_point() else example
        output(copied, inputs)
    except RuntimeError:
        return copied.float(), example.float() if example.is_floating_point() else example
    return copied, inputs
