# SPDX-License-Identifier: Apache-2.0
"""The one training loop: every phase of every run, in every world."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.accuse import Ledger, outvoted
from phalanx.allocation import Allocation
from phalanx.checkpoint import Checkpoint, from_payload, merge, own, to_payload
from phalanx.clock import PARTS
from phalanx.crossing import check_server, server_half
from phalanx.fault import silenced
from phalanx.layout import Layout
from phalanx.learner import Learner
from phalanx.macs import macs
from phalanx.phase import Phase, Run
from phalanx.precision import finite
from phalanx.results import RunFolder
from phalanx.round import Round
from phalanx.score import assess
from phalanx.stack import Note, Stack
from phalanx.stage import State, TooFewRows
from phalanx.stop import stop_requests
from phalanx.work import Site, rows_of
from phalanx.world import LocalWorld, Payload, World

Listener = Callable[[dict[str, Any]], None]
ROUND = ("work_s", "scheme_s", "finish_s")  # the seconds of a round; those of `PARTS` are within scheme_s


class Interrupted(Exception):
    """The run was asked to stop; its folder holds all that a resume needs."""


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
    trainer = Trainer(run, world or LocalWorld(run.workers))
    trainer.run(folder, listener)
    return trainer


class Trainer:
    """A run in progress: model, optimizer, stage state, ledger."""

    def __init__(self, run: Run, world: World) -> None:
        run.check()
        if world.serves:
            for phase in run.phases:
                check_server(phase.scheme)
            if run.observers:
                raise ValueError("observers see rows before the wire, and a server does not; run them in a simulation")
        if world.size != run.workers:
            raise ValueError(f"the run has {run.workers} workers and the world {world.size}; make them equal")
        torch.set_num_threads(run.threads)
        self.config, self.world, self.device = run, world, torch.device(run.device)
        self.data = run.data.load()
        if run.augment is not None:
            run.augment.check(self.data.shape)
        self.learner = Learner(run, self.data.shape, self.data.num_classes)
        for observer in run.observers:
            observer.check(self.layout, run.workers)
        self.ledger = Ledger(run.workers)
        self.step = 0
        self.state: State = {}
        self._text, self._memories = repr(run), dict[str, Any]()  # of workers elsewhere, from a checkpoint
        self._evaluated: tuple[int, tuple[float, float | None]] | None = None
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
            folder.begin(self._text, self.world.processes)
        self._resume(folder.restore() if folder is not None else None)
        with stop_requests() as stop:
            for index, number, at in self._rounds():
                line = self._round(number, at, stop.is_set())
                ended = index + 1 == self.config.rounds
                if ended or (index + 1) % self.config.evaluate_every == 0:
                    line["accuracy"], line["test_loss"] = self.evaluate()
                    line["parameters"] = self.learner.parameters
                if folder is not None:
                    folder.log(line)
                if listener is not None:
                    listener(line)
                if ended or line["stop"] or (index + 1) % self.config.checkpoint_every == 0:
                    self._checkpoint(folder)
                if line["stop"] and not ended:
                    if folder is not None:
                        folder.close()
                    raise Interrupted(f"stopped after round {index + 1} of {self.config.rounds}")
        if folder is not None:
            folder.finish(self.summary())

    def _rounds(self) -> Iterator[tuple[int, int, int]]:
        """(round of the run, number of its phase, round of the phase) for all rounds ahead; enters phases."""
        for index in range(self.step, self.config.rounds):
            number, at = self.phase_at(index)
            if at == 0 and index > 0:
                self.state = {}
                self.learner.enter(number)
            yield index, number, at

    def _round(self, number: int, at: int, stop: bool) -> dict[str, Any]:
        run, world, index, phase = self.config, self.world, self.step, self.config.phases[number]
        byzantine, silent = run.byzantine.at(index, run.workers, run.seed), silenced(run.faults, index)
        began, before = time.perf_counter(), world.received_bytes
        operated = self.learner.operate(number, at, world)
        if operated:
            self.state, self._memories = {}, {}
        world.begin(index, self._text, self._order, self._memories)
        stack, losses = self.work(phase, index)
        # one small exchange: the losses of all workers, and whether any process was asked to stop
        seen = world.tell(torch.stack([losses, torch.full_like(losses, float(stop))], dim=1))
        worked = time.perf_counter()
        absent = frozenset[int]() if world.serves else silent
        round = Round(index, run.seed, byzantine, world, absent=absent, begins=at == 0 or bool(operated))
        observed = self._observe(stack, round)
        watched = time.perf_counter()
        result, lost, notes = None, "", ()
        try:
            if world.serves:
                result, self.state = server_half(phase.scheme, stack, self.state, round)
            else:
                result, self.state = phase.scheme(stack, self.state, round)
        except TooFewRows as error:
            lost, notes = str(error), error.notes
        combined = time.perf_counter()
        if result is not None:
            notes, lost = self.finish(number, at, result)
        ended = time.perf_counter()
        self.step += 1
        self.ledger.lost_rounds += bool(lost)
        measured = self.ledger.enter(notes, byzantine | silent, aloud=world.rank == 0)
        measured |= zip(ROUND, (worked - began, combined - watched, ended - combined), strict=True)
        for part, values in self.times.items():
            values.append(measured[part])
        if before is not None and world.received_bytes is not None:
            measured["socket_bytes"] = world.received_bytes - before
        heard = [i for i in range(run.workers) if i not in byzantine and bool(seen[i, 1].isfinite())]
        return {
            "step": index,
            "loss": _number(seen[heard, 0].mean()) if heard else None,
            # a server is not stopped by what a worker says
            "stop": stop if world.serves else bool(seen[:, 1].any()),
            **measured,
            "byzantine": sorted(byzantine),
            "lost": lost,
            **({"operated": operated} if operated else {}),
            **({"observed": observed} if observed else {}),
        }

    def _order(self) -> Payload:
        """What a worker elsewhere needs for a round."""
        return to_payload({"shapes": self.learner.shapes, "model": dict(self.model.state_dict())})

    def _observe(self, stack: Stack, round: Round) -> dict[str, Any]:
        """What each observer sees this round, by its expression."""
        due = [observer for observer in self.config.observers if round.index % observer.every == 0]
        return {repr(observer): observer.look(stack, round) for observer in due}

    def work(self, phase: Phase, index: int) -> tuple[Stack, Tensor]:
        """The rows of the workers played here; what several of them would compute alike is computed once."""
        run = self.config
        allocation = phase.scheme.assign(run.workers) or Allocation.single(range(run.workers))
        samples = run.partition.draw(self.data, allocation.num_units, phase.work.batch, index, run.seed)
        last, key = run.model.channels_last, (run.seed, index)
        site = Site(self.model, self.layout, self.data, run.augment, run.precision, last, key)
        ids = self.world.ids
        rows, losses, weights = rows_of(phase.work, site, allocation, samples, ids)
        return Stack(rows, self.layout, tuple((w,) for w in ids), weights), losses

    def finish(self, number: int, at: int, result: Stack) -> tuple[tuple[Note, ...], str]:
        """What is done with the result of a round, the notes on it, and why the update was skipped, if it was."""
        notes = result.notes
        if result.arrived is not None:
            notes += tuple(Note("outvoted", w) for w in outvoted(result.arrived, result.rows[0]))
        if not finite(result.rows):
            return notes, "the update is not finite"
        self.learner.update(number, at, result.rows[0])
        return notes, ""

    def evaluate(self) -> tuple[float, float | None]:
        """Accuracy in [0, 1] and mean loss over the labels of the test set; looked at once a round."""
        if self._evaluated is None or self._evaluated[0] != self.step:
            accuracy, loss = assess(self.model, self.data, self.device, self.config.precision)
            self._evaluated = self.step, (accuracy, _number(loss))
        return self._evaluated[1]

    def _checkpoint(self, folder: RunFolder | None) -> None:
        """Every process gives its workers' memories; rank 0 writes them."""
        states = [self.state]
        if len(self.world.ids) < self.world.size:
            states = [from_payload(part) for part in self.world.collect(to_payload(self.state))]
        if folder is None:
            return
        tree = {
            **self.learner.to_tree(),
            "state": merge(states),
            "ledger": self.ledger.to_json(),
        }
        folder.checkpoint(Checkpoint(self.step, self._text, tree))

    def _resume(self, point: Checkpoint | None) -> None:
        """Rank 0 has read the checkpoint; every process takes the whole of it but other workers' memories."""
        tree = self.world.share({"step": point.step, **point.tree} if point is not None else {})
        if not tree:
            return
        self.step = tree["step"]
        self.learner.load(tree, self.phase_at(max(self.step - 1, 0))[0])
        self._memories = tree.get("state", {}) if self.world.serves else {}
        self.state = own(tree.get("state", {}), self.world.ids)
        self.ledger = Ledger.from_json(tree["ledger"])

    def phase_at(self, index: int) -> tuple[int, int]:
        """The number of the phase of a round of the run, and the round's number within it."""
        for number, phase in enumerate(self.config.phases):
            if index < phase.rounds:
                return number, index
            index -= phase.rounds
        return len(self.config.phases) - 1, index

    def summary(self) -> dict[str, Any]:
        """The numbers of a run that has ended, as plain values."""
        accuracy, loss = self.evaluate()
        ledger, times = self.ledger, self.times
        # the first rounds compile kernels and warm caches
        later = {name: values[min(3, len(values) // 2) :] for name, values in times.items()}
        return {
            "accuracy": accuracy,
            "test_loss": loss,
            **({"perplexity": _perplexity(loss)} if self.data.test_y.dim() > 1 else {}),
            **self.config.data.judge(self.model),
            "rounds": self.step,
            "lost_rounds": ledger.lost_rounds,
            "lost_groups": ledger.lost_groups,
            "bytes_up": ledger.bytes_up,
            "bytes_per_worker_round": ledger.bytes_up / max(1, self.step * self.config.workers),
            "round_s": sum(median(later[name]) for name in ROUND if later[name]),
            **{name: median(values) if values else None for name, values in later.items()},
            "parameters": self.learner.parameters,
            "macs": macs(self.model, self.data.test(slice(0, 1))[0].to(self.device)).total,  # of one example
            "accused": ledger.table(),
            "accusation_precision": ledger.precision,
            "accusation_recall": ledger.recall,
            "weights_sha256": fingerprint(self.model),
            "processes": len(self.world.processes) + 1 if self.world.serves else self.world.size // len(self.world.ids),
            "seed": self.config.seed,
        }


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers: equal for bit-identical models."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _perplexity(loss: float | None) -> float | None:
    return None if loss is None else _number(torch.tensor(loss, dtype=torch.float64).exp())


def _number(x: Tensor | float) -> float | None:
    """A float for JSON, which knows neither NaN nor infinity."""
    value = float(x)
    return value if math.isfinite(value) else None
