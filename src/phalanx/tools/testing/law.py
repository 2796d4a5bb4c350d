# SPDX-License-Identifier: Apache-2.0
"""A law, the table of laws by kind of method, and the method on trial."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from phalanx.core.aggregator import Aggregator
from phalanx.core.attack import Attack
from phalanx.core.codec import Codec, PayloadAttack
from phalanx.core.expression import Expression
from phalanx.core.layout import Layout
from phalanx.core.payload import Payload
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import RowStage, Stage
from phalanx.core.world import LocalCollective
from phalanx.tools.testing.compare import LawBroken, same_bits, stream
from phalanx.tools.testing.rows import honest_stack

LEAST_WORKERS = 12
MOST_CHARACTERS = 400  # of what was seen
KINDS: dict[str, type] = {
    "method": Expression,
    "stage": Stage,
    "row_stage": RowStage,
    "aggregator": Aggregator,
    "attack": Attack,
    "codec": Codec,
    "payload_attack": PayloadAttack,
}


@dataclass(frozen=True)
class Law:
    """What methods of a kind promise: a function that raises unless a method on trial keeps it.

    Args:
        when: whether the law asks anything of a method.
    """

    kind: str
    name: str
    check: Callable[[Trial], None]
    when: Callable[[Any], bool]


class Meter(LocalCollective):
    """Counts the bytes that each worker hands over: those of buffers that nothing else keeps alive."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.sizes = [0] * n
        self.messages: list[Payload] = []

    def count(self, worker: int, payload: Any) -> None:
        if isinstance(payload, dict):
            clones = [t.clone(memory_format=torch.contiguous_format) for t in payload.values()]
            self.sizes[worker] += sum(t.untyped_storage().nbytes() for t in clones)
            self.messages.append(payload)

    def gather(self, payloads: Any, limit_bytes: int) -> Any:
        for worker, payload in enumerate(payloads):
            self.count(worker, payload)
        return super().gather(payloads, limit_bytes)

    def fetch(self, payloads: Any, workers: Sequence[int], limit_bytes: int) -> Any:
        for worker in workers:
            self.count(worker, payloads[worker])
        return super().fetch(payloads, workers, limit_bytes)

    def all_to_all(self, parts: Any, limit_bytes: int) -> Any:
        for worker, sent in enumerate(parts):
            for part in sent:
                self.count(worker, part)
        return super().all_to_all(parts, limit_bytes)

    def mean(self, x: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        # the weight, 8 bytes, travels with the first tensor
        self.sizes = [(size or 8) + len(x[0]) * x.element_size() for size in self.sizes]
        return super().mean(x, weights, total)


@dataclass(frozen=True)
class Trial:
    """A method with the rows on which its laws are checked."""

    method: Any
    n: int
    seed: int

    def keep(self, law: Law) -> None:
        """Raises LawBroken, with all that there is to say, unless the method keeps the law."""
        try:
            if law.when(self.method):
                law.check(self)
        except Exception as error:
            try:
                name = repr(self.method)
            except Exception:
                name = type(self.method).__name__
            words = " ".join(str(error).split())[:MOST_CHARACTERS]
            seen = words if isinstance(error, LawBroken) else f"it raises {type(error).__name__}: {words}"
            case = ", ".join([*getattr(error, "__notes__", ()), f"{self.n} workers, seed {self.seed}"])
            says = inspect.getdoc(law.check)
            raise LawBroken(f"{name} breaks the law {law.name!r} ({says}): {seen} [{case}]") from error

    @property
    def byzantine(self) -> frozenset[int]:
        return frozenset(range(1, self.n, 5))

    def stack(
        self, seed: int = 0, n: int | None = None, dtype: torch.dtype = torch.float32, run_seed: int = 0
    ) -> Stack:
        stage = self.method if isinstance(self.method, Stage) and n is None else None
        return honest_stack(stage, self.n if n is None else n, dtype, self.seed + seed, self.seed + run_seed)

    def run(self, stack: Stack, state: Any = None, stage: Stage | None = None, **changes: Any) -> tuple[Stack, Any]:
        """The stage, that of the trial or another, on a stack; rules get it as received."""
        stage = stage or self.method
        stack = replace(stack, received=True) if isinstance(stage, Aggregator) else stack
        world = LocalCollective(max(len(stack.rows), 1))
        about = {"seed": self.seed, "byzantine": self.byzantine, "world": world, **changes}
        assert stage is not None
        return stage(stack, state, Round(**about))

    def rows(self, d: int, seed: int = 0) -> Tensor:
        return torch.randn(d, generator=self.stream(seed)())

    def stream(self, seed: int = 0) -> Callable[[], torch.Generator]:
        return stream(1000 * self.seed + seed)

    def coded(self, row: Tensor, layout: Layout, state: Any = None, seed: int = 0) -> tuple[Payload, Tensor, Any]:
        payload, state = self.method.encode(row, layout, state or {}, self.stream(seed))
        return payload, self.method.decode(payload, layout), state

    @property
    def is_random(self) -> bool:
        """Whether the rows depend on the seed of the round."""
        outs = [self.run(self.stack(), seed=self.seed + i)[0].rows for i in range(2)]
        return not same_bits(*outs)


def law(
    laws: list[Law], kind: str, name: str, when: Callable[[Any], bool] = lambda method: True
) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Adds a law to a list; the docstring of its function is the sentence that it is known by."""

    def add(check: Callable[[Trial], None]) -> Callable[[Trial], None]:
        laws.append(Law(kind, name, check, when))
        return check

    return add
