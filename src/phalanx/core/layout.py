# SPDX-License-Identifier: Apache-2.0
"""The layout of a row: the named tensors that its d entries belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn


def plain_name(name: str) -> str:
    """The name that a tensor has where no part of its model is compiled by torch.compile."""
    return name.replace("_orig_mod.", "")


@dataclass(frozen=True)
class Layout:
    """The names and shapes of the tensors in a row, in order.

    The last `num_installed` tensors are values (BatchNorm statistics) that are installed in the model; all others are
    directions (gradients, deltas) that an optimizer steps along. Momentum, clipping, noise and codecs act on directions
    only; attacks and aggregators see the whole row.

    Args:
        annotations: one tuple for each tensor, or none at all, of what a later stage has to know of it, such as the
            axes of its neurons.
    Raises:
        ValueError: names and shapes differ in number, or a name occurs twice.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    num_installed: int = 0
    dtype: torch.dtype = torch.float32
    annotations: tuple[tuple[Any, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shapes):
            raise ValueError(f"a layout needs one shape a name, got {len(self.names)} names, {len(self.shapes)} shapes")
        if len(self.annotations) not in (0, len(self.names)):
            got = f"{len(self.annotations)} for {len(self.names)} names"
            raise ValueError(f"a layout needs annotations for every name or none, got {got}")
        if len(set(self.names)) != len(self.names):
            raise ValueError("a layout needs different names, and some of these are equal: " + ", ".join(self.names))

    @staticmethod
    def flat(d: int, dtype: torch.dtype = torch.float32) -> Layout:
        """The layout of one vector of length d."""
        return Layout(("row",), (torch.Size([d]),), dtype=dtype)

    @staticmethod
    def of(model: nn.Module) -> Layout:
        """The trained parameters of a model, then the floating-point buffers of its state as installed entries."""
        parameters = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
        saved = model.state_dict()
        # a buffer that is not saved is a constant, such as a table of positions
        buffers = {plain_name(n): b for n, b in model.named_buffers() if b.is_floating_point() and n in saved}
        both = {**parameters, **buffers}
        dtypes = {t.dtype for t in both.values()}
        if len(dtypes) > 1:
            raise ValueError(f"one row has one dtype, and this model has {sorted(map(str, dtypes))}; convert it first")
        dtype = dtypes.pop() if dtypes else torch.float32
        return Layout(tuple(both), tuple(t.shape for t in both.values()), len(buffers), dtype)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of entries of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def d(self) -> int:
        """The length of a row."""
        return sum(self.sizes)

    @cached_property
    def stepped(self) -> int:
        """The number of columns that are directions; the d - stepped columns behind them are installed values."""
        return sum(self.sizes[: len(self.sizes) - self.num_installed])

    @cached_property
    def installed(self) -> tuple[str, ...]:
        """The names of the installed entries."""
        return self.names[len(self.names) - self.num_installed :]

    @cached_property
    def head(self) -> Layout:
        """The layout of the directions alone."""
        keep = len(self.names) - self.num_installed
        return (
            self
            if not self.num_installed
            else Layout(self.names[:keep], self.shapes[:keep], 0, self.dtype, self.annotations[:keep])
        )

    @cached_property
    def tail(self) -> Layout:
        """The layout of the installed values alone."""
        first = len(self.names) - self.num_installed
        return Layout(self.names[first:], self.shapes[first:], self.num_installed, self.dtype, self.annotations[first:])

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """The parameters and buffers of a model that have these names, not copied."""
        by_name = {plain_name(n): t for n, t in (*model.named_parameters(), *model.named_buffers())}
        return {name: by_name[name] for name in self.names}

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """The tensors of rows, as named views. Shapes: (k, d) -> {name: (k, *shape)}, or (d,) -> {name: shape}."""
        if rows.shape[-1] != self.d:
            raise ValueError(f"rows of length {rows.shape[-1]} do not fit a layout of length {self.d}")
        lead = rows.shape[:-1]
        pieces = rows.split(self.sizes, dim=-1)
        return {n: p.reshape((*lead, *s)) for n, p, s in zip(self.names, pieces, self.shapes, strict=True)}

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`, as a new tensor. Shapes: {name: (k, *shape)} -> (k, d), or {name: shape} -> (d,)."""
        missing = [n for n in self.names if n not in parts]
        if missing:
            raise ValueError(f"no tensor for {', '.join(missing)}")
        if not self.names:
            return torch.zeros(0, dtype=self.dtype)
        first = parts[self.names[0]]
        lead = first.shape[: first.dim() - len(self.shapes[0])]
        return torch.cat(
            [parts[n].reshape((*lead, size)) for n, size in zip(self.names, self.sizes, strict=True)], dim=-1
        )
