# SPDX-License-Identifier: Apache-2.0
"""Transfer of an optimizer and of a running average to the factorized model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from phalanx.core.precision import accumulation_dtype
from phalanx.lowrank.parameter_map import Counterpart, ThinFactors, parameter_map

Moments = Literal["step", "gradient", "fresh"]
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq")
# directions in which a factor is shorter than this share of its longest direction are not used: a step along them would
# have to be so long that its second-order effect exceeds the first-order one
_SHORTEST = 0.01
# the entries that the state of each optimizer has for a parameter, beside its counts of steps
_MOMENTS = {
    "SGD": {"momentum_buffer"},
    **{name: {"exp_avg", *_SQUARES} for name in ("Adam", "AdamW", "NAdam", "RAdam")},
    "Adafactor": {"row_var", "col_var", "variance"},
    "Lion": {"exp_avg"},
    "Muon": {"momentum_buffer"},
}
# a step of these is no multiple of the moment, so no moments of u and v make the product follow it
_UNLIKE = {"Lion": "steps of one length in every entry", "Muon": "orthogonal steps"}


def transfer_optimizer(
    optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, moments: Moments = "step"
) -> None:
    """Makes the optimizer of a model continue with the model's factorized form; its schedulers stay valid.

    The two factors take the place of their weight in the parameter groups. All other parameters keep their moments.

    Args:
        optimizer: for the parameters of `old`: SGD, Adam, AdamW, NAdam, RAdam, Adafactor, Lion or Muon, as in
            `torch.optim` where it has them. Adafactor has no first moments, so all words but "fresh" are one. Steps of
            Lion and Muon are no multiples of their moments, so "step" is refused.
        old: the dense model, with its weights (so factorize with inplace=False); or a model with larger factors.
        new: the result of `factorize` or `adapt` for that model.
        moments: "step": the next step of momentum or of Adam changes the product v u as it would have changed the
            weight, to first order and as far as the rank allows. "gradient": the moments that the factors would have
            if they had existed from the start, such as v^T m for u. "fresh": no moments for any parameter, as in the
            published code.
    Raises:
        ValueError: the optimizer is another one or refused and moments is not "fresh", moments is another word, or
            `new` is not made from `old`.
    Source: ours.

    >>> import phalanx as px
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> transfer_optimizer(optimizer, model, px.factorize(model, 1 / 4))
    """
    known = parameter_map(old, new)
    state = transferred_state(optimizer, old, new, moments)
    into: dict[int, list[nn.Parameter]] = {}
    for entry in known:
        for parameter in entry.old:
            into.setdefault(id(parameter), []).extend(entry.new)
    taken: set[int] = set()
    for group in optimizer.param_groups:
        after = [p for parameter in group["params"] for p in into.get(id(parameter), [])]
        group["params"] = [p for p in after if not (id(p) in taken or taken.add(id(p)))]
    if not taken:
        raise ValueError("the optimizer has no parameter of the old model; give the model that it was made for")
    optimizer.state.clear()
    optimizer.state.update(state)


def transferred_state(
    optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, moments: Moments = "step"
) -> dict[Tensor, dict[str, Any]]:
    """The optimizer's state for the parameters of the new model; arguments and errors as `transfer_optimizer`."""
    if moments not in get_args(Moments):
        raise ValueError(f"moments must be {' or '.join(map(repr, get_args(Moments)))}, got {moments!r}")
    if moments == "fresh":
        return {}
    kind = _kind(optimizer, moments)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    state = cast(Mapping[Tensor, dict[str, Any]], optimizer.state)
    new_state: dict[Tensor, dict[str, Any]] = {}
    for entry in parameter_map(old, new):
        held = [state[p] for p in entry.old if state.get(p)]
        if not held or len(held) < len(entry.old):
            continue
        _check(optimizer, kind, held[0])
        if kind == "Adafactor":
            new_state |= zip(entry.new, _adafactor(entry, held), strict=True)
        elif len(entry.new) == 1:
            new_state[entry.new[0]] = {key: _copied(entry.part(x) if _is_like(x) else x) for key, x in held[0].items()}
        else:
            group = {**groups[id(entry.old[0])], "kind": kind}
            new_state |= zip(entry.new, _split(entry, held, group, moments), strict=True)
    return new_state


def transfer_average(average: nn.Module, new: nn.Module) -> nn.Module:
    """A running average of a model's weights in the factors of the low-rank model, so that averaging can continue.

    If the average were factorized by itself, its factors could differ from the model's by a rotation, and a mean of
    both would be meaningless. So the result is the new model, changed to first order by the difference of the weights.

    Args:
        average: a model of the form that `new` was made from, such as `AveragedModel(...).module`; it is not changed.
        new: the result of `factorize` or `adapt` for the averaged model.
    Returns: a model of the form of `new` that shares no tensor with it.
    Raises:
        ValueError: `new` is not made from a model of the form of `average`.
    Source: ours.
    """
    out = copy.deepcopy(new)
    with torch.no_grad():
        buffers = dict(average.named_buffers())
        for name, buffer in out.named_buffers():
            if name in buffers and buffers[name].shape == buffer.shape:
                buffer.copy_(buffers[name])
        for entry in parameter_map(average, out):
            if len(entry.new) == 1:
                entry.new[0].copy_(entry.part(entry.old[0].detach()))
                continue
            factors = ThinFactors.of(entry)
            weight = _matrices(entry, entry.old)[0] if factors.old is None else factors.old[0] @ factors.old[1]
            left, right = tangent(weight - factors.left @ factors.right, factors.left, factors.right)
            for parameter, value in zip(
                entry.new, entry.pulled(factors.right + right, factors.left + left), strict=True
            ):
                parameter.copy_(value)
    return out


def _split(
    entry: Counterpart, held: list[dict[str, Any]], group: dict[str, Any], moments: Moments
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The optimizer's states for u and for v."""
    factors = ThinFactors.of(entry)
    for_u, for_v = ({key: _copied(x) for key, x in held[0].items()} for _ in range(2))
    moments_of = {key: _matrices(entry, [state[key] for state in held]) for key in held[0] if _is_like(held[0][key])}
    for key in _SQUARES:
        if key in moments_of:
            for_u[key], for_v[key] = entry.pulled(*factors.chained_squares(*moments_of[key]))
    key = "exp_avg" if "exp_avg" in moments_of else "momentum_buffer"
    if key not in moments_of:
        return for_u, for_v
    if moments == "gradient":
        for_u[key], for_v[key] = entry.pulled(*factors.chained(*moments_of[key]))
        return for_u, for_v
    # the optimizer divides a first moment by this, before and after
    old = [_divisor(group, held[0], moments_of, side) for side in range(2)]
    step = factors.direction(*(m / d for m, d in zip(moments_of[key], old, strict=True)))
    left, right = tangent(step, factors.left, factors.right)
    for_u[key], for_v[key] = entry.pulled(right, left)
    for state, parameter in ((for_u, entry.new[0]), (for_v, entry.new[1])):
        wider = {k: (x.to(accumulation_dtype(x.dtype)),) for k, x in state.items() if _is_like(x)}
        state[key] = (wider[key][0] * _divisor(group, state, wider, 0)).to(parameter.dtype)
    return for_u, for_v


def _divisor(group: dict[str, Any], state: dict[str, Any], moments_of: Mapping[str, Any], side: int) -> Tensor | float:
    """The number by which Adam divides the first moment; 1 for plain momentum."""
    if "exp_avg" not in moments_of:
        return 1.0
    step, (first, second) = float(state["step"]), group["betas"]
    if group["kind"] == "RAdam" and not _has_rectified(step + 1, second):
        return 1.0
    squares = moments_of["max_exp_avg_sq" if "max_exp_avg_sq" in moments_of else "exp_avg_sq"][side]
    return ((squares / (1 - second**step)).sqrt() + group["eps"]) * (1 - first**step)


def _matrices(entry: Counterpart, tensors: Any) -> tuple[Tensor, Tensor]:
    """The moments as matrices, for u and for v: those of the dense weight twice, or those of the old factors."""
    assert entry.factor is not None
    wider = [t.detach().to(accumulation_dtype(t.dtype)) for t in tensors]
    if len(wider) == 1:
        whole = entry.factor.matrices(wider[0])
        return whole, whole
    left, right = entry.factor.thin(*wider)
    return right, left


def _kind(optimizer: torch.optim.Optimizer, moments: Moments) -> str:
    """The name in `_MOMENTS` of an optimizer or of a class that it extends.

    Raises:
        ValueError: it is another one, or its moments cannot be transferred in this way.
    """
    name = type(optimizer).__name__
    kind = next((cls.__name__ for cls in type(optimizer).__mro__ if cls.__name__ in _MOMENTS), "")
    if not kind:
        raise ValueError(
            f"the moments of {name} are not known; those of {', '.join(_MOMENTS)} can be transferred, or start again "
            'with moments="fresh"'
        )
    if moments == "step" and kind in _UNLIKE:
        raise ValueError(
            f"{name} takes {_UNLIKE[kind]}, which moments of two factors cannot repeat; give them the moments of their "
            'gradients with moments="gradient", or start again with moments="fresh"'
        )
    return kind


def _check(optimizer: torch.optim.Optimizer, kind: str, state: dict[str, Any]) -> None:
    have = {key for key, x in state.items() if _is_like(x)}
    unknown = sorted(have - _MOMENTS[kind])
    needed = {"exp_avg", "exp_avg_sq", "step"} if "exp_avg_sq" in _MOMENTS[kind] else set[str]()
    missing = sorted(needed - state.keys())
    if unknown or missing:
        what = f"has {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
        raise ValueError(
            f"the state of this {type(optimizer).__name__} {what}, unlike that of torch's {kind}; start again with "
            'moments="fresh"'
        )


def _adafactor(entry: Counterpart, held: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The states of Adafactor: means over rows and columns of the mean squares of the new gradients."""
    if entry.factor is None:
        return [{key: _copied(x) for key, x in held[0].items()}]
    squares = [_squares_of(state) for state in held]
    if len(entry.new) == 1:
        whole = [entry.part(squares[0])]
    else:
        whole = entry.pulled(*ThinFactors.of(entry).chained_squares(*_matrices(entry, squares)))
    dims = (("row_var", -1), ("col_var", -2))
    return [
        {"step": _copied(held[0]["step"]), **{key: x.mean(dim=dim, keepdim=True) for key, dim in dims}} for x in whole
    ]


def _squares_of(state: dict[str, Any]) -> Tensor:
    """The mean squares of a weight's gradient, as Adafactor estimates them."""
    row, column = state["row_var"], state["col_var"]
    mean = row.mean(dim=-2, keepdim=True)
    return row @ column / mean.clamp(min=torch.finfo(row.dtype).tiny)


def _has_rectified(step: float, second: float) -> bool:
    """Whether RAdam divides by the second moments in this step; in the first few it takes plain steps of momentum."""
    longest = 2 / (1 - second) - 1
    return longest - 2 * step * second**step / (1 - second**step) > 5


def _is_like(x: Any) -> bool:
    """Whether an entry of the state is a moment, and not a count of steps."""
    return isinstance(x, Tensor) and x.dim() > 0


def _copied(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else x


def tangent(step: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The steps of two factors that, to first order, approximate a step D of their product best.

    Let P and Q be the projections on the columns of `left` and the rows of `right`. To first order the product can
    change by P D + D Q - P D Q, which is D itself at full rank. Many pairs of steps do so; this one treats both factors
    alike: left^+ D (I - Q / 2) and (I - P / 2) D right^+.

    Shapes: (..., rows, columns), (..., rows, r), (..., r, columns) -> (..., rows, r), (..., r, columns).
    """
    inverse_left = torch.linalg.pinv(left, rtol=_SHORTEST)
    inverse_right = torch.linalg.pinv(right, rtol=_SHORTEST)
    of_right, of_left = inverse_left @ step, step @ inverse_right
    both = of_right @ inverse_right
    return of_left - left @ both / 2, of_right - both @ right / 2
