# SPDX-License-Identifier: Apache-2.0
"""A wrapper of a codec that codes cosine coefficients of small chunks in place of entries."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from phalanx.core.codec import Codec, Payload
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.precision import accumulation_dtype, cast
from phalanx.core.round import Rng
from phalanx.core.stage import Kept, Scope
from phalanx.core.trees import State


@method("chunked_dct", "codec")
class ChunkedDct(Codec):
    """Codes the cosine coefficients of chunks of each tensor; decoding goes back to entries.

    A tensor of two or more dimensions, seen as a matrix of its first dimension and all others, is cut into rectangles;
    any other one into runs. The sides of a chunk are the largest divisors of the tensor's sides that are at most
    `chunk`. The transform is orthonormal, so errors keep their size. The coefficients of a chunk follow each other:
    64 x 64 of them are one chunk of `top_k(ratio, chunk=4096)`.

    Args:
        codec: codes the coefficients, as vectors of the tensors' names.
        chunk: longest side of a chunk, >= 1.
    Source: Peng et al., DeMo: Decoupled momentum optimization, 2024, arXiv:2411.19870, section 3.2. Differs: a codec of
        any row, without the momentum; `error_feedback(chunked_dct(...), decay=0.95)` keeps what is not sent.
    """

    codec: Codec
    chunk: int = 64

    runs_on: ClassVar[Scope] = "tensor"

    def validate(self) -> None:
        require(self.chunk >= 1, f"chunked_dct needs chunk >= 1, got chunk={self.chunk}")

    @property
    def scope(self) -> Scope:
        return "vector" if self.codec.scope == "vector" else "tensor"

    @property
    def linear(self) -> bool:
        return self.codec.linear

    @property
    def unbiased(self) -> bool:
        return self.codec.unbiased

    @property
    def remembers(self) -> bool:
        return self.codec.remembers

    @property
    def keeps(self) -> Kept:
        # sums of coefficients are rounded
        return "nothing" if self.codec.keeps == "nothing" else "equality"

    @property
    def result_code(self) -> str | None:
        return self.codec.result_code

    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        wide = row.detach().to("cpu", accumulation_dtype(row.dtype))
        waves = [self._waves(part) for part in layout.split(wide).values()]
        coefficients = torch.cat(waves) if waves else wide
        return self.codec.encode(coefficients, _of_vectors(layout), state, rng)

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        coefficients = self.codec.decode(payload, _of_vectors(layout)).cpu()
        parts = zip(coefficients.split(layout.sizes), layout.shapes, strict=True)
        entries = [self._entries(part, shape) for part, shape in parts]
        return cast(torch.cat(entries) if entries else coefficients, layout.dtype)

    def _waves(self, tensor: Tensor) -> Tensor:
        """The coefficients of a tensor, chunk by chunk: (*shape) -> (size,)."""
        import scipy.fft

        if not tensor.numel():
            return tensor.reshape(-1)
        (rows, columns), (height, width) = _sides(tensor.shape), self._chunk(tensor.shape)
        chunks = tensor.reshape(rows // height, height, columns // width, width).transpose(1, 2).contiguous()
        waves = scipy.fft.dctn(chunks.numpy(), axes=(2, 3), norm="ortho")
        return torch.from_numpy(waves).reshape(-1)

    def _entries(self, waves: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `_waves`: (size,) -> (size,)."""
        import scipy.fft

        if not waves.numel():
            return waves
        (rows, columns), (height, width) = _sides(shape), self._chunk(shape)
        chunks = waves.reshape(rows // height, columns // width, height, width)
        entries = torch.from_numpy(scipy.fft.idctn(chunks.numpy(), axes=(2, 3), norm="ortho"))
        return entries.transpose(1, 2).reshape(-1)

    def _chunk(self, shape: torch.Size) -> tuple[int, int]:
        rows, columns = _sides(shape)
        return self._divisor(rows), self._divisor(columns)

    def _divisor(self, side: int) -> int:
        return next(part for part in range(min(self.chunk, side), 0, -1) if side % part == 0)


def _sides(shape: torch.Size) -> tuple[int, int]:
    """A tensor as a matrix; one of less than two dimensions is a row."""
    if len(shape) < 2:
        return 1, shape.numel()
    return shape[0], shape[1:].numel()


def _of_vectors(layout: Layout) -> Layout:
    """The layout of coefficients, which have lost the shape of their tensor."""
    sizes = tuple(torch.Size([size]) for size in layout.sizes)
    return Layout(layout.names, sizes, dtype=accumulation_dtype(layout.dtype))
