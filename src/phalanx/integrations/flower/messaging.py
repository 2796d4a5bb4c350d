# SPDX-License-Identifier: Apache-2.0
"""Messages over Flower's grid, each of which may fail alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from phalanx.core.payload import BadPayload
from phalanx.integrations.flower.records import TEXT


def push(grid: Grid, messages: Sequence[Message]) -> list[str | None]:
    """The id of each message, by which its reply is pulled; None for one that was not accepted."""
    if not messages:
        return []
    # one that goes through them twice gets a list; none at all means that they were too large together
    ids = list(grid.push_messages(list(messages)))
    return [i or None for i in ids] if len(ids) == len(messages) else [None] * len(messages)


def pull(grid: Grid, message_id: str) -> Message | BadPayload | None:
    """The reply to a message, or why it cannot be read; None while there is none."""
    try:
        # several at once would be lost together with a malformed one
        found = list(grid.pull_messages([message_id]))
    except Exception as error:
        return BadPayload(f"a reply that Flower cannot read: {type(error).__name__}: {error}"[:TEXT])
    return found[0] if found else None


def arrived(grid: Grid, waiting: Mapping[str, object]) -> dict[str, Message | BadPayload]:
    """The replies that are there by now, of those waited for."""
    found = {message_id: pull(grid, message_id) for message_id in waiting}
    return {message_id: reply for message_id, reply in found.items() if reply is not None}
