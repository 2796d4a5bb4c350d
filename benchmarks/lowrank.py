# SPDX-License-Identifier: Apache-2.0
"""How long a training step takes, dense and factorized at rank 1/4, against what multiply-accumulates promise.

    python benchmarks/lowrank.py --json out.json          # all networks, two threads
    python benchmarks/lowrank.py --only lstm-650 --seconds 30

A step is forward, backward and the update of SGD with momentum. Each side is first timed in every way of running it,
that is memory format, float32 or bfloat16 by autocast, for `nn.LSTM` and `nn.GRU` also bfloat16 weights; then the
fastest way of each side is timed in turn with the other's. The ratio is the median over these pairs, so that a busy
moment of the machine hits both; in brackets its quartiles.

Images come 128 at a time. Recurrent layers, two of one width, read 20 texts of 35 words, the published batch; encoder
layers 128 texts of 20 words. `torch-encoder` is `nn.TransformerEncoderLayer`, `transformer-encoder` that of the model.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import phalanx as px
from phalanx.data.shape import Pairs
from phalanx.models.transformer import Transformer
from phalanx.tools.zoo import network
from phalanx.training.run_folder import about
from record import keep

Call = Callable[[], Any]


@dataclass(frozen=True)
class Way:
    """How a network is run.

    Args:
        layout: a memory format of images, or which dimension of sequences is first.
        precision: float32, bfloat16 by autocast, or bfloat16 weights.
    """

    layout: str
    precision: str

    def __str__(self) -> str:
        return f"{self.precision}, {self.layout}"


@dataclass(frozen=True)
class Case:
    """A network with its factorized form, and a step of either.

    Args:
        x: what it reads; of sequences the batch is first.
        place: makes a model and its input of one layout.
        loss: of the model's output.
        dense_ways: are tried for the dense side; all but those that `low_ways` lacks for the factorized one.
    """

    dense: nn.Module
    low: nn.Module
    x: Tensor
    place: Callable[[nn.Module, Tensor, str], Tensor]
    loss: Callable[[Any], Tensor]
    dense_ways: tuple[Way, ...]
    low_ways: tuple[Way, ...]

    def step(self, model: nn.Module, way: Way) -> Call:
        """One training step of a copy of the model."""
        model = copy.deepcopy(model)
        x = self.place(model, self.x, way.layout)
        if way.precision == "bfloat16":
            model, x = model.bfloat16(), x.detach().bfloat16().requires_grad_(x.requires_grad)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def run() -> None:
            autocast = torch.autocast("cpu", torch.bfloat16) if way.precision == "autocast" else nullcontext()
            optimizer.zero_grad()
            x.grad = None
            with autocast:
                loss = self.loss(model(x))
            loss.backward()
            optimizer.step()

        return run

    def promised(self) -> float:
        """Multiply-accumulates of the dense forward over those of the factorized one."""
        return px.lowrank.macs(self.dense, self.x).total / px.lowrank.macs(self.low, self.x).total


def images(name: str) -> Case:
    """A CIFAR network with its published hybrid."""
    known, batch = network(name), 128
    dense, labels = known.build(), torch.arange(batch) % known.num_classes

    def place(model: Any, x: Tensor, layout: str) -> Tensor:
        memory_format = getattr(torch, layout)
        model.to(memory_format=memory_format)
        return x.contiguous(memory_format=memory_format)

    ways = tuple(Way(*each) for each in product(("contiguous_format", "channels_last"), ("float32", "autocast")))
    low = px.factorize(dense, known.hybrid())
    return Case(dense, low, known.sample_input(batch), place, lambda out: F.cross_entropy(out, labels), ways, ways)


def layer(dense: nn.Module, x: Tensor, layouts: Iterable[str], more: Iterable[Way] = ()) -> Case:
    """A layer that reads sequences inside a network, so that the gradient of its input is computed too."""

    def place(model: Any, x: Tensor, layout: str) -> Tensor:
        first = layout == "batch first"
        for module in model.modules():
            if hasattr(module, "batch_first"):
                module.batch_first = first
        return (x if first else x.transpose(0, 1).contiguous()).detach().requires_grad_()

    def loss(out: Any) -> Tensor:
        return (out if isinstance(out, Tensor) else out[0]).float().square().mean()

    ways = tuple(Way(*each) for each in product(layouts, ("float32", "autocast")))
    low = px.factorize(dense, 1 / 4, classifier=False)
    return Case(dense, low, x, place, loss, (*ways, *more), ways)


BOTH = ("batch first", "sequence first")


def encoder(dropout: float) -> Case:
    """PyTorch's encoder layer, 128 texts of 20 words."""
    return layer(nn.TransformerEncoderLayer(512, 8, 2048, dropout, batch_first=True), torch.randn(128, 20, 512), BOTH)


def own_encoder() -> Case:
    """The encoder layer of the model `transformer`."""

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Transformer(layers=1).build(Pairs(20, 4), 4).get_submodule("encoder.0")

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, torch.ones(1, 1, 1, x.shape[1], dtype=torch.bool))

    return layer(Alone(), torch.randn(128, 20, 512), BOTH[:1])


def recurrent(layers: Any, width: int) -> Case:
    """Two layers of one width, 20 texts of 35 words."""
    more = [Way(layout, "bfloat16") for layout in BOTH]
    return layer(layers(width, width, 2, batch_first=True), torch.randn(20, 35, width), BOTH, more)


CASES: dict[str, Callable[[], Case]] = {
    "resnet18-cifar": lambda: images("resnet18-cifar"),
    "vgg19-cifar": lambda: images("vgg19-cifar"),
    "torch-encoder": lambda: encoder(0.1),
    "torch-encoder-no-dropout": lambda: encoder(0.0),
    "transformer-encoder": own_encoder,
    "lstm-256": lambda: recurrent(nn.LSTM, 256),
    "lstm-650": lambda: recurrent(nn.LSTM, 650),
    "lstm-1500": lambda: recurrent(nn.LSTM, 1500),
    "gru-650": lambda: recurrent(nn.GRU, 650),
    "gru-1500": lambda: recurrent(nn.GRU, 1500),
}


def timed(call: Call) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def fastest(case: Case, model: nn.Module, ways: tuple[Way, ...], repeats: int) -> tuple[Way, dict[str, float]]:
    """The fastest way, and the milliseconds of each, interleaved, after one step that warms up."""
    calls = {way: case.step(model, way) for way in ways}
    for call in calls.values():
        call()
    spent: dict[Way, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, call in calls.items():
            spent[way].append(timed(call))
    least = {way: min(times) for way, times in spent.items()}
    return min(least, key=least.__getitem__), {str(way): value for way, value in least.items()}


def compare(case: Case, seconds: float, tries: int) -> dict[str, Any]:
    """Both sides, each in its fastest way."""
    dense_way, dense_tried = fastest(case, case.dense, case.dense_ways, tries)
    low_way, low_tried = fastest(case, case.low, case.low_ways, tries)
    dense, low = case.step(case.dense, dense_way), case.step(case.low, low_way)
    for call in (dense, low):
        call()
    pairs: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(pairs) < 5 or time.perf_counter() - began < seconds:
        pairs.append((timed(dense), timed(low)))
    below, ratio, above = statistics.quantiles([a / b for a, b in pairs], n=4)
    return {
        "dense_ms": statistics.median(a for a, _ in pairs),
        "dense_way": str(dense_way),
        "low_ms": statistics.median(b for _, b in pairs),
        "low_way": str(low_way),
        "ratio": ratio,
        "quartiles": [below, above],
        "least_ratio": min(a for a, _ in pairs) / min(b for _, b in pairs),
        "promised": case.promised(),
        "pairs": len(pairs),
        "least_ms_by_way": {"dense": dense_tried, "low": low_tried},
    }


def processor() -> dict[str, Any]:
    """The name of the processor, and whether it multiplies bfloat16 by itself."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name, flags = re.search(r"model name\s*: (.*)", text), set(text.split())
    return {"name": name.group(1) if name else "", "bfloat16": sorted(flags & {"avx512_bf16", "amx_bf16"})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument(
        "--seconds", type=float, default=10, help="of the pairs of each network, 5 at least (default 10)"
    )
    parser.add_argument("--tries", type=int, default=3, help="steps of each way before one is chosen (default 3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    setting = {"threads": options.threads, "seconds": options.seconds, "tries": options.tries}
    result: dict[str, Any] = {**setting, "about": about(), "processor": processor(), "networks": {}}
    table = Table("network", "dense ms", "way", "factorized ms", "way", "ratio", "MACs promise")
    for name in options.only:
        row = result["networks"][name] = compare(CASES[name](), options.seconds, options.tries)
        low, high = row["quartiles"]
        ratio, promised = f"{row['ratio']:.2f} ({low:.2f} - {high:.2f})", f"{row['promised']:.2f}"
        ms = f"{row['dense_ms']:.1f}", f"{row['low_ms']:.1f}"
        table.add_row(name, ms[0], row["dense_way"], ms[1], row["low_way"], ratio, promised)
    Console(width=150).print(table)
    keep(options.json, result)


if __name__ == "__main__":
    main()
