# SPDX-License-Identifier: Apache-2.0
"""The base classes of all low-rank layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from phalanx.lowrank.factor import Factor

Ranks = Mapping[str, int | None]  # rank of each factor by its name; None leaves that weight full


class LowRank(nn.Module, ABC):
    """A layer in which some weights are products v u of two thin ones.

    `factors` lists these weights; u and v are parameters of the layer, and biases keep their names. `layer_types.py`
    lists the subclass for each class of dense layers.
    """

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def dense_factors(cls, dense: nn.Module) -> tuple[Factor, ...]:
        """The weights of a dense layer that can be factorized."""

    @classmethod
    def refusal(cls, dense: nn.Module) -> str:
        """The reason why this dense layer cannot be factorized; empty if it can."""
        return ""

    @classmethod
    @abstractmethod
    def like(cls, dense: nn.Module, ranks: Ranks) -> Self:
        """The low-rank form of a dense layer, with factors that are not initialised and its other parameters."""

    @property
    @abstractmethod
    def factors(self) -> tuple[Factor, ...]:
        """The factorized weights."""

    @abstractmethod
    def dense_like(self) -> nn.Module:
        """A dense layer of the class from which this one was made; the weights of `factors` are on the meta device."""

    @abstractmethod
    def macs(self, inputs: tuple[Any, ...], output: Any) -> int:
        """Multiply-accumulates of a call with these inputs and this output, for `phalanx.lowrank.macs`."""

    def pair(self, factor: Factor) -> tuple[nn.Parameter, nn.Parameter]:
        """The parameters u and v of a factor."""
        return self.get_parameter(factor.u), self.get_parameter(factor.v)

    def rank(self, factor: Factor) -> int:
        """The rank of a factor, which is the number of columns of v."""
        return self.pair(factor)[1].shape[1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **more: Any) -> None:
        # files of transformers hold an empty tensor for each dense weight (`phalanx.lowrank.huggingface`)
        for name in (f"{prefix}{factor.weight}" for factor in self.factors):
            if name in state_dict and state_dict[name].numel() == 0:
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args, **more)

    def parts(self) -> list[tuple[Factor, Tensor]]:
        """The dense weights that `dense_like` leaves empty, or parts of their rows in order."""
        return [(factor, factor.product(*self.pair(factor))) for factor in self.factors]


class OneWeight(LowRank):
    """A low-rank layer whose only matrix is `weight`."""

    u: nn.Parameter
    v: nn.Parameter
    factor: Factor

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.factor,)

    @property
    def weight(self) -> Tensor:
        """The dense weight v u, computed at each call, for code that asks a layer for it."""
        return self.factor.product(self.u, self.v)

    def macs(self, inputs: tuple[Any, ...], output: Any) -> int:
        return output.numel() // self.factor.shape[0] * (self.u.numel() + self.v.numel())


def empty_pair(factor: Factor, rank: int, weight: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """Parameters u and v with the dtype and the device of the weight, not initialised; frozen if the weight is."""
    u, v = (weight.new_empty(shape) for shape in (factor.u_shape(rank), factor.v_shape(rank)))
    if weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
        u, v = u.to(memory_format=torch.channels_last), v.to(memory_format=torch.channels_last)
    return nn.Parameter(u, weight.requires_grad), nn.Parameter(v, weight.requires_grad)


def adapted_layer(module: nn.Module) -> nn.Module | None:
    """The layer below an adapter of Hugging Face's PEFT, if the module is one."""
    base = getattr(module, "base_layer", None) if type(module).__module__.startswith("peft.") else None
    return base if isinstance(base, nn.Module) else None


def guard_adapters(model: nn.Module) -> nn.Module:
    """The model, whose adapters of PEFT refuse to merge into factors, which hold no weight that they could change."""
    for module in model.modules():
        base = adapted_layer(module)
        if isinstance(base, LowRank):
            module.__dict__["merge"] = _refuse_merge
        elif base is not None:
            module.__dict__.pop("merge", None)
    return model


def _refuse_merge(*_: Any, **__: Any) -> None:
    raise ValueError("an adapter cannot be merged into factors; make the model dense with phalanx's merge(model) first")
