# SPDX-License-Identifier: Apache-2.0
"""The networks of chapter 4 of the dissertation by name, with the layers that it makes low-rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from phalanx.core.registry import suggest
from phalanx.data.shape import Pairs, Passage, Shape, Tokens
from phalanx.lowrank.plan import Plan
from phalanx.lowrank.planner import plan
from phalanx.models.lstm import TiedLstm
from phalanx.models.model import Model
from phalanx.models.resnet import Resnet18, Resnet50, WideResnet50
from phalanx.models.transformer import Transformer
from phalanx.models.vgg import Vgg19Bn


@dataclass(frozen=True)
class Network:
    """A model for data of one shape, and its hybrid.

    Args:
        model: builds the network.
        shape: shape of an example.
        num_classes: number of classes.
        low: names of the layers that the hybrid makes low-rank, with * and [] as in a shell; others stay full.
        about: place of the hybrid in the dissertation, and its number of parameters.
        ratio: ratio of the rank to the shorter side of a layer's matrix, in (0, 1]; ranks are rounded down.
    """

    model: Model
    shape: Shape
    num_classes: int
    low: tuple[str, ...]
    about: str
    ratio: float = 0.25

    def build(self) -> nn.Module:
        """The network, with weights initialised from torch's global generator."""
        return self.model.build(self.shape, self.num_classes)

    def sample_input(self, batch: int = 1) -> Tensor:
        """A random input of the network: normal numbers for images, random words for texts.

        Shapes: -> (batch, C, H, W), (batch, L) or (batch, 2, L).
        """
        if isinstance(self.shape, tuple):
            return torch.randn(batch, *self.shape)
        assert isinstance(self.shape, Pairs | Passage | Tokens)
        sides = (2,) if isinstance(self.shape, Pairs) else ()
        return torch.randint(4, self.shape.vocabulary, (batch, *sides, self.shape.length))

    def is_low(self, name: str) -> bool:
        """Whether the hybrid makes the layer of this name low-rank."""
        return any(fnmatchcase(name, pattern) for pattern in self.low)

    def hybrid(self, ratio: float | None = None) -> Plan:
        """The dissertation's plan for `factorize`, or the same plan with another ratio of ranks."""
        model, share = self.build().eval(), self.ratio if ratio is None else ratio
        matrices = [entry.name for entry in plan(model, share, classifier=False)]
        full = [name for name in matrices if not any(map(self.is_low, _within(name)))]
        hybrid_plan = plan(model, share, keep=full, classifier=False, sample_input=self.sample_input())
        return replace(
            hybrid_plan,
            entries=tuple(replace(e, reason="full as published") if e.name in full else e for e in hybrid_plan),
        )


def _within(name: str) -> list[str]:
    """The name of a matrix, and those of the modules that it lies in."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


_CIFAR, _IMAGENET = (3, 32, 32), (3, 224, 224)
_CONV10_TO_16 = ("30", "33", "36", "40", "43", "46", "49")

NETWORKS: dict[str, Network] = {
    "vgg19-cifar": Network(
        Vgg19Bn(dropout=0.5, bias=False),
        _CIFAR,
        10,
        (*_CONV10_TO_16, "55", "58"),
        "Table 4.11, whose hidden layers are low-rank too in its 8,370,634 parameters",
    ),
    "vgg19-lth": Network(
        Vgg19Bn(bias=False, hidden=()),
        _CIFAR,
        10,
        _CONV10_TO_16,
        "Table 4.18, for the comparison with lottery tickets: 8,107,466 parameters",
    ),
    "resnet18-cifar": Network(
        Resnet18(),
        _CIFAR,
        10,
        ("[4-9].conv?", "10.conv?"),
        "Table 4.13, all but the first block, without shortcuts: 3,336,266 parameters (3,336,138 in the text)",
    ),
    "resnet50": Network(
        Resnet50(stem="large"),
        _IMAGENET,
        1000,
        ("1[789].conv?", "17.shortcut.0"),
        "Table 4.14, conv5_x with its shortcut: 15,202,344 parameters, for which conv_1 has rank 128, not c_in / 4",
    ),
    "wide-resnet50-2": Network(
        WideResnet50(),
        _IMAGENET,
        1000,
        ("1[789].conv?", "17.shortcut.0"),
        "Table 4.15, conv5_x with its shortcut: 40,047,400 parameters, for which conv_1 has rank 256",
    ),
    "lstm-wikitext2": Network(
        TiedLstm(),
        Passage(35, 33_278),
        33_278,
        ("lstm",),
        "Table 4.12, each matrix of each gate alone: 67,962,278 parameters",
    ),
    "transformer-multi30k": Network(
        Transformer(scaled="scores"),
        Pairs(20, 9_521),
        9_521,
        ("encoder.[1-5].*", "decoder.[1-5].*"),
        "section 4.5.4, all but the first layer of encoder and decoder: 26,696,192 parameters",
    ),
}


def network(name: str) -> Network:
    """The network with a name.

    Raises:
        ValueError: there is no such network; the sentence lists the choices.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network is called {name!r}; {suggest(name, list(NETWORKS))}")
    return NETWORKS[name]
