# SPDX-License-Identifier: Apache-2.0
"""PowerSGD: the mean of all rows by one step of the power method, in two all-reduces of thin factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from phalanx.core.clock import Clock
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.precision import accumulation_dtype, cast, finite
from phalanx.core.round import Round, make_generator
from phalanx.core.row_memory import load, store
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope, Stage, memory_key
from phalanx.core.trees import State
from phalanx.core.world import Collective

_SHARED = memory_key(None, received=True)  # the right factors, the same in every process


@method("power_sgd", "wire")
class PowerSgd(Stage):
    """The weighted mean of the rows of all workers, of low rank for every matrix, with warm start and error feedback.

    Let M be the mean of rows plus residuals, viewed as (first dimension, rest). Then P is the orthogonalised M Q, the
    new Q is M^T P, and the decoded mean is P Q^T. decoded + mean new residual = mean row + mean old residual. Tensors
    for which the factors are not shorter (vectors, thin matrices) and installed entries are averaged without factors.
    As with `reduce`, the server never sees single rows, so there is no gate and no robust rule.

    Shapes: (k, d) -> (1, d).
    Args:
        rank: columns of a factor, >= 1; lower sends less.
    Source: Vogels et al., PowerSGD, 2019, arXiv:1905.13727, Algorithms 1 and 2. Differs: Householder orthogonalisation;
        the right factor starts the next round with columns of norm one, which span the same space and cannot overflow;
        a round that is not finite does not change the memories.
    """

    sums_rows = True

    rank: int = 1

    runs_on: ClassVar[Scope] = "tensor"

    def validate(self) -> None:
        require(self.rank >= 1, f"power_sgd needs rank >= 1, got rank={self.rank}")

    @property
    def num_wires(self) -> int:
        return 1

    def rows_out(self, n: int) -> int:
        return 1

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        state, layout, world = dict(state or {}), stack.layout, round.collective
        head, cut, clock = layout.head, layout.stepped, Clock()
        owed = stack.rows[:, :cut].to(accumulation_dtype(layout.dtype), copy=True)
        for i, worker in enumerate(stack.ids):
            memory = state.get(memory_key(worker, received=False), {}).get("residual", {})
            owed[i] += load(memory, head, torch.zeros_like(owed[i]))
        parts = head.split(owed)
        matrices = {name: part.flatten(2) for name, part in parts.items() if self._worth(part.shape[1:])}
        known = state.get(_SHARED, {}).get("right", {})
        right = {name: self._start(known, name, m) for name, m in matrices.items()}
        left = {name: m @ right[name] for name, m in matrices.items()}
        plain = {name: part for name, part in parts.items() if name not in matrices}
        installed = stack.rows[:, cut:].to(owed)
        clock.lap("encode_s")
        every = world.all_gather(stack.weights.reshape(-1, 1)).sum()
        left, plain, sent = _mean(stack, world, every, left, {**plain, "": installed})
        clock.lap("wire_s")
        left = {name: _orthogonal(p) for name, p in left.items()}
        right = {name: m.mT @ left[name] for name, m in matrices.items()}
        clock.lap("encode_s")
        right, _, sent_right = _mean(stack, world, every, right, {})
        clock.lap("wire_s")
        decoded = {**plain, **{name: (left[name] @ right[name].mT).reshape(parts[name].shape[1:]) for name in matrices}}
        row = head.join(decoded).to(owed)
        lost = Layout(tuple(matrices), tuple(parts[name].shape[1:] for name in matrices), 0, owed.dtype)
        for i, worker in enumerate(stack.ids if matrices else ()):
            residual = state.get(memory_key(worker, received=False), {}).get("residual", {})
            old = load(residual, lost, owed.new_zeros(lost.d))
            new = lost.join({name: parts[name][i] - decoded[name] for name in matrices})
            state[memory_key(worker, received=False)] = {"residual": {**residual, **store(new, old, lost)}}
        if matrices:
            state[_SHARED] = {"right": {**known, **{name: _normed(q) for name, q in right.items() if finite(q)}}}
        clock.lap("decode_s")
        merged = replace(
            stack,
            rows=cast(torch.cat([row, plain[""].to(row)]), layout.dtype).reshape(1, -1),
            sources=(world.workers,),
            weights=every.reshape(1),
            received=True,
        )
        sizes = [Note("bytes", worker, sent + sent_right + 8) for worker in world.workers]
        return merged.note([*clock.notes, *sizes]), state

    def _worth(self, shape: torch.Size) -> bool:
        """Whether the factors are shorter than the tensor."""
        rows, d = (shape[0] if len(shape) > 1 else 1), shape.numel()
        return d > 0 and rows > 1 and self.rank * (rows + d // rows) < d

    def _start(self, known: Mapping[str, Tensor], name: str, matrices: Tensor) -> Tensor:
        """The right factor of the last round, or a random one that is the same in every process."""
        columns = matrices.shape[2]
        if name in known and known[name].shape == (columns, self.rank):
            return known[name].to(matrices)
        noise = torch.randn(
            columns, self.rank, generator=make_generator("power_sgd", columns, self.rank), dtype=torch.float64
        )
        return _normed(noise).to(matrices)


def _mean(
    stack: Stack, world: Collective, total: Tensor, factors: dict[str, Tensor], others: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """The weighted means of (k, ...) tensors over all workers in one all-reduce, and the bytes that a worker sends."""
    named = [*factors.items(), *others.items()]
    flat = torch.cat([t.flatten(1) for _, t in named], dim=1) if named else stack.rows[:, :0]
    mean = world.mean(flat, stack.weights, total) if flat.shape[1] else flat.new_zeros(0)
    # a process may hold none of the workers that take part
    pieces = mean.split([t.shape[1:].numel() for _, t in named])
    means = [piece.reshape(t.shape[1:]) for piece, (_, t) in zip(pieces, named, strict=True)]
    both = [(name, tensor) for (name, _), tensor in zip(named, means, strict=True)]
    return dict(both[: len(factors)]), dict(both[len(factors) :]), flat.shape[1] * flat.element_size()


def _orthogonal(p: Tensor) -> Tensor:
    """Orthonormal columns that span the space of those of p; p itself if it is not finite."""
    return torch.linalg.qr(p).Q if finite(p) else p


def _normed(q: Tensor) -> Tensor:
    """The matrix with columns of norm one; zero columns stay zero until the next orthogonalisation replaces them."""
    largest = q.abs().amax(dim=0, keepdim=True)
    scaled = q / torch.where(largest > 0, largest, 1.0)
    return scaled / torch.linalg.vector_norm(scaled, dim=0, keepdim=True).clamp(min=1.0)
