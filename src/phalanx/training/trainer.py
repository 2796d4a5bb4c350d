# SPDX-License-Identifier: Apache-2.0
"""The one training loop: every phase of every run, in the simulation, in a process group and at a server."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.attacks.faults import silenced_workers
from phalanx.core.clock import FORGING, PARTS
from phalanx.core.expression import functions_of, require
from phalanx.core.layout import Layout
from phalanx.core.precision import finite
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import TooFewRows, check_row
from phalanx.core.trees import State, copy_tree, from_payload, keep_local_memories, merge, to_payload
from phalanx.core.wire_stage import check_quorum, check_server, server_half
from phalanx.core.world import Collective, LocalCollective
from phalanx.data.dataset import Data, Dataset
from phalanx.data.examples import Examples
from phalanx.data.multi30k import Multi30k
from phalanx.data.shape import OtherShape, example
from phalanx.distributed.round_request import RoundRequest
from phalanx.distributed.server_transport import ServerTransport
from phalanx.distributed.subset import subset_of
from phalanx.lowrank.macs import macs
from phalanx.models.translate import bleu_of
from phalanx.training.accusation import Sizes, row_sizes
from phalanx.training.client_metrics import ClientMetrics
from phalanx.training.early_stopping import BestModel, after_test
from phalanx.training.evaluator import EvalContext, measure_on
from phalanx.training.interrupt import Interrupted, stop_requests
from phalanx.training.model_state import ModelState, PhaseModels, fingerprint
from phalanx.training.observers.observer import observe
from phalanx.training.phase import Position, Run
from phalanx.training.run_folder import Checkpoint, RunFolder
from phalanx.training.run_state import RunState
from phalanx.training.score import number_of
from phalanx.training.secure_sum import check_sum
from phalanx.training.task import EXAMPLES, LOSS, TaskContext, evaluating
from phalanx.training.tasks import Classification
from phalanx.training.worker_stats import WorkerStats

Listener = Callable[[dict[str, Any]], None]
ROUND = ("work_s", "scheme_s", "finish_s")  # the seconds of a round; those of `PARTS` are within scheme_s


def train(
    run: Run,
    world: Collective | ServerTransport | None = None,
    folder: RunFolder | None = None,
    listener: Listener | None = None,
) -> Trainer:
    """Trains to the end, from the folder's checkpoint if it has one.

    Every process of a collective calls it alike; only rank 0 is given a folder and a listener.

    Args:
        world: where the workers are; all in this process when None.
        listener: called with each round's metrics.
    Raises:
        ValueError: the scheme does not fit the number of workers, before anything is computed.
        Interrupted: SIGINT or SIGTERM arrived; a checkpoint was written.
    """
    trainer = Trainer(run, world)
    trainer.run(folder, listener)
    return trainer


@dataclass(frozen=True)
class StartedRound:
    """A round that has started.

    Args:
        request: what the workers are asked for.
        byzantine: workers that the adversary controls in it.
        silent: workers whose messages an injected fault drops.
        surgery_report: what a surgery did to the model before it, in a sentence; empty for nothing.
        started_s: time when it started.
        received_bytes: bytes that had reached the sockets of this process by then, where they are counted.
    """

    position: Position
    request: RoundRequest
    byzantine: frozenset[int]
    silent: frozenset[int]
    surgery_report: str
    started_s: float
    received_bytes: int | None


@dataclass(frozen=True)
class RoundResult:
    """What the workers of a round computed, and what the scheme made of their rows.

    Args:
        aggregate: the single row that came out of the scheme; None if the round is lost.
        lost_reason: why the round is lost; empty if it is not.
        notes: what the stages noted.
        losses: (n,) float64, the loss of each worker.
        reported: (n,) bool, whether its report arrived.
        stop: whether the run is to stop behind this round.
        observed: what the observers measured, by their expressions.
        work_s: seconds of the workers' computation.
        scheme_s: seconds of the scheme.
    """

    aggregate: Stack | None
    lost_reason: str
    notes: tuple[Note, ...]
    losses: Tensor
    reported: Tensor
    stop: bool
    observed: dict[str, Any]
    work_s: float
    scheme_s: float


@dataclass(frozen=True)
class Measured:
    """What a test of the model found.

    Args:
        numbers: the loss and the metrics of the task, None for what is no finite number.
        clients: those of each client on its own test examples, if clients have some.
    """

    numbers: dict[str, float | None]
    clients: ClientMetrics | None


class Trainer:
    """A run in progress.

    Attributes:
        state: data, model, and what stages and workers remember.
        worker_stats: who was excluded, outvoted or accused, and how often.
        rounds_done: rounds that have ended, over all phases.
    """

    def __init__(self, run: Run, world: Collective | ServerTransport | None = None) -> None:
        run.check()
        self.config, self.text, self.device = run, repr(run), torch.device(run.device)
        self.world = world or LocalCollective(run.workers)
        self.server = self.world if isinstance(self.world, ServerTransport) else None
        self._check_world()
        self.state = RunState(run)
        for observer in run.observers:
            observer.check(self.layout, run.workers)
        for evaluator in run.evaluators:
            evaluator.check(self.data)
            evaluator.check_task(run.task)
        self.state.check_phases()
        testable = run.stopping is None or self.data.num_test > 0 or self.data.has_clients
        require(testable, f"{run.stopping!r} needs test examples, and {self.data.name} has none; give it a test part")
        self.worker_stats = WorkerStats(run.workers)
        self.rounds_done = 0
        self._remote_memories: State = {}  # from a checkpoint, of workers in other processes
        self._model_before_pass: dict[str, Any] = {}  # to restore when a round of the pass is lost
        self._times: dict[str, list[float]] = {part: [] for part in (*ROUND, *PARTS)}
        self.best: BestModel | None = None  # where the run may stop early
        self._measured: tuple[int, Measured] | None = None
        self._examined: tuple[int, dict[str, Any]] | None = None

    def _check_world(self) -> None:
        run = self.config
        if self.server is not None:
            for phase in run.phases:
                check_server(phase.scheme, phase.secure)
            if not all(observer.arrived for observer in run.observers):
                raise ValueError("observers see rows before the wire, and a server does not; run them in a simulation")
        if self.world.size != run.workers:
            raise ValueError(f"the run has {run.workers} workers and the world {self.world.size}; make them equal")

    @property
    def data(self) -> Dataset:
        """The data of the run."""
        return self.state.data

    @property
    def model_state(self) -> ModelState:
        """The model with its optimizer."""
        return self.state.model_state

    @property
    def model(self) -> nn.Module:
        """The network as it is now."""
        return self.state.model_state.model

    @property
    def layout(self) -> Layout:
        """The layout of the model's rows."""
        return self.state.model_state.layout

    def run(self, folder: RunFolder | None = None, listener: Listener | None = None) -> None:
        """Trains all rounds that are not done yet."""
        with folder or nullcontext():
            self._run(folder, listener)

    def _run(self, folder: RunFolder | None, listener: Listener | None) -> None:
        run = self.config
        if folder is not None:
            folder.begin(self.text, self.server.processes if self.server is not None else ())
        self.resume(folder.restore() if folder is not None else None)
        with stop_requests() as stop:
            while not self.has_ended:
                metrics = self.train_round(stop.is_set())
                ended = self.has_ended
                if folder is not None:
                    folder.log(metrics)
                if listener is not None:
                    listener(metrics)
                if ended or metrics["stop"] or self.rounds_done % run.checkpoint_every == 0:
                    self.save_checkpoint(folder)
                if metrics["stop"] and not ended:
                    raise Interrupted(f"stopped after round {self.rounds_done} of {run.rounds}")
        self._restore_best()
        self.measure()  # together, where clients in several processes evaluate
        if folder is not None:
            folder.finish(self.summary())

    def train_round(self, stop: bool = False) -> dict[str, Any]:
        """Trains one round, tests the model if it is time to, and returns the metrics.

        Args:
            stop: whether this process was asked to stop, which all processes of a collective learn.
        """
        started = self.start_round()
        metrics = self.finish_round(started, self.run_round(started, stop))
        if self.rounds_done == self.config.rounds or self._is_test_due(started.position):
            metrics |= self.tested()
            metrics |= self._note_best()
            metrics["parameters"] = self.model_state.num_parameters
            if self.config.evaluators:
                metrics["examined"] = self.examine()
        return metrics

    @property
    def has_ended(self) -> bool:
        """Whether all rounds are done, or the score has not improved for as many tests as the run waits."""
        rule, best = self.config.stopping, self.best
        patient = rule is None or best is None or best.tests_since < rule.patience
        return self.rounds_done >= self.config.rounds or not patient

    def _note_best(self) -> dict[str, Any]:
        """Keeps the model that was just tested if it is the best one; returns the numbers for the metrics."""
        rule = self.config.stopping
        if rule is None:
            return {}
        value, score = self.evaluate()[0], self.config.task.score
        kept = self.best
        tree = copy_tree(self.model_state.to_tree()) if value is not None else {}
        tested = BestModel(value if value is not None else math.nan, self.rounds_done, 0, tree)
        self.best = after_test(rule, score, kept, value, tested)
        return {} if self.best is None else {"best": self.best.to_json()}

    def _restore_best(self) -> None:
        """Ends with the model of the best test."""
        rule, best = self.config.stopping, self.best
        if rule is None or best is None or not rule.restore or best.rounds_done == self.rounds_done:
            return
        self.model_state.load(best.model, self.config.position(best.rounds_done - 1).phase_index)
        self._measured = self._examined = None

    def _is_test_due(self, position: Position) -> bool:
        """Whether the model is whole, and the pass that ends here has reached a multiple of `evaluate_every`."""
        every = self.config.evaluate_every
        return position.completes_pass and (position.round_index + 1) // every > position.pass_start // every

    def start_round(self) -> StartedRound:
        """Prepares the model, chooses the clients and, at a server, sends them the request of the round."""
        run, position = self.config, self.config.position(self.rounds_done)
        if position.round_in_phase == 0 and position.round_index > 0:
            self._forget_memories()
            self.state.replies = {}
            self.model_state.enter_phase(position.phase_index)
            self.state.check_phase(position.phase_index)
        started_s = time.perf_counter()
        received_bytes = self.server.received_bytes if self.server is not None else None
        surgery_report = self.model_state.apply_surgery(position, self.world)
        if surgery_report:
            self._forget_memories()
        clients = self._choose_clients(position)
        if position.starts_pass and not position.completes_pass:
            self._model_before_pass = copy_tree(self.model_state.to_tree())
        models = PhaseModels(self.model_state, position.phase_index, position.round_index)
        work = run.phases[position.phase_index].work
        request = RoundRequest(
            round_index=position.round_index,
            clients=clients,
            model=self.model.state_dict(),
            shapes=self.model_state.shapes,
            required=work.required_tensors(models, position.round_in_phase),
            replies=self.state.replies,
            announced=self.state.announced,
        )
        self.worker_stats.bytes_down += request.bytes_down
        if self.server is not None:
            self.server.start_round(request, self.text, self._remote_memories)
        return StartedRound(
            position=position,
            request=request,
            byzantine=run.byzantine.at(position.round_index, run.workers, run.seed),
            silent=silenced_workers(run.faults, position.round_index),
            surgery_report=surgery_report,
            started_s=started_s,
            received_bytes=received_bytes,
        )

    def _forget_memories(self) -> None:
        self.state.load_memories({})
        self.state.announced = {}
        self._remote_memories = {}

    def _choose_clients(self, position: Position) -> tuple[int, ...]:
        """The clients of a round; within a pass, those of its first round whose last message arrived."""
        run, sampler = self.config, self.config.phases[position.phase_index].clients
        clients = sampler.sample(position.pass_start, run.workers, run.seed)
        return clients if position.starts_pass else tuple(w for w in clients if w in self.state.replies)

    def compute_rows(self, round_index: int, clients: Collection[int] | None = None) -> tuple[Stack, Tensor]:
        """The rows of this process's workers among the clients of a round, and the losses of all its workers.

        Args:
            clients: workers that take part; all when None.
        """
        local_workers = self.world.local_workers
        position = self.config.position(round_index)
        return self.state.compute_rows(position, local_workers, local_workers if clients is None else clients)

    def run_round(self, started: StartedRound, stop: bool = False) -> RoundResult:
        """Computes the workers' rows, or waits for them at a server, and aggregates them to one row."""
        run, position, clients = self.config, started.position, started.request.clients
        phase = run.phases[position.phase_index]
        stack, losses = self.compute_rows(position.round_index, clients)
        if isinstance(self.world, ServerTransport):
            losses, reported = self.world.receive_reports(num_metrics=2).unbind(dim=1)
        else:
            metrics = self.world.all_gather(torch.stack([losses, torch.full_like(losses, float(stop))], dim=1))
            losses, reported = metrics.unbind(dim=1)
            stop = bool(reported.any())
        worked_s = time.perf_counter()
        round = Round(
            index=position.round_index,
            seed=run.seed,
            byzantine=started.byzantine,
            world=subset_of(self.world, clients),
            # in a server's job the faults happen in the workers' processes
            absent=frozenset() if self.server is not None else started.silent,
            is_first=position.round_in_phase == 0 or bool(started.surgery_report),
            announced=self.state.announced,
        )
        observed = observe(run.observers, stack.by_worker() if run.observers else stack, round)
        observed_s = time.perf_counter()
        aggregate, lost_reason, notes = None, "", ()
        try:
            if not clients:
                raise TooFewRows("no worker is left of those who began this pass")
            scheme = partial(server_half, phase.scheme) if self.server is not None else phase.scheme
            aggregate, state = scheme(stack, self.state.scheme_state, round)
            check_row(aggregate)
            if self.server is not None and self.server.needs_quorum:
                check_quorum(clients, aggregate.notes)
            self.state.scheme_state = state
            check_sum(phase.secure, aggregate)
            notes = aggregate.notes
        except TooFewRows as error:
            aggregate, lost_reason, notes = None, str(error), error.notes
            self.state.scheme_state = error.state or self.state.scheme_state
        aggregated_s = time.perf_counter()
        if aggregate is not None and aggregate.arrived is not None:
            observed |= observe(run.observers, aggregate.arrived, round, arrived=True)
        return RoundResult(
            aggregate=aggregate,
            lost_reason=lost_reason,
            notes=notes,
            losses=losses,
            reported=reported.isfinite(),
            stop=stop,
            observed=observed,
            work_s=worked_s - started.started_s,
            scheme_s=aggregated_s - observed_s,
        )

    def finish_round(self, started: StartedRound, result: RoundResult) -> dict[str, Any]:
        """Updates the model with the aggregate of a round; returns the metrics of the round."""
        before_s = time.perf_counter()
        position, aggregate, lost_reason = started.position, result.aggregate, result.lost_reason
        sizes = None
        if aggregate is not None:
            sizes, lost_reason = self.update_model(position, aggregate)
        self.state.replies = {} if aggregate is None or lost_reason else dict(aggregate.replies)
        if aggregate is not None:
            self.state.announced = aggregate.announcement
        if self._model_before_pass and (lost_reason or position.completes_pass):
            if lost_reason:
                # the layers that the pass has replaced so far make no model with the others
                self.model_state.load(self._model_before_pass, position.phase_index)
            self._model_before_pass = {}
        self.rounds_done += 1
        return self._metrics(started, result, sizes, lost_reason, time.perf_counter() - before_s)

    def update_model(self, position: Position, aggregate: Stack) -> tuple[Sizes | None, str]:
        """Updates the model; returns the sizes of the workers' rows, and why the update was skipped if it was."""
        sizes = row_sizes(self.config.phases[position.phase_index].scheme, self.config.workers, aggregate)
        if not finite(aggregate.rows):
            return sizes, "the update is not finite"
        self.model_state.update(position, aggregate)
        return sizes, ""

    def _metrics(
        self, started: StartedRound, result: RoundResult, sizes: Sizes | None, lost_reason: str, finish_s: float
    ) -> dict[str, Any]:
        """Counts a round in the statistics of the run; returns its metrics."""
        run, position, clients, byzantine = self.config, started.position, started.request.clients, started.byzantine
        stats = self.worker_stats
        stats.lost_rounds += bool(lost_reason)
        faulty = (byzantine | started.silent) & set(clients)
        first, index = self.world.rank == 0, position.round_index
        counts, _ = stats.add_round(result.notes, faulty, index=index, sizes=sizes, log_notices=first)
        counts |= {"work_s": result.work_s, "scheme_s": result.scheme_s - counts[FORGING], "finish_s": finish_s}
        for part, values in self._times.items():
            values.append(counts[part])
        if self.server is not None and self.server.received_bytes is not None and started.received_bytes is not None:
            counts["socket_bytes"] = self.server.received_bytes - started.received_bytes
        honest = [worker for worker in clients if worker not in byzantine and bool(result.reported[worker])]
        epochs = run.phases[position.phase_index].work.num_epochs(position.round_in_phase)
        stats.local_epochs += (epochs or 0.0) * len(clients)
        return {
            "step": position.round_index,
            "loss": number_of(result.losses[honest].mean()) if honest else None,
            "stop": result.stop,
            **counts,
            "bytes_down": started.request.bytes_down,
            "byzantine": sorted(byzantine),
            "lost": lost_reason,
            **({"clients": list(clients)} if len(clients) < run.workers else {}),
            **({"local_epochs": epochs} if epochs is not None else {}),
            **({"operated": started.surgery_report} if started.surgery_report else {}),
            **({"observed": result.observed} if result.observed else {}),
        }

    def evaluate(self) -> tuple[float | None, float | None]:
        """The task's score and the mean loss over the test set, None without one; computed once a round.

        The score of a classification is the accuracy in [0, 1].
        """
        numbers = self.measure().numbers
        return numbers.get(self.config.task.score.name, numbers.get(LOSS)), numbers.get(LOSS)

    def measure(self) -> Measured:
        """The loss and the metrics of the task; computed once a round.

        Without test examples at the server they are the means over the clients' own, weighted by their numbers.
        """
        if self._measured is None or self._measured[0] != self.rounds_done:
            self._measured = self.rounds_done, self._measure()
        return self._measured[1]

    def _measure(self) -> Measured:
        run, clients, numbers = self.config, None, {}
        names = (LOSS, *(metric.name for metric in run.task.metrics))
        round_index = max(0, self.rounds_done - 1)
        if self.data.num_test:
            context = TaskContext(device=self.device, precision=run.precision, round_index=round_index, seed=run.seed)
            found = measure_on(run.task, self.model, self.data, None, True, context, self.state.tried)
            numbers = {name: number_of(value) for name, value in found.items()}
        if self.data.has_clients:
            if self.server is not None:
                request = RoundRequest(
                    round_index=round_index,
                    clients=tuple(range(run.workers)),
                    model=self.model.state_dict(),
                    shapes=self.model_state.shapes,
                    required=None,
                    replies={},
                    announced={},
                )
                answers = self.server.evaluate_clients(request)
                silent = [worker for worker in range(run.workers) if worker not in answers]
            else:
                answers, silent = self._evaluate_clients((EXAMPLES, *names), round_index), []
            clients = ClientMetrics.of(answers, names, trusted=self.server is None)
            clients.left_out.update(dict.fromkeys(silent, "no answer in time"))
            numbers = numbers or clients.mean
        asked = clients is not None and (clients.clients or clients.left_out)
        return Measured(numbers or dict.fromkeys(names), clients if asked else None)

    def _evaluate_clients(self, names: tuple[str, ...], round_index: int) -> dict[int, dict[str, float]]:
        """What each client measured on its own test examples; every process evaluates its workers."""
        world = self.world
        assert not isinstance(world, ServerTransport)
        rows = []
        for worker in world.local_workers:
            found = self.state.evaluate_client(worker, round_index)
            rows.append([found.get(name, math.nan) for name in names])
        table = world.all_gather(torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(names)))
        return {worker: dict(zip(names, row, strict=True)) for worker, row in enumerate(table.tolist())}

    def tested(self) -> dict[str, Any]:
        """What the test of the model found, as plain values for the metrics of a round.

        A classification has its accuracy. Other tasks have all metrics and the score by which runs are compared.
        """
        task, measured = self.config.task, self.measure()
        score, loss = self.evaluate()
        line: dict[str, Any] = {"test_loss": loss}
        if isinstance(task, Classification):
            line = {"accuracy": score, **line}
        else:
            line["metrics"] = {name: value for name, value in measured.numbers.items() if name != LOSS}
            line["score"] = {
                "name": task.score.name,
                "value": score,
                "higher_is_better": task.score.higher_is_better,
                "unit": task.score.unit,
            }
        if measured.clients is not None:
            line["client_metrics"] = {str(client): numbers for client, numbers in measured.clients.clients.items()}
            line["client_mean"] = measured.clients.mean
            if measured.clients.left_out:
                line["clients_left_out"] = {str(c): reason for c, reason in measured.clients.left_out.items()}
        return line

    def examine(self) -> dict[str, Any]:
        """What each evaluator finds, by its expression; computed once a round."""
        if self._examined is None or self._examined[0] != self.rounds_done:
            run = self.config
            context = EvalContext(
                model=self.model,
                data=self.data,
                workers=run.workers,
                seed=run.seed,
                precision=run.precision,
                parts=partial(run.partition.parts, self.data, run.workers, run.seed),
                task=run.task,
                round_index=max(0, self.rounds_done - 1),
            )
            self._examined = self.rounds_done, {repr(each): each.evaluate(context) for each in run.evaluators}
        return self._examined[1]

    def save_checkpoint(self, folder: RunFolder | None) -> None:
        """Writes a checkpoint: every process of a collective gives its workers' memories, rank 0 has the folder."""
        memories, ended = [self.state.memories], self.has_ended
        # where a run has ended nobody goes on from what other workers remember
        if isinstance(self.world, ServerTransport):
            if folder is not None and not ended:
                memories += self.world.collect_memories()
        elif len(self.world.local_workers) < self.world.size and not ended:
            memories = [from_payload(part) for part in self.world.all_gather_payloads(to_payload(memories[0]))]
        if folder is None:
            return
        tree = {
            **self.model_state.to_tree(),
            "memories": merge(memories),
            "replies": {str(worker): reply for worker, reply in self.state.replies.items()},
            "announced": self.state.announced,
            "model_before_pass": self._model_before_pass,
            "worker_stats": self.worker_stats.to_json(),
            **({"best": self.best.to_state()} if self.best is not None else {}),
            **({"functions": functions} if (functions := functions_of(self.config)) else {}),
        }
        folder.checkpoint(Checkpoint(self.rounds_done, self.text, tree))

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Continues from a checkpoint that rank 0 has read; a process takes the memories of its own workers only."""
        saved = {"rounds_done": checkpoint.step, **checkpoint.tree} if checkpoint is not None else {}
        tree = self.world.broadcast(saved)
        if not tree:
            return
        now, changed = functions_of(self.config), tree.get("functions", {})
        changed = [name for name, code in changed.items() if code and now.get(name) and now[name] != code]
        require(
            not changed,
            f"{', '.join(changed)} changed since the run began, so it would not go on as it began; undo the change, or "
            "begin anew in another folder",
        )
        absent = [key for key in ("model", "worker_stats") if key not in tree]
        require(
            not absent, f"the checkpoint of round {tree['rounds_done']} lacks {', '.join(absent)}; begin the run anew"
        )
        self.rounds_done = tree["rounds_done"]
        self.model_state.load(tree, self.config.position(max(self.rounds_done - 1, 0)).phase_index)
        memories = tree.get("memories", {})
        self._remote_memories = memories if self.server is not None else {}
        self.state.load_memories(keep_local_memories(memories, self.world.local_workers))
        self.state.replies = {int(worker): reply for worker, reply in tree.get("replies", {}).items()}
        self.state.announced = tree.get("announced", {})
        self._model_before_pass = tree.get("model_before_pass", {})
        self.best = BestModel.from_state(tree.get("best", {}))
        self.worker_stats = WorkerStats.from_json(tree["worker_stats"])

    def summary(self) -> dict[str, Any]:
        """The numbers of a run that has ended, as plain values."""
        run, data, stats, model_state = self.config, self.data, self.worker_stats, self.model_state
        tested = self.tested()
        tokens = isinstance(data, Dataset) and data.test_y.dim() > 1 and run.task.has_classes
        # the first rounds compile kernels and warm caches
        times = {name: values[min(3, len(values) // 2) :] for name, values in self._times.items()}
        return {
            **tested,
            **({"perplexity": _perplexity(tested["test_loss"])} if tokens else {}),
            **(_translation(run.data, self.model) if data.num_test else {}),
            **({"examined": self.examine()} if run.evaluators else {}),
            **({"best": self.best.to_json()} if self.best is not None else {}),
            "rounds": self.rounds_done,
            "lost_rounds": stats.lost_rounds,
            "lost_groups": stats.lost_groups,
            "bytes_up": stats.bytes_up,
            "bytes_down": stats.bytes_down,
            "local_epochs": stats.local_epochs,
            "bytes_per_worker_round": stats.bytes_up / max(1, self.rounds_done * run.workers),
            "round_s": sum(median(times[name]) for name in ROUND if times[name]),
            **{name: median(values) if values else None for name, values in times.items()},
            "parameters": model_state.num_parameters,
            **({"widths": model_state.widths} if model_state.widths else {}),
            "macs": _macs(self.model, data, self.device),
            "accused": stats.table(),
            "evidence": stats.evidence,
            "accusation_precision": stats.precision,
            "accusation_recall": stats.recall,
            **({"gone": self.server.gone, "workers": run.workers} if self.server is not None else {}),
            "weights_sha256": fingerprint(self.model),
            "processes": self._num_processes,
            "seed": run.seed,
        }

    @property
    def _num_processes(self) -> int:
        if self.server is not None:
            return len(self.server.processes) + 1
        return self.world.size // len(self.world.local_workers)


def _perplexity(loss: float | None) -> float | None:
    return None if loss is None else number_of(torch.tensor(loss, dtype=torch.float64).exp())


def _translation(data: Data, model: nn.Module) -> dict[str, float]:
    """BLEU of a model that translates, where `beam` of the data set asks for it."""
    if not isinstance(data, Multi30k) or data.beam == 0:
        return {}
    return {"bleu": bleu_of(model, data, data.beam)}  # type: ignore[arg-type]


def _macs(model: nn.Module, data: Examples, device: torch.device) -> int | None:
    """The multiply-accumulates of one example; None for examples that are not one tensor.

    A text has the length of the first one of the test set.
    """
    if isinstance(data, Dataset):
        one = data.test(slice(0, 1))[0] if len(data.test_y) else example(data.shape)[:1]
    elif isinstance(data.shape, OtherShape):
        return None
    else:
        one = example(data.shape)[:1]
    weights = [p for p in model.parameters() if p.is_floating_point()]
    one = one.to(weights[0].dtype) if one.is_floating_point() and weights else one
    with evaluating(model):
        return macs(model, one.to(device)).total
