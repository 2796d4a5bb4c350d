# SPDX-License-Identifier: Apache-2.0
"""A folder's lock: who comes second waits, or is refused."""

import threading

import pytest

from phalanx.core.folder_lock import held


def test_who_comes_second_waits_until_the_first_has_left(tmp_path):
    said, entered, asked = [], threading.Event(), threading.Event()

    def second():
        with held(tmp_path, told=lambda words: (said.append(words), asked.set())):
            entered.set()

    with held(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert asked.wait(60) and not entered.is_set()
    waiting.join()
    assert entered.is_set() and said == [f"waiting for another process to leave {tmp_path}"]


def test_whose_patience_ends_is_refused(tmp_path):
    with held(tmp_path), pytest.raises(ValueError, match="is being run by another process"), held(tmp_path, 0.0):
        pass
    with held(tmp_path, 0.0):
        pass
