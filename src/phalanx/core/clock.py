# SPDX-License-Identifier: Apache-2.0
"""A clock that measures the seconds of each part of a round."""

from __future__ import annotations

import time

from phalanx.core.stack import Note

PARTS: tuple[str, ...] = ("encode_s", "wire_s", "decode_s")  # what a wire stage does, in this order
FORGING = "attack_s"  # time of the attack, which counts towards no part of a round


class Clock:
    """Measures the wall time of this process in laps, and keeps each lap as a note.

    On a GPU a lap that does not wait for its kernels takes almost no time; they count towards the lap that waits.
    """

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Ends a lap and notes its seconds under `part`: one of `PARTS`, or `FORGING`."""
        now = time.perf_counter()
        self.notes.append(Note("seconds", value=now - self._last, reason=part))
        self._last = now
