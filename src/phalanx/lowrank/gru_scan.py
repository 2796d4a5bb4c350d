# SPDX-License-Identifier: Apache-2.0
"""The recurrence of one GRU layer in one direction, with the weight gradients of all time steps in one product.

The legend and the order of the rows are those of `lstm_scan.py`; the gates are r, z, n.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from phalanx.lowrank.steps import Sizes, advance, order, packed, product, product_back, weights_back


def gru_steps(x: Tensor, h: Tensor, u: Tensor | None, v: Tensor, bias: Tensor, sizes: Sizes, reverse: bool):
    """The recurrence in plain operations, for inference and tracing, and as the definition in the tests of `GruScan`.

    Shapes: x (g, n, h) the input's part of the gates; h (b, h); u (g * r, h), v (g, h, r), or u None and v (g, h, h);
        bias (g, 1, h) of the hidden part -> y (n, h), last h.
    """
    parts, outputs = x.split(sizes, dim=1), []
    for t in order(sizes, reverse):
        part, before = parts[t], h[: sizes[t]]
        hidden = product(bias.expand_as(part), before, u, v)[0]
        reset, keep = (part[:2] + hidden[:2]).sigmoid()
        new = (part[2] + reset * hidden[2]).tanh()
        outputs.append(new + keep * (before - new))
        h = advance(h, outputs[-1])
    return packed(outputs, reverse), h


class GruScan(torch.autograd.Function):
    """`gru_steps` with a backward of its own, organised as that of `LstmScan`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, h: Tensor, u: Tensor | None, v: Tensor, bias: Tensor, sizes: Sizes, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        parts = x.split(sizes, dim=1)
        steps: list[tuple[Tensor, ...]] = []
        for t in order(sizes, reverse):
            part, before = parts[t], h[: sizes[t]]
            hidden, thin = product(bias.expand_as(part), before, u, v)
            gates = (part[:2] + hidden[:2]).sigmoid_()
            reset, keep = gates
            new = torch.addcmul(part[2], reset, hidden[2]).tanh_()
            y = torch.addcmul(new, keep, before - new)
            steps.append((y, new, before, hidden[2], thin, gates))
            h = advance(h, y)
        *rows, gates = zip(*steps, strict=True)
        y, *saved = (packed(each, reverse) for each in rows)
        ctx.save_for_backward(*saved, packed(gates, reverse, dim=1), u, v)
        ctx.sizes, ctx.reverse = sizes, reverse
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor):  # type: ignore[override]
        new, before, hidden_new, thin, gates, u, v = ctx.saved_tensors
        reset, keep = gates
        # factors from the gradient of the output to those of the gates before their nonlinearity
        to_new = (1 - keep) * (1 - new * new)
        to_reset, to_keep = to_new * hidden_new * (reset * (1 - reset)), (before - new) * (keep * (1 - keep))
        to_hidden = torch.stack([to_reset, to_keep, to_new * reset])
        each = [t.split(ctx.sizes, dim=-2) for t in (dy, to_hidden, keep)]
        steps: list[tuple[Tensor, ...]] = []
        for t in order(ctx.sizes, not ctx.reverse):
            out_now, to_hidden_now, keep_now = (parts[t] for parts in each)
            out = dh[: ctx.sizes[t]] + out_now
            dz = to_hidden_now * out
            past, dthin = product_back(dz, u, v)
            steps.append((out, dthin, dz))
            dh = advance(dh, torch.addcmul(past, out, keep_now))
        outs, dthins, dzs = zip(*steps, strict=True)
        backwards = not ctx.reverse
        dhidden, dnew = packed(dzs, backwards, dim=1), packed(outs, backwards) * to_new
        du, dv = weights_back(dhidden, before, thin, packed(dthins, backwards), u, v)
        dx = torch.cat([dhidden[:2], dnew[None]])
        return dx, dh, du, dv, dhidden.sum(dim=1, keepdim=True), None, None
