# SPDX-License-Identifier: Apache-2.0
"""A run as a strategy of Flower's ServerApp."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from logging import INFO
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

from phalanx.core.codec import Gather
from phalanx.core.expression import require
from phalanx.core.wire_stage import WireStage, check_server, stages_of
from phalanx.distributed.server.membership import Timeouts
from phalanx.integrations.flower.node_registry import log
from phalanx.integrations.flower.records import RunSource, run_of
from phalanx.integrations.flower.transport import FlowerTransport
from phalanx.training.phase import Run
from phalanx.training.run_folder import RunFolder
from phalanx.training.trainer import Trainer

TIMEOUTS = Timeouts(join_s=120.0, first_s=300.0, least_s=10.0, factor=3.0)  # a message is a process that starts


@dataclass
class Outcome(Result):
    """Flower's result of a run, and Phalanx's.

    Args:
        rounds: the metrics of each round as in ``metrics.jsonl``, with every excluded client and the reason.
        summary: the numbers of the whole run as in ``summary.json``.
    """

    rounds: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


def strategy(
    run: Run | str,
    *,
    folder: Path | str | None = None,
    timeouts: Timeouts = TIMEOUTS,
    min_clients: int = 1,
    evaluate: bool = True,
    poll_s: float = 0.2,
    owners: Mapping[int, int] | None = None,
) -> FlowerStrategy:
    """The strategy that carries out a run; ``strategy(run).start(grid=grid)`` does it.

    Args:
        run: or its expression.
        folder: for metrics, summary and checkpoints, from which a run that was stopped goes on; an absolute path, as a
            ServerApp's process may be anywhere.
        timeouts: how long to wait for nodes and replies, in seconds.
        min_clients: the run does not begin with fewer.
        evaluate: tests the model here, on the test part of the run's data.
        poll_s: seconds between two looks for replies.
        owners: the worker of each node by the node's id, which Flower binds to the node's key where SuperNodes are
            authenticated. Then a partition-id belongs to a key; None lets the first node that claims one have it.
    Raises:
        ValueError: the run cannot be carried out by a server, or the path is relative.
    """
    found = run_of(run, {})
    require(folder is None or Path(folder).is_absolute(), f"a ServerApp's folder is an absolute path, got {folder}")
    return FlowerStrategy(
        found, None if folder is None else Path(folder), timeouts, min_clients, evaluate, poll_s, owners
    )


def server_app(run: RunSource = None, **options: Any) -> ServerApp:
    """A ServerApp that carries out a run.

    Args:
        run: or its expression, or a function from the run config to it; None reads the expression under "run" there.
        options: of `strategy`; without a folder among them, "folder" of the run config is taken unless it is empty.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given = {"folder": context.run_config.get("folder") or None, **options}
        strategy(run_of(run, context.run_config), **given).start(grid)

    return app


class FlowerStrategy(Strategy):
    """Carries out all rounds of a run in `start`, with a deadline of its own for each."""

    def __init__(
        self,
        run: Run,
        folder: Path | None,
        timeouts: Timeouts,
        min_clients: int,
        evaluate: bool,
        poll_s: float,
        owners: Mapping[int, int] | None = None,
    ) -> None:
        run.check()
        for phase in run.phases:
            check_server(phase.scheme, phase.secure)
            wires = [stage for stage in stages_of(phase.scheme) if isinstance(stage, WireStage)]
            ok = all(isinstance(wire, Gather) for wire in wires)
            require(ok, f"Flower carries gather(...) only, as each question starts a process; got {wires!r}")
        ok = 1 <= min_clients <= run.workers
        require(ok, f"min_clients lies between 1 and the run's {run.workers} workers, got {min_clients}")
        self.run, self._folder, self._timeouts, self._poll_s = run, folder, timeouts, poll_s
        self._least, self._evaluate, self._owners = min_clients, evaluate, owners
        workers = list((owners or {}).values())
        require(
            len(set(workers)) == len(workers) and all(0 <= worker < run.workers for worker in workers),
            f"owners names for each node one worker of 0 to {run.workers - 1}, and no worker twice, got {owners}",
        )

    def __repr__(self) -> str:
        return f"phalanx.integrations.flower.strategy({self.run!r})"

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Outcome:
        """Carries out the rounds that are not done yet; the run says how many there are.

        Args:
            initial_arrays: weights to begin with, as `ArrayRecord(model.state_dict())` has them; the run's when None.
            num_rounds: those of the run, or None.
            timeout: longest wait for a round's replies in seconds, in place of `first_s` of the timeouts.
            train_config, evaluate_config: nothing; the run configures its clients.
            evaluate_fn: called after every round with its number, from 1, and the model's arrays.
        Raises:
            ValueError: the arguments do not fit the run, or too few clients came.
            Interrupted: SIGINT or SIGTERM arrived; a checkpoint was written.
        """
        run = self.run
        ok = num_rounds in (None, run.rounds)
        require(ok, f"the run has {run.rounds} rounds, got num_rounds={num_rounds}; change the run's, or leave it out")
        require(not (train_config or evaluate_config), "the run configures its clients; leave the configs out")
        timeouts = self._timeouts
        if timeout is not None:
            timeouts = Timeouts(timeouts.join_s, timeout, min(timeouts.least_s, timeout), timeouts.factor)
        self.summary()
        transport = FlowerTransport(run.workers, grid, timeouts, self._poll_s, self._owners)
        trainer = Trainer(run, transport)
        if not self._evaluate:
            trainer.state.data = trainer.data.untested()
        if initial_arrays:
            trainer.model.load_state_dict(initial_arrays.to_torch_state_dict())
        transport.join(self._least)
        outcome = Outcome()

        def listen(line: dict[str, Any]) -> None:
            _enter(outcome, line, run.rounds)
            if evaluate_fn is not None and (found := evaluate_fn(line["step"] + 1, _arrays(trainer))) is not None:
                outcome.evaluate_metrics_serverapp[line["step"] + 1] = found

        trainer.run(None if self._folder is None else RunFolder(self._folder), listen)
        outcome.arrays, outcome.summary = _arrays(trainer), trainer.summary()
        return outcome

    def summary(self) -> None:
        """Logs what is about to run."""
        log.log(INFO, "Phalanx: %d workers, %d rounds, %r", self.run.workers, self.run.rounds, self.run)

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> NoReturn:
        """Never called: `start` carries out the rounds."""
        _refuse()

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> NoReturn:
        """Never called: `start` carries out the rounds."""
        _refuse()

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> NoReturn:
        """Never called: `start` carries out the rounds."""
        _refuse()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> NoReturn:
        """Never called: `start` carries out the rounds."""
        _refuse()


def _refuse() -> NoReturn:
    raise ValueError(
        "a run is carried out by start(grid) of its own strategy, not by a strategy around it; what that would do to "
        "rows, such as clip(...) and noise(...), goes into the run's scheme"
    )


def _arrays(trainer: Trainer) -> ArrayRecord:
    return ArrayRecord({name: tensor.detach().cpu() for name, tensor in trainer.model.state_dict().items()})


def _enter(outcome: Outcome, line: dict[str, Any], rounds: int) -> None:
    """A round's metrics in the log and in the result."""
    number, tested = line["step"] + 1, {k: line.get(k) for k in ("accuracy", "test_loss")}
    outcome.rounds.append(line)
    known = {k: line[k] for k in ("loss", "bytes_up", "bytes_down") if line[k] is not None}
    excluded, accused = ([int(worker) for worker in line[kind]] for kind in ("excluded", "accused"))
    outcome.train_metrics_clientapp[number] = MetricRecord(
        {**known, "excluded": excluded, "accused": accused, "far": line["far"], "lost": int(bool(line["lost"]))}
    )
    if found := {k: v for k, v in tested.items() if v is not None}:
        outcome.evaluate_metrics_serverapp[number] = MetricRecord(found)
    values = {**known, **found}
    log.log(INFO, "[ROUND %d/%d] %s", number, rounds, ", ".join(f"{k} {v:.6g}" for k, v in values.items()))
    for worker, reason in line["excluded"].items():
        log.warning("round %d: client %s excluded: %s", number, worker, reason)
    for worker, reason in line["accused"].items():
        log.warning("round %d: client %s accused: %s", number, worker, reason)
    if line["lost"]:
        log.warning("round %d lost: %s", number, line["lost"])
