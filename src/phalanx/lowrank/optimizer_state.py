# SPDX-License-Identifier: Apache-2.0
"""An optimizer and a running average go on with the factorized model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from phalanx.core.precision import wide
from phalanx.lowrank.parameter_map import Move, Thin, moves

Moments = Literal["step", "gradient", "fresh"]
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq")
# directions in which a factor is shorter than this share of its longest one are left alone: a step along them would
# have to be so long that its second order outweighs its first
_SHORTEST = 0.01
_KNOWN = {"momentum_buffer", "exp_avg", *_SQUARES}


def transfer_optimizer(
    optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, moments: Moments = "step"
) -> None:
    """Makes an optimizer of a model go on with its factorized form; schedulers that hold it stay valid.

    Factors take their weight's place in the parameter groups. Biases, norms and all else keep their moments.

    Args:
        optimizer: of the parameters of `old`: `torch.optim.SGD`, Adam, AdamW, or another with the same state.
        old: the dense model, with its weights (so factorize with inplace=False); or one with larger factors.
        new: what `factorize` or `adapt` made of it.
        moments: "step": the next step of momentum or of Adam moves the product v u as it would have moved the weight,
            to first order and as far as the rank allows. "gradient": the moments that the gradients so far would have
            made of the factors had they been there, such as v^T m for u. "fresh": none for any parameter, as in the
            published code.
    Raises:
        ValueError: another optimizer, unless moments="fresh"; another word for moments; `new` is not made from `old`.
    Source: ours.

    >>> import phalanx as px
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> carry(optimizer, model, px.factorize(model, 1 / 4))
    """
    known = moves(old, new)
    state = carried_state(optimizer, old, new, moments)
    into: dict[int, list[nn.Parameter]] = {}
    for move in known:
        for parameter in move.old:
            into.setdefault(id(parameter), []).extend(move.new)
    taken: set[int] = set()
    for group in optimizer.param_groups:
        after = [p for parameter in group["params"] for p in into.get(id(parameter), [])]
        group["params"] = [p for p in after if not (id(p) in taken or taken.add(id(p)))]
    if not taken:
        raise ValueError("the optimizer has no parameter of the old model; give the model that it was made for")
    optimizer.state.clear()
    optimizer.state.update(state)


def carried_state(
    optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, moments: Moments = "step"
) -> dict[Tensor, dict[str, Any]]:
    """The optimizer's state for the parameters of the new model; what the arguments are is said at `carry`."""
    if moments not in get_args(Moments):
        raise ValueError(f"moments must be {' or '.join(map(repr, get_args(Moments)))}, got {moments!r}")
    if moments == "fresh":
        return {}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    state = cast(Mapping[Tensor, dict[str, Any]], optimizer.state)
    made: dict[Tensor, dict[str, Any]] = {}
    for move in moves(old, new):
        held = [state[p] for p in move.old if state.get(p)]
        if not held or len(held) < len(move.old):
            continue
        _check(optimizer, held[0])
        if len(move.new) == 1:
            made[move.new[0]] = {key: _copied(move.part(x) if _is_like(x) else x) for key, x in held[0].items()}
        else:
            made |= zip(move.new, _split(move, held, groups[id(move.old[0])], moments), strict=True)
    return made


def transfer_average(average: nn.Module, new: nn.Module) -> nn.Module:
    """A running average of a model's weights, written in the factors of its low-rank form, to be averaged on.

    Factors of the average's own decomposition would be turned against those of the model, and an average over both
    would mean nothing. So this is the new model moved by the difference of the weights, to first order.

    Args:
        average: of the form that `new` was made from, such as `AveragedModel(...).module`; it stays as it is.
        new: what `factorize` or `adapt` made of the model that is averaged.
    Returns: a model of the form of `new` that shares nothing with it.
    Source: ours.
    """
    out = copy.deepcopy(new)
    with torch.no_grad():
        buffers = dict(average.named_buffers())
        for name, buffer in out.named_buffers():
            if name in buffers and buffers[name].shape == buffer.shape:
                buffer.copy_(buffers[name])
        for move in moves(average, out):
            if len(move.new) == 1:
                move.new[0].copy_(move.part(move.old[0].detach()))
                continue
            at = Thin.of(move)
            weight = _matrices(move, move.old)[0] if at.old is None else at.old[0] @ at.old[1]
            left, right = tangent(weight - at.left @ at.right, at.left, at.right)
            for parameter, value in zip(move.new, move.pulled(at.right + right, at.left + left), strict=True):
                parameter.copy_(value)
    return out


def _split(
    move: Move, held: list[dict[str, Any]], group: dict[str, Any], moments: Moments
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states of u and of v."""
    at = Thin.of(move)
    for_u, for_v = ({key: _copied(x) for key, x in held[0].items()} for _ in range(2))
    seen = {key: _matrices(move, [state[key] for state in held]) for key in held[0] if _is_like(held[0][key])}
    for key in _SQUARES:
        if key in seen:
            for_u[key], for_v[key] = move.pulled(*at.chained_squares(*seen[key]))
    key = "exp_avg" if "exp_avg" in seen else "momentum_buffer"
    if key not in seen:
        return for_u, for_v
    if moments == "gradient":
        for_u[key], for_v[key] = move.pulled(*at.chained(*seen[key]))
        return for_u, for_v
    # what the optimizer divides a first moment by, before and after
    old = [_divisor(group, held[0], seen, side) for side in range(2)]
    step = at.direction(*(m / d for m, d in zip(seen[key], old, strict=True)))
    left, right = tangent(step, at.left, at.right)
    for_u[key], for_v[key] = move.pulled(right, left)
    for state, parameter in ((for_u, move.new[0]), (for_v, move.new[1])):
        wider = {k: (x.to(wide(x.dtype)),) for k, x in state.items() if _is_like(x)}
        state[key] = (wider[key][0] * _divisor(group, state, wider, 0)).to(parameter.dtype)
    return for_u, for_v


def _divisor(group: dict[str, Any], state: dict[str, Any], seen: Mapping[str, Any], side: int) -> Tensor | float:
    """What Adam divides the first moment by; 1 for plain momentum."""
    if "exp_avg" not in seen:
        return 1.0
    step, (first, second) = float(state["step"]), group["betas"]
    squares = seen["max_exp_avg_sq" if "max_exp_avg_sq" in seen else "exp_avg_sq"][side]
    return ((squares / (1 - second**step)).sqrt() + group["eps"]) * (1 - first**step)


def _matrices(move: Move, tensors: Any) -> tuple[Tensor, Tensor]:
    """What is held of a dense weight, for u and for v alike; or of the old u and of the old v."""
    assert move.factor is not None
    wider = [t.detach().to(wide(t.dtype)) for t in tensors]
    if len(wider) == 1:
        whole = move.factor.matrices(wider[0])
        return whole, whole
    left, right = move.factor.thin(*wider)
    return right, left


def _check(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    unknown = sorted(key for key, x in state.items() if _is_like(x) and key not in _KNOWN)
    if unknown:
        raise ValueError(
            f"the moments {', '.join(unknown)} of {type(optimizer).__name__} are not known here; carry those of SGD, "
            'Adam or AdamW, or start anew with moments="fresh"'
        )


def _is_like(x: Any) -> bool:
    """Whether this is a moment of every entry, and not a count of steps."""
    return isinstance(x, Tensor) and x.dim() > 0


def _copied(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else x


def tangent(step: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The steps of two factors whose first order is the best approximation of a step of their product.

    With P and Q the projections on the columns of `left` and the rows of `right`, the product can move by
    P D + D Q - P D Q, which is D itself where the rank is full. Of the pairs that give it, this one treats both alike:
    left^+ D (I - Q / 2) and (I - P / 2) D right^+.

    Shapes: (..., rows, columns), (..., rows, r), (..., r, columns) -> (..., rows, r), (..., r, columns).
    """
    inverse_left = torch.linalg.pinv(left, rtol=_SHORTEST)
    inverse_right = torch.linalg.pinv(right, rtol=_SHORTEST)
    of_right, of_left = inverse_left @ step, step @ inverse_right
    both = of_right @ inverse_right
    return of_left - left @ both / 2, of_right - both @ right / 2
