# SPDX-License-Identifier: Apache-2.0
"""The outputs of two clients' first convolutions, of their match and of their plain average."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.data.dataset import Data
from phalanx.data.partition import Iid, Partition
from phalanx.federated.local_training import LocalTraining
from phalanx.federated.methods import pfnm
from phalanx.matching.bbp import Bbp
from phalanx.matching.match_stage import Matched, MatchReply
from phalanx.matching.matching import Matcher
from phalanx.models.model import Model
from phalanx.tools.runner.measurement import Measurement
from phalanx.training.phase import Run
from phalanx.training.trainer import Trainer

CLIENTS = 2
KINDS = ("client 1", "client 2", "FedMA", "FedAvg")


@method("matched_filters", "measurement")
class MatchedFilters(Measurement):
    """The first convolutions of two clients, of their match and of their plain average, on one test image.

    A pair is a filter of each client that the matcher takes for one; FedAvg's is that of the first client's number. The
    agreement of two filters is the correlation of what they see in the image, behind ReLU.

    Args:
        local: how a client trains, from an initialization of its own.
        image: its number in the test part.
        pairs: that are kept as pictures, those of the most alike weights first; the agreements are of all.
    Source: Figure 5.6 of the dissertation (section 5.2, interpretability).
    """

    data: Data
    model: Model
    partition: Partition = Iid()
    local: LocalTraining = LocalTraining()
    matcher: Matcher = Bbp(average="plain")
    image: int = 0
    pairs: int = 4
    seed: int = 0

    @property
    def run(self) -> Run:
        """The run whose first round trains the clients."""
        phase = pfnm(self.local, matcher=self.matcher)
        return Run(self.data, self.model, (phase,), CLIENTS, partition=self.partition, seed=self.seed)

    def validate(self) -> None:
        require(self.pairs >= 1, f"matched_filters needs pairs >= 1, got pairs={self.pairs}")
        require(self.image >= 0, f"matched_filters needs image >= 0, got image={self.image}")
        self.run.check()

    def measure(self, on_progress: Callable[[str], None]) -> dict[str, Any]:
        trainer = Trainer(self.run)
        count = len(trainer.data.test_y)
        require(self.image < count, f"matched_filters: the test part has {count} images, got image={self.image}")
        name, layer = _first_convolution(trainer.model)
        on_progress("two clients train")
        stack, _ = trainer.compute_rows(0)
        matched, _ = Matched(self.matcher)(stack, None, Round(seed=self.seed))
        shares = (stack.weights / stack.weights.sum()).to(stack.rows)
        rows = [stack.layout.split(row) for row in (*stack.rows, shares @ stack.rows)]
        one, two, average = (_filters(parts, name) for parts in rows)
        together = _filters(matched.layout.split(matched.rows.mean(dim=0)), name)
        replies = [MatchReply.from_payload(matched.replies[client]) for client in range(CLIENTS)]
        first, second = (reply.places[0].tolist() for reply in replies)
        both = [(i, second.index(g), g) for i, g in enumerate(first) if g in second]
        x, _ = trainer.data.test(slice(self.image, self.image + 1))
        outputs = [_seen(layer, *filters, x) for filters in (one, two, together, average)]
        pairs = []
        for i, j, g in both:
            numbers = (i, j, g, i)
            maps = [maps[number] for maps, number in zip(outputs, numbers, strict=True)]
            weights = [f[0][k] for f, k in zip((one, two, together, average), numbers, strict=True)]
            pairs.append(
                {
                    "numbers": dict(zip(KINDS, numbers, strict=True)),
                    "alike": float(torch.cosine_similarity(weights[0].flatten(), weights[1].flatten(), dim=0)),
                    "agreement": {kind: _correlation(maps[0], m) for kind, m in zip(KINDS[1:], maps[1:], strict=True)},
                    "filters": {kind: _plain(w) for kind, w in zip(KINDS, weights, strict=True)},
                    "seen": {kind: _plain(m) for kind, m in zip(KINDS, maps, strict=True)},
                }
            )
        pairs.sort(key=lambda pair: -pair["alike"])
        mean_of = {kind: mean(pair["agreement"][kind] for pair in pairs) for kind in KINDS[1:]} if pairs else {}
        low, high = x.min(), x.max()
        image = _plain((x[0] - low) / (high - low).clamp(min=1e-9))
        return {
            "matched": len(pairs),
            "filters": len(one[0]),
            "agreement": mean_of,
            "image": image,
            "pairs": pairs[: self.pairs],
        }


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            return name, layer
    raise ValueError(f"matched_filters draws convolutions, and {type(model).__name__} has none; choose cnn() or vgg9()")


def _filters(parts: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of a layer."""
    return parts[f"{name}.weight"], parts.get(f"{name}.bias")


@torch.no_grad()
def _seen(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """The outputs of filters on an image, after ReLU. Shapes: (L, C, k, k), (1, C, H, W) -> (L, H', W')."""
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return functional_call(layer, tensors, (x,))[0].relu()


def _correlation(a: Tensor, b: Tensor) -> float:
    """The correlation of two pictures; 0 where one of them is constant."""
    a, b = (m.flatten().double() - m.double().mean() for m in (a, b))
    size = a.norm() * b.norm()
    return float(a @ b / size) if float(size) > 0 else 0.0


def _plain(x: Tensor) -> Any:
    """The tensor as nested lists of numbers with four digits."""
    return (x.double() * 1e4).round().div(1e4).tolist()
