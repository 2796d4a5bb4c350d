# SPDX-License-Identifier: Apache-2.0
"""What a client of federated learning does in a round: it trains a model on its own samples."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.round import make_generator
from phalanx.core.trees import State, copy_tree
from phalanx.data.dataset import Dataset
from phalanx.data.examples import Batch, Examples
from phalanx.data.partition import Partition
from phalanx.federated.ball import Ball
from phalanx.matching.match_stage import EXAMPLES
from phalanx.matching.neuron_axes import OUTPUTS, Axes, Axis
from phalanx.training.client_work import ClientWork
from phalanx.training.context import ModelProvider, WorkerContext, seeded
from phalanx.training.optim import ServerOptimizer, Sgd, moments, set_moments


@method("local_training", "client_work")
class LocalTraining(ClientWork):
    """Steps of an optimizer over a client's own samples; the row is how the weights have changed, start minus end.

    `sgd(lr=1.0)` along the mean of such rows is FedAvg. With sends="weights" the row is the trained weights themselves,
    for `assign_weights()`. Floating-point buffers travel as they become.

    Args:
        optimizer: of the client, with its learning rate; its schedule runs over the rounds of the phase.
        epochs: passes over the client's samples, >= 0.
        steps: optimizer steps in place of epochs; None counts epochs.
        batch: examples a step, >= 1; the last one of an epoch may be smaller.
        clip: greatest l2 norm of a step's gradient, > 0; longer ones are cut to it. None leaves them.
        proximal: mu of the term mu/2 ||w - w_round||^2, >= 0.
        ball: around the weights of the round that the client's do not leave; None leaves them free.
        frozen: name patterns of parameters that keep their values, such as ("0.*",).
        own: every client begins the run from an initialization of its own.
        keep: the client's optimizer goes on from round to round with its moments; else it begins anew.
        sends: "change" or "weights".
        rates: factor on the learning rate of each worker, > 0, one for each; () is 1 for all.
        shares: share in (0, 1] of the round's steps that each worker does, at least one step, one for each worker; its
            row counts as much less. () is all of them.
    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017,
        arXiv:1602.05629, Algorithm 1; proximal: Li et al., Federated Optimization in Heterogeneous Networks, 2018,
        arXiv:1812.06127, Algorithm 2. Differs: a fixed number of epochs in place of an inexact solution.
    """

    optimizer: ServerOptimizer = Sgd(lr=0.01)
    epochs: int = 1
    steps: int | None = None
    batch: int = 32
    clip: float | None = None
    proximal: float = 0.0
    ball: Ball | None = None
    frozen: tuple[str, ...] = ()
    own: bool = False
    keep: bool = False
    sends: Literal["change", "weights"] = "change"
    rates: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    def validate(self) -> None:
        require(not self.optimizer.installs, f"local_training needs an optimizer such as sgd(), got {self.optimizer!r}")
        require(self.epochs >= 0, f"local_training needs epochs >= 0, got epochs={self.epochs}")
        require(self.steps is None or self.steps >= 0, f"local_training needs steps >= 0, got steps={self.steps}")
        require(self.batch >= 1, f"local_training needs batch >= 1, got batch={self.batch}")
        require(self.clip is None or self.clip > 0, f"local_training needs clip > 0, got clip={self.clip}")
        ok = 0 <= self.proximal < float("inf")
        require(ok, f"local_training needs a finite proximal >= 0, got proximal={self.proximal}")
        ok = all(0 < rate < float("inf") for rate in self.rates)
        require(ok, f"local_training needs finite rates > 0, got rates={self.rates}")
        ok = all(0 < share <= 1 for share in self.shares)
        require(ok, f"local_training needs shares in (0, 1], got shares={self.shares}")

    def samples(self, partition: Partition, data: Examples, units: int, index: int, seed: int) -> Sequence[Tensor]:
        for name, values in (("rates", self.rates), ("shares", self.shares)):
            require(
                len(values) in (0, units),
                f"local_training has {len(values)} {name}, and there are {units} workers; give one for each, or none",
            )
        return partition.parts(data, units, seed)

    def layout(self, models: ModelProvider, round_in_phase: int) -> Layout:
        return models.layout if self.sends == "change" else wired(models.layout, models.graph.axes)

    def check(self, models: ModelProvider, rounds: int) -> None:
        if self.sends == "weights":
            check_levels(models)
        names = [name for name, _ in models.model.named_parameters()]
        for pattern in self.frozen:
            known = any(fnmatchcase(name, pattern) for name in names)
            require(known, f"frozen={pattern!r} names no parameter of this network; they are {', '.join(names)}")

    @property
    def stateful(self) -> bool:
        return self.keep

    @property
    def matched(self) -> bool:
        return self.sends == "weights"

    def required_tensors(self, models: ModelProvider, round_in_phase: int) -> Sequence[str] | None:
        # who begins with weights of its own needs none of the server's
        return () if self.own and models.is_first_round and not self.frozen else None

    def num_epochs(self, round_in_phase: int) -> float | None:
        share = sum(self.shares) / len(self.shares) if self.shares else 1.0
        return None if self.steps is not None else self.epochs * share

    def compute_row(
        self, context: WorkerContext, unit: int, samples: Tensor, out: Tensor, memory: State
    ) -> tuple[float, State]:
        model, parts = context.model, context.layout.split(out)
        before = copy_tree(model.state_dict())
        if self.own and context.models is not None and context.models.is_first_round:
            fresh = context.models.initial_weights(unit)
            model.load_state_dict({n: before[n] if _named(n, self.frozen) else t for n, t in fresh.items()})
        loss, memory = self.train(context, unit, samples, memory)
        after, entries = model.state_dict(), set(context.layout.installed)
        for name, part in parts.items():
            if name == EXAMPLES:
                part.copy_(examples_of(context, samples, part))
            elif self.sends == "weights" or name in entries:
                part.copy_(after[name])
            else:
                torch.sub(before[name], after[name], out=part)
        model.load_state_dict(before)
        return loss, memory

    def train(
        self, context: WorkerContext, unit: int, samples: Tensor, memory: State, settled: Iterable[str] = ()
    ) -> tuple[float, State]:
        """Trains the context's model in place; the mean loss of the last epoch's batches, and the next memory.

        Args:
            settled: names of parameters that keep their values, besides the frozen ones.
        """
        model, held = context.model, set(settled)
        device = next(model.parameters()).device
        asked = {name: p.requires_grad for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(asked[name] and name not in held and not _named(name, self.frozen))
        trained = [p for p in model.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in trained] if self.proximal or self.ball is not None else []
        losses: list[Tensor] = []
        if trained:
            optimizer = self.optimizer.build(trained)
            if "optimizer" in memory:
                set_moments(optimizer, copy_tree(memory["optimizer"]))
            for group in optimizer.param_groups:
                group["lr"] = self.optimizer.rate(context.round_in_phase, context.rounds)
                group["lr"] *= self.rates[unit] if self.rates else 1
            model.train()
            with seeded(device, "dropout", *context.key, unit):
                for batch, ends in self._batches(context, unit, samples):
                    loss = context.loss(batch, unit)
                    loss.backward()
                    for p, before in zip(trained, start if self.proximal else (), strict=False):
                        if p.grad is not None:
                            p.grad.add_(p.detach() - before, alpha=self.proximal)
                    if self.clip is not None:
                        clip_grad_norm_(trained, self.clip)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    losses.append(loss.detach())
                    if self.ball is not None and (ends or len(losses) % self.ball.every == 0):
                        self.ball.project(trained, start, context.round_in_phase)
            if self.keep:
                memory = {**memory, "optimizer": moments(optimizer)}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(asked[name])
        last = losses[-max(1, len(losses) // max(1, self.epochs)) :]
        return (float(torch.stack(last).double().mean()) if last else float("nan")), memory

    def _batches(self, context: WorkerContext, unit: int, samples: Tensor) -> Iterator[tuple[Batch, bool]]:
        """The batches of a round, every pass over the samples in an order of its own; and whether one ends it."""
        rng, done = make_generator("local", *context.key, unit), 0
        # without augmentation what the model reads is made once for all passes
        once = context.augment is None and isinstance(context.data, Dataset)
        whole = context.batch(samples, unit) if once else None
        each = len(pieces_of(torch.arange(len(samples)), self.batch))
        wanted = self.epochs * each if self.steps is None else self.steps
        if self.shares and wanted:
            every_step, wanted = wanted, max(1, math.ceil(self.shares[unit] * wanted))
            context.trained_on[unit] = len(samples) * wanted / every_step
        while done < wanted:
            pieces = pieces_of(torch.randperm(len(samples), generator=rng), self.batch)[: wanted - done]
            for piece in pieces:
                if whole is None:
                    batch = context.batch(samples[piece], unit, done)
                else:
                    x, y = whole[0][piece], whole[1][piece]
                    batch = (x.contiguous(memory_format=torch.channels_last) if context.channels_last else x), y
                done += 1
                yield batch, piece is pieces[-1]


def wired(layout: Layout, axes: Mapping[str, Axes], groups: Container[int] | None = None) -> Layout:
    """The layout with the axes that run over neurons, and how many examples of each class are behind the outputs.

    Args:
        axes: of every tensor.
        groups: whose neurons still stand in an order of the client's own; all when None.
    """
    open_axes = tuple(
        tuple(a for a in axes.get(name, ()) if groups is None or a.group in groups or a.group == OUTPUTS)
        for name in layout.names
    )
    sizes = [
        a.neurons(torch.empty(shape, device="meta"))
        for tensor_axes, shape in zip(open_axes, layout.shapes, strict=True)
        for a in tensor_axes
        if a.group == OUTPUTS
    ]
    if not sizes:
        return replace(layout, annotations=open_axes)
    return Layout(
        (*layout.names, EXAMPLES),
        (*layout.shapes, torch.Size([sizes[0]])),
        layout.num_installed + 1,
        layout.dtype,
        (*open_axes, (Axis(0, OUTPUTS),)),
    )


def check_levels(models: ModelProvider) -> None:
    """Raises ValueError where layers that must be of one size would be matched one by one."""
    for groups in models.graph.level:
        names = ", ".join(models.graph.names[group] for group in sorted(groups))
        raise ValueError(
            f"{names} are layers of one module and have to be of one size, and matching may let them grow apart; make "
            "each layer a module of its own"
        )


def examples_of(context: WorkerContext, samples: Tensor, outputs: Tensor) -> Tensor:
    """How many labels of each class there are, or examples where an output is no class. Shapes: -> same as outputs."""
    data = context.data
    if isinstance(data, Dataset) and context.task.has_classes:
        labels = data.train_y[samples].flatten()
        return torch.bincount(labels[labels >= 0], minlength=data.num_classes).float()
    if context.task.has_classes and not data.has_clients:
        labels = data.keys[samples]
        if not labels.is_floating_point():
            return torch.bincount(labels, minlength=len(outputs)).float()
    return torch.full_like(outputs, len(samples))


def pieces_of(order: Tensor, batch: int) -> list[Tensor]:
    """The order in batches; a single example goes with those before it, as BatchNorm has nothing to say of one."""
    pieces = list(order.split(batch))
    return [*pieces[:-2], torch.cat(pieces[-2:])] if len(pieces) > 1 and len(pieces[-1]) == 1 else pieces


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
