# SPDX-License-Identifier: Apache-2.0
"""The recurrence of one LSTM layer in one direction, with the weight gradients of all time steps in one product.

Legend: g the gates i, f, g, o; n rows of the packed sequence, sorted by time; b sequences; h hidden units; r rank.
Time step t holds sizes[t] sequences, the first of the b: those that end sooner stand behind. Running states of all b
are kept, and a step changes its own rows only, which is right in both directions: what has ended stays as its final
state, what has not begun stays as its initial one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from phalanx.lowrank.steps import Sizes, product, product_back, steps, weights_back


def lstm_steps(x: Tensor, h: Tensor, c: Tensor, u: Tensor | None, v: Tensor, sizes: Sizes, reverse: bool):
    """The recurrence in plain operations: for inference, tracing, and as the definition that `LstmScan` is tested by.

    Shapes: x (g, n, h) the input's part of the gates; h, c (b, h); u (g * r, h), v (g, h, r), or u None and v (g, h, h)
        -> y (n, h), last h, last c.
    """
    outputs: list[Tensor] = []
    for first, size in steps(sizes, reverse):
        i, f, g, o = product(x[:, first : first + size], h[:size], u, v)[0]
        now = f.sigmoid() * c[:size] + i.sigmoid() * g.tanh()
        y = o.sigmoid() * now.tanh()
        outputs.append(y)
        whole = size == h.shape[0]  # len(h) would make a traced batch a number
        h = y if whole else torch.cat([y, h[size:]])
        c = now if whole else torch.cat([now, c[size:]])
    return torch.cat(outputs[::-1] if reverse else outputs), h, c


class LstmScan(torch.autograd.Function):
    """`lstm_steps` with a backward of its own.

    The loop backwards computes what depends on the next step; the gradients of u and v wait until it is over.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, u: Tensor | None, v: Tensor, sizes: Sizes, reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates, width = torch.empty_like(x), x.shape[2]
        y, before, cells, before_cells = (x.new_empty(x.shape[1], width) for _ in range(4))
        thin = x.new_empty(x.shape[1], u.shape[0]) if u is not None else None
        h, c = h.clone(), c.clone()
        for first, size in steps(sizes, reverse):
            now = slice(first, first + size)
            before[now], before_cells[now] = h[:size], c[:size]
            activated, left = product(x[:, now], before[now], u, v)
            activated[:2].sigmoid_()
            activated[2].tanh_()
            activated[3].sigmoid_()
            i, f, g, o = gates[:, now] = activated
            if thin is not None:
                thin[now] = left
            torch.addcmul(f * before_cells[now], i, g, out=cells[now])
            torch.mul(o, cells[now].tanh(), out=y[now])
            h[:size], c[:size] = y[now], cells[now]
        ctx.save_for_backward(gates, before, cells, before_cells, thin, u, v)
        ctx.sizes, ctx.reverse = sizes, reverse
        return y, h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor):  # type: ignore[override]
        gates, before, cells, before_cells, thin, u, v = ctx.saved_tensors
        dx, dh, dc = torch.empty_like(gates), dh.clone(), dc.clone()
        dthin = torch.empty_like(thin) if thin is not None else None
        for first, size in steps(ctx.sizes, not ctx.reverse):
            now = slice(first, first + size)
            i, f, g, o = gates[:, now]
            out = dh[:size] + dy[now]
            squashed = cells[now].tanh()
            cell = torch.addcmul(dc[:size], out * o, 1 - squashed * squashed)
            before_squash = dx[:, now]
            torch.mul(cell * g, i * (1 - i), out=before_squash[0])
            torch.mul(cell * before_cells[now], f * (1 - f), out=before_squash[1])
            torch.mul(cell * i, 1 - g * g, out=before_squash[2])
            torch.mul(out * squashed, o * (1 - o), out=before_squash[3])
            torch.mul(cell, f, out=dc[:size])
            dh[:size], left = product_back(before_squash, u, v)
            if dthin is not None:
                dthin[now] = left
        du, dv = weights_back(dx, before, thin, dthin, u, v)
        return dx, dh, dc, du, dv, None, None
