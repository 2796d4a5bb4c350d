# SPDX-License-Identifier: Apache-2.0
"""The request of a round: which workers it asks, and what they need for their part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from phalanx.core.payload import Payload, payload_bytes
from phalanx.core.trees import State, flatten, to_payload


@dataclass(frozen=True)
class RoundRequest:
    """What a round asks of the workers.

    Args:
        round_index: number of the round in the run, from 0.
        clients: the workers that are chosen.
        model: the tensors of the model.
        shapes: what a process needs to build a model of the same shape.
        required: names of the tensors that a worker needs for this round; None for all.
        replies: what the server replies to the messages that single workers sent in the last round.
        announced: what the scheme's wire stage has all workers know.
    """

    round_index: int
    clients: tuple[int, ...]
    model: Mapping[str, Tensor]
    shapes: State
    required: Sequence[str] | None
    replies: Mapping[int, Payload]
    announced: Payload = field(default_factory=dict)

    def payload(self) -> Payload:
        """The whole model and all replies: the message for a process that computes any of the workers."""
        replies = flatten({"answers": {str(worker): reply for worker, reply in self.replies.items()}})[0]
        return {**self.shared_payload(whole_model=True), **replies}

    def shared_payload(self, whole_model: bool = False) -> Payload:
        """The part of the message that is the same for all workers.

        Args:
            whole_model: also with the tensors that the round does not require.
        """
        model = self.model if whole_model else self._required_tensors
        clients = torch.tensor(self.clients, dtype=torch.int64)
        tree = {"shapes": self.shapes, "model": dict(model), "clients": clients, "announced": self.announced}
        return to_payload(tree)

    def for_worker(self, worker: int) -> Payload:
        """The part of the message that is for one worker only: the reply to it."""
        return flatten({"answers": {str(worker): self.replies[worker]} if worker in self.replies else {}})[0]

    @cached_property
    def bytes_down(self) -> int:
        """Bytes of the tensors and replies that the chosen workers need."""
        tensor_bytes = payload_bytes(dict(self._required_tensors)) + payload_bytes(self.announced)
        return sum(tensor_bytes + payload_bytes(dict(self.replies.get(worker, {}))) for worker in self.clients)

    @property
    def _required_tensors(self) -> Mapping[str, Tensor]:
        return self.model if self.required is None else {name: self.model[name] for name in self.required}
