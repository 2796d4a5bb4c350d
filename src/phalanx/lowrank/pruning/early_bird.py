# SPDX-License-Identifier: Apache-2.0
"""EB Train: removes the less important channels early in training, as soon as they are known, and continues."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.core._torch_private import BatchNormBase
from phalanx.core.expression import method, require
from phalanx.core.module_tensors import replace_tensors
from phalanx.core.surgery import Surgery
from phalanx.core.trees import State
from phalanx.lowrank.pruning.chains import Chain, chains


@method("early_bird", "surgery")
class EarlyBird(Surgery):
    """Channel pruning by BatchNorm scales, as soon as the choice of channels is stable.

    Every `every` rounds a ticket is computed: all channels but the share `ratio` of them that has the smallest scales
    in the whole network. The ticket is used when it differs from each of the last `window` tickets in less than
    `distance` of all channels, so at ticket window + 1 at the earliest. Then the network becomes thinner; the channels
    that stay keep their weights, statistics and moments of the optimizer, and the schedule continues. If no ticket is
    used by the end of the phase, the network stays unchanged.

    Channels can be removed from convolutions with BatchNorm whose output is read, after activations, dropout and
    pooling, by convolutions without groups or, flattened, by linear layers: all channels of a VGG, and those inside of
    residual blocks. Residual streams, concatenated channels, depthwise convolutions and layers without BatchNorm keep
    their width, and their scales do not count. Each BatchNorm keeps at least its largest scale. The shift of a removed
    channel no longer reaches the next layer.

    Args:
        ratio: share of the removable channels to remove, in (0, 1).
        every: rounds between two tickets, >= 1; the published code computes one each epoch.
        window: number of earlier tickets to compare with, >= 1.
        distance: limit of the difference of two tickets, as a share of all channels, in (0, 1].
        sparsity: factor >= 0 of an L1 penalty on the scales of all BatchNorms until a ticket is used.
    Source: You et al., Drawing Early-Bird Tickets, 2019, arXiv:1909.11957, algorithm 1. Differs: only channels that can
        be removed are ranked, where the published code also masks residual streams; moments are transferred.
    """

    ratio: float = 0.5
    every: int = 50
    window: int = 5
    distance: float = 0.1
    sparsity: float = 0.0001

    def validate(self) -> None:
        require(0 < self.ratio < 1, f"early_bird needs a ratio in (0, 1), got ratio={self.ratio}")
        require(self.every >= 1, f"early_bird needs every >= 1 round, got every={self.every}")
        require(self.window >= 1, f"early_bird needs a window >= 1, got window={self.window}")
        require(0 < self.distance <= 1, f"early_bird needs a distance in (0, 1], got distance={self.distance}")
        require(self.sparsity >= 0, f"early_bird needs sparsity >= 0, got sparsity={self.sparsity}")

    def watches(self, round_index: int, rounds: int) -> bool:
        return round_index % self.every == 0

    def operate(
        self, model: nn.Module, round_index: int, rounds: int, memory: State, rng: torch.Generator
    ) -> tuple[nn.Module | None, State]:
        if "shape" in memory:
            return None, memory
        known = chains(model)
        require(bool(known), f"early_bird finds no channels in {type(model).__name__} that it could remove")
        if round_index == 0:
            return None, memory
        ticket, looks = ticket_of(model, known, self.ratio), memory.get("looks", {})
        if len(looks) == self.window and all(ticket_distance(ticket, look) < self.distance for look in looks.values()):
            kept = {chain.norm: part for chain, part in zip(known, _channels(model, known, ticket), strict=True)}
            return slim(model, kept), {"shape": {"kept": kept}}
        looks = {**looks, str(round_index): ticket.to(torch.uint8)}  # a message cannot hold booleans
        latest = sorted(looks, key=int)[-self.window :]
        return None, {"looks": {number: looks[number] for number in latest}}

    def rebuild(self, model: nn.Module, shape: State) -> nn.Module:
        return slim(model, shape["kept"])

    def carried(
        self, optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, memory: State
    ) -> dict[Any, dict[str, Any]]:
        cuts, into = cuts_of(old, memory["shape"]["kept"]), dict(new.named_parameters())
        new_state: dict[Any, dict[str, Any]] = {}
        for name, parameter in old.named_parameters():
            held: dict[str, Any] = optimizer.state.get(parameter, {})
            # counts of steps and the like do not have the shape of the parameter
            fits = {key: isinstance(x, Tensor) and x.shape == parameter.shape for key, x in held.items()}
            if held:
                new_state[into[name]] = {key: cut(x, cuts.get(name, {})) if fits[key] else x for key, x in held.items()}
        return new_state

    def before_step(self, model: nn.Module, memory: State, weight_decay: float) -> None:
        if "shape" in memory or not self.sparsity:
            return
        for layer in model.modules():
            scale = layer.weight if isinstance(layer, BatchNormBase) else None
            if scale is not None and scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=self.sparsity)


def ticket_of(model: nn.Module, known: list[Chain], ratio: float) -> Tensor:
    """The channels that stay, over all chains one after the other: all but the floor(ratio m) of m smallest scales.

    Among equal scales the first ones are removed, and each chain keeps at least its largest.

    Shapes: -> (m,) bool.
    """
    scales = [_scale(model, chain) for chain in known]
    together = torch.cat(scales)
    stays = torch.ones_like(together, dtype=torch.bool)
    stays[together.sort(stable=True).indices[: int(ratio * len(together))]] = False
    for scale, part in zip(scales, stays.split([len(s) for s in scales]), strict=True):
        if not part.any():
            part[scale.argmax()] = True
    return stays


def ticket_distance(one: Tensor, other: Tensor) -> float:
    """The share of channels in which two tickets differ."""
    return float((one != other.to(one.device)).double().mean())


def _scale(model: nn.Module, chain: Chain) -> Tensor:
    return model.get_submodule(chain.norm).get_parameter("weight").detach().abs()


def _channels(model: nn.Module, known: list[Chain], ticket: Tensor) -> list[list[int]]:
    """The numbers of the channels that stay, for each chain."""
    parts = ticket.split([len(_scale(model, chain)) for chain in known])
    return [part.nonzero().flatten().tolist() for part in parts]


Kept = Mapping[str, Sequence[int]]  # for each BatchNorm, by name: its channels that stay, ascending
Cuts = dict[str, dict[int, Tensor]]  # for each parameter or buffer, by name: the entries of a dimension that stay


def slim(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy of the model with the kept channels only, in convolutions, BatchNorms and the layers that read them.

    It is the same function as the model with the scale and shift of all other channels set to zero.

    Raises:
        ValueError: as `cuts_of`.
    """
    thinner = copy.deepcopy(model)
    tensors = {**dict(thinner.named_parameters()), **dict(thinner.named_buffers())}
    replace_tensors(thinner, {name: cut(tensors[name], cuts) for name, cuts in cuts_of(model, kept).items()})
    return thinner


def cuts_of(model: nn.Module, kept: Kept) -> Cuts:
    """The entries that stay of each parameter and buffer that changes.

    Raises:
        ValueError: `kept` names a BatchNorm whose channels cannot be removed.
    """
    known = {chain.norm: chain for chain in chains(model)}
    unknown = [name for name in kept if name not in known]
    if unknown:
        raise ValueError(f"the channels of {', '.join(unknown)} cannot be removed; choose from {', '.join(known)}")
    cuts: Cuts = {}
    for name, channels in kept.items():
        chain, norm = known[name], model.get_submodule(name)
        width = len(norm.get_parameter("weight"))
        stay = torch.tensor(channels)
        for path in (chain.source, name):
            layer = model.get_submodule(path)
            for leaf, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
                if tensor.dim():  # BatchNorm's count of batches has none
                    cuts.setdefault(f"{path}.{leaf}", {})[0] = stay
        for path in chain.readers:
            # a flattened channel has several columns
            each = model.get_submodule(path).get_parameter("weight").shape[1] // width
            columns = (stay[:, None] * each + torch.arange(each)).flatten()
            cuts.setdefault(f"{path}.weight", {})[1] = columns
    return cuts


def cut(tensor: Tensor, cuts: Mapping[int, Tensor]) -> Tensor:
    """The entries of a tensor that stay."""
    for dim, stay in cuts.items():
        tensor = tensor.index_select(dim, stay.to(tensor.device))
    return tensor
