# SPDX-License-Identifier: Apache-2.0
"""The parameters of a factorized model, and those of the original model that they replace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phalanx.core.precision import accumulation_dtype
from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import LowRank
from phalanx.lowrank.merge import low_rank_layers


@dataclass(frozen=True)
class Counterpart:
    """A parameter of the old model, or a pair u, v, and the parameter or pair that replaces it.

    Args:
        name: name in the new model, for errors.
        old: one parameter, or u and v.
        new: one parameter, or u and v.
        factor: how the parameters are read as matrices; None where old and new have one shape.
    """

    name: str
    old: tuple[nn.Parameter, ...]
    new: tuple[nn.Parameter, ...]
    factor: Factor | None = None

    def part(self, whole: Tensor) -> Tensor:
        """The part of a tensor of the old parameter's shape that belongs to the new one; both are single parameters."""
        return whole if self.factor is None else self.factor.matrices(whole).reshape(self.new[0].shape)

    def pulled(self, of_u: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices for both factors in the shapes of the parameters u and v."""
        u, v = self.new
        return of_u.reshape(u.shape).to(u.dtype), of_v.reshape(v.shape).to(v.dtype)


@dataclass(frozen=True)
class ThinFactors:
    """The two factors of a weight as matrices, and the chain rule from the old parameters to them.

    If the old weight was dense, over_left and over_right are the factors themselves. If it was a pair `old`, they
    relate the new factors to the old ones: left = old[0] over_left, right = over_right old[1].

    Shapes: left (copies, rows, r), right (copies, r, columns).
    """

    left: Tensor
    right: Tensor
    over_left: Tensor
    over_right: Tensor
    old: tuple[Tensor, Tensor] | None

    @staticmethod
    def of(entry: Counterpart) -> ThinFactors:
        """The factors that replace a weight."""
        assert entry.factor is not None
        left, right = thin(entry.factor, *entry.new)
        if len(entry.old) == 1:
            return ThinFactors(left, right, left, right, None)
        before = thin(entry.factor, *entry.old)
        over_left, over_right = before[1] @ torch.linalg.pinv(right), torch.linalg.pinv(left) @ before[0]
        return ThinFactors(left, right, over_left, over_right, before)

    def direction(self, for_u: Tensor, for_v: Tensor) -> Tensor:
        """The step of the dense weight that corresponds to steps of the old parameters."""
        if self.old is None:
            return for_u
        return self.old[0] @ for_u + for_v @ self.old[1]

    def chained(self, for_u: Tensor, for_v: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the old parameters as gradients of u and v."""
        return self.over_left.mT @ for_u, for_v @ self.over_right.mT

    def chained_squares(self, for_u: Tensor, for_v: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squares of the old gradients as mean squares of those of u and v, if the entries are independent."""
        return self.over_left.square().mT @ for_u, for_v @ self.over_right.square().mT


def thin(factor: Factor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Both factors as matrices of at least float32, detached. Shapes: -> (copies, rows, r), (copies, r, columns)."""
    left, right = factor.thin(u.detach(), v.detach())
    return left.to(accumulation_dtype(v.dtype)), right.to(accumulation_dtype(u.dtype))


def parameter_map(old: nn.Module, new: nn.Module) -> list[Counterpart]:
    """Each parameter of the new model with the one that it replaces; parameters that the old model lacks are left out.

    Raises:
        ValueError: the new model was not made from the old one.
    """
    entries: dict[int, Counterpart] = {}
    for path, low in low_rank_layers(new).items():
        before = _module(old, path)
        for factor, part in low.parts():
            name = ".".join(p for p in (path, factor.name) if p)
            into = low.pair(factor) if factor in low.factors else (_parameter(part),)
            # a matrix that a low-rank layer leaves full is a parameter of its own already
            apart = len(into) == 1 and isinstance(before, LowRank)
            entry = Counterpart(name, _source(before, factor, name), into, None if apart else factor)
            entries.setdefault(id(into[0]), entry)
    inside = {id(p) for entry in entries.values() for p in entry.new}
    names = dict(old.named_parameters(remove_duplicate=False))
    for name, parameter in new.named_parameters():
        if id(parameter) not in inside and name in names and names[name].shape == parameter.shape:
            entries[id(parameter)] = Counterpart(name, (names[name],), (parameter,))
    return list(entries.values())


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(
            f"the old model has no layer {path!r}; give the one that the new model was made from"
        ) from None


def _source(before: nn.Module, factor: Factor, name: str) -> tuple[nn.Parameter, ...]:
    """The parameters of the old layer that hold a matrix."""
    try:
        if not isinstance(before, LowRank):
            return (before.get_parameter(factor.weight),)
        for old_factor, part in before.parts():
            if old_factor.name == factor.name:
                return before.pair(old_factor) if old_factor in before.factors else (_parameter(part),)
        raise AttributeError(factor.name)
    except AttributeError:
        raise ValueError(
            f"layer {name!r} of the new model has no matrix in the old one; give the one that it was made from"
        ) from None


def _parameter(part: Tensor) -> nn.Parameter:
    assert isinstance(part, nn.Parameter)
    return part
