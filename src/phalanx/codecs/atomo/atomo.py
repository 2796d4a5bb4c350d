# SPDX-License-Identifier: Apache-2.0
"""The ATOMO codec: it sends few of a tensor's atoms, chosen at random with the least variance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from phalanx.codecs.atomo.atoms import Atoms, Forms
from phalanx.codecs.atomo.probabilities import atomo_probabilities
from phalanx.core.codec import BadPayload, Codec, Payload
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.payload import expect, payload_bytes
from phalanx.core.precision import accumulation_dtype, cast
from phalanx.core.round import Rng, make_generator
from phalanx.core.stage import Kept, Scope
from phalanx.core.trees import State

Counts = list[
    tuple[int, int]
]  # for every tensor: numbers of atoms kept for certain and by chance; DENSE for both if it is sent as it is
DENSE = -1


@method("atomo", "codec")
class Atomo(Codec):
    """An unbiased estimate of every tensor from few of its atoms: sum_i lam_i t_i / p_i a_i with t_i ~ Bernoulli(p_i).

    No other probabilities that keep as many atoms on average have less variance. Nothing is sent when no atom was
    drawn. A tensor that is no longer than its expected code, or is not finite, is sent as it is.

    Args:
        atoms: entries(), spectral(), fourier(), dct(), or your own.
        budget: expected number of atoms of each tensor, > 0; a lower one sends less. Give either this or `ratio`.
        ratio: expected number of atoms, as a fraction of the most that a tensor of this shape can have, in (0, 1].
        vectors: an unbiased codec for the two vectors of each spectral atom, with separate random numbers; a biased
            codec, such as half(), makes this one biased too.
        draws: "independent", or "systematic", which draws one random number for a tensor. The probabilities are the
            same, and so is the variance for orthonormal atoms; the number of atoms is always the budget, rounded up or
            down.
        smallest: tensors of fewer entries are sent as they are, since coding them may not be worth its time.
    Source: Wang et al., ATOMO, 2018, arXiv:1806.04090, Algorithm 1 and Equation 2; systematic sampling: Madow, 1949.
        Differs: never draws again; vectors (the dissertation's future work) and draws are ours, see docs/atomo.md.
    """

    atoms: Atoms
    budget: float | None = None
    ratio: float | None = None
    vectors: Codec | None = None
    draws: Literal["independent", "systematic"] = "independent"
    smallest: int = 0

    runs_on: ClassVar[Scope] = "tensor"

    def validate(self) -> None:
        require(
            (self.budget is None) != (self.ratio is None), "atomo needs either budget=... or ratio=..., one of them"
        )
        require(self.budget is None or self.budget > 0, f"atomo needs budget > 0 atoms, got budget={self.budget}")
        require(self.ratio is None or 0 < self.ratio <= 1, f"atomo needs 0 < ratio <= 1, got ratio={self.ratio}")
        require(self.smallest >= 0, f"atomo needs smallest >= 0 entries, got smallest={self.smallest}")
        require(
            self.vectors is None or self.atoms.vectors,
            f"{self.atoms!r} has no vectors to code; leave vectors out, or take spectral()",
        )

    @property
    def keeps(self) -> Kept:
        return "nothing"

    @property
    def unbiased(self) -> bool:
        return self.vectors is None or self.vectors.unbiased

    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        # by name, so that a tensor draws the same atoms however the model is cut into rows
        seed = int(torch.randint(2**63 - 1, (), generator=rng()))
        counts: Counts = []
        dense, pieces = [], []
        for name, part in layout.split(row).items():
            count, parts = self._draw(part, make_generator(seed, name))
            counts.append(count)
            if count[0] == DENSE:
                dense.append(part.reshape(-1))
            else:
                pieces.append(parts)
        floats = accumulation_dtype(layout.dtype)
        payload = {
            "counts": self._pack_counts(counts, layout).to(row.device),
            "dense": torch.cat(dense) if dense else row[:0],
        }
        for key, (dtype, _) in self.atoms.forms(torch.Size([0]), floats, 0, 0).items():
            flat = [parts[key].reshape(-1) for parts in pieces]
            payload[key] = torch.cat(flat) if flat else torch.empty(0, dtype=dtype, device=row.device)
        if self.vectors is not None:
            for key, vectors in self._vector_layouts(layout, counts).items():
                coded, _ = self.vectors.encode(
                    payload.pop(key), vectors, {}, partial(make_generator, seed, "vectors", key)
                )
                payload.update({f"{key}.{name}": tensor for name, tensor in coded.items()})
        return payload, state

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        counts = self._counts(payload, layout)
        dense = sum(size for size, count in zip(layout.sizes, counts, strict=True) if count[0] == DENSE)
        if self.vectors is not None:
            payload = self._open_vectors(payload, layout, counts)
        lengths: dict[str, int] = {}
        dtypes: dict[str, torch.dtype] = {}
        for _, forms in self._forms(layout, counts):
            for key, (dtype, shape) in forms.items():
                lengths[key] = lengths.get(key, 0) + math.prod(shape)
                dtypes[key] = dtype
        expected = {key: (dtypes[key], (lengths[key],)) for key in lengths}
        for key, (dtype, _) in self.atoms.forms(torch.Size([0]), accumulation_dtype(layout.dtype), 0, 0).items():
            expected.setdefault(key, (dtype, (0,)))
        expect(
            payload,
            counts=(payload["counts"].dtype, tuple(payload["counts"].shape)),
            dense=(layout.dtype, (dense,)),
            **expected,
        )
        return self._read(payload, layout, counts)

    def _draw(self, part: Tensor, generator: torch.Generator) -> tuple[tuple[int, int], dict[str, Tensor]]:
        """Draws the atoms of one tensor; returns their numbers and the parts of its message."""
        budget = self._budget(part.shape)
        min_bytes = self._expected_bytes(part, 0, min(budget, self.atoms.most(part.shape)))
        if part.numel() < self.smallest or min_bytes >= _bytes(part):
            return (DENSE, DENSE), {}
        x = part.to(accumulation_dtype(part.dtype))
        lam, analysis = self.atoms.analyse(x)
        # a sum is fast, and finite only if all coefficients are
        if not bool(lam.sum().isfinite()) and not bool(lam.isfinite().all()):
            return (DENSE, DENSE), {}
        p = atomo_probabilities(lam, budget)
        ones = int((p >= 1).sum())
        # the expectation decides; a decision after the draw would bias the estimate
        if self._expected_bytes(part, ones, float(p.sum()) - ones) >= _bytes(part):
            return (DENSE, DENSE), {}
        kept = self._kept(p, generator)
        return (ones, len(kept) - ones), self.atoms.write(analysis, lam, p, kept)

    def _kept(self, p: Tensor, generator: torch.Generator) -> Tensor:
        # 24 bits of a float32 would be too coarse for small p
        if self.draws == "independent":
            return (torch.rand(len(p), generator=generator, dtype=torch.float64).to(p.device) < p).nonzero().flatten()
        start = float(torch.rand(1, generator=generator, dtype=torch.float64))
        levels = torch.where(p < 1, p, 0.0).cumsum(0).add_(start).floor()
        is_drawn = levels.diff(prepend=levels.new_zeros(1)) > 0
        return (is_drawn | (p >= 1)).nonzero().flatten()

    def _budget(self, shape: torch.Size) -> float:
        return self.budget if self.budget is not None else (self.ratio or 0.0) * max(1, self.atoms.most(shape))

    def _expected_bytes(self, part: Tensor, ones: int, others: float) -> int:
        floats, num_others = accumulation_dtype(part.dtype), math.ceil(others - 1e-9)
        if self.vectors is None:
            return self.atoms.num_bytes(part.shape, floats, ones, num_others)
        forms = self.atoms.forms(part.shape, floats, ones, num_others).values()
        return sum(shape[0] * _coded_bytes(self.vectors, shape[1], dtype) for dtype, shape in forms)

    def _count_dtype(self, layout: Layout) -> torch.dtype:
        most = max((self.atoms.most(shape) for shape in layout.shapes), default=0)
        # the largest number of the dtype stands for DENSE
        return next(t for t in (torch.uint8, torch.int16, torch.int32, torch.int64) if most < torch.iinfo(t).max)

    def _pack_counts(self, counts: Counts, layout: Layout) -> Tensor:
        dtype = self._count_dtype(layout)
        packed = torch.tensor(counts, dtype=torch.int64).reshape(-1, 2)
        return torch.where(packed == DENSE, torch.iinfo(dtype).max, packed).to(dtype)

    def _counts(self, payload: Payload, layout: Layout) -> Counts:
        """The numbers of atoms; raises BadPayload where a tensor has more atoms than it can have, and is not dense."""
        form = (self._count_dtype(layout), (len(layout.names), 2))
        expect({"counts": payload["counts"]} if "counts" in payload else {}, counts=form)
        packed = payload["counts"].to(torch.int64)
        packed = torch.where(packed == torch.iinfo(form[0]).max, DENSE, packed)
        counts = [(ones, others) for ones, others in packed.tolist()]
        for name, shape, (ones, others) in zip(layout.names, layout.shapes, counts, strict=True):
            most = self.atoms.most(shape)
            if (ones, others) != (DENSE, DENSE) and not (ones >= 0 and others >= 0 and ones + others <= most):
                raise BadPayload(f"{name} has at most {most} atoms, got {ones} and {others}")
        return counts

    def _forms(self, layout: Layout, counts: Counts) -> Iterator[tuple[str, Forms]]:
        """The name, and the forms of the parts, of every tensor that is not dense, in order."""
        for name, shape, (ones, others) in zip(layout.names, layout.shapes, counts, strict=True):
            if ones != DENSE:
                yield name, self.atoms.forms(shape, accumulation_dtype(layout.dtype), ones, others)

    def _vector_layouts(self, layout: Layout, counts: Counts) -> dict[str, Layout]:
        """A layout that names every left vector of all tensors, and one for every right vector."""
        dtype = accumulation_dtype(layout.dtype)
        named: dict[str, dict[str, torch.Size]] = {key: {} for key in self.atoms.forms(torch.Size([0]), dtype, 0, 0)}
        for name, forms in self._forms(layout, counts):
            for key, (_, (number, length)) in forms.items():
                named[key].update({f"{name}.{i}": torch.Size([length]) for i in range(number)})
        return {key: Layout(tuple(sizes), tuple(sizes.values()), 0, dtype) for key, sizes in named.items()}

    def _open_vectors(self, payload: Payload, layout: Layout, counts: Counts) -> Payload:
        assert self.vectors is not None
        opened = {key: tensor for key, tensor in payload.items() if key in ("counts", "dense")}
        layouts = self._vector_layouts(layout, counts)
        coded: dict[str, Payload] = {key: {} for key in layouts}
        for name in payload.keys() - opened.keys():
            key, dot, inner = name.partition(".")
            if key not in coded or not dot:
                raise BadPayload(f"a tensor {name} among the vectors {', '.join(layouts)}")
            coded[key][inner] = payload[name]
        for key, lengths in layouts.items():
            opened[key] = self.vectors.decode(coded[key], lengths)
        return opened

    def _read(self, payload: Mapping[str, Tensor], layout: Layout, counts: Counts) -> Tensor:
        row = torch.empty(layout.d, dtype=layout.dtype, device=payload["counts"].device)
        offsets = dict.fromkeys(payload, 0)

        def take(key: str, size: int) -> Tensor:
            offsets[key] += size
            return payload[key][offsets[key] - size : offsets[key]]

        floats = accumulation_dtype(layout.dtype)
        for shape, out, (ones, others) in zip(layout.shapes, row.split(layout.sizes), counts, strict=True):
            if ones == DENSE:
                out.copy_(take("dense", len(out)))
                continue
            forms = self.atoms.forms(shape, floats, ones, others)
            parts = {key: take(key, math.prod(form)).reshape(form) for key, (_, form) in forms.items()}
            out.copy_(cast(self.atoms.read(parts, shape, floats, ones, others), layout.dtype).reshape(-1))
        return row


@cache
def _coded_bytes(codec: Codec, length: int, dtype: torch.dtype) -> int:
    """The number of bytes of a coded vector, measured on one with normal entries."""
    vector = torch.randn(length, generator=make_generator(0), dtype=dtype)
    coded, _ = codec.encode(vector, Layout.flat(length, dtype), {}, partial(make_generator, 1))
    return payload_bytes(coded)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
