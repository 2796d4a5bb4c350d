# SPDX-License-Identifier: Apache-2.0
"""The workers' half of a run as a ClientApp of Flower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from phalanx.attacks.faults import inject_faults
from phalanx.core.codec import WEIGHT
from phalanx.core.expression import require
from phalanx.core.packing import pack
from phalanx.core.trees import from_payload, memories_of, to_payload
from phalanx.data.node_config import use_node_config
from phalanx.distributed.server_transport import metrics_to_payload
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
    TESTED,
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
_runtimes: dict[str, WorkerRuntime] = {}  # of the newest run; Flower starts a process for each message, Ray's stay


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

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(_evaluated(run_of(run, context.run_config), message, context), reply_to=message)

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        return Message(_train(run_of(run, context.run_config), message, context), reply_to=message)

    return app


def _train(run: Run, message: Message, context: Context) -> RecordDict:
    worker, about = int(context.node_config[WORKER]), message.content[ABOUT]
    _check_request(run, worker, about)
    index = about[ROUND]
    assert isinstance(index, int)
    use_node_config(context.node_config)
    runtime = _runtime(run)
    runtime.reassign((worker,))
    sent = MEMORY in message.content
    runtime.load(from_payload(carried(message.content, MEMORY)) if sent else _remembered(context))
    request = {**carried(message.content, ORDER, SHARED), **carried(message.content, ORDER, OWN)}
    uploads, worker_metrics = runtime.run_round(index, request)
    payload = uploads[worker].now
    remembers = bool(memories_of(runtime.memories, (worker,)))
    metrics: dict[str, Any] = {LOSS: float(worker_metrics[0, 0]), REMEMBERS: int(remembers)}
    reply = RecordDict()
    if payload is not None:
        if WEIGHT in payload:
            examples = float(payload[WEIGHT])
            metrics[EXAMPLES] = int(examples) if examples.is_integer() and abs(examples) < 2**53 else examples
        body = inject_faults(run.faults, (worker,), index, pack(payload))
        reply[REPORT] = ArrayRecord({PACKED: array_of_bytes(body)})
    reply[METRICS] = MetricRecord(metrics)
    # last, so that a round that fails leaves no memories
    context.state[STATE] = _record({**runtime.to_tree(), "run_id": str(context.run_id)})
    return reply


def _evaluated(run: Run, message: Message, context: Context) -> RecordDict:
    """What the model of a message scores on this client's own test examples."""
    worker, about = int(context.node_config[WORKER]), message.content[ABOUT]
    _check_request(run, worker, about)
    index = about[ROUND]
    assert isinstance(index, int)
    use_node_config(context.node_config)
    runtime = _runtime(run)
    runtime.reassign((worker,))
    found = runtime.evaluate(index, carried(message.content, ORDER, SHARED))
    return RecordDict({TESTED: ArrayRecord({PACKED: array(metrics_to_payload(found))})})


def _check_request(run: Run, worker: int, about: Any) -> None:
    require(0 <= worker < run.workers, f"the run's workers are 0 to {run.workers - 1}, got {WORKER}={worker}")
    same = about[RUN] == repr(run)
    require(same, f"the server's run differs from this client's: {about[RUN]} is not {run!r}")


def _record(tree: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord({PACKED: array(to_payload(tree))})


def _remembered(context: Context) -> dict[str, Any]:
    """What this node has kept in this run; runs of one series share a state."""
    if STATE not in context.state:
        return {}
    kept = from_payload(carried(context.state, STATE))
    return kept if kept.pop("run_id", None) == str(context.run_id) else {}


def _runtime(run: Run) -> WorkerRuntime:
    """The runtime of a run, kept from one message to the next because it has loaded the data."""
    text = repr(run)
    if text not in _runtimes:
        _runtimes.clear()
        _runtimes[text] = WorkerRuntime(run, ())
    return _runtimes[text]
