# SPDX-License-Identifier: Apache-2.0
"""EB Train: the channels that matter are known early on; the others are taken out, and training goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from phalanx.core._torch_private import BatchNormBase
from phalanx.core.expression import method, require
from phalanx.core.surgery import Surgery
from phalanx.core.trees import State
from phalanx.lowrank.pruning.chains import Chain, chains
from phalanx.lowrank.pruning.slim import cut, cuts_of, slim


@method("early_bird", "surgery")
class EarlyBird(Surgery):
    """Channel pruning by BatchNorm scales, as soon as it has settled which channels go.

    Every `every` rounds a ticket is looked at: the channels without the share `ratio` of them whose scales are smallest
    in the whole network. It is drawn when it differs from each of the last `window` looks in less than `distance` of
    all channels, so at the earliest at look window + 1. Then the network becomes a thinner one, with the weights,
    statistics and optimizer's moments of the channels that stay, and the schedule goes on. A network whose ticket has
    not been drawn by the end of the phase stays as it is.

    Channels are taken out of convolutions with BatchNorm whose output is read, behind activations, dropout and pooling,
    by convolutions without groups or, flattened, by linear layers: all of a VGG, and the inside of residual blocks.
    Residual streams, concatenated channels, depthwise convolutions and layers without BatchNorm keep their width, and
    their scales do not count. Each BatchNorm keeps its largest scale at least. What the shift of a lost channel added
    to the next layer is lost with it.

    Args:
        ratio: share of the channels that could go which goes, in (0, 1).
        every: rounds between two looks, >= 1; the published code looks once an epoch.
        window: earlier looks that a ticket is compared with, >= 1.
        distance: of two tickets, as a share of all channels, in (0, 1].
        sparsity: factor >= 0 of an L1 penalty on the scales of all BatchNorms until the ticket is drawn.
    Source: You et al., Drawing Early-Bird Tickets, 2019, arXiv:1909.11957, algorithm 1. Differs: only channels that can
        be taken out are ranked, where the published code masks residual streams too; moments are carried.
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

    def watches(self, at: int, rounds: int) -> bool:
        return at % self.every == 0

    def operate(
        self, model: nn.Module, at: int, rounds: int, memory: State, rng: torch.Generator
    ) -> tuple[nn.Module | None, State]:
        if "shape" in memory:
            return None, memory
        known = chains(model)
        require(bool(known), f"early_bird finds no channels in {type(model).__name__} that it could take out")
        if at == 0:
            return None, memory
        ticket, looks = ticket_of(model, known, self.ratio), memory.get("looks", {})
        if len(looks) == self.window and all(apart(ticket, look) < self.distance for look in looks.values()):
            kept = {chain.norm: part for chain, part in zip(known, _channels(model, known, ticket), strict=True)}
            return slim(model, kept), {"shape": {"kept": kept}}
        looks = {**looks, str(at): ticket.to(torch.uint8)}  # the wire has no place for booleans
        latest = sorted(looks, key=int)[-self.window :]
        return None, {"looks": {number: looks[number] for number in latest}}

    def rebuild(self, model: nn.Module, shape: State) -> nn.Module:
        return slim(model, shape["kept"])

    def carried(
        self, optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, memory: State
    ) -> dict[Any, dict[str, Any]]:
        cuts, into = cuts_of(old, memory["shape"]["kept"]), dict(new.named_parameters())
        made: dict[Any, dict[str, Any]] = {}
        for name, parameter in old.named_parameters():
            held: dict[str, Any] = optimizer.state.get(parameter, {})
            # counts of steps and the like have no shape of the parameter's
            own = {key: isinstance(x, Tensor) and x.shape == parameter.shape for key, x in held.items()}
            if held:
                made[into[name]] = {key: cut(x, cuts.get(name, {})) if own[key] else x for key, x in held.items()}
        return made

    def before_step(self, model: nn.Module, memory: State, weight_decay: float) -> None:
        if "shape" in memory or not self.sparsity:
            return
        for layer in model.modules():
            scale = layer.weight if isinstance(layer, BatchNormBase) else None
            if scale is not None and scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=self.sparsity)


def ticket_of(model: nn.Module, known: list[Chain], ratio: float) -> Tensor:
    """Which channels stay, over all chains in a row: all but floor(ratio m) of m with the smallest scales.

    Of equal scales the first ones go, and each chain keeps its largest at least.
    """
    scales = [_scale(model, chain) for chain in known]
    together = torch.cat(scales)
    stays = torch.ones_like(together, dtype=torch.bool)
    stays[together.sort(stable=True).indices[: int(ratio * len(together))]] = False
    for scale, part in zip(scales, stays.split([len(s) for s in scales]), strict=True):
        if not part.any():
            part[scale.argmax()] = True
    return stays


def apart(one: Tensor, other: Tensor) -> float:
    """The share of channels in which two tickets differ."""
    return float((one != other.to(one.device)).double().mean())


def _scale(model: nn.Module, chain: Chain) -> Tensor:
    return model.get_submodule(chain.norm).get_parameter("weight").detach().abs()


def _channels(model: nn.Module, known: list[Chain], ticket: Tensor) -> list[list[int]]:
    """The channels of each chain that stay."""
    parts = ticket.split([len(_scale(model, chain)) for chain in known])
    return [part.nonzero().flatten().tolist() for part in parts]
