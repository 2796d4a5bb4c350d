# SPDX-License-Identifier: Apache-2.0
"""Which parameters of a factorized model stand for which of the model that it was made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phalanx.core.precision import wide
from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import LowRank
from phalanx.lowrank.merge import low_rank_layers


@dataclass(frozen=True)
class Move:
    """A parameter of the old model, or a pair u, v, and what stands in its place.

    Args:
        name: in the new model, for errors.
        old: one parameter, or u and v.
        new: one parameter, or u and v.
        factor: how the parameters are read as matrices; None where old and new have one shape.
    """

    name: str
    old: tuple[nn.Parameter, ...]
    new: tuple[nn.Parameter, ...]
    factor: Factor | None = None

    def part(self, whole: Tensor) -> Tensor:
        """What of a tensor like the old parameter belongs to the new one, where each is a single one."""
        return whole if self.factor is None else self.factor.matrices(whole).reshape(self.new[0].shape)

    def pulled(self, of_u: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices of both factors in the shapes of their parameters u and v."""
        u, v = self.new
        return of_u.reshape(u.shape).to(u.dtype), of_v.reshape(v.shape).to(v.dtype)


@dataclass(frozen=True)
class Thin:
    """The two factors of a weight as matrices, and what the chain rule makes of the old moments.

    over_left and over_right are the factors themselves where the old weight was dense. Where it was a pair `old`, they
    tell how the new factors hang together with the old: left = old[0] over_left, right = over_right old[1].

    Shapes: left (copies, rows, r), right (copies, r, columns).
    """

    left: Tensor
    right: Tensor
    over_left: Tensor
    over_right: Tensor
    old: tuple[Tensor, Tensor] | None

    @staticmethod
    def of(move: Move) -> Thin:
        """The factors that a move ends in."""
        assert move.factor is not None
        left, right = thin(move.factor, *move.new)
        if len(move.old) == 1:
            return Thin(left, right, left, right, None)
        before = thin(move.factor, *move.old)
        over_left, over_right = before[1] @ torch.linalg.pinv(right), torch.linalg.pinv(left) @ before[0]
        return Thin(left, right, over_left, over_right, before)

    def direction(self, for_u: Tensor, for_v: Tensor) -> Tensor:
        """The step of the dense weight that steps of the old parameters mean."""
        if self.old is None:
            return for_u
        return self.old[0] @ for_u + for_v @ self.old[1]

    def chained(self, for_u: Tensor, for_v: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the old parameters as gradients of u and v."""
        return self.over_left.mT @ for_u, for_v @ self.over_right.mT

    def chained_squares(self, for_u: Tensor, for_v: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squares of the old gradients as mean squares of those of u and v, the entries taken as independent."""
        return self.over_left.square().mT @ for_u, for_v @ self.over_right.square().mT


def thin(factor: Factor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Both factors as matrices of at least float32, detached. Shapes: -> (copies, rows, r), (copies, r, columns)."""
    left, right = factor.thin(u.detach(), v.detach())
    return left.to(wide(v.dtype)), right.to(wide(u.dtype))


def moves(old: nn.Module, new: nn.Module) -> list[Move]:
    """Each parameter of the new model once, with what it stands for; those that the old model has not are left out.

    Raises:
        ValueError: the new model was not made from the old one.
    """
    found: dict[int, Move] = {}
    for path, low in low_rank_layers(new).items():
        before = _module(old, path)
        for factor, part in low.parts():
            name = ".".join(p for p in (path, factor.name) if p)
            into = low.pair(factor) if factor in low.factors else (_parameter(part),)
            # what a low-rank layer leaves full lies apart from the rest already
            apart = len(into) == 1 and isinstance(before, LowRank)
            move = Move(name, _source(before, factor, name), into, None if apart else factor)
            found.setdefault(id(into[0]), move)
    inside = {id(p) for move in found.values() for p in move.new}
    names = dict(old.named_parameters(remove_duplicate=False))
    for name, parameter in new.named_parameters():
        if id(parameter) not in inside and name in names and names[name].shape == parameter.shape:
            found[id(parameter)] = Move(name, (names[name],), (parameter,))
    return list(found.values())


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
        for own, part in before.parts():
            if own.name == factor.name:
                return before.pair(own) if own in before.factors else (_parameter(part),)
        raise AttributeError(factor.name)
    except AttributeError:
        raise ValueError(
            f"layer {name!r} of the new model has no matrix in the old one; give the one that it was made from"
        ) from None


def _parameter(part: Tensor) -> nn.Parameter:
    assert isinstance(part, nn.Parameter)
    return part
