# SPDX-License-Identifier: Apache-2.0
"""Any strategy of Flower, with a gate and a robust rule before it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from logging import INFO, WARNING
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from phalanx.aggregators.mean import Mean
from phalanx.codecs.dense import Dense
from phalanx.core.codec import Codec, Gather
from phalanx.core.expression import require
from phalanx.core.gate import Gate
from phalanx.core.layout import Layout
from phalanx.core.parser import parse
from phalanx.core.payload import BadPayload
from phalanx.core.plain_states import StateForm, middle_integers
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Stage, TooFewRows, chain, check_row, check_scheme
from phalanx.core.trees import State
from phalanx.core.wire_stage import check_quorum, stages_of
from phalanx.core.world import LocalCollective
from phalanx.integrations.flower.coded_arrays import decoded, is_coded
from phalanx.integrations.flower.messaging import arrived, push
from phalanx.integrations.flower.node_registry import log
from phalanx.integrations.flower.records import EXAMPLES, TEXT, error_of, number
from phalanx.training.accusation import row_sizes
from phalanx.training.worker_stats import WorkerStats

MANY = 1000  # clients with which a rule is tried
_FAILED = 5  # Flower's code for a node from which nothing came


@dataclass(frozen=True)
class _Reply:
    """What a client sent, once it is known to be of the right form."""

    message: Message
    arrays: str  # keys of its records
    metrics: str
    state: Mapping[str, Tensor]
    weight: float


def robust(
    strategy: Strategy,
    rule: Stage | str = "mean()",
    *,
    gate: Gate | str = "gate(max_weight=10.0)",
    codec: Codec | str | None = None,
    weighted_by: str | None = None,
    exclude_after: int | None = None,
    seed: int = 0,
    poll_s: float = 0.2,
) -> RobustStrategy:
    """A strategy of Flower, before which replies pass a gate and a rule.

    The strategy samples nodes, configures them, and aggregates metrics as ever. Of the replies to a training round,
    those that are errors, have other tensors than the model, or a weight that is no number above zero, and those that
    the gate refuses, do not reach it. With `mean()` the others reach it as they came, so that it computes what it would
    without this wrapper. With another rule each of them brings the rule's result in place of its own tensors, and its
    own metrics: any average of them is the result, up to rounding.

    The rule gets the differences from the round's model; of tensors that are no floating-point numbers, such as
    counters, it is the lower median. A round whose rule has too few rows changes nothing, nor does one in which half of
    those asked or fewer are left. Replies to an evaluation are left out where their metrics are not finite numbers
    under the names that most have.

    Args:
        strategy: of `flwr.serverapp.strategy`, or one's own; also a wrapper with differential privacy, with `mean()`:
            its noise is made for the mean of clipped updates.
        rule: an aggregation rule or a chain of them, or its expression.
        gate: for the rows and the claimed numbers of examples; by default no client counts more than ten medians.
        codec: decodes what `compress` has coded at the clients; None where nothing is coded.
        weighted_by: name of the metric with the number of examples; the strategy's own when None.
        exclude_after: leaves out, for good, nodes that were accused in so many rounds; they count towards f.
        seed: of the rule's random numbers.
        poll_s: seconds between two looks for replies.
    Raises:
        ValueError: the strategy carries out runs by itself, or the rule does not turn rows into one.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> from phalanx.integrations.flower import robust
    >>> robust(FedAvg(), "krum(f=2)")
    phalanx.flower.robust(FedAvg, krum(f=2))
    """
    found = parse(rule) if isinstance(rule, str) else rule
    passes = parse(gate) if isinstance(gate, str) else gate
    reads = parse(codec) if isinstance(codec, str) else codec
    require(isinstance(strategy, Strategy), f"robust wraps a strategy of Flower, got {type(strategy).__name__}")
    require(
        type(strategy).start is Strategy.start,
        f"{type(strategy).__name__} carries out its rounds by itself; its rule goes into its own scheme",
    )
    require(isinstance(found, Stage), f"robust takes an aggregation rule, such as krum(f=2), got {rule!r}")
    assert isinstance(found, Stage)
    require(isinstance(passes, Gate), f"robust takes a gate, such as gate(max_weight=10.0), got {gate!r}")
    require(reads is None or isinstance(reads, Codec), f"robust takes a codec, such as qsgd(bits=4), got {codec!r}")
    require(
        not any(stage.num_wires for stage in stages_of(found)),
        f"{found!r} crosses a wire, and Flower's messages are the wire; give the rule alone, and codec= for a codec",
    )
    check_scheme(chain(Gather(Dense()), found), MANY)
    ok = exclude_after is None or exclude_after >= 1
    require(ok, f"exclude_after is a number of rounds >= 1 or None, got {exclude_after}")
    if not isinstance(found, Mean):
        private = next((s for s in _layers(strategy) if "DifferentialPrivacy" in type(s).__name__), None)
        require(
            private is None,
            f"the noise of {type(private).__name__} is made for the mean of clipped updates, and with {found!r} one "
            "client may move the result by more; use mean(), which keeps the gate",
        )
    return RobustStrategy(strategy, found, passes, reads, weighted_by, exclude_after, seed, poll_s)


def _layers(strategy: Strategy) -> Iterable[Strategy]:
    """A strategy and those that it wraps."""
    layer: Any = strategy
    while isinstance(layer, Strategy):
        yield layer
        layer = getattr(layer, "strategy", None)


@dataclass
class NodeLedger:
    """What is known about nodes: they are counted as workers in the order in which they appear."""

    nodes: list[int] = field(default_factory=list)
    stats: WorkerStats = field(default_factory=lambda: WorkerStats(0))

    def worker(self, node: int) -> int:
        """The worker that a node is."""
        if node not in self.nodes:
            self.nodes.append(node)
            self.stats.workers = len(self.nodes)
        return self.nodes.index(node)


class RobustStrategy(Strategy):
    """What `robust` returns.

    Attributes:
        strategy: the one that is wrapped.
        rounds: of each training round: "round", and by node "excluded" and "accused", with the reason; "lost", why the
            round changed nothing, or "".
        ledger: counts and evidence by node.
    """

    def __init__(
        self,
        strategy: Strategy,
        rule: Stage,
        gate: Gate,
        codec: Codec | None,
        weighted_by: str | None,
        exclude_after: int | None,
        seed: int,
        poll_s: float,
    ) -> None:
        self.strategy, self.rule, self.gate, self.codec = strategy, rule, gate, codec
        keys = [getattr(layer, "weighted_by_key", None) for layer in _layers(strategy)]
        self._weighted_by = weighted_by or next((str(key) for key in keys if key), EXAMPLES)
        self._exclude_after, self._seed, self._poll_s = exclude_after, seed, poll_s
        self._model: ArrayRecord | None = None
        self._asked: set[int] = set()
        self._state: State = {}
        self.rounds: list[dict[str, Any]] = []
        self.ledger = NodeLedger()

    def __repr__(self) -> str:
        return f"phalanx.flower.robust({type(self.strategy).__name__}, {self.rule!r})"

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Carries out the rounds as every strategy does; a reply that cannot be read is its sender's error."""
        patient: Any = _Patient(grid, self._poll_s)
        return super().start(patient, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)

    def summary(self) -> None:
        """Logs the rule and the gate, and what the strategy says of itself."""
        log.log(INFO, "Phalanx: %r behind %r, before %s", self.rule, self.gate, type(self.strategy).__name__)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages; keeps the model that they bring."""
        self._model = arrays
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._asked = {message.metadata.dst_node_id for message in messages}
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The strategy's result of the replies that pass, or of the rule's result in their place."""
        if self._model is None:
            raise ValueError("aggregate_train needs the model of its round; call configure_train before")
        model = self._model.to_torch_state_dict()
        form = StateForm.of(model)
        bad: dict[int, str] = {}
        good: dict[int, _Reply] = {}
        for message in replies:
            node = message.metadata.src_node_id
            if node in good or node in bad:
                continue
            found = self._read(message, form, model, server_round)
            if isinstance(found, BadPayload):
                bad[node] = str(found)[:TEXT]
            else:
                good[node] = found
        for node in self._asked - set(good) - set(bad):
            bad[node] = "no answer in time"
        for node in [node for node in good if self._is_left_out(node)]:
            del good[node]
            bad[node] = f"left out: accused in {self._exclude_after} rounds"
        admitted, result, lost = self._apply(server_round, form, model, good, bad)
        if lost:
            log.log(WARNING, "round %d is lost, and the model stays as it is: %s", server_round, lost)
            return self._model, None
        if result is not None:
            # some strategies take the arrays out of their record
            admitted = [self._with(reply, arrays=ArrayRecord(dict(result))) for reply in admitted]
        return self.strategy.aggregate_train(server_round, [reply.message for reply in admitted])

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The strategy's result of the replies whose metrics are numbers under the names that most have."""
        kept, bad = _plausible(list(replies), self._weighted_by)
        for node, reason in bad.items():
            log.log(WARNING, "round %d: evaluation of node %d left out: %s", server_round, node, reason)
        return self.strategy.aggregate_evaluate(server_round, kept) if kept else None

    def _is_left_out(self, node: int) -> bool:
        most = self._exclude_after
        return most is not None and self.ledger.stats.accused[self.ledger.worker(node)] >= most

    def _read(
        self, message: Message, form: StateForm, model: Mapping[str, Tensor], server_round: int
    ) -> _Reply | BadPayload:
        """A reply of the form of the model; nothing that a client can write raises."""
        if message.has_error():
            return BadPayload(error_of(message))
        try:
            arrays, metrics = message.content.array_records, message.content.metric_records
            if len(arrays) != 1 or len(metrics) != 1:
                return BadPayload(
                    f"{len(arrays)} records of arrays and {len(metrics)} of metrics, where one each belongs"
                )
            (arrays_key, record), (metrics_key, numbers) = next(iter(arrays.items())), next(iter(metrics.items()))
            if is_coded(record) != (self.codec is not None):
                return BadPayload(
                    "tensors that are not coded, where the strategy has a codec"
                    if self.codec is not None
                    else "coded tensors, and the strategy has no codec=: give robust(...) that of the clients' compress"
                )
            state = record.to_torch_state_dict() if self.codec is None else decoded(record, self.codec, model)
            if why := form.why_not(state):
                return BadPayload(why)
            if self._weighted_by not in numbers:
                return BadPayload(f"the metric {self._weighted_by!r} is missing")
            weight = number(numbers[self._weighted_by])
        except BadPayload as error:
            return error
        except Exception as error:
            return BadPayload(f"a reply that cannot be read ({type(error).__name__})")
        reply = _Reply(message, arrays_key, metrics_key, state, weight)
        return reply if self.codec is None else self._with(reply, arrays=ArrayRecord(dict(state)))

    def _apply(
        self,
        server_round: int,
        form: StateForm,
        model: Mapping[str, Tensor],
        good: Mapping[int, _Reply],
        bad: Mapping[int, str],
    ) -> tuple[list[_Reply], ArrayRecord | None, str]:
        """The replies that are admitted, the rule's result unless it is the mean, and why there is none."""
        nodes = list(good)
        workers = [self.ledger.worker(node) for node in nodes]
        notes = [Note("excluded", self.ledger.worker(node), reason=reason) for node, reason in bad.items()]
        origin = form.row(model)
        size, lost, result, out = len(origin), "", None, None
        rows = torch.empty(len(nodes), size, dtype=form.dtype)
        for row, node in zip(rows, nodes, strict=True):
            torch.sub(form.row(good[node].state), origin, out=row)
        weights = torch.tensor([good[node].weight for node in nodes], dtype=torch.float64)
        stack = Stack(
            rows,
            Layout.flat(size, form.dtype),
            tuple((worker,) for worker in workers),
            weights,
            received=True,
            erased=len(bad),
            notes=(*notes, *(Note("bytes", worker, rows[0].nbytes) for worker in workers)),
        )
        stack = self.gate.admit(stack)
        places = {worker: node for worker, node in zip(workers, nodes, strict=True)}
        kept = [places[worker] for worker in stack.ids]
        admitted = [self._weighted(good[node], w) for node, w in zip(kept, stack.weights.tolist(), strict=True)]
        try:
            if not kept:
                raise TooFewRows("no reply is left", stack.notes)
            if not isinstance(self.rule, Mean):
                check_quorum([self.ledger.worker(node) for node in (*good, *bad)], stack.notes)
            world = LocalCollective(max(1, len(self.ledger.nodes)))
            round = Round(server_round, self._seed, world=world)
            out, self._state = self.rule(replace(stack, arrived=stack), self._state, round)
            check_row(out)
            if not bool(torch.isfinite(out.rows).all()):
                raise TooFewRows("the result is not finite", out.notes)
            if not isinstance(self.rule, Mean):
                integers = middle_integers(form, [good[node].state for node in kept])
                result = ArrayRecord(form.state(origin + out.rows[0], integers))
        except TooFewRows as error:
            lost, notes_of = str(error), error.notes or stack.notes
            self._note(server_round, notes_of, None, lost)
            return [], None, lost
        self._note(server_round, out.notes, row_sizes(chain(self.rule), len(nodes), out), "")
        return admitted, result, ""

    def _note(self, server_round: int, notes: Iterable[Note], sizes: Any, lost: str) -> None:
        """Counts a round, and says who was left out or accused."""
        stats, names = self.ledger.stats, self.ledger.nodes
        measured, evidence = stats.add_round(list(notes), frozenset(), index=server_round, sizes=sizes)
        stats.lost_rounds += bool(lost)
        excluded = {names[int(worker)]: reason for worker, reason in measured["excluded"].items()}
        accused = {names[each.worker]: each.reason for each in evidence}
        self.rounds.append({"round": server_round, "excluded": excluded, "accused": accused, "lost": lost})
        for node, reason in excluded.items():
            log.log(WARNING, "round %d: node %d excluded: %s", server_round, node, reason)
        for node, reason in accused.items():
            log.log(WARNING, "round %d: node %d accused: %s", server_round, node, reason)

    def _weighted(self, reply: _Reply, weight: float) -> _Reply:
        """The reply with the weight that the gate leaves it."""
        if weight == reply.weight:
            return reply
        numbers = copy.copy(reply.message.content[reply.metrics])
        assert isinstance(numbers, MetricRecord)
        changed = MetricRecord({**numbers, self._weighted_by: weight})
        return self._with(reply, metrics=changed)

    @staticmethod
    def _with(reply: _Reply, arrays: ArrayRecord | None = None, metrics: MetricRecord | None = None) -> _Reply:
        """The reply with other records; the client's own message stays as it was."""
        content = RecordDict(dict(reply.message.content))
        if arrays is not None:
            content[reply.arrays] = arrays
        if metrics is not None:
            content[reply.metrics] = metrics
        message = copy.copy(reply.message)
        message.content = content
        return replace(reply, message=message)


def _plausible(replies: list[Message], weighted_by: str) -> tuple[list[Message], dict[int, str]]:
    """Replies with finite metrics under the names that most have, and why the others are none."""
    bad: dict[int, str] = {}
    read: dict[int, tuple[Message, tuple[Any, ...]]] = {}
    for message in replies:
        node = message.metadata.src_node_id
        if message.has_error():
            bad[node] = error_of(message)
            continue
        try:
            records = message.content.metric_records
            (numbers,) = records.values()
            form = tuple(sorted((name, len(v) if isinstance(v, list) else -1) for name, v in numbers.items()))
            values = [x for v in numbers.values() for x in (v if isinstance(v, list) else [v])]
            weight = number(numbers.get(weighted_by))
        except Exception as error:
            bad[node] = f"metrics that cannot be read ({type(error).__name__})"
            continue
        if not all(math.isfinite(x) for x in values):
            bad[node] = "a metric that is not finite"
        elif not weight > 0:
            bad[node] = f"the metric {weighted_by!r} is missing, or no number above 0"
        else:
            read[node] = (message, form)
    forms = [form for _, form in read.values()]
    usual = max(forms, key=forms.count) if forms else ()
    bad |= {node: "other metrics than most" for node, (_, form) in read.items() if form != usual}
    return [message for node, (message, _) in read.items() if node not in bad], {n: r[:TEXT] for n, r in bad.items()}


class _Patient:
    """Flower's grid, whose replies are read one by one, so that one that cannot be read is its sender's error."""

    def __init__(self, grid: Grid, poll_s: float) -> None:
        self._grid, self._poll_s = grid, poll_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Sends messages and waits for all replies, `timeout` seconds at most."""
        sent = list(messages)
        asked, replies = {}, list[Message]()
        for message, message_id in zip(sent, push(self._grid, sent), strict=True):
            if message_id is None:
                replies.append(Message(Error(_FAILED, "Flower did not accept the message to it"), reply_to=message))
            else:
                asked[message_id] = message
        until = math.inf if timeout is None else time.monotonic() + timeout
        while asked:
            over = time.monotonic() > until
            for message_id, reply in arrived(self._grid, asked).items():
                message = asked.pop(message_id)
                if isinstance(reply, BadPayload):
                    reply = Message(Error(_FAILED, str(reply)[:TEXT]), reply_to=message)
                replies.append(reply)
            if over:
                break
            if asked:
                time.sleep(self._poll_s)
        return replies
