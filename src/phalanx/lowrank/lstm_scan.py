# SPDX-License-Identifier: Apache-2.0
"""The recurrence of one LSTM layer in one direction, with the weight gradients of all time steps in one product.

Legend: g the gates i, f, g, o; n rows of the packed sequence, sorted by time; b sequences; h hidden units; r rank.
Time step t holds sizes[t] sequences, the first of the b, as the sequences that end sooner come last. The states of all
b sequences are kept, and a step changes its own rows only. This is right in both directions: a sequence that has ended
keeps its final state, and one that has not begun keeps its initial state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from phalanx.lowrank.steps import Sizes, advance, order, packed, product, product_back, weights_back


def lstm_steps(x: Tensor, h: Tensor, c: Tensor, u: Tensor | None, v: Tensor, sizes: Sizes, reverse: bool):
    """The recurrence in plain operations, for inference and tracing, and as the definition in the tests of `LstmScan`.

    Shapes: x (g, n, h) the input's part of the gates; h, c (b, h); u (g * r, h), v (g, h, r), or u None and v (g, h, h)
        -> y (n, h), last h, last c.
    """
    parts, outputs = x.split(sizes, dim=1), []
    for t in order(sizes, reverse):
        i, f, g, o = product(parts[t], h[: sizes[t]], u, v)[0]
        now = f.sigmoid() * c[: sizes[t]] + i.sigmoid() * g.tanh()
        outputs.append(o.sigmoid() * now.tanh())
        h, c = advance(h, outputs[-1]), advance(c, now)
    return packed(outputs, reverse), h, c


class LstmScan(torch.autograd.Function):
    """`lstm_steps` with a backward of its own.

    The backward loop computes only what depends on the next step. Factors that do not are computed for all steps before
    the loop, and the gradients of u and v after it.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, u: Tensor | None, v: Tensor, sizes: Sizes, reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = x.split(sizes, dim=1)
        steps: list[tuple[Tensor, ...]] = []
        for t in order(sizes, reverse):
            before, before_cell = h[: sizes[t]], c[: sizes[t]]
            gates, thin = product(parts[t], before, u, v)
            gates[:2].sigmoid_()
            gates[2].tanh_()
            gates[3].sigmoid_()
            i, f, g, o = gates
            cell = torch.addcmul(f * before_cell, i, g)
            squashed = cell.tanh()
            y = o * squashed
            steps.append((y, squashed, before, before_cell, thin, gates))
            h, c = advance(h, y), advance(c, cell)
        *rows, gates = zip(*steps, strict=True)
        y, *saved = (packed(each, reverse) for each in rows)
        ctx.save_for_backward(*saved, packed(gates, reverse, dim=1), u, v)
        ctx.sizes, ctx.reverse = sizes, reverse
        return y, h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor):  # type: ignore[override]
        squashed, before, before_cells, thin, gates, u, v = ctx.saved_tensors
        i, f, g, o = gates
        # factors from the gradients of cell and output to those of the gates before their nonlinearity
        to_cell = torch.stack([g * (i * (1 - i)), before_cells * (f * (1 - f)), i * (1 - g * g)])
        to_output, output_to_cell = squashed * (o * (1 - o)), o * (1 - squashed * squashed)
        each = [t.split(ctx.sizes, dim=-2) for t in (dy, output_to_cell, to_cell, to_output, f)]
        steps: list[tuple[Tensor, Tensor]] = []
        for t in order(ctx.sizes, not ctx.reverse):
            out_now, output_to_cell_now, to_cell_now, to_output_now, f_now = (parts[t] for parts in each)
            size = ctx.sizes[t]
            out = dh[:size] + out_now
            cell = torch.addcmul(dc[:size], out, output_to_cell_now)
            dz = gates.new_empty(4, *out.shape)
            torch.mul(to_cell_now, cell, out=dz[:3])
            torch.mul(to_output_now, out, out=dz[3])
            past, dthin = product_back(dz, u, v)
            steps.append((dz, dthin))
            dh, dc = advance(dh, past), advance(dc, cell * f_now)
        dz, dthin = zip(*steps, strict=True)
        dx = packed(dz, not ctx.reverse, dim=1)
        du, dv = weights_back(dx, before, thin, packed(dthin, not ctx.reverse), u, v)
        return dx, dh, dc, du, dv, None, None
