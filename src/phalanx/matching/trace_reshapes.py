# SPDX-License-Identifier: Apache-2.0
"""Rules of the trace for functions that reshape, index, pool, reduce or join tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from phalanx.matching.neurons import Label
from phalanx.matching.trace import Rule, Trace, name_of, tensors_in

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)  # distinct sizes and strides, by which a dimension is recognised in a result


def _reshape(trace: Trace, out: Tensor, /, input: Tensor, *_: Any, **__: Any) -> None:
    """Labels the output of a reshape; also of a squeeze, as strides do not tell dimensions of size one apart."""
    labels = trace.labels(input)
    result: list[Label | None] = []
    for old, new in _blocks(input.shape, out.shape):
        labelled = [(dim, label) for dim in old if (label := labels[dim]) is not None]
        if len(labelled) > 1:
            for pair in labelled:
                trace.neurons.join(pair[1], None)
        sizes = [out.shape[dim] for dim in new]
        if len(labelled) != 1:
            result += [None] * len(sizes)
            continue
        dim, label = labelled[0]
        outer = math.prod(input.shape[old[0] : dim]) * label.outer
        inner = label.inner * math.prod(input.shape[dim + 1 : old[-1] + 1])
        result += _placed(trace, Label(label.node, outer, inner), sizes)
    trace.note(out, result)


def _placed(trace: Trace, label: Label, sizes: list[int]) -> list[Label | None]:
    """Labels for the dimensions that one labelled dimension is split into; one of them holds the whole neurons."""
    for whole in (label, trace.whole(label)):
        neurons = trace.neurons.sizes[whole.node]
        for dim, size in enumerate(sizes):
            before, after = math.prod(sizes[:dim]), math.prod(sizes[dim + 1 :])
            outer, inner = whole.outer // before, whole.inner // after
            fits = (outer * before, inner * after) == (whole.outer, whole.inner)
            if fits and outer * neurons * inner == size:
                return [None] * dim + [Label(whole.node, outer, inner)] + [None] * (len(sizes) - dim - 1)
    return _lost(trace, label, [None] * len(sizes), "cuts the neurons of {} into parts")


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions that have as many entries in the old shape as in the new one."""
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(a), j + len(b)
        while math.prod(old[k] for k in a) != math.prod(new[k] for k in b):
            if j == len(new) or (i < len(old) and math.prod(old[k] for k in a) < math.prod(new[k] for k in b)):
                a.append(i)
                i += 1
            else:
                b.append(j)
                j += 1
        # ones behind the last run belong to it
        if i < len(old) and j == len(new):
            a += range(i, len(old))
            i = len(old)
        if j < len(new) and i == len(old):
            b += range(j, len(new))
            j = len(new)
        yield a, b


def _view(trace: Trace, out: Tensor | Sequence[Tensor], /, input: Tensor, *args: Any, **kwargs: Any) -> None:
    """Labels the views that a function returns; the strides tell from which dimension each one comes."""
    if len(trace.given) > 1:
        trace.refuse(f"{name_of(trace.func)} picks by a tensor", "pick by numbers and slices")
    labels = trace.labels(input)
    probe = torch.empty_strided(input.shape, _PRIMES[: input.dim()], dtype=input.dtype, device="meta")
    for view, strided in zip(tensors_in(out), tensors_in(trace.func(probe, *args, **kwargs)), strict=True):
        result: list[Label | None] = [None] * view.dim()
        for dim, label in enumerate(labels):
            kept = [
                k for k in range(view.dim()) if strided.stride(k) == _PRIMES[dim] and view.shape[k] == input.shape[dim]
            ]
            if label is not None and kept:
                result[kept[0]] = label
            elif label is not None:
                _lost(trace, label, [], "takes a part of the neurons of {}")
        trace.note(view, result)


def _lost(trace: Trace, label: Label, labels: list[Label | None], what: str) -> list[Label | None]:
    """Refuses a function that splits neurons; a dimension of a parameter that no layer makes just keeps its order."""
    maker = trace.maker(label)
    if maker:
        trace.refuse(f"{name_of(trace.func).strip('_')} {what.format(maker)}")
    trace.neurons.join(label, None)
    return labels


def _reduce(trace: Trace, out: Tensor | Sequence[Tensor], /, input: Tensor, *args: Any, **kwargs: Any) -> None:
    """Labels the output of a function that depends on all entries of a dimension and not on their order."""
    if len(trace.given) > 1:
        (larger,) = tensors_in(out)  # the element-wise maximum or minimum of two tensors
        trace.note(larger, trace.broadcast(larger.shape, trace.given))
        return
    labels = trace.labels(input)
    probes = trace.func(torch.empty(_PRIMES[: input.dim()], dtype=input.dtype, device="meta"), *args, **kwargs)
    for reduced, probe in zip(tensors_in(out), tensors_in(probes), strict=True):
        result = [labels[_PRIMES.index(size)] if size > 1 else None for size in probe.shape]
        gone = [label for label in labels if label is not None and label not in result]
        if gone and not reduced.is_floating_point():
            trace.refuse(f"{name_of(trace.func)} tells neurons of {trace.maker(gone[0])} by their places")
        trace.note(reduced, result)


def _pool(trace: Trace, out: Tensor | Sequence[Tensor], /, input: Tensor, *args: Any, **kwargs: Any) -> None:
    """Labels the output of a function that works within the last dimensions of every channel."""
    labels, name = trace.labels(input), name_of(trace.func)
    if name == "pad":
        within = len(args[0] if args else kwargs["pad"]) // 2
    else:
        within = int(name[-2]) if name.endswith("d") and name[-2].isdigit() else input.dim() - 2
    for label in labels[input.dim() - within :]:
        if label is not None:
            _lost(trace, label, [], "mixes the neurons of {} with their neighbours")
    for pooled in tensors_in(out):
        trace.note(pooled, [*labels[: input.dim() - within], *[None] * within])


def _stack(trace: Trace, out: Tensor, /, tensors: Sequence[Tensor], dim: int = 0) -> None:
    labels = list(trace.broadcast(tensors[0].shape, tensors))
    labels.insert(dim % out.dim(), None)
    trace.note(out, labels)


def _cat(trace: Trace, out: Tensor, /, tensors: Sequence[Tensor], dim: int = 0) -> None:
    along = dim % out.dim()
    side = [trace.labels(tensor)[along] for tensor in tensors]
    if any(side):
        makers = ", ".join(dict.fromkeys(filter(None, map(trace.maker, side))))
        trace.refuse(f"cat puts neurons of {makers} beside others", "add them, or give each a layer of its own")
    trace.note(out, trace.broadcast(out.shape, tensors))


_VIEWS = """
getitem select narrow transpose permute movedim swapaxes swapdims t T mT H expand expand_as chunk split
tensor_split unbind
"""
_REDUCTIONS = "mean sum amax amin max min prod logsumexp std var norm"
_POOLS = [f"{kind}_pool{k}d" for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg") for k in (1, 2, 3)]
RESHAPES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"), _reshape),
    **dict.fromkeys(_VIEWS.split(), _view),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys((*_POOLS, "interpolate", "upsample", "pad"), _pool),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "stack": _stack,
}
