# SPDX-License-Identifier: Apache-2.0
"""Table 4.19: seconds to factorize a network into its hybrid; tables 4.6 and 4.20: seconds of its training steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.lowrank.factorize import factorize
from phalanx.lowrank.macs import macs
from phalanx.lowrank.truncate import Svd
from phalanx.tools.runner.measurement import Measurement
from phalanx.tools.zoo import network
from phalanx.training.score import cross_entropy


@method("svd_cost", "measurement")
class SvdCost(Measurement):
    """Seconds to factorize a network of chapter 4 into its published hybrid, copying included, once after a first time.

    Args:
        network: its name, as `phalanx factorize --model` takes it.
        svd: "exact", "randomized", or "auto", as in `phalanx.factorize`.
        repeats: factorizations of weights drawn anew, >= 1.
        threads: of torch.
    Source: Table 4.19. Differs: weights as they are drawn; the time does not depend on them.
    """

    network: str
    svd: Svd = "exact"
    repeats: int = 5
    threads: int = 2
    seed: int = 0

    def validate(self) -> None:
        require(self.repeats >= 1 and self.threads >= 1, "svd_cost needs repeats and threads >= 1")
        network(self.network)

    def measure(self, on_progress: Callable[[str], None]) -> dict[str, Any]:
        torch.set_num_threads(self.threads)
        chosen = network(self.network)
        on_progress(f"{self.network}, {self.svd}")
        plan, seconds = chosen.hybrid(), list[float]()
        for repeat in range(self.repeats + 1):
            model = _built(self.network, self.seed + repeat)
            began = time.perf_counter()
            low = factorize(model, plan, svd=self.svd)
            seconds.append(time.perf_counter() - began)
            del low
        return {
            "seconds": statistics.mean(seconds[1:]),
            "stdev": statistics.stdev(seconds[1:]) if self.repeats > 1 else None,
            "layers": sum(entry.rank is not None for entry in plan),
        }


@method("step_cost", "measurement")
class StepCost(Measurement):
    """Seconds of a training step of a network of chapter 4 and of its hybrid, in turn, beside multiply-accumulates.

    A step is forward, backward and a step of SGD with momentum on examples drawn at random.

    Args:
        network: its name, as `phalanx factorize --model` takes it.
        batch: examples of a step, >= 1.
        precision: "bf16" computes under bfloat16 autocast.
        repeats: pairs of steps that count, after two that do not, >= 1; medians are given.
        threads: of torch.
    Source: Tables 4.6 and 4.20, of epochs on a V100. Differs: single steps; images in channels_last.
    """

    network: str
    batch: int = 128
    precision: Literal["float32", "bf16"] = "float32"
    repeats: int = 5
    threads: int = 2
    seed: int = 0

    def validate(self) -> None:
        ok = min(self.batch, self.repeats, self.threads) >= 1
        require(ok, f"step_cost needs batch, repeats and threads >= 1, got batch={self.batch}, repeats={self.repeats}")
        network(self.network)

    def measure(self, on_progress: Callable[[str], None]) -> dict[str, Any]:
        torch.set_num_threads(self.threads)
        chosen = network(self.network)
        on_progress(f"{self.network}, {self.precision}")
        dense = _built(self.network, self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(make_generator("examples", self.seed).initial_seed())
            x = chosen.sample_input(self.batch)
        if x.dim() == 4:
            dense, x = dense.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        low = factorize(dense, chosen.hybrid())
        steps = [self._step(model, x) for model in (dense, low)]
        seconds: list[list[float]] = [[], []]
        for repeat in range(self.repeats + 2):
            for taken, step in zip(seconds, steps, strict=True):
                began = time.perf_counter()
                step()
                if repeat >= 2:
                    taken.append(time.perf_counter() - began)
        full_s, hybrid_s = map(statistics.median, seconds)
        one = chosen.sample_input()
        counts = [macs(model.eval(), one).total for model in (dense, low)]
        return {
            "full_s": full_s,
            "hybrid_s": hybrid_s,
            "speedup": full_s / hybrid_s,
            "macs": counts[0],
            "hybrid_macs": counts[1],
            "promised": counts[0] / counts[1],
        }

    def _step(self, model: nn.Module, x: Tensor) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        model.train()

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
                scores = model(x)
            cross_entropy(scores, torch.zeros(scores.shape[:-1], dtype=torch.int64)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


def _built(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(make_generator("model", seed).initial_seed())
        return network(name).build()
