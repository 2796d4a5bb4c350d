# SPDX-License-Identifier: Apache-2.0
"""Neurons that clean data leave dormant, and a network without them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from phalanx.core.expression import require
from phalanx.core.round import make_generator
from phalanx.data.dataset import Dataset
from phalanx.lowrank.layer_types import parameter_names
from phalanx.training.score import cross_entropy, scores_of, together


class Pruner:
    """The neurons in front of a fully connected layer, in the order in which clean data leave them dormant.

    A neuron is pruned by zeros in place of the weights with which the layer reads it, so that the network is the one
    whose neuron is silent. A channel of a convolution is one neuron, however many pixels of it the layer reads.

    Args:
        layer: that reads the neurons. When None, the first fully connected one behind the last convolution, or the last
            fully connected one of a network without convolutions.
        samples: clean training examples, by number.
    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, model: nn.Module, layer: str | None, data: Dataset, samples: Tensor, precision: str) -> None:
        self._data, self._precision = data, precision
        self._device = next(model.parameters()).device
        self.layer, self.width = reader(model, layer)
        self.weight = f"{self.layer}.weight"
        self._x, self._y = data.train(samples)
        self.model = copy.deepcopy(model).eval()
        self._first = self._read().detach().clone()
        self.activation = self._activation()
        self.order = self.activation.sort(stable=True).indices

    def without(self, count: int) -> nn.Module:
        """The model without the first `count` neurons of the order; the same object every time, made anew."""
        neurons = torch.zeros(self.width, dtype=torch.bool)
        neurons[self.order[:count]] = True
        each = self._first.shape[1] // self.width
        gone = neurons.repeat_interleave(each).to(self._device)
        with torch.no_grad():
            self._read().copy_(self._first.masked_fill(gone, 0))
        return self.model

    def tested(self) -> tuple[float, float]:
        """Accuracy and mean cross-entropy on the clean examples, of the model as `without` has left it."""
        right, loss, count = 0, 0.0, 0
        for x, y in self._batches():
            scores = scores_of(self.model, x, self._precision)
            right += int((scores.argmax(dim=-1) == y).sum())
            loss += float(cross_entropy(scores, y, "sum"))
            count += int((y >= 0).sum())
        return right / max(1, count), loss / max(1, count)

    def steps(self, step: float) -> Iterator[int]:
        """How many neurons are gone after each step of this share, up to all but one, from none on."""
        counts = (round(i * step * self.width) for i in range(int(1 / step) + 1))
        yield from dict.fromkeys(min(count, self.width - 1) for count in counts)

    def most(self, step: float, bound: float) -> int:
        """The neurons that are gone before accuracy on the clean examples first falls by more than `bound`."""
        counts = list(self.steps(step))
        return counts[before_fall((self._reached(count) for count in counts), bound)]

    def _reached(self, count: int) -> float:
        self.without(count)
        return self.tested()[0]

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = together(self._data)
        for x, y in zip(self._x.split(step), self._y.split(step), strict=True):
            yield x.to(self._device), y.to(self._device)

    def _read(self) -> nn.Parameter:
        return self.model.get_submodule(self.layer).get_parameter("weight")

    @torch.no_grad()
    def _activation(self) -> Tensor:
        """Mean magnitude of each neuron over the clean examples, and over the pixels of a channel. Shapes: (width,)."""
        total, count = torch.zeros(self._first.shape[1], dtype=torch.float64), 0

        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal count
            seen = inputs[0].detach().flatten(0, -2)
            total.add_(seen.double().abs().sum(dim=0).cpu())
            count += len(seen)

        handle = self.model.get_submodule(self.layer).register_forward_pre_hook(look)
        for x, _ in self._batches():
            scores_of(self.model, x, self._precision)
        handle.remove()
        return (total / max(1, count)).reshape(self.width, -1).mean(dim=1)


def reader(model: nn.Module, layer: str | None) -> tuple[str, int]:
    """The name of the layer that reads the neurons, and how many they are.

    Raises:
        ValueError: there is no such layer.
    """
    kind, width, readers = type(model).__name__, None, list[tuple[str, int]]()
    shared = parameter_names(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            width, readers = module.out_channels, []
        elif isinstance(module, nn.Linear) and len(shared[id(module.weight)]) == 1:
            whole = width is None or readers or module.in_features % width
            readers.append((name, module.in_features if whole or width is None else width))
    known = ", ".join(name for name, _ in readers)
    require(bool(readers), f"{kind} has no fully connected layer of its own weights, whose inputs could be pruned")
    if layer is None:
        return readers[0] if width is not None else readers[-1]
    chosen = dict(readers)
    require(layer in chosen, f"{layer!r} is no layer of {kind} whose inputs can be pruned; choose from {known}")
    return layer, chosen[layer]


def before_fall(values: Iterable[float], bound: float) -> int:
    """The last index before a value is more than `bound` below the first value; later values are not computed."""
    place, least = 0, None
    for i, value in enumerate(values):
        # a fall by the bound itself is none
        least = value - bound - 1e-9 if least is None else least
        if value < least:
            break
        place = i
    return place


def clean_samples(data: Dataset, count: int, seed: int) -> Tensor:
    """Training examples that the server is given, drawn once from the run's seed. Shapes: -> (count,)."""
    total = len(data.train_y)
    require(count <= total, f"the server is given {count} clean examples, and there are {total}; lower clean")
    return torch.randperm(total, generator=make_generator("clean", seed))[:count]
