# SPDX-License-Identifier: Apache-2.0
"""The stage that takes rows of networks with neurons in different orders to one order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.gate import Gate, admit
from phalanx.core.layout import Layout
from phalanx.core.neuron_axes import OUTPUTS, Axes, scattered
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Matches, Scope, TooFewRows
from phalanx.core.trees import State
from phalanx.matching.bbp import Bbp
from phalanx.matching.matching import Matcher
from phalanx.matching.neuron_features import known, present

PLACES = "places "  # before a group's number: where in the matched layer a client's neurons stand
EXAMPLES = "examples"  # entry of a row that says how many examples of each class are behind it
_BOUND = Gate(max_weight=10.0)  # of a client's examples, in medians of all clients'

Middle = Literal["mean", "median"]


@method("matched", "matching")
class Matched(Matches):
    """Rows in one order of neurons, such that their plain mean is the matched average.

    The groups of neurons in the rows are matched one after the other, each with the earlier ones in their places. What
    would make a neuron that a client lacks becomes the middle of those that have it. From a neuron that it lacks a
    client's weight is zero. Weights of outputs are averaged by class, in proportion to the examples that clients have
    of it: a row becomes M_c + n p_jc (W_jc - M_c) around the middle M_c, where each client counts p_jc. All rows get
    the weight 1. Each client is told the places of its neurons.

    What robust rules behind this stage need: `middle="median"` and `support=2 * f + 1`. A mean in the rows of all who
    lack a neuron, or have few examples of a class, would be moved by any liar and outvote the rule. A neuron that only
    liars have is no outlier to any rule, as nobody else has one to compare. With both, honest clients are the majority
    behind every neuron and every class, so that each middle lies between honest values.

    Rows whose layout says nothing of neurons pass as they are.

    Shapes: (n, d) -> (n, d'), d' >= d.
    Args:
        matcher: the rule that says who is who.
        outgoing: also compares the weights into layers that are in their places, such as the outputs, and counts them
            as much as those that make a neuron: of use where the whole network is matched at once.
        support: clients that have to have a neuron for it to stay, >= 1; above f it keeps what f liars have alone out.
            Their place is -1. If no neuron has as many, those stay that most clients have. A claim to examples of a
            class counts for no more than the `support`-th largest one.
        middle: "mean", with which the plain mean of all rows is the mean of those that have a neuron, or "median".
    Raises:
        ValueError: fewer rows than `support`.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, Algorithm 1. Differs: the
        mean of a neuron is over those that have it, as the matcher has it, and not over all clients.
    """

    matcher: Matcher = Bbp()
    outgoing: bool = False
    support: int = 1
    middle: Middle = "mean"

    def validate(self) -> None:
        require(self.support >= 1, f"matched needs support >= 1, got support={self.support}")

    @property
    def scope(self) -> Scope:
        return "vector"

    def rows_out(self, n: int) -> int:
        if n < self.support:
            raise TooFewRows(f"{self!r} needs at least {self.support} rows to match, got n={n}")
        return n

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        stack = _admitted(stack)
        layout, n = stack.layout, len(stack.rows)
        if not layout.axes:
            return stack, {}
        if n < self.support:
            raise TooFewRows(f"{self!r} needs at least {self.support} rows to match, got n={n}", stack.notes)
        axes = dict(zip(layout.names, layout.axes, strict=True))
        clients = [layout.split(row) for row in stack.rows]
        claims = torch.stack([client.pop(EXAMPLES) for client in clients]) if EXAMPLES in axes else None
        shares = None if claims is None else _shares(claims.double(), self.support)
        places: list[dict[int, Tensor]] = [{} for _ in range(n)]
        groups = sorted({a.group for mine in layout.axes for a in mine if a.group != OUTPUTS})
        counts: dict[int, Tensor] = {}
        for group in groups:
            settled = {g for g in groups if g < group}
            rows, biases = known(clients, axes, group, settled, self.outgoing)
            seed = round.rng(group=group).initial_seed()
            matching = self.matcher.match(rows, biases, seed)
            kept = matching.counts >= min(self.support, int(matching.counts.max()))
            counts[group] = matching.counts[kept]
            size, numbers = len(counts[group]), torch.where(kept, kept.cumsum(0) - 1, -1)
            for client, place, own in zip(clients, places, matching.assignments, strict=True):
                place[group] = numbers[own]
                for name, tensor in client.items():
                    client[name] = scattered(tensor, axes[name], group, place[group], size)
        names = tuple(name for name in layout.names if name != EXAMPLES)
        made = Layout(
            names,
            tuple(clients[0][name].shape for name in names),
            layout.num_installed - (EXAMPLES in axes),
            layout.dtype,
            tuple(axes[name] for name in names),
        )
        for name in names:
            filled = _filled([client[name] for client in clients], axes[name], places, shares, self.middle)
            shift = 0.0 if name in made.installed else self._shift(name, filled, axes[name], counts)
            for client, tensor in zip(clients, filled, strict=True):
                client[name] = tensor + shift
        rows = torch.stack([made.join(client) for client in clients])
        sources = [source[0] for source in stack.sources]
        answers = {w: {f"{PLACES}{g}": at for g, at in place.items()} for w, place in zip(sources, places, strict=True)}
        ones = torch.ones(n, dtype=torch.float64)
        return replace(stack, rows=rows, layout=made, weights=ones, answers=answers), {}

    def _shift(self, name: str, tensors: Sequence[Tensor], axes: Axes, counts: Mapping[int, Tensor]) -> Tensor | float:
        """From the middle of a tensor to what the matcher calls the average of its neurons."""
        made = [axis for axis in axes if axis.makes and axis.group in counts]
        if len(made) != 1 or any(axis.group == made[0].group for axis in axes if not axis.makes):
            return 0.0
        middle, _ = _middle(tensors, [tensors[0].new_ones(())] * len(tensors), self.middle)
        rows = made[0].neurons_first(middle)
        biases = range(rows.shape[1]) if middle.dim() == 1 and name.rpartition(".")[2].startswith("bias") else ()
        shifted = self.matcher.posterior(rows, counts[made[0].group], tuple(biases))
        return made[0].neurons_back(shifted, middle) - middle


def _admitted(stack: Stack) -> Stack:
    """Through the gate, and without clients that claim absurd numbers of examples."""
    stack = admit(stack)
    if EXAMPLES not in stack.layout.names or not stack.layout.axes:
        return stack
    counts = stack.layout.split(stack.rows)[EXAMPLES].double()
    negative = {i: "a negative number of examples" for i in (counts < 0).any(dim=1).nonzero().flatten().tolist()}
    stack = stack.erase(negative)
    totals = stack.layout.split(stack.rows)[EXAMPLES].double().sum(dim=1)
    bounded = _BOUND.admit(replace(stack, weights=totals))
    kept = dict(zip(bounded.sources, bounded.weights.tolist(), strict=True))
    rows = bounded.rows.clone()
    part = bounded.layout.split(rows)[EXAMPLES]
    believed = torch.tensor([kept[s] for s in bounded.sources], dtype=torch.float64, device=part.device)
    part.mul_((believed / part.double().sum(dim=1)).to(part)[:, None])
    weights = dict(zip(stack.sources, stack.weights.tolist(), strict=True))
    return replace(bounded, rows=rows, weights=torch.tensor([weights[s] for s in bounded.sources], dtype=torch.float64))


def _shares(claims: Tensor, support: int) -> Tensor:
    """The share of each client in the examples of each class; equal where nobody has any. Shapes: -> (n, classes)."""
    counts = claims.clamp(max=claims.sort(dim=0, descending=True).values[support - 1])
    total = counts.sum(dim=0)
    return torch.where(total > 0, counts / total.clamp(min=1e-300), 1 / len(counts))


def _filled(
    tensors: Sequence[Tensor],
    axes: Axes,
    places: Sequence[Mapping[int, Tensor]],
    shares: Tensor | None,
    how: Middle,
) -> list[Tensor]:
    """One tensor of each client, with the middle of those that have a neuron where a client lacks it."""
    n, dtype = len(tensors), tensors[0].dtype
    # from a neuron that it lacks a client has a weight of zero, as in its own network
    made = [axis for axis in axes if axis.makes]
    have = [present(tensor, made, place) for tensor, place in zip(tensors, places, strict=True)]
    middle, _ = _middle(tensors, have, how)
    classes = next((axis for axis in axes if axis.group == OUTPUTS), None)
    if shares is None or classes is None:
        return [torch.where(h > 0, t, middle) for t, h in zip(tensors, have, strict=True)]
    shape = [-1 if dim == classes.dim else 1 for dim in range(tensors[0].dim())]
    spread = [share.repeat_interleave(classes.inner).repeat(classes.outer).reshape(shape) for share in shares]
    weights = [s.to(t) * h for s, t, h in zip(spread, tensors, have, strict=True)]
    by_class, whole = _middle(tensors, weights, how)
    middle = torch.where(whole > 0, by_class, middle)
    pulls = [n * torch.where(whole > 0, w / whole.clamp(min=1e-30), 0.0) for w in weights]
    return [(middle + pull * (t - middle)).to(dtype) for pull, t in zip(pulls, tensors, strict=True)]


def _middle(tensors: Sequence[Tensor], weights: Sequence[Tensor], how: Middle) -> tuple[Tensor, Tensor]:
    """The weighted mean or median of each entry, zero where no weight is, and the sum of the weights.

    Of two values with half of the weight on either side the mean, so that a median stays one with itself added.
    """
    each = torch.stack([weight.expand_as(tensor) for weight, tensor in zip(weights, tensors, strict=True)])
    table, whole = torch.stack(list(tensors)), each.sum(dim=0)
    if how == "mean":
        middle = (table * each).sum(dim=0) / whole.clamp(min=1e-30)
    else:
        values, order = table.sort(dim=0)
        below = each.double().gather(0, order).cumsum(dim=0)
        half, last = below[-1] / 2, len(values) - 1
        low, high = (less.sum(dim=0, keepdim=True).clamp(max=last) for less in (below < half, below <= half))
        middle = ((values.gather(0, low) + values.gather(0, high)) / 2)[0]
    return torch.where(whole > 0, middle, 0.0).to(table.dtype), whole
