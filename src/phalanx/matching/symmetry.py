# SPDX-License-Identifier: Apache-2.0
"""Whether a network stays the same function when its neurons change places."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from phalanx.core.neuron_axes import Axes, scattered
from phalanx.matching.trace import tensors_in


@torch.no_grad()
def check(
    model: nn.Module, axes: Mapping[str, Axes], names: Sequence[str], sizes: Sequence[int], example: Tensor
) -> None:
    """Draws random weights and puts the neurons of every group in a random order.

    Raises:
        ValueError: the function is another one; the sentence names the groups at fault.
    """
    rng = torch.Generator().manual_seed(0)
    model, example = wide(model, example)
    buffers = dict(model.named_buffers())
    state = {name: tensor for name, tensor in model.state_dict().items() if axes.get(name)}
    for name, tensor in state.items():
        size = float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0
        drawn = torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
        # a statistic may be a variance
        tensor.copy_((size or 0.1) * (0.5 + drawn.abs() if name in buffers else drawn))
    drawn = {name: tensor.clone() for name, tensor in state.items()}
    places = [torch.randperm(size, generator=rng) for size in sizes]
    wanted = output(model, example)

    def same(groups: Iterable[int]) -> bool:
        for name, tensor in state.items():
            made = drawn[name]
            for group in groups:
                made = scattered(made, axes[name], group, places[group], sizes[group])
            tensor.copy_(made)
        return alike(output(model, example), wanted)

    if not same(range(len(sizes))):
        wrong = [name for group, name in enumerate(names) if not same([group])] or list(names)
        raise ValueError(
            f"{type(model).__name__} becomes another function when the neurons of {', '.join(wrong)} change places, so "
            "something in its forward tells them apart; take that out, or make it of plain layers"
        )


def output(model: nn.Module, example: Tensor) -> Tensor:
    """The first tensor that a model returns, under a generator of its own, so that a second call draws the same."""
    with torch.no_grad(), torch.random.fork_rng(devices=[example.device] if example.is_cuda else []):
        torch.manual_seed(0)
        return next(tensors_in(model(example)))


def alike(found: Tensor, wanted: Tensor) -> bool:
    """Whether two outputs are the same but for rounding."""
    size = float(wanted.abs().nan_to_num(0, 0, 0).max()) if wanted.numel() else 0.0
    near = 1e-6 if wanted.dtype == torch.float64 else 1e-3
    return torch.allclose(found, wanted, rtol=near, atol=near * size, equal_nan=True)


def wide(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy in evaluation and double precision, with its input; in single where the forward insists on it."""
    made = copy.deepcopy(model).eval().double()
    try:
        inputs = example.double() if example.is_floating_point() else example
        output(made, inputs)
    except RuntimeError:
        return made.float(), example.float() if example.is_floating_point() else example
    return made, inputs
