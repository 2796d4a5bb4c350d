# SPDX-License-Identifier: Apache-2.0
"""A clock that measures the seconds of each part of a round."""

from __future__ import annotations

import time

from phalanx.core.stack import Note

PARTS: tuple[str, ...] = ("encode_s", "wire_s", "decode_s")  # what a wire stage does, in this order
FORGING = "attack_s"  # the adversary's own, which no part of a round counts


class Clock:
    """Seconds since the last lap, as notes; of this process, wall time.

    On a GPU a lap that waits for nothing takes no time, and what it started counts towards the one that waits.
    """

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Ends a part: one of `PARTS`, or `FORGING`."""
        now = time.perf_counter()
        self.notes.append(Note("seconds", value=now - self._last, reason=part))
        self._last = now
