# SPDX-License-Identifier: Apache-2.0
"""Lottery tickets: train, set the smallest weights to zero, return to the first weights, and repeat."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from phalanx.core.expression import method, require
from phalanx.core.surgery import Surgery
from phalanx.core.trees import State

Masks = dict[str, Tensor]  # for each weight that is pruned, by name: the entries that are not zero


@method("lottery", "surgery")
class Lottery(Surgery):
    """Iterative magnitude pruning: every cycle starts from early weights of the first cycle, with fewer of them.

    The first cycle takes `every` rounds. After each cycle the smallest weights are set to zero for good, and all others
    return to their values before round `rewind`, and so do BatchNorm statistics. The optimizer and the memories of the
    scheme start again, and the schedule of the learning rate continues from round `rewind`. So later cycles take
    every - rewind rounds, and c cycles fill a phase of every + (c - 1) (every - rewind) rounds.

    Weights of two or more dimensions are pruned; biases and norms are not. Zeros are stored, sent and multiplied as
    before. Only the number of parameters that are not zero falls, which is the run's `parameters`.

    Args:
        every: rounds of a whole training, > rewind.
        rate: share of the remaining weights that each pruning removes, in (0, 1).
        rewind: round of the first cycle, >= 0, to whose weights the remaining ones return; 0 is the initialisation.
        among: "all" compares weights over the whole network, "layer" takes the share from each weight tensor.
        classifier: whether the last fully connected layer is not pruned.
    Source: Frankle and Carbin, The Lottery Ticket Hypothesis, 2018, arXiv:1803.03635, section 2; rewind > 0: Frankle et
        al., Stabilizing the Lottery Ticket Hypothesis, 2019, arXiv:1903.01611, algorithm 1. Differs: the published
        convolutional networks prune their output layer at half the rate.
    """

    every: int
    rate: float = 0.2
    rewind: int = 0
    among: Literal["all", "layer"] = "all"
    classifier: bool = True

    def validate(self) -> None:
        require(0 < self.rate < 1, f"lottery needs a rate in (0, 1), got rate={self.rate}")
        ok = 0 <= self.rewind < self.every
        require(ok, f"lottery needs 0 <= rewind < every, got rewind={self.rewind}, every={self.every}")

    def watches(self, round_index: int, rounds: int) -> bool:
        return round_index == self.rewind or (
            round_index >= self.every and (round_index - self.every) % (self.every - self.rewind) == 0
        )

    def operate(
        self, model: nn.Module, round_index: int, rounds: int, memory: State, rng: torch.Generator
    ) -> tuple[nn.Module | None, State]:
        if round_index == self.rewind:
            return None, {"start": {name: value.clone() for name, value in model.state_dict().items()}}
        named = self._weights(model)
        # weights that an earlier phase has pruned are zero
        held: Masks = memory.get("masks") or {name: weight != 0 for name, weight in named.items()}
        left = pruned(named, {name: mask.bool() for name, mask in held.items()}, self.rate, self.among)
        # bytes, because a message cannot hold booleans
        memory = {**memory, "masks": {name: mask.to(torch.uint8) for name, mask in left.items()}}
        rewound = copy.deepcopy(model)
        rewound.load_state_dict(memory["start"])
        self.after_step(rewound, memory)
        return rewound, memory

    def rebuild(self, model: nn.Module, shape: State) -> nn.Module:
        return model

    def after_step(self, model: nn.Module, memory: State) -> None:
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, mask in _standing(model, memory).items():
                named[name].mul_(mask)

    def zeros(self, model: nn.Module, memory: State) -> int:
        return sum(int((mask == 0).sum()) for mask in _standing(model, memory).values())

    def clock(self, round_index: int, rounds: int) -> tuple[int, int]:
        if round_index >= self.every:
            round_index = self.rewind + (round_index - self.every) % (self.every - self.rewind)
        return round_index, self.every

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights that are pruned, by name."""
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        last = id(linear[-1].weight) if linear and self.classifier else None
        prunable = {
            n: p.detach() for n, p in model.named_parameters() if p.requires_grad and p.dim() > 1 and id(p) != last
        }
        require(bool(prunable), f"lottery finds no weight to prune in {type(model).__name__}; try classifier=False")
        return prunable


def pruned(weights: dict[str, Tensor], masks: Masks, rate: float, among: Literal["all", "layer"]) -> Masks:
    """The masks without the smallest floor(rate m) of their m entries; among equal entries the first ones go."""
    if among == "layer":
        return {name: _without(weights[name], mask, rate) for name, mask in masks.items()}
    sizes = [mask.numel() for mask in masks.values()]
    together = torch.cat([weights[name].flatten() for name in masks])
    left = _without(together, torch.cat([mask.flatten() for mask in masks.values()]), rate)
    return {n: part.view_as(masks[n]) for n, part in zip(masks, left.split(sizes), strict=True)}


def _without(weight: Tensor, mask: Tensor, rate: float) -> Tensor:
    there = mask.flatten().nonzero().squeeze(1)
    order = weight.flatten()[there].abs().sort(stable=True).indices
    left = mask.flatten().clone()
    left[there[order[: int(rate * len(there))]]] = False
    return left.view_as(mask)


def _standing(model: nn.Module, memory: State) -> Masks:
    """The masks of the weights that no later surgery has replaced."""
    named = dict(model.named_parameters())
    masks: Masks = memory.get("masks", {})
    return {name: mask for name, mask in masks.items() if name in named and named[name].shape == mask.shape}
