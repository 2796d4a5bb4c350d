# SPDX-License-Identifier: Apache-2.0
"""Tables of chapter 4 that list data, settings and networks."""

from __future__ import annotations

from phalanx_experiments.reproduce.item import NONE, Item, Row
from phalanx_experiments.reproduce.places import Counted

LIST = "A list of settings, which the recipes of chapter 4 hold at --scale paper."


def _network(number: int, title: str, name: str, full: float, hybrid: float, why: str = "") -> Item:
    """A table that lists the layers of a hybrid."""
    return Item(
        f"table-4.{number}",
        f"the layers of {title}",
        NONE,
        f"A list of layers: `phalanx factorize --model {name}` prints them; the parameters are counted here.{why}",
        rows=(
            Row("parameters, full", full, Counted(name), "", group=None, same=True),
            Row("parameters, hybrid", hybrid, Counted(name, "parameters_after"), "", group=None, same=True),
        ),
        command=f"phalanx factorize --model {name}",
    )


_BIASES = " The text has 128 fewer in both, the published code what is counted."
_CAPTIONS = ("transformer-multi30k", 48_978_432, 26_696_192)

CHAPTER_4_SETTINGS = (
    Item("table-4.9", "data, networks and settings for images", NONE, LIST),
    Item("table-4.10", "data, networks and settings for texts", NONE, LIST),
    _network(11, "the hybrid VGG-19", "vgg19-cifar", 20_560_330, 8_370_634),
    _network(12, "the low-rank LSTM", "lstm-wikitext2", 85_962_278, 67_962_278),
    _network(13, "the hybrid ResNet-18", "resnet18-cifar", 11_173_834, 3_336_138, _BIASES),
    _network(14, "the hybrid ResNet-50", "resnet50", 25_557_032, 15_202_344),
    _network(15, "the hybrid WideResNet-50-2", "wide-resnet50-2", 68_883_240, 40_047_400),
    _network(16, "an encoder layer of the Transformer", *_CAPTIONS),
    _network(17, "a decoder layer of the Transformer", *_CAPTIONS),
    Item(
        "table-4.18",
        "the layers of the hybrid VGG-19 that is compared with lottery tickets",
        NONE,
        "A list of layers: `phalanx factorize --model vgg19-lth` prints them; the text names no total.",
        rows=(Row("parameters, hybrid", None, Counted("vgg19-lth", "parameters_after"), ""),),
        command="phalanx factorize --model vgg19-lth",
    ),
)
