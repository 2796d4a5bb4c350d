# SPDX-License-Identifier: Apache-2.0
"""Several networks averaged into one, after their neurons were matched."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from phalanx.core._torch_private import BatchNormBase
from phalanx.core.expression import require
from phalanx.matching.bbp import Bbp
from phalanx.matching.graph import Graph, permuted, resized
from phalanx.matching.matching import Matcher
from phalanx.matching.neuron_features import average_models, features_of_models
from phalanx.matching.refinement import refined, square_weights
from phalanx.matching.symmetry import double_precision, output, same_output

_log = logging.getLogger(__name__)

Places = list[dict[int, Tensor]]  # for each model, the places of the neurons of each group


def match_models(
    models: Sequence[nn.Module],
    example_input: Tensor,
    *,
    matcher: Matcher | None = None,
    outgoing: bool = False,
    data: Iterable[Tensor] | None = None,
    refine: bool = False,
    seed: int = 0,
    max_growth: float | None = 1.5,
) -> nn.Module:
    """One network from several of one architecture: their neurons are matched, group by group, and averaged.

    Neurons are compared by the weights that make them out of neurons that are matched already. The neurons of every
    model move to the places that the matcher gives them, with zeros where a model lacks a neuron. Then each entry is
    averaged over the models that have the neuron which it makes. The result is as wide as the matcher asks for, up to
    `max_growth`; if it has more parameters than the largest model, the log says how many. It has the integer buffers
    and the mode (training or evaluation) of the first model.

    Args:
        models: at least one; the sizes of groups may differ between models.
        example_input: a small batch, on which the models are traced (`Graph.of`) and the result is checked.
        matcher: the rule that decides which neurons are the same; `bbp()` by default.
        outgoing: whether neurons of the last hidden layer are also compared by the weights to the outputs, which count
            as much as the weights that make them.
        data: batches of inputs on which the statistics of BatchNorm are estimated again; they are averaged if None.
        refine: whether recurrent weights also decide which neurons are the same (`refined`).
        seed: of the matcher.
        max_growth: neurons of a group in the result, for each neuron of that group in the largest model, at most; >= 1.
            Where the matcher asks for more, each model's neurons go to the nearest of fewer places. None for no limit.
    Raises:
        ValueError: the models differ in more than their widths, or the order of their neurons matters; see `Graph.of`.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, Algorithm 1 without its
        training between layers. Differs: any network that `Graph.of` follows; the plain mean.
    """
    require(max_growth is None or max_growth >= 1, f"match_models needs max_growth >= 1 or None, got {max_growth}")
    graph, tensors = _common_graph(models, example_input)
    matcher = Bbp() if matcher is None else matcher
    places, sizes = match_groups(tensors, graph, matcher, outgoing, refine, seed, max_growth)
    sizes = graph.levelled(sizes)
    merged = resized(models[0], graph, sizes)
    for j, (weights, place) in enumerate(zip(tensors, places, strict=True)):
        _check(j, models[j], merged, permuted(weights, graph, place, sizes), example_input)
    before, after = (max(sum(p.numel() for p in m.parameters()) for m in group) for group in (models, [merged]))
    if after > before:
        _log.warning(
            "the result has %d parameters, %.2f times those of the largest of %d models; max_growth=%s limits it",
            after,
            after / before,
            len(models),
            max_growth,
        )
    _assign(merged, average_models(tensors, graph.axes, places, sizes, padded=True))
    if data is not None:
        estimate_statistics(merged, data)
    return merged


def match_groups(
    models: Sequence[Mapping[str, Tensor]],
    graph: Graph,
    matcher: Matcher,
    outgoing: bool,
    refine: bool,
    seed: int,
    max_growth: float | None = None,
) -> tuple[Places, dict[int, int]]:
    """The places of the neurons of several models in one model, and the size of each group in it.

    Args:
        models: the tensors of each model; a tensor with two names appears once.
    """
    moved = [dict(tensors) for tensors in models]
    places: Places = [{} for _ in models]
    sizes: dict[int, int] = {}
    for group in range(len(graph.sizes)):
        settled = set(range(group))
        rows, bias_columns = features_of_models(moved, graph.axes, group, settled, outgoing)
        matching = matcher.match(rows, bias_columns, seed)
        sizes[group], assignments = len(matching.counts), matching.assignments
        limit = sizes[group] if max_growth is None else int(max_growth * max(map(len, rows)))
        if sizes[group] > limit:
            sizes[group], assignments = match_nearest(rows, limit)
        squares = [s for model in moved if (s := square_weights(model, graph.axes, group, settled)) is not None]
        if refine and squares:
            assignments = refined(rows, squares, assignments, sizes[group])
        for j, positions in enumerate(assignments):
            places[j][group] = positions
            moved[j] = permuted(moved[j], graph, {group: positions}, sizes)
    return places, sizes


def match_nearest(rows: Sequence[Tensor], limit: int) -> tuple[int, tuple[Tensor, ...]]:
    """The number of places and the place of each neuron, if there may be no more than `limit` places.

    The largest model's neurons are the first places. Each other model's neurons go to the places whose means are
    nearest, one to a place; a neuron opens a place while there is one left and zero is nearer than any mean.

    Shapes: J of (L_j, D) -> J of (L_j,).
    """
    order = sorted(range(len(rows)), key=lambda j: -len(rows[j]))
    sums, counts = rows[order[0]].double().clone(), torch.ones(len(rows[order[0]]), dtype=torch.float64)
    assignments = {order[0]: torch.arange(len(sums))}
    for j in order[1:]:
        own = rows[j].double()
        means, free = sums / counts[:, None], limit - len(sums)
        opening = own.square().sum(dim=1, keepdim=True).expand(-1, free)
        costs = torch.cat([torch.cdist(own, means).square(), opening], dim=1)
        _, places = linear_sum_assignment(costs.numpy())
        opened = {int(place): len(sums) + i for i, place in enumerate(p for p in places if p >= len(sums))}
        assigned = torch.tensor([opened.get(int(place), int(place)) for place in places])
        more = len(opened)
        sums = torch.cat([sums, sums.new_zeros(more, sums.shape[1])]).index_add(0, assigned, own)
        counts = torch.cat([counts, counts.new_zeros(more)]).index_add(0, assigned, torch.ones(len(own)).double())
        assignments[j] = assigned
    return len(sums), tuple(assignments[j] for j in range(len(rows)))


@torch.no_grad()
def estimate_statistics(model: nn.Module, data: Iterable[Tensor]) -> None:
    """Sets the running statistics of every BatchNorm to their mean over these batches of inputs.

    Raises:
        ValueError: there is no batch.
    """
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
    """The parameters and saved buffers of floating point, each under its first name only."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved = model.state_dict()
    return {name: t.detach() for name, t in tensors.items() if name in saved and t.is_floating_point()}


def _common_graph(models: Sequence[nn.Module], example: Tensor) -> tuple[Graph, list[dict[str, Tensor]]]:
    """The graph of all models, with the sizes of the first, and the tensors of each model."""
    require(len(models) > 0, "match_models needs at least one model, got none")
    kind = type(example).__name__
    require(
        isinstance(example, Tensor),
        f"match_models takes a tensor as example_input, got {kind}; a model with other inputs goes into a module "
        "whose forward takes one tensor",
    )
    graphs = [Graph.of(model, example) for model in models]
    for j, graph in enumerate(graphs):
        same = graph.axes == graphs[0].axes and graph.names == graphs[0].names
        require(same, f"models 0 and {j} are of two architectures; match_models takes models that differ in width only")
    return graphs[0], [own_tensors(model) for model in models]


def _assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in own_tensors(model).items():
            tensor.copy_(tensors[name])


def _check(j: int, model: nn.Module, merged: nn.Module, weights: Mapping[str, Tensor], example: Tensor) -> None:
    """Raises ValueError unless model j is the same function with its tensors in the shape of the result."""
    shape, *way = (
        f"model {j} is another function in the shape of the match",
        "its forward may hold sizes of its own or normalise over neurons that were added",
        "take sizes from the tensors, or choose a matcher that adds none",
    )
    try:
        copied, inputs = double_precision(merged, example)
        _assign(copied, weights)
        same = same_output(output(copied, inputs), output(*double_precision(model, example)))
    except RuntimeError as error:
        raise ValueError("; ".join((shape, f"{way[0]} ({error})", way[1]))) from error
    require(same, "; ".join((shape, *way)))
