# SPDX-License-Identifier: Apache-2.0
"""What a scheme sends, holds, tolerates and trusts, for a model and a number of workers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from phalanx.aggregators.mean import Mean
from phalanx.coding.majority_vote import Redundant
from phalanx.coding.repetition import Repetition
from phalanx.coding.vote import DIGEST_BYTES, Vote
from phalanx.core.codec import Gather
from phalanx.core.expression import require
from phalanx.core.gate import Gate
from phalanx.core.layout import Layout
from phalanx.core.round import Round
from phalanx.core.scatter import Scatter
from phalanx.core.stack import Stack
from phalanx.core.stage import Chain, Stage, TooFewRows, check_scheme
from phalanx.core.wire_stage import check_server, stages_of
from phalanx.distributed.backend import Loopback, Recording
from phalanx.distributed.process_group import ProcessGroupCollective
from phalanx.integrations.gradient_exchange import as_scheme
from phalanx.tools.advisor.growth import rows_held
from phalanx.tools.advisor.measure import FAR, NEAR
from phalanx.tools.advisor.model import Message, check_workers
from phalanx.tools.advisor.quality import quality
from phalanx.tools.advisor.rehearse import WORKER, messages_of
from phalanx.tools.report.tables import size


@dataclass(frozen=True)
class Explanation:
    """A scheme for n workers. `str()` is one table.

    Args:
        entries: of a row.
        row_bytes: of an uncoded row.
        sent_bytes: that one worker sends in a step, of a row of Gaussian entries; where one of a group sends, that one.
        line_bytes: that the busiest line carries one way in a step, where every process has a line of its own.
        plain_line_bytes: the same for `chain(reduce(dense()))`.
        server_in_bytes, server_out_bytes: that pass a server's line; None where a server cannot take the scheme.
        no_server: why it cannot; empty if it can.
        rows: decoded rows that a process behind the wire holds at a time.
        rows_bytes: of these.
        payloads_bytes: of the payloads that such a process holds.
        estimate: what the result is to the mean of the rows: "unbiased", "biased" or "error feedback".
        tolerates: a sentence for each stage that tolerates false rows, and one where none does.
        trusts: sentences that say who could spoil the result.
    """

    scheme: str
    workers: int
    entries: int
    row_bytes: int
    sent_bytes: float
    line_bytes: float
    plain_line_bytes: float
    server_in_bytes: float | None
    server_out_bytes: float | None
    no_server: str
    rows: int
    rows_bytes: int
    payloads_bytes: float
    estimate: str
    tolerates: tuple[str, ...]
    trusts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values, for JSON."""
        return {**asdict(self), "tolerates": list(self.tolerates), "trusts": list(self.trusts)}

    def lines(self) -> list[tuple[str, str]]:
        """The rows of the table: what, and how much."""
        bits = f", {8 * self.sent_bytes / self.entries:.3g} bits an entry" if self.entries else ""
        ratio = f" ({self.line_bytes / self.plain_line_bytes:.3g} of that)" if self.plain_line_bytes else ""
        served = f"{size(self.server_in_bytes)} in, {size(self.server_out_bytes)} out"
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        return [
            ("scheme", self.scheme),
            ("workers", str(self.workers)),
            ("row", f"{self.entries:,} entries, {size(self.row_bytes)}"),
            ("a worker sends", f"{size(self.sent_bytes)}{bits}"),
            ("busiest line", f"{size(self.line_bytes)} one way; of an all-reduce {size(self.plain_line_bytes)}{ratio}"),
            ("line of a server", f"none: {self.no_server}" if self.no_server else served),
            ("memory", f"{rows}, {size(self.rows_bytes)}; payloads {size(self.payloads_bytes)}"),
            ("estimate of the mean", self.estimate),
            *(("tolerates" if i == 0 else "", words) for i, words in enumerate(self.tolerates)),
            *(("trusts" if i == 0 else "", words) for i, words in enumerate(self.trusts)),
        ]

    def __str__(self) -> str:
        width = max(len(what) for what, _ in self.lines())
        return "\n".join(f"{what:<{width}}  {words}" for what, words in self.lines())


def explain(scheme: Stage | str, model: nn.Module | Layout | int, n: int) -> Explanation:
    """What a scheme costs and promises, without a run: bytes, memory, faults that it tolerates, and whom it trusts.

    The payload is that of a row of Gaussian entries: codes of random length, such as elias, take other lengths for
    gradients, which `phalanx probe` measures. The busiest line is that of one process on a line of its own.

    Args:
        scheme: a chain or its expression.
        model: gives the form of a row: its trained parameters and buffers; or a layout, or the number of entries.
        n: workers, >= 2.
    Raises:
        ValueError: the scheme does not fit n workers, or ends with more than one row.
    """
    scheme = as_scheme(scheme)
    check_workers(n)
    check_scheme(scheme, n)
    layout = _layout_of(model)
    entry_bytes, stages = layout.dtype.itemsize, stages_of(scheme)
    sent_bytes, messages = _sent(scheme, layout, n)
    served, reason = True, ""
    try:
        check_server(scheme)
    except ValueError as error:
        served, reason = False, str(error)
    rows = rows_held(scheme, n)
    # a server is sent the same as every process without one, but for its own payload
    arriving = n * sent_bytes
    vote = next((stage for stage in stages if isinstance(stage, Vote) and not stage.tolerant), None)
    if vote is not None:
        arriving = n * DIGEST_BYTES + vote.rows_out(n) * (sent_bytes - DIGEST_BYTES)
    held = arriving
    if not served:
        held = next((message.bytes for message in messages if message.kind == "share"), sent_bytes)
    return Explanation(
        scheme=repr(scheme),
        workers=n,
        entries=layout.d,
        row_bytes=entry_bytes * layout.d,
        sent_bytes=sent_bytes,
        line_bytes=sum(message.volume(n) for message in messages),
        plain_line_bytes=Message("reduce", entry_bytes * layout.d).volume(n),
        server_in_bytes=arriving if served else None,
        server_out_bytes=float(n * entry_bytes * layout.d) if served else None,
        no_server=reason,
        rows=rows,
        rows_bytes=rows * entry_bytes * layout.d,
        payloads_bytes=held,
        estimate=quality(scheme),
        tolerates=_tolerated(stages, n),
        trusts=_trusted(stages, n),
    )


def _layout_of(model: nn.Module | Layout | int) -> Layout:
    if isinstance(model, Layout):
        return model
    if isinstance(model, nn.Module):
        return Layout.of(model)
    require(
        isinstance(model, int) and not isinstance(model, bool) and model >= 1,
        f"explain takes a module, a layout or a number of entries >= 1, got {model!r}",
    )
    return Layout.flat(model)


def _sent(scheme: Stage, layout: Layout, n: int) -> tuple[float, list[Message]]:
    """The bytes that one worker sends in a step, and the collectives of a job without a server."""
    stages, copies = stages_of(scheme), 1
    place = next(i for i, stage in enumerate(stages) if stage.num_wires)
    wire = stages[place]
    if isinstance(wire, Gather | Scatter) and scheme.assign(n) is None:
        # the rule changes no payload
        if isinstance(wire, Scatter):
            copies, wire = wire.r, replace(wire, r=1)
        scheme = Chain((*stages[:place], wire, Mean()))
    m = next((m for m in (NEAR, FAR) if m < n and _fits(scheme, m)), n)
    allocation = scheme.assign(m)
    units = allocation.units[WORKER] if allocation is not None and allocation.separate else ()
    drawn = torch.randn(layout.d, generator=torch.Generator().manual_seed(0)).to(layout.dtype)
    count = max(1, len(units))
    stack = replace(
        Stack.of(drawn.expand(count, -1).clone(), layout, range(count)),
        sources=((WORKER,),) * count,
        units=units or None,
    )
    lines = Recording(Loopback(WORKER, m, torch.device("cpu")))
    result, _ = scheme(stack, None, Round(world=ProcessGroupCollective(m, backend=lines)))
    sent = sum(note.value for note in result.notes if note.kind == "bytes" and note.worker == WORKER)
    messages = [Message(kind, float(length)) for kind, length in messages_of(lines.calls, m)]
    if isinstance(wire, Vote) and not wire.tolerant:
        groups = wire.rows_out(n)
        messages = [Message("gather", DIGEST_BYTES), Message("gather", groups / n * (sent - DIGEST_BYTES))]
    if isinstance(wire, Scatter):
        shares = [i for i, message in enumerate(messages) if message.kind == "share"]
        first, last = shares[0], shares[-1]
        # each part goes to r owners; each of n owners sends its result once
        sent += (copies - 1) * messages[first].bytes + messages[last].bytes * (1 / n - 1 / m)
        messages[first] = replace(messages[first], bytes=copies * messages[first].bytes)
    return sent, messages


def _fits(scheme: Stage, n: int) -> bool:
    try:
        check_scheme(scheme, n)
    except TooFewRows:
        return False
    return True


def _tolerated(stages: tuple[Stage, ...], n: int) -> tuple[str, ...]:
    """For each stage that tolerates false rows, how many of which."""
    words, rows = list[str](), n
    for stage in stages:
        f = stage.tolerates(rows)
        if f > 0 and isinstance(stage, Redundant | Repetition):
            words.append(f"{f} Byzantine in each group of {stage.r} workers: {stage!r}")
        elif f > 0:
            words.append(f"{f} Byzantine of {rows} rows: {stage!r}")
        if isinstance(stage, Scatter) and stage.r > 1:
            words.append(f"{stage.r // 2} of {stage.r} neighbouring owners that lie: {stage!r}")
        rows = stage.rows_out(rows)
    if not any("Byzantine" in sentence for sentence in words):
        words.append("no Byzantine worker: one false row changes the result")
    return tuple(words)


def _trusted(stages: tuple[Stage, ...], n: int) -> tuple[str, ...]:
    """Who could spoil the result, whatever the rules tolerate."""
    words = list[str]()
    for stage in stages:
        if isinstance(stage, Scatter):
            words.append(
                f"every worker with the result of its 1/{n} of the columns"
                if stage.r == 1
                else f"more than half of any {stage.r} neighbouring owners with their columns"
            )
        if stage.sums_rows:
            words.append(f"every worker with its row: nobody sees single rows behind {stage!r}")
        gate = getattr(stage, "gate", None)
        if isinstance(gate, Gate):
            claims = {
                "trusted": "the weight that each worker claims",
                "bounded": f"claimed weights up to {gate.max_weight:g} times the median one",
            }
            words += [claims[gate.weights]] if gate.weights in claims else []
    words.append("the server, or every process that runs its half of the scheme in a job without one")
    return tuple(words)
