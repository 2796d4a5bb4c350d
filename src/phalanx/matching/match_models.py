# SPDX-License-Identifier: Apache-2.0
"""Whole networks averaged once, their neurons matched before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from phalanx.core._torch_private import BatchNormBase
from phalanx.core.expression import require
from phalanx.matching.bbp import Bbp
from phalanx.matching.graph import Graph, permuted, resized
from phalanx.matching.matching import Matcher
from phalanx.matching.neuron_features import averaged, known
from phalanx.matching.refinement import refined, squares
from phalanx.matching.symmetry import alike, output, wide

Places = list[dict[int, Tensor]]  # of each model, the places of the neurons of each group


def match_models(
    models: Sequence[nn.Module],
    example_input: Tensor,
    *,
    matcher: Matcher | None = None,
    outgoing: bool = False,
    data: Iterable[Tensor] | None = None,
    refine: bool = False,
    seed: int = 0,
) -> nn.Module:
    """One network out of several of one architecture: their neurons are matched, group by group, and averaged.

    A neuron is known by the weights that make it out of neurons which are matched already. Every model's neurons are
    put where the matcher says, models that lack one having zeros there; then each entry is averaged over the models
    that have the neuron which it makes. The result is as wide as the matcher asks for. Integer buffers are those of the
    first model, and so is the mode (training or evaluation).

    Args:
        models: at least one; groups may have other sizes in each.
        example_input: a small batch on which the models are followed (`Graph.of`) and the result is checked.
        matcher: by default `bbp()`.
        outgoing: a neuron of the last hidden layer is known by the weights to the outputs as much as by its own.
        data: batches of inputs on which the statistics of BatchNorm are estimated anew; else they are averaged.
        refine: recurrent weights too decide which neurons are one (`refined`).
        seed: of the matcher.
    Raises:
        ValueError: the models differ in more than their widths, or are no function of their neurons alone; see
            `Graph.of`.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, Algorithm 1 without its
        training between layers. Differs: any network that `Graph.of` follows; the plain mean.
    """
    graph, parts = _shared(models, example_input)
    places, sizes = matched(parts, graph, Bbp() if matcher is None else matcher, outgoing, refine, seed)
    sizes = graph.levelled(sizes)
    made = resized(models[0], graph, sizes)
    for j, (part, place) in enumerate(zip(parts, places, strict=True)):
        _check(j, models[j], made, permuted(part, graph, place, sizes), example_input)
    _install(made, averaged(parts, graph.axes, places, sizes, padded=True))
    if data is not None:
        estimate(made, data)
    return made


def matched(
    parts: Sequence[Mapping[str, Tensor]], graph: Graph, matcher: Matcher, outgoing: bool, refine: bool, seed: int
) -> tuple[Places, dict[int, int]]:
    """Where the neurons of several models stand in one, and how many there are of each group.

    Args:
        parts: tensors of each model, each once.
    """
    moved = [dict(part) for part in parts]
    places: Places = [{} for _ in parts]
    sizes: dict[int, int] = {}
    for group in range(len(graph.sizes)):
        settled = set(range(group))
        rows, biases = known(moved, graph.axes, group, settled, outgoing)
        found = matcher.match(rows, biases, seed)
        sizes[group], assigned = len(found.counts), found.assignments
        between = [table for part in moved if (table := squares(part, graph.axes, group, settled)) is not None]
        if refine and between:
            assigned = refined(rows, between, assigned, sizes[group])
        for j, at in enumerate(assigned):
            places[j][group] = at
            moved[j] = permuted(moved[j], graph, {group: at}, sizes)
    return places, sizes


@torch.no_grad()
def estimate(model: nn.Module, data: Iterable[Tensor]) -> None:
    """Sets the statistics of BatchNorm to their mean over these batches of inputs."""
    norms = [layer for layer in model.modules() if isinstance(layer, BatchNormBase) and layer.track_running_stats]
    momenta, modes = [norm.momentum for norm in norms], {layer: layer.training for layer in model.modules()}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    count = 0
    for batch in data:
        model(batch)
        count += 1
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for layer, training in modes.items():
        layer.training = training
    require(count > 0, "statistics are estimated on batches of inputs, and data has none; leave it out to average them")


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers of floating point, each once."""
    both = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved = model.state_dict()
    return {name: t.detach() for name, t in both.items() if name in saved and t.is_floating_point()}


def _shared(models: Sequence[nn.Module], example: Tensor) -> tuple[Graph, list[dict[str, Tensor]]]:
    """The graph of all models, with the sizes of the first."""
    require(len(models) > 0, "match_models needs at least one model, got none")
    graphs = [Graph.of(model, example) for model in models]
    for j, graph in enumerate(graphs):
        same = graph.axes == graphs[0].axes and graph.names == graphs[0].names
        require(same, f"models 0 and {j} are of two architectures; match_models takes models that differ in width only")
    return graphs[0], [own_tensors(model) for model in models]


def _install(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in own_tensors(model).items():
            tensor.copy_(tensors[name])


def _check(j: int, model: nn.Module, made: nn.Module, part: Mapping[str, Tensor], example: Tensor) -> None:
    """Whether model j is the same function in the shape of the result."""
    shape, *way = (
        f"model {j} is another function in the shape of the match",
        "its forward may hold sizes of its own or normalise over neurons that were added",
        "take sizes from the tensors, or choose a matcher that adds none",
    )
    try:
        copied, inputs = wide(made, example)
        _install(copied, part)
        same = alike(output(copied, inputs), output(*wide(model, example)))
    except RuntimeError as error:
        raise ValueError("; ".join((shape, f"{way[0]} ({error})", way[1]))) from error
    require(same, "; ".join((shape, *way)))
