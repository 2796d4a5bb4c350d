# SPDX-License-Identifier: Apache-2.0
"""The workers' half of a run as a ClientApp of Flower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from phalanx.attacks.faults import befallen
from phalanx.core.codec import WEIGHT
from phalanx.core.expression import require
from phalanx.core.packing import pack
from phalanx.core.trees import from_payload, memories_of, to_payload
from phalanx.integrations.flower.records import (
    ABOUT,
    EXAMPLES,
    LOSS,
    MEMORY,
    METRICS,
    ORDER,
    OWN,
    PACKED,
    REMEMBERS,
    REPORT,
    ROUND,
    RUN,
    SHARED,
    WORKER,
    RunSource,
    array,
    array_of_bytes,
    carried,
    run_of,
)
from phalanx.training.phase import Run
from phalanx.training.worker_runtime import WorkerRuntime

STATE = "phalanx"  # the one record of a context's state, replaced in every round
_desks: dict[str, WorkerRuntime] = {}  # of the newest run; Flower starts a process for each message, Ray's stay


def client_app(run: RunSource = None, *, mods: Sequence[Mod] = ()) -> ClientApp:
    """A ClientApp that works for `strategy`. The node's partition-id is the worker that it plays.

    What a worker remembers (error feedback, an optimizer's moments, layers that are not matched yet) stays in the
    context's state.

    Args:
        run: or its expression, or a function from the run config to it; None reads the expression under "run" there.
        mods: of Flower, around the training of a round.
    """
    app = ClientApp()

    @app.query()
    def who(message: Message, context: Context) -> Message:
        metrics = MetricRecord({WORKER: int(context.node_config[WORKER])})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    @app.query("memory")
    def memory(message: Message, context: Context) -> Message:
        kept = memories_of(_remembered(context), (int(context.node_config[WORKER]),))
        return Message(RecordDict({MEMORY: _record(kept)}), reply_to=message)

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        return Message(_train(run_of(run, context.run_config), message, context), reply_to=message)

    return app


def _train(run: Run, message: Message, context: Context) -> RecordDict:
    worker, about = int(context.node_config[WORKER]), message.content[ABOUT]
    require(0 <= worker < run.workers, f"the run's workers are 0 to {run.workers - 1}, got {WORKER}={worker}")
    same = about[RUN] == repr(run)
    require(same, f"the server's run differs from this client's: {about[RUN]} is not {run!r}")
    index = about[ROUND]
    assert isinstance(index, int)
    desk = _desk(run)
    desk.seat((worker,))
    sent = MEMORY in message.content
    desk.keep(from_payload(carried(message.content, MEMORY)) if sent else _remembered(context))
    order = {**carried(message.content, ORDER, SHARED), **carried(message.content, ORDER, OWN)}
    offers, numbers = desk.work(index, order)
    offer = offers[worker].first
    remembers = bool(memories_of(desk.trainer.kept, (worker,)))
    metrics: dict[str, Any] = {LOSS: float(numbers[0, 0]), REMEMBERS: int(remembers)}
    reply = RecordDict()
    if offer is not None:
        if WEIGHT in offer:
            examples = float(offer[WEIGHT])
            metrics[EXAMPLES] = int(examples) if examples.is_integer() and abs(examples) < 2**53 else examples
        body = befallen(run.faults, (worker,), index, pack(offer))
        reply[REPORT] = ArrayRecord({PACKED: array_of_bytes(body)})
    reply[METRICS] = MetricRecord(metrics)
    # last: what a round that failed has done must not be remembered
    context.state[STATE] = _record({**desk.kept, "run_id": str(context.run_id)})
    return reply


def _record(tree: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord({PACKED: array(to_payload(tree))})


def _remembered(context: Context) -> dict[str, Any]:
    """What this node has kept in this run; runs of one series share a state."""
    if STATE not in context.state:
        return {}
    kept = from_payload(carried(context.state, STATE))
    return kept if kept.pop("run_id", None) == str(context.run_id) else {}


def _desk(run: Run) -> WorkerRuntime:
    """The desk of a run, which has its data at hand; no worker depends on what it did for another."""
    text = repr(run)
    if text not in _desks:
        _desks.clear()
        _desks[text] = WorkerRuntime(run, ())
    return _desks[text]
