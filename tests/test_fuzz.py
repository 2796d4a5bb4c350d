# SPDX-License-Identifier: Apache-2.0
"""Some of the hostile messages of tests/fuzz.py, with fixed seeds and with compiled loops that check their bounds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import attack, readers

READERS = readers()


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_hostile_bytes_are_refused_and_nothing_else_happens(reader):
    assert list(attack(reader, 150, seed=1)) == []


@pytest.mark.slow
def test_compiled_loops_stay_within_their_bounds(tmp_path):
    # compiled anew, into a folder of their own
    env = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.fuzz", "--messages", "12000", "--seed", "2", "--only", "decode"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
