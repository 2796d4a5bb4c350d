# SPDX-License-Identifier: Apache-2.0
"""Rules of the trace for layers: the labels of their outputs, and the dimensions that they join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from phalanx.matching.neurons import Label
from phalanx.matching.trace import Rule, Trace
from phalanx.matching.trace_recurrence import RECURRENCES
from phalanx.matching.trace_reshapes import RESHAPES


def _linear(trace: Trace, out: Tensor, /, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    rows, columns = trace.labels(weight)
    *free, last = trace.labels(input)
    trace.neurons.contract(last, columns)
    _produce(trace, out, [*free, rows], -1, bias)


def _conv(
    trace: Trace,
    out: Tensor,
    /,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    rows, columns, *_ = trace.labels(weight)
    channel = 1 - weight.dim()
    entering = trace.labels(input)[channel]
    if groups == 1:
        trace.neurons.contract(entering, columns)
    elif groups == input.shape[channel] == weight.shape[0]:
        trace.neurons.join(entering, rows)
    else:
        trace.refuse(
            f"a convolution in {groups} groups mixes some neurons only", "choose groups=1 or one for each channel"
        )
    _convolved(trace, out, input, weight, rows, bias)


def _conv_transpose(
    trace: Trace,
    out: Tensor,
    /,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> None:
    if groups != 1:
        trace.refuse(f"a transposed convolution in {groups} groups mixes some neurons only", "choose groups=1")
    columns, rows, *_ = trace.labels(weight)
    trace.neurons.contract(trace.labels(input)[1 - weight.dim()], columns)
    _convolved(trace, out, input, weight, rows, bias)


def _convolved(
    trace: Trace, out: Tensor, input: Tensor, weight: Tensor, rows: Label | None, bias: Tensor | None
) -> None:
    channel = 1 - weight.dim()
    labels = list(trace.labels(input))
    for label in (*labels[channel + 1 :], *trace.labels(weight)[2:]):
        trace.neurons.join(label, None)
    _produce(trace, out, [*labels[:channel], rows, *[None] * (weight.dim() - 2)], channel, bias)


def _produce(trace: Trace, out: Tensor, labels: list[Label | None], dim: int, bias: Tensor | None = None) -> None:
    """Labels the output of a layer, whose dimension `dim` becomes a new node with the order of the bias."""
    labels[dim] = trace.made(labels[dim])
    if bias is not None:
        trace.tie(labels[dim], bias, 0)
    trace.note(out, labels)


def _matmul(trace: Trace, out: Tensor, /, input: Tensor, other: Tensor) -> None:
    if trace.func.__name__ == "__rmatmul__":
        input, other = other, input
    if min(input.dim(), other.dim()) < 2:
        trace.refuse("a product with a vector", "write it as a product of two matrices")
    *batch, free, last = trace.labels(input)
    *others, rows, columns = trace.labels(other)
    for label in (*batch, *others):
        trace.neurons.join(label, None)
    trace.neurons.contract(last, rows)
    _produce(trace, out, [*[None] * (out.dim() - 2), free, columns], -1)


def _addmm(trace: Trace, out: Tensor, /, input: Tensor, mat1: Tensor, mat2: Tensor) -> None:
    _matmul(trace, out, mat1, mat2)
    trace.note(out, trace.broadcast(out.shape, [out, input]))


def _embedding(trace: Trace, out: Tensor, /, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> None:
    rows, columns = trace.labels(weight)
    trace.neurons.join(rows, None)  # the order of the token ids cannot change
    if columns is not None:
        trace.neurons.looked_up.add(columns.node)
    _produce(trace, out, [*trace.labels(input), columns], -1)


def _batch_norm(
    trace: Trace,
    out: Tensor,
    /,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> None:
    _scaled(trace, out, input, (running_mean, running_var, weight, bias))


def _group_norm(
    trace: Trace,
    out: Tensor,
    /,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> None:
    if num_groups != 1:
        trace.refuse(f"a GroupNorm of {num_groups} groups mixes some neurons only", "choose num_groups=1 or BatchNorm")
    _scaled(trace, out, input, (weight, bias))


def _prelu(trace: Trace, out: Tensor, /, input: Tensor, weight: Tensor) -> None:
    _scaled(trace, out, input, (weight,) if weight.numel() > 1 else ())


def _scaled(trace: Trace, out: Tensor, input: Tensor, vectors: Sequence[Tensor | None]) -> None:
    """Labels the output of a layer with one number in each vector for each channel."""
    labels = trace.labels(input)
    for vector in vectors:
        if vector is not None:
            trace.tie(labels[1], vector, 0)
    trace.note(out, labels)


def _layer_norm(
    trace: Trace,
    out: Tensor,
    /,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> None:
    labels = trace.labels(input)
    if weight is None and any(labels[-len(normalized_shape) :]):
        # only the module or the code of the forward would hold its size
        trace.refuse("a normalization over neurons without a scale of each", "give it elementwise_affine=True")
    for tensor in [tensor for tensor in (weight, bias) if tensor is not None]:
        for back in range(1, tensor.dim() + 1):
            trace.tie(labels[-back], tensor, -back)
    trace.note(out, labels)


def _pointwise(trace: Trace, out: Tensor, /, *_: Any, **__: Any) -> None:
    trace.note(out, trace.broadcast(out.shape, trace.given))


def _attention(trace: Trace, out: Any, /, *_: Any, **__: Any) -> None:
    trace.refuse("attention cuts neurons into heads", "match the layers before and behind it as models of their own")


# these treat every entry alone and alike, or depend on all entries of a dimension in any order
_POINTWISE = """
relu relu6 leaky_relu rrelu elu selu celu silu mish gelu hardswish hardsigmoid hardtanh tanh tanhshrink sigmoid
logsigmoid softplus softsign softshrink hardshrink threshold dropout dropout1d dropout2d dropout3d alpha_dropout
feature_alpha_dropout feature_dropout softmax log_softmax softmin normalize exp expm1 log log1p log2 sqrt rsqrt abs neg
square pow rpow clamp clip clamp_min clamp_max sin cos erf reciprocal sign round floor nan_to_num add radd iadd sub rsub
isub subtract mul rmul imul multiply div rdiv rtruediv truediv itruediv idiv divide true_divide maximum minimum where
lerp addcmul addcdiv masked_fill gt ge lt le eq ne logical_not logical_and logical_or isnan to type type_as float double
half bfloat16 cpu cuda contiguous clone detach data requires_grad
"""
RULES: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE.split(), _pointwise),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    **dict.fromkeys(("matmul", "mm", "bmm", "rmatmul"), _matmul),
    **dict.fromkeys(("batch_norm", "instance_norm"), _batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("multi_head_attention_forward", "scaled_dot_product_attention"), _attention),
    "linear": _linear,
    "addmm": _addmm,
    "embedding": _embedding,
    "group_norm": _group_norm,
    "prelu": _prelu,
    **RESHAPES,
    **RECURRENCES,
}
