# SPDX-License-Identifier: Apache-2.0
"""The one training loop: every phase of every run, in every world."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.attacks.faults import silenced
from phalanx.core.clock import FORGING, PARTS
from phalanx.core.layout import Layout
from phalanx.core.payload import Payload
from phalanx.core.precision import finite
from phalanx.core.round import Round
from phalanx.core.round_request import RoundRequest
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import TooFewRows
from phalanx.core.trees import State, copied_tree
from phalanx.core.wire_stage import check_server, server_half
from phalanx.core.world import LocalWorld, World
from phalanx.distributed.subset import SubsetTransport
from phalanx.training.accusations import WorkerStats, outvoted
from phalanx.training.evaluator import EvalContext
from phalanx.training.interrupt import Interrupted, stop_requests
from phalanx.training.model_state import ModelState, PhaseModels
from phalanx.training.observers.observer import looked
from phalanx.training.phase import Run
from phalanx.training.played import round_of, site_of
from phalanx.training.resume import checkpoint, resume
from phalanx.training.run_folder import RunFolder
from phalanx.training.score import assess
from phalanx.training.secure_sum import check_sum
from phalanx.training.summary import ROUND, number_of, summary

Listener = Callable[[dict[str, Any]], None]


def train(
    run: Run, world: World | None = None, folder: RunFolder | None = None, listener: Listener | None = None
) -> Trainer:
    """Trains to the end, from the folder's checkpoint if it has one.

    Every process of the world calls it alike; only rank 0 is given a folder and a listener.

    Args:
        listener: called with each round's metrics.
    Raises:
        ValueError: the scheme does not fit the number of workers, before anything is computed.
        Interrupted: SIGINT or SIGTERM arrived; a checkpoint was written.
    """
    trainer = Trainer(run, world)
    trainer.run(folder, listener)
    return trainer


class Trainer:
    """A run in progress: model, optimizer, stage state, ledger."""

    def __init__(self, run: Run, world: World | None = None) -> None:
        run.check()
        world = world or LocalWorld(run.workers)
        if world.serves:
            for phase in run.phases:
                check_server(phase.scheme, phase.secure)
            if not all(observer.arrived for observer in run.observers):
                raise ValueError("observers see rows before the wire, and a server does not; run them in a simulation")
        if world.size != run.workers:
            raise ValueError(f"the run has {run.workers} workers and the world {world.size}; make them equal")
        torch.set_num_threads(run.threads)
        self.config, self.text, self.world, self.device = run, repr(run), world, torch.device(run.device)
        self.data = run.data.load()
        if run.augment is not None:
            run.augment.check(self.data.shape)
        self.learner = ModelState(run, self.data.shape, self.data.num_classes)
        for observer in run.observers:
            observer.check(self.layout, run.workers)
        for exam in run.evaluators:
            exam.check(self.data)
        self.ledger = WorkerStats(run.workers)
        self.step = 0
        self.state: State = {}  # of the scheme
        self.memories: State = {}  # of the work, by worker
        self.elsewhere: State = {}  # of workers that other processes play, from a checkpoint
        self.answers: dict[int, Payload] = {}  # to what workers sent in the last round
        self.before: dict[str, Any] = {}  # the learner when a pass of several rounds began
        for number, phase in enumerate(run.phases):
            self._check(number)
            if phase.surgery is not None or phase.optimizer.installs:
                break  # what comes behind it is of a shape that nobody knows yet
        self._evaluated: tuple[int, tuple[float | None, float | None]] | None = None
        self._examined: tuple[int, dict[str, Any]] | None = None
        self.times: dict[str, list[float]] = {part: [] for part in (*ROUND, *PARTS)}

    @property
    def model(self) -> nn.Module:
        """The network as it is now."""
        return self.learner.model

    @property
    def layout(self) -> Layout:
        """Of its rows."""
        return self.learner.layout

    def run(self, folder: RunFolder | None = None, listener: Listener | None = None) -> None:
        """All rounds that are not done yet."""
        if folder is not None:
            folder.begin(self.text, self.world.processes)
        resume(self, folder.restore() if folder is not None else None)
        with stop_requests() as stop, folder or nullcontext():
            while self.step < self.config.rounds:
                line = self.round(stop.is_set())
                index, ended = line["step"], self.step == self.config.rounds
                if folder is not None:
                    folder.log(line)
                if listener is not None:
                    listener(line)
                if ended or line["stop"] or (index + 1) % self.config.checkpoint_every == 0:
                    checkpoint(self, folder)
                if line["stop"] and not ended:
                    raise Interrupted(f"stopped after round {index + 1} of {self.config.rounds}")
        if folder is not None:
            folder.finish(self.summary())

    def round(self, stop: bool = False) -> dict[str, Any]:
        """One round, and its metrics."""
        opened = self.open()
        line = self.close(opened, stop)
        if self.step == self.config.rounds or self._due(opened):
            line["accuracy"], line["test_loss"] = self.evaluate()
            line["parameters"] = self.learner.parameters
            if self.config.evaluators:
                line["examined"] = self.examine()
        return line

    def _check(self, number: int) -> None:
        """Raises ValueError for a phase that cannot work with the network as it is, or whose adversary cannot."""
        phase, run = self.config.phases[number], self.config
        for work in (phase.work, phase.adversary):
            if work is not None:
                work.check(PhaseModels(self.learner, number), phase.rounds)
        if phase.adversary is not None:
            phase.adversary.samples(run.partition, self.data, run.workers, 0, run.seed)

    def _due(self, opened: RoundRequest) -> bool:
        """Whether the model is whole, and a round's turn to test it came since the exchange began."""
        work, every = self.config.phases[opened.number].work, self.config.evaluate_every
        first = opened.index - opened.at + work.begins(opened.at)
        return work.whole(opened.at) and (opened.index + 1) // every > first // every

    def open(self) -> RoundRequest:
        """The next round begins: whom it asks, and what becomes of the model before."""
        run, world, index = self.config, self.world, self.step
        number, at = self.config.phase_at(index)
        if at == 0 and index > 0:
            self.state, self.memories, self.answers, self.elsewhere = {}, {}, {}, {}
            self.learner.enter(number)
            self._check(number)
        began, before = time.perf_counter(), world.received_bytes
        operated = self.learner.operate(number, at, world)
        if operated:
            self.state, self.memories, self.elsewhere = {}, {}, {}
        phase = run.phases[number]
        first = phase.work.begins(at)
        chosen = phase.clients.at(index - at + first, run.workers, run.seed)
        if first != at:
            # who missed the last round has no place in what follows it
            chosen = tuple(worker for worker in chosen if worker in self.answers)
        byzantine, silent = run.byzantine.at(index, run.workers, run.seed), silenced(run.faults, index)
        if first == at and not phase.work.whole(at):
            self.before = copied_tree(self.learner.to_tree())
        asked = phase.work.asks(PhaseModels(self.learner, number, index), at)
        model, shapes = self.model.state_dict(), self.learner.shapes
        opened = RoundRequest(
            index, number, at, chosen, model, shapes, asked, self.answers, byzantine, silent, operated, began, before
        )
        self.ledger.bytes_down += opened.bytes_down
        world.begin(opened, self.text, self.elsewhere)
        return opened

    def close(self, opened: RoundRequest, stop: bool = False) -> dict[str, Any]:
        """The round's work, exchange and update; returns its metrics."""
        run, index, number, at = self.config, opened.index, opened.number, opened.at
        phase, chosen, byzantine = run.phases[number], opened.chosen, opened.byzantine
        world = self.world if len(chosen) == run.workers else SubsetTransport(self.world, chosen)
        stack, losses = self.work(index, chosen)
        # one small exchange: the losses of all workers, and whether any process was asked to stop
        seen = self.world.tell(torch.stack([losses, torch.full_like(losses, float(stop))], dim=1))
        worked = time.perf_counter()
        absent = frozenset[int]() if world.serves else opened.silent
        round = Round(index, run.seed, byzantine, world, absent=absent, begins=at == 0 or bool(opened.operated))
        observed = looked(run.observers, stack, round)
        watched = time.perf_counter()
        result, lost, notes = None, "", ()
        try:
            if not chosen:
                raise TooFewRows("no worker is left of those who began this pass")
            scheme = partial(server_half, phase.scheme) if world.serves else phase.scheme
            result, self.state = scheme(stack, self.state, round)
            check_sum(phase.secure, result)
        except TooFewRows as error:
            lost, notes = str(error), error.notes
            result, self.state = None, error.state or self.state
        combined = time.perf_counter()
        if result is not None and result.arrived is not None:
            observed |= looked(run.observers, result.arrived, round, arrived=True)
        seen_s = time.perf_counter() - combined
        if result is not None:
            notes, lost = self.finish(number, at, result)
        self.answers = {} if result is None or lost else dict(result.answers)
        if self.before and (lost or phase.work.whole(at)):
            if lost:
                # what a pass has begun to put in the model is no model
                self.learner.load(self.before, number)
            self.before = {}
        ended = time.perf_counter()
        self.step += 1
        self.ledger.lost_rounds += bool(lost)
        measured = self.ledger.enter(notes, (byzantine | opened.silent) & set(chosen), aloud=world.rank == 0)
        combined_s = combined - watched - measured[FORGING]
        measured |= zip(ROUND, (worked - opened.began, combined_s, ended - combined - seen_s), strict=True)
        for part, values in self.times.items():
            values.append(measured[part])
        if opened.received is not None and world.received_bytes is not None:
            measured["socket_bytes"] = world.received_bytes - opened.received
        heard = [i for i in chosen if i not in byzantine and bool(seen[i, 1].isfinite())]
        epochs = phase.work.passes(at)
        self.ledger.local_epochs += (epochs or 0.0) * len(chosen)
        return {
            "step": index,
            "loss": number_of(seen[heard, 0].mean()) if heard else None,
            # a server is not stopped by what a worker says
            "stop": stop if world.serves else bool(seen[:, 1].any()),
            **measured,
            "bytes_down": opened.bytes_down,
            "byzantine": sorted(byzantine),
            "lost": lost,
            **({"clients": list(chosen)} if len(chosen) < run.workers else {}),
            **({"local_epochs": epochs} if epochs is not None else {}),
            **({"operated": opened.operated} if opened.operated else {}),
            **({"observed": observed} if observed else {}),
        }

    def work(self, index: int, chosen: Sequence[int] | None = None) -> tuple[Stack, Tensor]:
        """The rows of those workers played here who are chosen for round `index`, and losses (k,) of all played here.

        Workers that are not chosen have a loss of NaN.
        """
        number, at = self.config.phase_at(index)
        site = site_of(self.config, PhaseModels(self.learner, number, index), self.data, index, at, self.answers)
        here = self.world.ids
        asked = set(here if chosen is None else chosen)
        ids = [worker for worker in here if worker in asked]
        rows, found, weights, self.memories = round_of(self.config, site, index, ids, self.memories)
        losses = torch.full((len(here),), float("nan"), dtype=torch.float64)
        losses[[here.index(worker) for worker in ids]] = found
        return Stack(rows, site.layout, tuple((w,) for w in ids), weights), losses

    def finish(self, number: int, at: int, result: Stack) -> tuple[tuple[Note, ...], str]:
        """What is done with the result of a round, the notes on it, and why the update was skipped, if it was."""
        notes = result.notes
        if result.arrived is not None and result.arrived.layout == result.layout:
            notes += tuple(Note("outvoted", w) for w in outvoted(result.arrived, result.rows[0]))
        if not finite(result.rows):
            return notes, "the update is not finite"
        self.learner.update(number, at, result)
        return notes, ""

    def evaluate(self) -> tuple[float | None, float | None]:
        """Accuracy in [0, 1] and mean loss over the test set's labels, None without a test set; once a round."""
        if self._evaluated is None or self._evaluated[0] != self.step:
            accuracy, loss = assess(self.model, self.data, self.device, self.config.precision)
            self._evaluated = self.step, (number_of(accuracy), number_of(loss))
        return self._evaluated[1]

    def examine(self) -> dict[str, Any]:
        """What each exam finds, by its expression; asked once a round."""
        if self._examined is None or self._examined[0] != self.step:
            run = self.config
            parts = partial(run.partition.parts, self.data, run.workers, run.seed)
            sitting = EvalContext(self.model, self.data, run.workers, run.seed, run.precision, parts)
            self._examined = self.step, {repr(exam): exam.sit(sitting) for exam in run.evaluators}
        return self._examined[1]

    @property
    def kept(self) -> State:
        """What stages and workers remember from round to round; `keep` is the inverse."""
        return {"scheme": self.state, "work": self.memories}

    def keep(self, kept: State) -> None:
        """Takes over what stages and workers remember."""
        self.state, self.memories = kept.get("scheme", {}), kept.get("work", {})

    def summary(self) -> dict[str, Any]:
        """The numbers of a run that has ended, as plain values."""
        return summary(self)
