# SPDX-License-Identifier: Apache-2.0
"""What a scheme costs where a server takes the payloads, from what it costs among processes that gather them."""

from __future__ import annotations

from dataclasses import replace

from phalanx.coding.vote import DIGEST_BYTES, Vote
from phalanx.core.parser import parse
from phalanx.core.wire_stage import check_server, stages_of
from phalanx.tools.advisor.model import Cost, Message
from phalanx.tools.advisor.probe import Probe
from phalanx.tools.advisor.quality import PLAIN

ENTRY_BYTES = 4  # of the model that a server sends
ASK_BYTES = 64  # of the message that asks a worker for its payload


def served(cost: Cost, parameters: int) -> Cost:
    """The cost of the same scheme with a server: the model goes to all workers, and their payloads come back.

    Under `vote` digests come back, and one worker of each group is asked for its payload. What the processes compute
    is what every process computes without a server; rows are decoded at the server alone.

    Args:
        parameters: entries of the model.
    Raises:
        ValueError: a server cannot take the scheme's rows one by one.
    """
    scheme = parse(cost.scheme)
    check_server(scheme)
    vote = next((s for s in stages_of(scheme) if isinstance(s, Vote) and not s.tolerant), None)
    spread = max((message.spread for message in cost.messages), default=0.0)
    model = Message("spread", ENTRY_BYTES * parameters)
    if vote is None:
        return replace(cost, messages=(model, Message("collect", cost.sent_bytes, spread)))
    asked = Message("spread", ASK_BYTES, r=vote.r)
    payload = Message("collect", cost.sent_bytes - DIGEST_BYTES, spread, vote.r)
    return replace(cost, messages=(model, Message("collect", DIGEST_BYTES), asked, payload))


def at_server(probe: Probe) -> tuple[Probe, tuple[str, ...]]:
    """The probe with the schemes that a server can take, and those it cannot.

    The uncompressed all-reduce stays, without a server, for what it is: the step that others are compared with.
    """
    kept, left = list[Cost](), list[str]()
    for cost in probe.costs:
        try:
            kept.append(cost if cost.scheme == PLAIN else served(cost, probe.parameters))
        except ValueError:
            left.append(cost.scheme)
    return replace(probe, costs=tuple(kept)), tuple(left)
