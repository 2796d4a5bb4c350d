# SPDX-License-Identifier: Apache-2.0
"""The recurrence of one GRU layer in one direction, with the weight gradients of all time steps in one product.

Legend and the order of the rows as in `lstm_scan.py`; the gates are r, z, n.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from phalanx.lowrank.steps import Sizes, product, product_back, steps, weights_back


def gru_steps(x: Tensor, h: Tensor, u: Tensor | None, v: Tensor, bias: Tensor, sizes: Sizes, reverse: bool):
    """The recurrence in plain operations: for inference, tracing, and as the definition that `GruScan` is tested by.

    Shapes: x (g, n, h) the input's part of the gates; h (b, h); u (g * r, h), v (g, h, r), or u None and v (g, h, h);
        bias (g, 1, h) of the hidden part -> y (n, h), last h.
    """
    outputs: list[Tensor] = []
    for first, size in steps(sizes, reverse):
        part = x[:, first : first + size]
        hidden = product(bias.expand_as(part), h[:size], u, v)[0]
        reset, keep = (part[:2] + hidden[:2]).sigmoid()
        new = (part[2] + reset * hidden[2]).tanh()
        y = new + keep * (h[:size] - new)
        outputs.append(y)
        whole = size == h.shape[0]  # len(h) would make a traced batch a number
        h = y if whole else torch.cat([y, h[size:]])
    return torch.cat(outputs[::-1] if reverse else outputs), h


class GruScan(torch.autograd.Function):
    """`gru_steps` with a backward of its own, built as that of `LstmScan`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, h: Tensor, u: Tensor | None, v: Tensor, bias: Tensor, sizes: Sizes, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        gates, width = torch.empty_like(x), x.shape[2]
        y, before, hidden_new = (x.new_empty(x.shape[1], width) for _ in range(3))
        thin = x.new_empty(x.shape[1], u.shape[0]) if u is not None else None
        h = h.clone()
        for first, size in steps(sizes, reverse):
            now = slice(first, first + size)
            before[now] = h[:size]
            hidden, left = product(bias.expand(-1, size, -1), before[now], u, v)
            torch.add(x[:2, now], hidden[:2], out=gates[:2, now]).sigmoid_()
            hidden_new[now] = hidden[2]
            reset, keep, new = gates[:, now]
            torch.addcmul(x[2, now], reset, hidden[2], out=new).tanh_()
            if thin is not None:
                thin[now] = left
            torch.addcmul(new, keep, before[now] - new, out=y[now])
            h[:size] = y[now]
        ctx.save_for_backward(gates, before, hidden_new, thin, u, v)
        ctx.sizes, ctx.reverse = sizes, reverse
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor):  # type: ignore[override]
        gates, before, hidden_new, thin, u, v = ctx.saved_tensors
        dx, dhidden, dh = torch.empty_like(gates), torch.empty_like(gates), dh.clone()
        dthin = torch.empty_like(thin) if thin is not None else None
        for first, size in steps(ctx.sizes, not ctx.reverse):
            now = slice(first, first + size)
            reset, keep, new = gates[:, now]
            out = dh[:size] + dy[now]
            torch.mul(out * (1 - keep), 1 - new * new, out=dx[2, now])
            torch.mul(out * (before[now] - new), keep * (1 - keep), out=dx[1, now])
            torch.mul(dx[2, now] * hidden_new[now], reset * (1 - reset), out=dx[0, now])
            dhidden[:2, now] = dx[:2, now]
            torch.mul(dx[2, now], reset, out=dhidden[2, now])
            past, left = product_back(dhidden[:, now], u, v)
            torch.addcmul(past, out, keep, out=dh[:size])
            if dthin is not None:
                dthin[now] = left
        du, dv = weights_back(dhidden, before, thin, dthin, u, v)
        return dx, dh, du, dv, dhidden.sum(dim=1, keepdim=True), None, None
