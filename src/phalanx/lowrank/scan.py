# SPDX-License-Identifier: Apache-2.0
"""The recurrences of one LSTM and one GRU layer in one direction, each with a backward of its own.

The weight gradients of all time steps are one product.

Legend: g the gates, which are i, f, g, o in an LSTM and r, z, n in a GRU; n rows of the packed sequence, sorted by
time; b sequences; h hidden units; r rank.
Time step t holds sizes[t] sequences, the first of the b, as the sequences that end sooner come last. The states of all
b sequences are kept, and a step changes its own rows only. This is right in both directions: a sequence that has ended
keeps its final state, and one that has not begun keeps its initial state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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


Sizes = tuple[int, ...]  # number of sequences in each time step; it never increases


def order(sizes: Sizes, reverse: bool) -> list[int]:
    """The time steps in the order in which they are computed."""
    steps = list(range(len(sizes)))
    return steps[::-1] if reverse else steps


def packed(rows: list[Tensor] | tuple[Tensor, ...], reverse: bool, dim: int = 0) -> Tensor:
    """The rows of all time steps sorted by time, from the rows of each step in the order of computation."""
    return torch.cat(rows[::-1] if reverse else rows, dim)


def advance(states: Tensor, first: Tensor) -> Tensor:
    """The states of all sequences, with those of the first ones replaced. Shapes: (b, h), (<= b, h) -> (b, h)."""
    # len() would turn a traced batch size into a constant
    size = first.shape[0]
    return first if size == states.shape[0] else torch.cat([first, states[size:]])


def product(x: Tensor, h: Tensor, u: Tensor | None, v: Tensor) -> tuple[Tensor, Tensor]:
    """x + h W^T for every gate, and the product of h with u.

    Shapes: x (g, b, h), h (b, h), u (g * r, h), v (g, h, r) -> (g, b, h), (b, g * r).
    """
    if u is None:
        return x + (h @ v.flatten(0, 1).mT).unflatten(1, v.shape[:2]).transpose(0, 1), h
    thin = h @ u.mT
    return torch.baddbmm(x, thin.unflatten(1, (v.shape[0], v.shape[2])).transpose(0, 1), v.mT), thin


def product_back(dz: Tensor, u: Tensor | None, v: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of h and of its product with u, from the gradient of the result of `product`.

    Shapes: dz (g, b, h) -> (b, h), (b, g * r).
    """
    if u is None:
        dh = dz.transpose(0, 1).flatten(1) @ v.flatten(0, 1)
        return dh, dh
    dthin = torch.bmm(dz, v).transpose(0, 1).flatten(1)
    return dthin @ u, dthin


def weights_back(
    dz: Tensor, h: Tensor, thin: Tensor | None, dthin: Tensor | None, u: Tensor | None, v: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The gradients of u and v, from all time steps at once.

    Shapes: dz (g, n, h), h (n, h), thin and dthin (n, g * r) -> (g * r, h), (g, h, r).
    """
    if u is None or thin is None or dthin is None:
        return None, (dz.transpose(0, 1).flatten(1).mT @ h).unflatten(0, v.shape[:2])
    left = thin.unflatten(1, (v.shape[0], v.shape[2])).transpose(0, 1)
    return dthin.mT @ h, torch.bmm(dz.mT, left)


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
