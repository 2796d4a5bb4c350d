# SPDX-License-Identifier: Apache-2.0
"""The compiled loops are vectors on processors with AVX2, with AVX-512 and on Arm, not only on this one."""

import json
import os
import subprocess
import sys

import pytest

# loops in which each step needs the last one, or that look up places: no processor does several values at once
SEQUENTIAL = {
    "sweeps.iterated_choice",
    "adding_kernels.add_entries",
    "adding_kernels.ends_in_zeros",
    "adding_kernels.packed_bytes",
    "quantizer_kernels.factor_of",
    "quantizer_kernels.random_bits",
    "quantizer_kernels.subset",
    "selection_kernels._mask",
    "selection_kernels.candidates",
    "selection_kernels.each_in_its_run",
    "selection_kernels.kth_largest",
    "selection_kernels.largest_of_chunks",
    "selection_kernels.sample",
    "selection_kernels.take",
    "bit_streams._bits",
    "bit_streams._fill",
    "bit_streams._put",
    "bit_streams.elias",
    "bit_streams.rice",
    "bit_streams.unelias",
    "bit_streams.unrice",
    "field_kernels._add",
}
COPIES = {"sweeps._load"}  # they have no instruction but loads and stores
LEAST = 4  # wide instructions of a loop


@pytest.mark.slow
def test_every_loop_that_can_be_is_a_vector_on_every_processor():
    # the names of the processor that the tests run with are not those that are asked here
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    command = [sys.executable, "-m", "tests.machine_code"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    survey = json.loads(done.stdout)
    assert {"sweeps.middle_mean", "quantizer_kernels.quantize", "field_kernels.project"} <= set(survey)
    scalar = {
        f"{name} on {target}": counts["wide"]
        for name, targets in survey.items()
        for target, counts in targets.items()
        if name not in SEQUENTIAL | COPIES and counts["wide"] < LEAST
    }
    assert not scalar, f"loops that take one value at a time: {scalar}"
    narrow = {name for name in COPIES if not all(counts["loads"] for counts in survey[name].values())}
    assert not narrow, f"copies of one value at a time: {narrow}"
    masked = {f"{name} on {target}" for name, t in survey.items() for target, counts in t.items() if counts["masked"]}
    assert not masked, f"stores under a mask, which are slow without AVX-512: {masked}"
    wrong = {name for name in SEQUENTIAL & set(survey) if min(c["wide"] for c in survey[name].values()) >= 8}
    assert not wrong, f"these are vectors after all: {wrong}"
