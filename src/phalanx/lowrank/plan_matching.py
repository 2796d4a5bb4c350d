# SPDX-License-Identifier: Apache-2.0
"""Check that a plan fits a model."""

from __future__ import annotations

from phalanx.core.registry import suggest
from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer_types import Layer
from phalanx.lowrank.plan import Entry, Plan


def match_plan(model_layers: list[Layer], names: dict[int, list[str]], plan: Plan) -> dict[str, int]:
    """The rank of each matrix that becomes low rank, by the name of the matrix.

    Args:
        model_layers: the model's layers.
        names: all names of every parameter, by its id.
        plan: the plan to check.
    Raises:
        ValueError: the plan names a layer that the model lacks, or names one twice; kind, shape or rank do not fit; or
            layers that share a weight would get different ranks.
    """
    known = {layer.path(factor): (layer, factor) for layer in model_layers for factor in layer.factors}
    ranks: dict[str, int] = {}
    seen: set[str] = set()
    for entry in plan:
        if entry.name in seen:
            raise ValueError(f"the plan names layer {entry.name!r} twice; leave one of them out")
        if entry.name not in known:
            raise ValueError(f"the plan's layer {entry.name!r} is not in the model; {suggest(entry.name, list(known))}")
        seen.add(entry.name)
        _check(entry, *known[entry.name])
        if entry.rank is not None:
            ranks[entry.name] = entry.rank
    groups: dict[int, list[str]] = {}
    for name in ranks:
        layer, factor = known[name]
        groups.setdefault(id(layer.weight(factor)), []).append(name)
    for parameter, members in groups.items():
        if len(names[parameter]) > 1:
            _check_tied(members, names[parameter], known, ranks)
    return ranks


def _check(entry: Entry, layer: Layer, factor: Factor) -> None:
    """Raises ValueError unless an entry of the plan fits the layer."""
    name = entry.name
    if entry.kind != layer.kind:
        raise ValueError(f"layer {name!r} is of kind {layer.kind!r}, the plan has {entry.kind!r}")
    if (entry.shape, entry.copies) != (factor.shape, factor.copies):
        own, planned = f"{list(factor.shape)} x {factor.copies}", f"{list(entry.shape)} x {entry.copies}"
        raise ValueError(f"layer {name!r} has shape and copies {own}, the plan has {planned}")
    if entry.rank is None:
        return
    if layer.family is None or layer.refusal:
        raise ValueError(f"layer {name!r} cannot be factorized: {layer.refusal}; set its rank to full")
    if not 1 <= entry.rank <= entry.largest_rank:
        raise ValueError(f"layer {name!r} takes ranks from 1 to {entry.largest_rank}, the plan has {entry.rank}")


def _check_tied(
    members: list[str], everywhere: list[str], known: dict[str, tuple[Layer, Factor]], ranks: dict[str, int]
) -> None:
    """Raises ValueError unless all layers that share a weight would share its factors."""
    factors = [known[name][1] for name in members]
    whole = len(members) == len(everywhere) and len(set(factors)) == 1
    if not whole or len({ranks[name] for name in members}) > 1:
        shared = ", ".join(everywhere)
        raise ValueError(f"layer {members[0]!r} shares its weight ({shared}); give all of them one rank, or none")
