# SPDX-License-Identifier: Apache-2.0
"""The stage that puts the neurons of all clients in one order, so that their rows can be averaged.

A worked example: two clients trained a network of two inputs, two hidden neurons and one output. A row holds the
weights of the hidden layer, one neuron after the other, and then the output's weight of each neuron.

    client 0: neurons A = (4, 0) and B = (0, 4),    output 2 A + 6 B
    client 1: neurons B = (0, 6) and C = (-4, -4),  output 8 B + 4 C

The plain mean of the rows would average A with B, and B with C. The matcher finds that B is one neuron and that A and C
have no partner, so the matched layer has three neurons A, B, C, and client 1 is told the places 1 and 2. A client that
lacks a neuron gets the weights of those that have it; its output gives that neuron the weight 0:

    client 0: neurons (4, 0), (0, 4), (-4, -4),  output 2 A + 6 B + 0 C
    client 1: neurons (4, 0), (0, 6), (-4, -4),  output 0 A + 8 B + 4 C
    mean:     neurons (4, 0), (0, 5), (-4, -4),  output 1 A + 7 B + 2 C

>>> import phalanx as px
>>> from phalanx.matching.neuron_axes import Axis
>>> hidden, output = (Axis(0, group=0),), (Axis(0, group=OUTPUTS), Axis(1, group=0, makes=False))
>>> layout = Layout(("hidden", "output"), (torch.Size([2, 2]), torch.Size([1, 2])), annotations=(hidden, output))
>>> rows = torch.tensor([[4.0, 0.0, 0.0, 4.0, 2.0, 6.0], [0.0, 6.0, -4.0, -4.0, 8.0, 4.0]])
>>> matcher = Bbp(gamma=1.0, sigma=1.0, sigma0=10.0, bias_mean=0.0, average="plain")
>>> matched, _ = Matched(matcher)(Stack.of(rows, layout), None, Round())
>>> matched.rows.int().tolist()
[[4, 0, 0, 4, -4, -4, 2, 6, 0], [4, 0, 0, 6, -4, -4, 0, 8, 4]]
>>> MatchReply.from_payload(matched.replies[1]).places
{0: tensor([1, 2])}
>>> px.aggregators.mean()(matched, None, Round())[0].rows.int().tolist()
[[4, 0, 0, 5, -4, -4, 1, 7, 2]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.gate import Gate, admit
from phalanx.core.layout import Layout
from phalanx.core.payload import Payload
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope, Stage, TooFewRows
from phalanx.core.trees import State
from phalanx.matching.bbp import Bbp
from phalanx.matching.matching import Matcher
from phalanx.matching.neuron_axes import OUTPUTS, Axes, scatter
from phalanx.matching.neuron_features import features_of_models, presence

EXAMPLES = "examples"  # entry of a row: how many examples of each class the client trained on
_CLAIMS_GATE = Gate(max_weight=10.0)  # limit of a client's examples, in medians over all clients

Middle = Literal["mean", "median"]
_PLACES = "places "  # before the number of a group, in the payload of a reply


@dataclass(frozen=True)
class MatchReply:
    """What the stage replies to a client: where its neurons are in the matched layers.

    Args:
        places: for each group of neurons, the place of each neuron of the client; -1 for a neuron that was dropped.
    """

    places: Mapping[int, Tensor]

    def to_payload(self) -> Payload:
        """The reply as a payload; `from_payload` is the inverse."""
        return {f"{_PLACES}{group}": places for group, places in self.places.items()}

    @staticmethod
    def from_payload(payload: Payload) -> MatchReply:
        """Reads a payload that `to_payload` wrote."""
        return MatchReply({int(name.removeprefix(_PLACES)): places for name, places in payload.items()})


@method("matched", "matching")
class Matched(Stage):
    """Rows in one order of neurons. Their plain mean is the matched average.

    The groups of neurons are matched one after the other, each with the earlier groups in their places. A client that
    lacks a neuron gets, as the weights that make it, the middle of the clients that have it; the weights that lead from
    it are zero. Output weights are averaged by class, in proportion to the examples that each client has of the class:
    the row of client j becomes M_c + n p_jc (W_jc - M_c), where M_c is the middle of class c in which client j counts
    p_jc. All rows get the weight 1. Each client is told the places of its neurons.

    Robust rules behind this stage need `middle="median"` and `support=2 * f + 1`. With a mean, a single Byzantine
    client would change the rows of all clients that lack a neuron, or have few examples of a class, and so outvote the
    rule. A neuron that only Byzantine clients have is no outlier to any rule, because no other client has one to
    compare with. With both settings, honest clients are the majority behind every neuron and every class, so each
    middle lies between honest values.

    Rows whose layout does not describe neurons pass unchanged.

    Shapes: (n, d) -> (n, d'), d' >= d.
    Args:
        matcher: the rule that decides which neurons are the same.
        outgoing: whether the matcher also compares the weights into layers that are in their places already, such as
            the outputs, and counts them as much as the weights that make a neuron. Useful where the whole network is
            matched at once.
        support: clients that must have a neuron for it to stay, >= 1; above f it drops neurons that only f Byzantine
            clients have. The place of a dropped neuron is -1. If no neuron has as many, those stay that most clients
            have. The examples that a client claims of a class count for no more than the `support`-th largest claim.
        middle: "mean", with which the plain mean of all rows is the mean over the clients that have a neuron, or
            "median".
    Raises:
        TooFewRows: there are fewer rows than `support`.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, Algorithm 1. Differs: the
        mean of a neuron is over the clients that have it, as the matcher has it, and not over all clients.
    """

    rows_of = "all workers"

    matcher: Matcher = Bbp()
    outgoing: bool = False
    support: int = 1
    middle: Middle = "mean"

    runs_on: ClassVar[Scope] = "vector"

    def validate(self) -> None:
        require(self.support >= 1, f"matched needs support >= 1, got support={self.support}")

    def rows_out(self, n: int) -> int:
        if n < self.support:
            raise TooFewRows(f"{self!r} needs at least {self.support} rows to match, got n={n}")
        return n

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        stack = admit_claims(stack)
        layout, n = stack.layout, len(stack.rows)
        if not layout.annotations:
            return stack, {}
        if n < self.support:
            raise TooFewRows(f"{self!r} needs at least {self.support} rows to match, got n={n}", stack.notes)
        axes = dict(zip(layout.names, layout.annotations, strict=True))
        clients = [layout.split(row) for row in stack.rows]
        claims = torch.stack([client.pop(EXAMPLES) for client in clients]) if EXAMPLES in axes else None
        shares = None if claims is None else class_shares(claims.double(), self.support)
        places, counts = self._match_groups(clients, axes, round)
        names = tuple(name for name in layout.names if name != EXAMPLES)
        matched_layout = Layout(
            names,
            tuple(clients[0][name].shape for name in names),
            layout.num_installed - (EXAMPLES in axes),
            layout.dtype,
            tuple(axes[name] for name in names),
        )
        for name in names:
            tensors = fill_missing([client[name] for client in clients], axes[name], places, shares, self.middle)
            installed = name in matched_layout.installed
            shift = 0.0 if installed else self._posterior_shift(name, tensors, axes[name], counts)
            for client, tensor in zip(clients, tensors, strict=True):
                client[name] = tensor + shift
        rows = torch.stack([matched_layout.join(client) for client in clients])
        workers = [source[0] for source in stack.sources]
        replies = {worker: MatchReply(place).to_payload() for worker, place in zip(workers, places, strict=True)}
        weights = torch.ones(n, dtype=torch.float64)
        return replace(stack, rows=rows, layout=matched_layout, weights=weights, replies=replies), {}

    def _match_groups(
        self, clients: Sequence[dict[str, Tensor]], axes: Mapping[str, Axes], round: Round
    ) -> tuple[list[dict[int, Tensor]], dict[int, Tensor]]:
        """Matches the groups one after the other, and puts the clients' tensors in the common order, in place.

        Returns: for each client the places of the neurons of each group, and for each group the clients behind each
            of its neurons.
        """
        places: list[dict[int, Tensor]] = [{} for _ in clients]
        counts: dict[int, Tensor] = {}
        groups = sorted({axis.group for tensor_axes in axes.values() for axis in tensor_axes if axis.group != OUTPUTS})
        for group in groups:
            settled = {earlier for earlier in groups if earlier < group}
            rows, bias_columns = features_of_models(clients, axes, group, settled, self.outgoing)
            seed = round.rng(group=group).initial_seed()
            matching = self.matcher.match(rows, bias_columns, seed)
            kept = matching.counts >= min(self.support, int(matching.counts.max()))
            counts[group] = matching.counts[kept]
            size, numbers = len(counts[group]), torch.where(kept, kept.cumsum(0) - 1, -1)
            for client, place, assignment in zip(clients, places, matching.assignments, strict=True):
                place[group] = numbers[assignment]
                for name, tensor in client.items():
                    client[name] = scatter(tensor, axes[name], group, place[group], size)
        return places, counts

    def _posterior_shift(
        self, name: str, tensors: Sequence[Tensor], axes: Axes, counts: Mapping[int, Tensor]
    ) -> Tensor | float:
        """The difference between the middle of a tensor and what the matcher calls the average of its neurons."""
        making = [axis for axis in axes if axis.makes and axis.group in counts]
        if len(making) != 1 or any(axis.group == making[0].group for axis in axes if not axis.makes):
            return 0.0
        middle, _ = weighted_middle(tensors, [tensors[0].new_ones(())] * len(tensors), self.middle)
        rows = making[0].neurons_first(middle)
        is_bias = middle.dim() == 1 and name.rpartition(".")[2].startswith("bias")
        bias_columns = tuple(range(rows.shape[1])) if is_bias else ()
        average = self.matcher.posterior(rows, counts[making[0].group], bias_columns)
        return making[0].neurons_back(average, middle) - middle


def admit_claims(stack: Stack) -> Stack:
    """The rows that pass the gate, without clients that claim an absurd number of examples.

    A negative count, or a total beyond ten medians of all clients, is treated by `Gate`.
    """
    stack = admit(stack)
    if EXAMPLES not in stack.layout.names or not stack.layout.annotations:
        return stack
    counts = stack.layout.split(stack.rows)[EXAMPLES].double()
    negative = {i: "a negative number of examples" for i in (counts < 0).any(dim=1).nonzero().flatten().tolist()}
    stack = stack.erase(negative)
    totals = stack.layout.split(stack.rows)[EXAMPLES].double().sum(dim=1)
    bounded = _CLAIMS_GATE.admit(replace(stack, weights=totals))
    admitted_totals = dict(zip(bounded.sources, bounded.weights.tolist(), strict=True))
    rows = bounded.rows.clone()
    claims = bounded.layout.split(rows)[EXAMPLES]
    allowed = torch.tensor([admitted_totals[s] for s in bounded.sources], dtype=torch.float64, device=claims.device)
    claims.mul_((allowed / claims.double().sum(dim=1)).to(claims)[:, None])
    weights = dict(zip(stack.sources, stack.weights.tolist(), strict=True))
    return replace(bounded, rows=rows, weights=torch.tensor([weights[s] for s in bounded.sources], dtype=torch.float64))


def class_shares(claims: Tensor, support: int) -> Tensor:
    """The share of each client in the examples of each class; equal shares where no client has any.

    Shapes: (n, classes) -> (n, classes).
    Args:
        claims: examples of each class that each client says it has.
        support: a claim counts for no more than the `support`-th largest one.
    """
    counts = claims.clamp(max=claims.sort(dim=0, descending=True).values[support - 1])
    total = counts.sum(dim=0)
    return torch.where(total > 0, counts / total.clamp(min=1e-300), 1 / len(counts))


def fill_missing(
    tensors: Sequence[Tensor],
    axes: Axes,
    places: Sequence[Mapping[int, Tensor]],
    shares: Tensor | None,
    how: Middle,
) -> list[Tensor]:
    """The tensor of each client, completed where the client lacks the neuron that the entry makes.

    Output weights become M + n p (W - M), with p the client's share of the class and M the middle by shares.

    Args:
        tensors: one for each client, in the common order of neurons.
        places: for each client the places of its neurons in each group.
        shares: (n, classes) of `class_shares`; None where clients report no examples.
    """
    n, dtype = len(tensors), tensors[0].dtype
    # from a neuron that it lacks a client has a weight of zero, as in its own network
    making = [axis for axis in axes if axis.makes]
    have = [presence(tensor, making, place) for tensor, place in zip(tensors, places, strict=True)]
    middle, _ = weighted_middle(tensors, have, how)
    classes = next((axis for axis in axes if axis.group == OUTPUTS), None)
    if shares is None or classes is None:
        return [torch.where(h > 0, t, middle) for t, h in zip(tensors, have, strict=True)]
    shape = [-1 if dim == classes.dim else 1 for dim in range(tensors[0].dim())]
    entry_shares = [share.repeat_interleave(classes.inner).repeat(classes.outer).reshape(shape) for share in shares]
    weights = [s.to(t) * h for s, t, h in zip(entry_shares, tensors, have, strict=True)]
    middle_by_class, total = weighted_middle(tensors, weights, how)
    middle = torch.where(total > 0, middle_by_class, middle)
    factors = [n * torch.where(total > 0, w / total.clamp(min=1e-30), 0.0) for w in weights]
    return [(middle + factor * (t - middle)).to(dtype) for factor, t in zip(factors, tensors, strict=True)]


def weighted_middle(tensors: Sequence[Tensor], weights: Sequence[Tensor], how: Middle) -> tuple[Tensor, Tensor]:
    """The weighted mean or median of each entry, zero where all weights are zero, and the sum of the weights.

    If two values have half of the weight on either side, the median is their mean, so it does not change when it is
    added to the values itself.
    """
    entry_weights = torch.stack([weight.expand_as(tensor) for weight, tensor in zip(weights, tensors, strict=True)])
    values, total = torch.stack(list(tensors)), entry_weights.sum(dim=0)
    if how == "mean":
        middle = (values * entry_weights).sum(dim=0) / total.clamp(min=1e-30)
    else:
        ascending, order = values.sort(dim=0)
        below = entry_weights.double().gather(0, order).cumsum(dim=0)
        half, last = below[-1] / 2, len(ascending) - 1
        low, high = (less.sum(dim=0, keepdim=True).clamp(max=last) for less in (below < half, below <= half))
        middle = ((ascending.gather(0, low) + ascending.gather(0, high)) / 2)[0]
    return torch.where(total > 0, middle, 0.0).to(values.dtype), total
