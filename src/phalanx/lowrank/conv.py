# SPDX-License-Identifier: Apache-2.0
"""Convolutions of low rank."""

from __future__ import annotations

from typing import Any, Self, cast

from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import OneWeight, Ranks, empty_pair

_Conv = nn.Conv1d | nn.Conv2d


class LowRankConv(OneWeight):
    """A thin convolution u with the kernel, stride, padding and dilation, then a 1x1 convolution v with the bias.

    With groups, each group has factors of its own. Only the input of u is padded, so v has no border.

    Shapes: (B, in, *image) -> (B, out, *image'), also without B; u (groups * rank, in / groups, *kernel),
        v (out, rank, 1, ...), bias (out,).
    Source: Wang et al., Pufferfish, 2021, arXiv:2103.03936, section 2.2, unrolled as (out, in * kernel). Differs: a
        strided 1x1 convolution has its stride in u where the published downsampling has it in v, which is the same
        function of the same parameters at a quarter of the work; groups.
    """

    kind = "conv"

    def __init__(self, factor: Factor, u: nn.Parameter, v: nn.Parameter, dense: _Conv) -> None:
        super().__init__()
        self.factor = factor
        self.in_channels, self.out_channels, self.groups = dense.in_channels, dense.out_channels, dense.groups
        self.kernel_size, self.stride, self.dilation = dense.kernel_size, dense.stride, dense.dilation
        self.padding, self.padding_mode = dense.padding, dense.padding_mode
        self.u, self.v, self.bias = u, v, dense.bias

    @classmethod
    def dense_factors(cls, dense: nn.Module) -> tuple[Factor, ...]:
        old = cast(_Conv, dense)
        return (Factor("", "weight", tuple(old.weight.shape), copies=old.groups),)

    @classmethod
    def refusal(cls, dense: nn.Module) -> str:
        old = cast(_Conv, dense)
        return "depthwise" if old.groups > 1 and old.groups == old.in_channels else ""

    @classmethod
    def like(cls, dense: nn.Module, ranks: Ranks) -> Self:
        old, (factor,), rank = cast(_Conv, dense), cls.dense_factors(dense), ranks[""]
        assert rank is not None
        u, v = empty_pair(factor, rank, old.weight)
        return cls(factor, u, v, old)

    def dense_like(self) -> nn.Module:
        convolution: Any = nn.Conv1d if len(self.kernel_size) == 1 else nn.Conv2d
        dense = convolution(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device="meta",
        )
        dense.bias = self.bias
        return dense

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._margins(), mode=self.padding_mode), 0
        convolve: Any = F.conv1d if len(self.kernel_size) == 1 else F.conv2d
        thin = convolve(input, self.u, None, self.stride, padding, self.dilation, self.groups)
        return convolve(thin, self.v, self.bias, groups=self.groups)

    def _margins(self) -> list[int]:
        """The padding before and after each dimension, the last dimension first."""
        margins: list[int] = []
        for i, (k, d) in reversed(list(enumerate(zip(self.kernel_size, self.dilation, strict=True)))):
            if isinstance(self.padding, str):
                whole = d * (k - 1) if self.padding == "same" else 0
                margins += [whole // 2, whole - whole // 2]
            else:
                margins += [self.padding[i]] * 2
        return margins

    def extra_repr(self) -> str:
        rest = "" if self.groups == 1 else f", groups={self.groups}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}{rest}, rank={self.v.shape[1]}, bias={self.bias is not None}"
        )
