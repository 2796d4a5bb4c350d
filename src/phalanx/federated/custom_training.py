# SPDX-License-Identifier: Apache-2.0
"""Local training by a function of the user's own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.function import FunctionLike
from phalanx.core.round import make_generator
from phalanx.core.seeding import seeded_globally
from phalanx.core.trees import State, copy_tree
from phalanx.data.examples import Batch, Examples
from phalanx.data.partition import Partition
from phalanx.federated.local_training import pieces_of
from phalanx.training.client_work import ClientWork
from phalanx.training.context import WorkerContext
from phalanx.training.task import as_number, blaming


@method("custom_training", "client_work")
class CustomTraining(ClientWork):
    """A client trains by a function of your own; the row is how the weights have changed, start minus end.

    The function is called as train(model, loader, context) and changes the model in place. Each iteration over the
    loader is an epoch of batches in a new order, on the model's device. The context is a `TaskContext`: device, number
    of the client, round, seed. The global random generators are seeded before each call. It returns the training loss
    as a number, nothing, or {"loss": ..., "examples": ...}: the examples that count at the server, in place of all that
    the client has, for a client that did a part of its work only. `sgd(lr=1.0)` along the mean of such rows is FedAvg.

    Args:
        train: the function.
        batch: examples a batch, >= 1; the last one of an epoch may be smaller.
    Raises:
        ValueError: the function raises an exception, returns something else, or leaves the model with other tensors.
    """

    train: FunctionLike
    batch: int = 32

    def validate(self) -> None:
        require(self.batch >= 1, f"custom_training needs batch >= 1, got batch={self.batch}")

    def samples(self, partition: Partition, data: Examples, units: int, index: int, seed: int) -> Sequence[Tensor]:
        return partition.parts(data, units, seed)

    def compute_row(
        self, context: WorkerContext, unit: int, samples: Tensor, out: Tensor, memory: State
    ) -> tuple[float, State]:
        model, name = context.model, self.train.reference
        before = copy_tree(model.state_dict())
        parameters = dict(model.named_parameters())
        asked = {parameter: p.requires_grad for parameter, p in model.named_parameters()}
        devices = [context.device] if context.device.type == "cuda" else []
        seed = make_generator("custom_training", *context.key, unit).initial_seed()
        model.train()
        with seeded_globally(seed, devices), torch.enable_grad(), blaming(lambda: f"{name}, for client {unit},"):
            loss = self.train(model, _Loader(context, unit, samples, self.batch), context.of_unit(unit))
        after = model.state_dict()
        changed = [key for key in before if key not in after or not _alike(after[key], before[key])]
        changed += [key for key in after if key not in before]
        # a parameter that was replaced is not the one that the server's optimizer moves
        now = dict(model.named_parameters())
        changed += [key for key, parameter in parameters.items() if now.get(key) is not parameter and key in after]
        shown = ", ".join(dict.fromkeys(changed[:4]))
        require(not changed, f"{name} left the model with other tensors than it had ({shown}); train the ones it has")
        entries = set(context.layout.installed)
        for key, part in context.layout.split(out).items():
            if key in entries:
                part.copy_(after[key])
            else:
                torch.sub(before[key], after[key], out=part)
        model.load_state_dict(before)
        for parameter, p in model.named_parameters():
            p.requires_grad_(asked[parameter])
            p.grad = None
        if isinstance(loss, dict):
            require(set(loss) <= {"loss", "examples"}, f"{name} returned {list(loss)}, and 'loss' and 'examples' count")
            if "examples" in loss:
                count = as_number(f"the number of examples that {name} returns", loss["examples"])
                require(0 < count < math.inf, f"{name} returned {count} examples; return a finite number > 0")
                context.trained_on[unit] = count
            loss = loss.get("loss")
        return (math.nan if loss is None else as_number(f"the loss that {name} returns", loss)), {}


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


class _Loader:
    """The batches of a client; every iteration is an epoch in an order of its own."""

    def __init__(self, context: WorkerContext, unit: int, samples: Tensor, batch: int) -> None:
        self._context, self._unit, self._samples, self._batch = context, unit, samples, batch
        self._rng, self._done = make_generator("local", *context.key, unit), 0

    def __len__(self) -> int:
        return len(pieces_of(torch.arange(len(self._samples)), self._batch))

    def __iter__(self) -> Iterator[Batch]:
        for piece in pieces_of(torch.randperm(len(self._samples), generator=self._rng), self._batch):
            self._done += 1
            yield self._context.batch(self._samples[piece], self._unit, self._done - 1)
