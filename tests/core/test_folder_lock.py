# SPDX-License-Identifier: Apache-2.0
"""A folder's lock: who comes second waits, or is refused."""

import threading

import pytest

from phalanx.core.folder_lock import folder_lock


def test_who_comes_second_waits_until_the_first_has_left(tmp_path):
    said, entered, asked = [], threading.Event(), threading.Event()

    def second():
        with folder_lock(tmp_path, on_wait=lambda words: (said.append(words), asked.set())):
            entered.set()

    with folder_lock(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert asked.wait(60) and not entered.is_set()
    waiting.join()
    assert entered.is_set() and said == [f"waiting for another process to leave {tmp_path}"]


def test_whose_patience_ends_is_refused(tmp_path):
    with (
        folder_lock(tmp_path),
        pytest.raises(ValueError, match="is being run by another process"),
        folder_lock(tmp_path, 0.0),
    ):
        pass
    with folder_lock(tmp_path, 0.0):
        pass
