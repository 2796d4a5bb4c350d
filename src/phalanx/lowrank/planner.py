# SPDX-License-Identifier: Apache-2.0
"""Makes a plan: the rules that decide which layers of a model become low rank, and at which rank."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import nn

from phalanx.core.expression import require
from phalanx.core.registry import suggest
from phalanx.lowrank.automatic import choose_full_layers
from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer_timing import LayerTimer
from phalanx.lowrank.layer_types import EXPERTS, Layer, layers, parameter_names
from phalanx.lowrank.plan import Entry, Plan
from phalanx.lowrank.ranks import energies_of, own_rank
from phalanx.lowrank.sample_run import count_positions

Rank = Literal["ratio", "auto"]


def plan(
    model: nn.Module,
    ratio: float | None = None,
    first: int | None = None,
    keep: Sequence[str] = (),
    *,
    rank: Rank = "ratio",
    initial: Mapping[str, float] | None = None,
    energy: float = 0.9,
    classifier: bool = True,
    embedding: bool = False,
    sample_input: Any = None,
    measure: bool = False,
    autocast: torch.dtype | None = None,
) -> Plan:
    """The plan that `factorize` would apply to a model: one entry for each matrix, with the reason.

    Each gate of a recurrent layer and each group of a convolution has the rank of its entry. With rank="ratio" the rank
    is max(1, floor(min(out, in * kernel) ratio)). With rank="auto" it comes from the singular values of the present
    weights, in one of three ways:
    with a ratio, from a budget, which is the number of parameters that rank="ratio" would give. It is distributed so
    that the sum of the energies is largest, where each matrix counts its energy relative to its own squared Frobenius
    norm; each matrix keeps at least half of its rank;
    with `initial`, from the stable rank ||W||_F^2 / ||W||_2^2, times the full rank over the stable rank at the start;
    otherwise, from the number of singular values that hold the `energy`.

    A weight stays full if its factors would not be smaller. A weight that several layers share stays full unless all of
    them are factorized with the same two factors. With rank="auto", the first layers stay full if together they hold
    less than 1 % of the weights; if times are measured, all layers that are slower in low rank stay full instead. With
    a budget, layers stay full only while the others keep half of their parameters.

    Args:
        ratio: ratio of the rank to the full rank, in (0, 1]; lower gives smaller ranks; by default 1/4 with
            rank="ratio".
        first: K of the dissertation, >= 1: the first K - 1 layers that could be factorized stay full. An attention
            counts as one layer, and so does each layer of a recurrent stack. By default 1 with rank="ratio".
        keep: names of layers, or patterns as in file names, that stay full; a name includes all layers inside.
        rank: "ratio" or "auto".
        initial: result of `stable_ranks` before training; matrices that it lacks get their rank from the energy.
        energy: share of the sum of the squared singular values, in (0, 1]; higher gives larger ranks.
        classifier: whether the last layer stays full if it is fully connected and not part of a repeated block.
        embedding: whether embeddings also become low rank, and with them a last layer that shares their weight.
        sample_input: an input of the model (a tensor, a tuple of arguments or a dictionary of them), on which the model
            runs once to count multiply-accumulates.
        measure: whether to time a training step of every layer that could be factorized, dense and in low rank, on the
            inputs that it gets in the run on the sample; see `phalanx.lowrank.layer_timing.timed`.
        autocast: dtype of `torch.autocast` in the measured steps.
    Raises:
        ValueError: a number is out of its range, arguments exclude each other, a pattern fits no layer, the model has
            low-rank layers, or with rank="auto" a weight is not finite.
    Source: Wang et al., Pufferfish, 2021, arXiv:2103.03936, section 3; Wang et al., Cuttlefish, 2023,
        arXiv:2305.02538, for `initial` and the times. Differs: a layer that would grow stays full; the budget, the
        energy and the rule of 1 % are ours.
    """
    _check(ratio, first, energy, initial)
    _check_together(rank, ratio, initial, sample_input is not None, measure, autocast is not None)
    share, auto = 1 / 4 if ratio is None else ratio, rank == "auto"
    model_layers, names = layers(model), parameter_names(model)
    reasons, last = _rules(model, model_layers, 1 if first is None else first, _patterns(keep, model_layers), embedding)
    shared = _shared(model_layers, names)
    # embedding=True includes the output layer that shares the embedding's weight
    asked = embedding and any(layer.path(factor) == last for group in shared.values() for layer, factor in group)
    if classifier and last and not reasons[last] and not asked:
        reasons[last] = "the last classifier"
    for group in shared.values():
        _agree(group, names, reasons)
    for name in initial or ():
        if name not in reasons:
            raise ValueError(f"the model has no layer {name!r} of initial; {suggest(name, list(reasons))}")
    spectral = auto and ratio is None

    def choose(name: str, layer: Layer, factor: Factor) -> tuple[int, str]:
        if spectral:
            return own_rank(layer, factor, energy, 0.0 if initial is None else initial.get(name, 0.0))
        return factor.rank_at(share), f"ratio {share:.4g}"

    counts = {} if sample_input is None else count_positions(model, model_layers, sample_input)
    entries = _entries(model_layers, reasons, choose, counts)
    total = sum(parameter.numel() for parameter in model.parameters())
    fused = sum(entry.parameters for entry in entries if entry.kind == EXPERTS)
    if 2 * fused > total:
        many = f"{fused / total:.0%} of the parameters"
        warnings.warn(f"{many} are experts of mixtures in one tensor each, which stay full", stacklevel=2)
    first_plan = Plan(entries, total - sum(entry.parameters for entry in entries))
    timer = LayerTimer(model, model_layers, sample_input, autocast) if measure else None
    if not auto:
        return first_plan if timer is None else timer(first_plan)
    known = {layer.path(factor): (layer, factor) for layer in model_layers for factor in layer.factors}
    own_names = [] if spectral else [e.name for e in first_plan if e.rank is not None and not e.tied]
    shares = None if spectral else {name: energies_of(*known[name]) for name in own_names}
    return choose_full_layers(first_plan, shares, first is None and not measure, timer)


def _check(ratio: float | None, first: int | None, energy: float, initial: Mapping[str, float] | None) -> None:
    number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
    require(ratio is None or number, f"plan needs a ratio as a number, such as 1 / 4, got ratio={ratio!r}")
    require(ratio is None or 0 < ratio <= 1, f"plan needs a ratio in (0, 1], got ratio={ratio}")
    sentence = f"plan needs first >= 1, the number of the first low-rank layer, got first={first}"
    require(first is None or first >= 1, sentence)
    require(0 < energy <= 1, f"plan needs an energy in (0, 1], got energy={energy}")
    for name, start in (initial or {}).items():
        require(0 <= start < math.inf, f"plan needs initial stable ranks >= 0, got {start} for {name!r}")


def _check_together(
    rank: Rank, ratio: float | None, initial: Mapping[str, float] | None, sampled: bool, measure: bool, narrow: bool
) -> None:
    if rank not in get_args(Rank):
        raise ValueError(f"rank must be {' or '.join(map(repr, get_args(Rank)))}, got {rank!r}")
    asked = initial is None or (rank == "auto" and ratio is None)
    require(asked, "initial stable ranks are for rank='auto' without a ratio, which is a budget")
    require(sampled or not measure, "plan measures layers at a sample; give sample_input")
    require(measure or not narrow, "autocast is for measured times; give measure=True")


def _entries(
    model_layers: list[Layer],
    reasons: dict[str, str],
    choose: Callable[[str, Layer, Factor], tuple[int, str]],
    counts: dict[str, int],
) -> tuple[Entry, ...]:
    owners: dict[tuple[int, int], str] = {}
    entries: dict[str, Entry] = {}
    for layer in model_layers:
        for factor in layer.factors:
            name, weight = layer.path(factor), layer.owned(factor)
            owner = name if weight is None else owners.setdefault((id(weight), factor.start), name)
            rank, reason = None, reasons[name]
            if not reason and owner != name:
                rank, reason = entries[owner].rank, entries[owner].reason
            elif not reason:
                rank, reason = choose(name, layer, factor)
                size = factor.size_at(rank)
                if size >= factor.size:
                    reason = f"factors of rank {rank} are no smaller, {size:,} for {factor.size:,}"
                    rank = None
            tied = owner if owner != name else ""
            entries[name] = Entry(
                name=name,
                kind=layer.kind,
                shape=factor.shape,
                rank=rank,
                reason=reason,
                copies=factor.copies,
                tied=tied,
                positions=counts.get(name),
            )
    return tuple(entries.values())


def _rules(
    model: nn.Module, model_layers: list[Layer], first: int, kept: dict[str, str], embedding: bool
) -> tuple[dict[str, str], str]:
    """The reason why each matrix stays full, apart from size and ties, or ""; and the classifier's name or ""."""
    reasons: dict[str, str] = {}
    number, last, counted = 0, "", None
    for layer in model_layers:
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


def _patterns(keep: Sequence[str], model_layers: list[Layer]) -> dict[str, str]:
    """The pattern that keeps a matrix, by its name."""
    if isinstance(keep, str):
        raise ValueError(f"plan needs a list of patterns to keep, got keep={keep!r}; write keep=[{keep!r}]")
    names = [layer.path(factor) for layer in model_layers for factor in layer.factors]
    kept: dict[str, str] = {}
    for pattern in keep:
        fitting = [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")]
        if not fitting:
            raise ValueError(f"keep={pattern!r} fits no layer; the layers are {', '.join(names) or 'none'}")
        kept |= {name: pattern for name in fitting}
    return kept


def _repeated(model: nn.Module, name: str) -> bool:
    """Whether a layer is in a block whose container holds several blocks of this class."""
    path = name.split(".")
    for depth in range(1, len(path)):
        block, parent = (model.get_submodule(".".join(path[:i])) for i in (depth, depth - 1))
        if isinstance(block, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            return True
        if isinstance(parent, nn.ModuleList | nn.Sequential) and sum(type(m) is type(block) for m in parent) > 1:
            return True
    return False


def _shared(model_layers: list[Layer], names: dict[int, list[str]]) -> dict[int, list[tuple[Layer, Factor]]]:
    """The matrices of every tied parameter."""
    groups: dict[int, list[tuple[Layer, Factor]]] = {}
    for layer in model_layers:
        for factor in layer.factors:
            parameter = layer.owned(factor)
            if not layer.refusal and parameter is not None and len(names[id(parameter)]) > 1:
                groups.setdefault(id(parameter), []).append((layer, factor))
    return groups


def _agree(group: list[tuple[Layer, Factor]], names: dict[int, list[str]], reasons: dict[str, str]) -> None:
    """Marks all matrices of a tied parameter as full unless all of them can share two factors."""
    everywhere = names[id(group[0][0].weight(group[0][1]))]
    paths = [layer.path(factor) for layer, factor in group]
    whole = len(group) == len(everywhere) and all(layer.weight(f).numel() == f.size for layer, f in group)
    alike = len({factor for _, factor in group}) == 1
    full = [path for path in paths if reasons[path]]
    if whole and alike and not full:
        return
    for (layer, factor), path in zip(group, paths, strict=True):
        if not reasons[path]:
            weight_path = ".".join(part for part in (layer.name, factor.weight) if part)
            reasons[path] = f"tied with {', '.join(name for name in everywhere if name != weight_path)}"
