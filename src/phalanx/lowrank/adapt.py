# SPDX-License-Identifier: Apache-2.0
"""Lower the ranks of a model that is already of low rank."""

from __future__ import annotations

import torch
from torch import nn

from phalanx.core.expression import require
from phalanx.core.precision import accumulation_dtype, finite
from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import empty_pair
from phalanx.lowrank.merge import low_rank_layers
from phalanx.lowrank.module_swap import replace_modules
from phalanx.lowrank.spectrum import rank_for

_Pair = tuple[nn.Parameter, nn.Parameter]


def adapt(model: nn.Module, energy: float = 0.999, *, inplace: bool = False) -> nn.Module:
    """The model with the rank of each low-rank weight lowered to what its product v u still needs.

    The new rank is the smallest at which the singular values of v u hold the energy; all gates or groups of a weight
    are taken together and get the same rank. The new factors are again u = sqrt(S) V^T and v = U sqrt(S). The dense
    weight is never formed: both factors are orthogonalised, and the singular values come from a square matrix of the
    size of the rank. A weight whose rank does not fall keeps its factors. So does a product that is zero, because
    training could not change factors of zeros. `transfer_optimizer` adapts an optimizer; DDP wrappers and schemes must
    be built again.

    Args:
        energy: share of the sum of the squared singular values of v u to keep, in (0, 1]; lower gives smaller ranks. At
            1 only rounding errors are dropped, and the function stays the same.
        inplace: change the model and return it. By default the model stays unchanged and the result shares no tensor
            with it.
    Raises:
        ValueError: the energy is out of its range, factors are not finite or have no data, or DDP holds the model.
    Source: ours.
    """
    require(0 < energy <= 1, f"adapt needs an energy in (0, 1], got energy={energy}")
    whole = replace_modules(model, {}, {}, inplace)
    lowered: dict[tuple[int, int], _Pair] = {}
    model_factors = [(name, low, factor) for name, low in low_rank_layers(whole).items() for factor in low.factors]
    for name, low, factor in model_factors:
        u, v = low.pair(factor)
        path = ".".join(part for part in (name, factor.name) if part)
        require(not u.is_meta, f"layer {path!r} has factors without data; build the model on a device that holds them")
        sound = finite(u.detach()) and finite(v.detach())
        require(sound, f"layer {path!r} has factors that are not finite; go back to ones from before that")
        if (id(u), id(v)) not in lowered:
            lowered[id(u), id(v)] = _lowered(factor, u, v, energy)
    # only now, so that an error leaves the model unchanged
    for _, low, factor in model_factors:
        u, v = low.pair(factor)
        for path, parameter in zip((factor.u, factor.v), lowered[id(u), id(v)], strict=True):
            inner, _, last = path.rpartition(".")
            setattr(low.get_submodule(inner), last, parameter)
    return whole


@torch.no_grad()
def _lowered(factor: Factor, u: nn.Parameter, v: nn.Parameter, energy: float) -> _Pair:
    rank, dtype = v.shape[1], accumulation_dtype(v.dtype)
    tall, flat = factor.thin(u, v)
    left, right = torch.linalg.qr(tall.to(dtype)), torch.linalg.qr(flat.to(dtype).mT)
    a, s, bh = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    # the share that rounding adds to a zero: of the entries, and of the computation
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
