# SPDX-License-Identifier: Apache-2.0
"""Lower ranks for a model that is of low rank already."""

from __future__ import annotations

import torch
from torch import nn

from phalanx.core.expression import require
from phalanx.core.precision import finite, wide
from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import empty_pair
from phalanx.lowrank.merge import low_rank_layers
from phalanx.lowrank.module_swap import exchanged
from phalanx.lowrank.spectrum import rank_for

_Pair = tuple[nn.Parameter, nn.Parameter]


def adapt(model: nn.Module, energy: float = 0.999, *, inplace: bool = False) -> nn.Module:
    """The model with the rank of each low-rank weight lowered to what its product v u still needs.

    The rank becomes the smallest at which the singular values of v u hold the energy, all gates or groups of a weight
    together, whose rank is one. The new factors are u = sqrt(S) V^T and v = U sqrt(S) again. The dense weight is never
    formed: both factors are orthogonalised, and the singular values are those of a matrix of the size of the rank.
    Weights whose rank does not fall keep their factors as they are, and so do products that are zero, which factors of
    zeros could never leave. `carry` takes an optimizer along; DDP wrappers and schemes must be built anew.

    Args:
        energy: part of the sum of the squared singular values of v u to keep, in (0, 1]; lower is smaller. At 1 only
            what rounding left is dropped, and the function stays the same.
        inplace: change the model and return it. By default it stays as it is and the result shares nothing with it.
    Raises:
        ValueError: an energy out of its range, factors that are not finite or without data, or DDP holds the model.
    Source: ours.
    """
    require(0 < energy <= 1, f"adapt needs an energy in (0, 1], got energy={energy}")
    whole = exchanged(model, {}, {}, inplace)
    lowered: dict[tuple[int, int], _Pair] = {}
    own = [(name, low, factor) for name, low in low_rank_layers(whole).items() for factor in low.factors]
    for name, low, factor in own:
        u, v = low.pair(factor)
        path = ".".join(part for part in (name, factor.name) if part)
        require(not u.is_meta, f"layer {path!r} has factors without data; build the model on a device that holds them")
        sound = finite(u.detach()) and finite(v.detach())
        require(sound, f"layer {path!r} has factors that are not finite; go back to ones from before that")
        if (id(u), id(v)) not in lowered:
            lowered[id(u), id(v)] = _lowered(factor, u, v, energy)
    # only now, so that an error leaves a model that is changed in place as it was
    for _, low, factor in own:
        u, v = low.pair(factor)
        for path, parameter in zip((factor.u, factor.v), lowered[id(u), id(v)], strict=True):
            inner, _, last = path.rpartition(".")
            setattr(low.get_submodule(inner), last, parameter)
    return whole


@torch.no_grad()
def _lowered(factor: Factor, u: nn.Parameter, v: nn.Parameter, energy: float) -> _Pair:
    rank, dtype = v.shape[1], wide(v.dtype)
    tall, flat = factor.thin(u, v)
    left, right = torch.linalg.qr(tall.to(dtype)), torch.linalg.qr(flat.to(dtype).mT)
    a, s, bh = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    # a share that rounding leaves of nothing: of the entries, and of the computation
    noise = torch.finfo(v.dtype).eps ** 2 + 4 * rank * torch.finfo(dtype).eps ** 2
    needed = rank_for(s.double().square().sum(dim=0).tolist(), min(energy, 1 - noise))
    if needed >= rank or not s.any():
        return u, v
    root = s[:, :needed].sqrt()
    new_u, new_v = empty_pair(factor, needed, u)
    new_u.copy_((root.unsqueeze(2) * (right.Q @ bh.mT)[:, :, :needed].mT).reshape(new_u.shape))
    new_v.copy_(((left.Q @ a)[:, :, :needed] * root.unsqueeze(1)).reshape(new_v.shape))
    new_v.requires_grad = v.requires_grad
    return new_u, new_v
