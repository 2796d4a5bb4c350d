# SPDX-License-Identifier: Apache-2.0
"""The rules that say which layers of a model become low rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from phalanx.lowrank.factor import Factor
from phalanx.lowrank.families import Layer, layers, uses
from phalanx.lowrank.plan import Entry, Plan
from phalanx.lowrank.positions import positions_of


def plan(
    model: nn.Module,
    ratio: float = 1 / 4,
    first: int = 1,
    keep: Sequence[str] = (),
    *,
    classifier: bool = True,
    embedding: bool = False,
    sample_input: Any = None,
) -> Plan:
    """What `factorize` would do to a model, one entry a matrix, with the reason.

    rank = max(1, floor(min(out, in * kernel) ratio)), for each gate of a recurrent layer and each group of a
    convolution. A weight whose factors would be no smaller stays full. A weight that several layers share stays full
    unless all of them are factorized, with the same two factors.

    Args:
        ratio: of the rank to the full rank, in (0, 1]; lower is smaller.
        first: K of the chapter, >= 1: the first K - 1 layers that could be factorized stay full. An attention counts as
            one layer, and so does each layer of a recurrent stack.
        keep: names of layers, or patterns as in file names, that stay full; a name stands for all within it, too.
        classifier: the last layer stays full if it is fully connected and not part of a repeated block.
        embedding: embeddings become low rank, too, and with them a last layer that shares their weight.
        sample_input: an input of the model (a tensor, a tuple of arguments or a dictionary of them) that is run once to
            count multiply-accumulates.
    Raises:
        ValueError: a number out of its range, a pattern that fits no layer, or low-rank layers in the model.
    Source: Wang et al., Pufferfish, 2021, arXiv:2103.03936, section 3. Differs: a layer that would grow stays full.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"plan needs a ratio in (0, 1], got ratio={ratio}")
    if first < 1:
        raise ValueError(f"plan needs first >= 1, the number of the first low-rank layer, got first={first}")
    found, names = layers(model), uses(model)
    reasons, last = _rules(model, found, first, _patterns(keep, found), embedding)
    shared = _shared(found, names)
    # asking for embeddings asks for the output layer that shares their weight
    asked = embedding and any(layer.path(factor) == last for group in shared.values() for layer, factor in group)
    if classifier and last and not reasons[last] and not asked:
        reasons[last] = "the last classifier"
    for group in shared.values():
        _agree(group, names, reasons)
    owners: dict[tuple[int, int], str] = {}
    counts = {} if sample_input is None else positions_of(model, found, sample_input)
    entries = []
    for layer in found:
        for factor in layer.factors:
            name, rank = layer.path(factor), factor.rank_at(ratio)
            reason, size = reasons[name], factor.size_at(rank)
            if not reason and size >= factor.size:
                reason = f"factors of rank {rank} are no smaller, {size:,} for {factor.size:,}"
            entry = Entry(name, layer.kind, factor.shape, None if reason else rank, reason or f"ratio {ratio:.4g}")
            weight = layer.owned(factor)
            owner = name if weight is None else owners.setdefault((id(weight), factor.start), name)
            tied = owner if owner != name else ""
            entries.append(replace(entry, copies=factor.copies, tied=tied, positions=counts.get(name)))
    total = sum(parameter.numel() for parameter in model.parameters())
    return Plan(tuple(entries), total - sum(entry.parameters for entry in entries))


def _rules(
    model: nn.Module, found: list[Layer], first: int, kept: dict[str, str], embedding: bool
) -> tuple[dict[str, str], str]:
    """Why each matrix stays full, apart from its size and its ties, or nothing; and the classifier's name, if any."""
    reasons: dict[str, str] = {}
    number, last, counted = 0, "", None
    for layer in found:
        for factor in layer.factors:
            name, refusal = layer.path(factor), layer.refusal
            if not refusal and layer.kind == "embedding" and not embedding:
                refusal = "an embedding, which is asked for by embedding=True"
            reasons[name] = refusal
            if refusal:
                continue
            if (layer.name, factor.layer) != counted:
                number, counted = number + 1, (layer.name, factor.layer)
            last = name if layer.kind == "linear" and not _repeated(model, layer.name) else ""
            if name in kept:
                reasons[name] = f"kept by {kept[name]!r}"
            elif number < first:
                reasons[name] = f"layer {number}, before first={first}"
    return reasons, last


def _patterns(keep: Sequence[str], found: list[Layer]) -> dict[str, str]:
    """The pattern that keeps a matrix, by its name."""
    if isinstance(keep, str):
        raise ValueError(f"plan needs a list of patterns to keep, got keep={keep!r}; write keep=[{keep!r}]")
    names = [layer.path(factor) for layer in found for factor in layer.factors]
    kept: dict[str, str] = {}
    for pattern in keep:
        fitting = [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")]
        if not fitting:
            raise ValueError(f"keep={pattern!r} fits no layer; the layers are {', '.join(names)}")
        kept |= {name: pattern for name in fitting}
    return kept


def _repeated(model: nn.Module, name: str) -> bool:
    """Whether a layer is part of a block that its container holds several of."""
    path = name.split(".")
    for depth in range(1, len(path)):
        block, parent = (model.get_submodule(".".join(path[:i])) for i in (depth, depth - 1))
        if isinstance(block, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            return True
        if isinstance(parent, nn.ModuleList | nn.Sequential) and sum(type(m) is type(block) for m in parent) > 1:
            return True
    return False


def _shared(found: list[Layer], names: dict[int, list[str]]) -> dict[int, list[tuple[Layer, Factor]]]:
    """The matrices of every tied parameter."""
    groups: dict[int, list[tuple[Layer, Factor]]] = {}
    for layer in found:
        for factor in layer.factors:
            parameter = layer.owned(factor)
            if not layer.refusal and parameter is not None and len(names[id(parameter)]) > 1:
                groups.setdefault(id(parameter), []).append((layer, factor))
    return groups


def _agree(group: list[tuple[Layer, Factor]], names: dict[int, list[str]], reasons: dict[str, str]) -> None:
    """Leaves all matrices of a tied parameter full unless all of them can share two factors."""
    everywhere = names[id(group[0][0].weight(group[0][1]))]
    paths = [layer.path(factor) for layer, factor in group]
    whole = len(group) == len(everywhere) and all(layer.weight(f).numel() == f.size for layer, f in group)
    alike = len({factor for _, factor in group}) == 1
    full = [path for path in paths if reasons[path]]
    if whole and alike and not full:
        return
    for (layer, factor), path in zip(group, paths, strict=True):
        if not reasons[path]:
            own = ".".join(part for part in (layer.name, factor.weight) if part)
            reasons[path] = f"tied with {', '.join(name for name in everywhere if name != own)}"
