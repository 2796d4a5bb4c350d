# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of chapter 4 on time and size."""

from __future__ import annotations

from phalanx_experiments.reproduce.chapter4 import PICTURES, counts
from phalanx_experiments.reproduce.item import GPU, PARTLY, REPRODUCED, Claim, Item, Part, Row
from phalanx_experiments.reproduce.places import Counted, FileValue, Quotient, Value

NODES = "Four processes on two cores with links of 100 Mbit/s, and a small residual network, in place of "
BREAKDOWN = (
    "python benchmarks/network.py breakdown --recipe pufferfish-distributed --set surgery.warmup=0.0 --rates 100mbit "
    "--workers 4 --rounds 14"
)
STEPS = ("pufferfish-distributed/breakdown.png",)


def _step(label: str, part: str = "step_s") -> FileValue:
    path = ("lines", {"workers": 4, "rate": "100mbit", "label": label}, part)
    return FileValue("pufferfish-distributed/breakdown.json", path, scale=1000.0)


def _times(label: str) -> Row:
    """A row: how many times as fast as another scheme a step of PUFFERFISH is."""
    published = {"SGD": 1.92, "Signum": 1.67, "PowerSGD rank 2": 1.33}[label]
    place = Quotient(_step(label), _step("PUFFERFISH"))
    return Row(f"a step, times as fast as {label}", published, place, "x", group=None, same=True)


def _end(label: str) -> FileValue:
    return FileValue("pufferfish-distributed/convergence.json", ("results", {"label": label}, "seconds"))


def _speed(network: str) -> FileValue:
    return FileValue("lowrank/speed.json", ("networks", network, "ratio"))


def _svd(name: str, published: float, spread: float, label: str) -> Row:
    place = Value("pufferfish-svd", f"{label}, exact", "measured.seconds")
    return Row(name, published, place, "s", spread, group=None, same=True)


RECIPE = tuple(
    Row(f"by the recipe: {label}, times as fast", None, Value("pufferfish-speed", label, "measured.speedup"), "x")
    for label in ("resnet18-cifar, bf16", "vgg19-cifar, bf16")
)

CHAPTER_4_SPEED = (
    Item(
        "table-4.1",
        "parameters and operations of layers, full and factorized (formulas)",
        REPRODUCED,
        "Formulas; `phalanx.lowrank.plan` counts parameters and multiply-accumulates of any network, and "
        "gives the published "
        "totals of chapter 4's six. Compared are those of ResNet-18.",
        command="phalanx factorize --model resnet18-cifar",
        rows=(
            *counts("resnet18-cifar", 11_173_962, 3_336_266),
            Row(
                "MACs, full",
                0.56,
                Counted("resnet18-cifar", "macs", scale=1e-9),
                unit="G",
                spread=None,
                group=None,
                same=True,
            ),
            Row(
                "MACs, hybrid",
                0.22,
                Counted("resnet18-cifar", "macs_after", scale=1e-9),
                unit="G",
                spread=None,
                group=None,
                same=True,
            ),
        ),
    ),
    Item(
        "table-4.6",
        "speed of a training step, full and hybrid, reproducible kernels",
        PARTLY,
        "Two threads of a CPU in place of a V100: there is no deterministic mode to compare, and both sides run in "
        "their fastest memory format and precision. ResNet-18 gains more than VGG-19, as published.",
        parts=(Part("pufferfish-speed", 2.0, timed=True),),
        rows=(
            Row("ResNet-18, times as fast", 1.48, _speed("resnet18-cifar"), "x", same=True),
            Row("VGG-19, times as fast", 1.23, _speed("vgg19-cifar"), "x", same=True),
            *RECIPE,
        ),
        command="python benchmarks/lowrank.py --tries 2 --seconds 5",
        plots=(),
    ),
    Item(
        "figure-4.4",
        "where an epoch's time goes and how soon training ends, on clusters",
        PARTLY,
        NODES
        + "8 and 16 GPUs at 10 Gbit/s; (a), ImageNet, was not run. On this slow network PUFFERFISH alone is behind "
        "PowerSGD, as it sends fifteen times as much; with PowerSGD on its gradients it is before it.",
        command=BREAKDOWN,
        rows=(
            _times("SGD"),
            _times("Signum"),
            _times("PowerSGD rank 2"),
            Row(
                "all rounds, times as fast as SGD",
                1.74,
                Quotient(_end("SGD"), _end("PUFFERFISH")),
                "x",
                group=None,
                same=True,
            ),
        ),
        claims=(
            Claim("faster than SGD", _step("SGD"), _step("PUFFERFISH"), "ms"),
            Claim("faster than PowerSGD", _step("PowerSGD rank 2"), _step("PUFFERFISH"), "ms"),
        ),
        plots=STEPS,
    ),
    Item(
        "figure-4.5",
        "DistributedDataParallel on 2 to 16 nodes, ImageNet",
        GPU,
        PICTURES + " It also takes 16 machines with a GPU each; pufferfish-distributed runs under `torchrun` there.",
        parts=(Part("pufferfish-imagenet"),),
        plots=(),
    ),
    Item(
        "figure-4.7",
        "PUFFERFISH with PowerSGD on its gradients",
        PARTLY,
        NODES + "8 GPUs. Both together send a twentieth of SGD's bytes and are the fastest; the order of the steps is "
        "published in a figure only. Training to the end with both stopped for lack of time.",
        command=BREAKDOWN,
        rows=tuple(
            Row(name, None, _step(name), "ms")
            for name in ("SGD", "PUFFERFISH", "PUFFERFISH + PowerSGD rank 4", "PowerSGD rank 2", "Signum")
        ),
        claims=(
            Claim("both above PUFFERFISH alone", _step("PUFFERFISH"), _step("PUFFERFISH + PowerSGD rank 4"), "ms"),
            Claim("both above PowerSGD alone", _step("PowerSGD rank 2"), _step("PUFFERFISH + PowerSGD rank 4"), "ms"),
        ),
        plots=STEPS,
    ),
    Item(
        "figure-4.8",
        "stochastic binary quantization against PUFFERFISH",
        PARTLY,
        NODES
        + "16 GPUs and ResNet-50. Decoding takes longer than encoding, as published; the whole is not slower than "
        "PUFFERFISH at 100 Mbit/s, where it sends a tenth of the bytes.",
        command=BREAKDOWN,
        rows=(
            Row(
                "decoding over encoding",
                118.4 / 12.1,
                Quotient(_step("stochastic binary", "decoding_s"), _step("stochastic binary", "encoding_s")),
                "x",
                same=True,
            ),
            Row("step, stochastic binary", None, _step("stochastic binary"), "ms"),
            Row("step, PUFFERFISH", None, _step("PUFFERFISH"), "ms"),
        ),
        claims=(Claim("PUFFERFISH is faster", _step("stochastic binary"), _step("PUFFERFISH"), "ms"),),
        plots=STEPS,
    ),
    Item(
        "table-4.19",
        "seconds of the one decomposition",
        PARTLY,
        "The networks have their real size; LAPACK's SVD on two cores of a CPU in place of a V100. The default, which "
        "takes the eigenvectors of the short side's Gram matrix or a random projection, needs 0.4 to 4.4 s.",
        parts=(Part("pufferfish-svd", 2.3, timed=True),),
        rows=(
            _svd("ResNet-50", 2.2972, 0.0519, "resnet50"),
            _svd("WideResNet-50-2", 4.8700, 0.0859, "wide-resnet50-2"),
            _svd("VGG-19", 1.5198, 0.0113, "vgg19-cifar"),
            _svd("ResNet-18", 1.3244, 0.0201, "resnet18-cifar"),
            _svd("LSTM", 6.5791, 0.0445, "lstm-wikitext2"),
            _svd("Transformer", 5.4104, 0.0532, "transformer-multi30k"),
        ),
        plots=(),
    ),
    Item(
        "table-4.20",
        "speed of a training step, full and hybrid, fastest kernels",
        PARTLY,
        "Two threads of a CPU in place of a V100, the numbers of table 4.6. Both gain more here than there.",
        parts=(Part("pufferfish-speed", 2.0, timed=True),),
        rows=(
            Row("ResNet-18, times as fast", 1.16, _speed("resnet18-cifar"), "x", same=True),
            Row("VGG-19, times as fast", 1.01, _speed("vgg19-cifar"), "x", same=True),
            *RECIPE,
        ),
        command="python benchmarks/lowrank.py --tries 2 --seconds 5",
        plots=(),
    ),
)
