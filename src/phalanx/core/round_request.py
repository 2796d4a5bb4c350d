# SPDX-License-Identifier: Apache-2.0
"""A round in progress: whom it asks, and what they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from phalanx.core.payload import Payload, payload_bytes
from phalanx.core.trees import State, flatten, to_payload


@dataclass(frozen=True)
class RoundRequest:
    """A round in progress.

    Args:
        chosen: the workers that it asks.
        model: its tensors.
        shapes: what a process needs to have a model of the same shape.
        asked: names of the tensors that a worker needs for this round; None for all.
        answers: to what single workers sent in the last round.
        silent: workers whose messages a drill holds back.
        operated: what a surgery did before it.
        began: when.
        received: bytes that had reached the sockets by then.
    """

    index: int
    number: int
    at: int
    chosen: tuple[int, ...]
    model: Mapping[str, Tensor]
    shapes: State
    asked: Sequence[str] | None
    answers: Mapping[int, Payload]
    byzantine: frozenset[int]
    silent: frozenset[int]
    operated: str
    began: float
    received: int | None

    def order(self, worker: int | None = None) -> Payload:
        """What workers elsewhere need for the round: all that anybody needs, or no more than one of them asks for."""
        return {**self.shared(whole=worker is None), **self.told(worker)}

    def shared(self, whole: bool = False) -> Payload:
        """The part of an order that is the same for all: the tensors that the round asks for, or the whole model."""
        model = self.model if whole else self._needed
        chosen = torch.tensor(self.chosen, dtype=torch.int64)
        return to_payload({"shapes": self.shapes, "model": dict(model), "clients": chosen})

    def told(self, worker: int | None = None) -> Payload:
        """The part that differs: what the server answers a worker, or every one."""
        return flatten({"answers": {str(w): a for w, a in self.answers.items() if worker in (None, w)}})[0]

    @cached_property
    def bytes_down(self) -> int:
        """Of the tensors that all chosen workers need."""
        each = payload_bytes(dict(self._needed))
        return sum(each + payload_bytes(dict(self.answers.get(worker, {}))) for worker in self.chosen)

    @property
    def _needed(self) -> Mapping[str, Tensor]:
        return self.model if self.asked is None else {name: self.model[name] for name in self.asked}
