# SPDX-License-Identifier: Apache-2.0
"""Makes a dense model from a low-rank one, and finds the plan that was applied to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from phalanx.lowrank.factor import Factor
from phalanx.lowrank.fast_path import set_fast_path
from phalanx.lowrank.layer import LowRank
from phalanx.lowrank.module_swap import for_huggingface, keep_mode_and_hooks, replace_modules
from phalanx.lowrank.plan import Entry, Plan


def merge(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The dense model: every product of factors is computed, and each layer has its first class again.

    The function is the same up to the rounding of one product. Layers that shared a weight share it again.

    Args:
        inplace: change the model and return it. By default the model stays unchanged and the result shares no tensor
            with it.
    Raises:
        ValueError: DDP holds the model, or the model is itself a low-rank layer and would be replaced in place.
    """
    weights: dict[tuple[int, ...], nn.Parameter] = {}
    replaced: dict[int, nn.Module] = {}
    for low in low_rank_layers(model).values():
        dense = low.dense_like()
        for name, members in _by_weight(low).items():
            pairs = [low.pair(factor) for factor, _ in members if factor in low.factors]
            key = tuple(id(parameter) for pair in pairs for parameter in pair) or (id(members[0][1]),)
            if key not in weights:
                weights[key] = _joined([part for _, part in members], pairs)
            path, _, last = name.rpartition(".")
            setattr(dense.get_submodule(path), last, weights[key])
        replaced[id(low)] = keep_mode_and_hooks(low, dense)
    new_parameters = {id(parameter): parameter for parameter in weights.values()}
    return for_huggingface(set_fast_path(replace_modules(model, replaced, new_parameters, inplace)))


def applied(model: nn.Module) -> Plan:
    """The plan that makes this model from a dense one; full layers are not listed."""
    owners: dict[int, str] = {}
    entries = []
    for name, low in low_rank_layers(model).items():
        for factor in low.factors:
            path = ".".join(part for part in (name, factor.name) if part)
            owner = owners.setdefault(id(low.pair(factor)[0]), path)
            tied = owner if owner != path else ""
            rank, copies = low.rank(factor), factor.copies
            entries.append(Entry(path, low.kind, factor.shape, rank, "applied", copies=copies, tied=tied))
    after = sum(entry.parameters_after for entry in entries)
    return Plan(tuple(entries), sum(parameter.numel() for parameter in model.parameters()) - after)


def low_rank_layers(model: nn.Module) -> dict[str, LowRank]:
    """The outermost low-rank layers by name; the projections of an attention belong to the attention."""
    low_rank = {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}
    inner = {id(part) for module in low_rank.values() for part in module.modules() if part is not module}
    return {name: module for name, module in low_rank.items() if id(module) not in inner}


def _joined(parts: list[Tensor], pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> nn.Parameter:
    """One dense parameter from the parts of its rows; frozen if all parts are."""
    if len(parts) == 1 and isinstance(parts[0], nn.Parameter):
        return parts[0]
    whole = torch.cat([part.detach() for part in parts])
    trained = any(part.requires_grad for part in parts)
    strided = [u for u, _ in pairs if u.dim() == 4 and not u.is_contiguous()]
    if strided and all(u.is_contiguous(memory_format=torch.channels_last) for u in strided):
        whole = whole.to(memory_format=torch.channels_last)
    return nn.Parameter(whole, trained)


def _by_weight(low: LowRank) -> dict[str, list[tuple[Factor, Tensor]]]:
    """The parts of each dense weight, by the name of the weight."""
    parts: dict[str, list[tuple[Factor, Tensor]]] = {}
    for factor, part in low.parts():
        parts.setdefault(factor.weight, []).append((factor, part))
    return parts
