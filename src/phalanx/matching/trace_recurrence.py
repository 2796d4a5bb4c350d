# SPDX-License-Identifier: Apache-2.0
"""Rules of the trace for recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from phalanx.matching.neurons import Label
from phalanx.matching.trace import Rule, Trace, tensors_in


def _layers(
    trace: Trace,
    out: Sequence[Tensor],
    /,
    input: Tensor,
    hx: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: Any,
    num_layers: Any = None,
    dropout: Any = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> None:
    if not isinstance(has_biases, bool):
        trace.refuse("packed sequences", "give it padded ones")
    if bidirectional:
        trace.refuse("a recurrent layer in both directions puts neurons beside others", "choose bidirectional=False")
    each = 4 if has_biases else 2
    if len(weights) != each * num_layers:
        trace.refuse("a recurrent layer whose states are projected", "choose proj_size=0")
    below = trace.labels(input)[-1]
    level = set()
    for layer in range(num_layers):
        part = f" layer {layer}" if num_layers > 1 else ""
        hidden, *biases = weights[each * layer + 1 : each * (layer + 1)]
        below = _cell(trace, below, hx, weights[each * layer], hidden, biases, part)
        level |= {below.node} if below is not None else set()
    trace.neurons.level.append(level)  # the states of all layers are in one tensor
    output, *states = out
    trace.note(output, [None] * (output.dim() - 1) + [below])
    trap = "" if num_layers == 1 else "the last states of all layers are in one tensor"
    for state in states:
        trace.note(state, [None] * (state.dim() - 1) + [below], trap)


def _single(
    trace: Trace,
    out: Any,
    /,
    input: Tensor,
    hx: Tensor | Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> None:
    biases = [bias for bias in (b_ih, b_hh) if bias is not None]
    hidden = _cell(trace, trace.labels(input)[-1], hx, w_ih, w_hh, biases, "")
    for state in tensors_in(out):
        trace.note(state, [None] * (state.dim() - 1) + [hidden])


def _cell(
    trace: Trace,
    below: Label | None,
    hx: Tensor | Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    biases: Sequence[Tensor],
    part: str,
) -> Label | None:
    """The label of a layer's hidden units; the rows of its weights are the units of one gate after the other."""
    neurons, width = trace.neurons, w_hh.shape[1]
    columns = trace.labels(w_hh)[1]
    hidden = trace.made(columns, part)
    if hidden is not None:
        gates = Label(hidden.node, outer=w_hh.shape[0] // width)
        for tensor in (w_ih, w_hh, *biases):
            trace.tie(gates, tensor, 0)
    neurons.contract(below, trace.labels(w_ih)[1])
    neurons.contract(columns)
    for state in tensors_in(hx):
        trace.tie(hidden, state, -1)
    return hidden


RECURRENCES: dict[str, Rule] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _layers),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _single),
}
