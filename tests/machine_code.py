# SPDX-License-Identifier: Apache-2.0
"""Which vector instructions the compiled loops become on other processors: `python -m tests.machine_code`.

Numba writes each loop as LLVM's code without optimising it. LLVM then compiles that for a processor with AVX2, for one
with AVX-512 and for an Arm processor, as Numba would there, and the instructions are counted.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

MODULES = (
    "phalanx.aggregators.kernels.sweeps",
    "phalanx.codecs.adding_kernels",
    "phalanx.codecs.quantizer_kernels",
    "phalanx.codecs.selection_kernels",
    "phalanx.codecs.bit_streams",
    "phalanx.coding.field_kernels",
)
TARGETS = {
    "avx2": ("x86_64-unknown-linux-gnu", "x86-64-v3"),
    "avx512": ("x86_64-unknown-linux-gnu", "x86-64-v4"),
    "neon": ("aarch64-unknown-linux-gnu", "neoverse-n1"),
}
# instructions on several values at once, and stores under a mask, which are slow on many processors with AVX2
_WIDE = {
    "avx2": r"\bv(?!mov|insert|extract|perm|broadcast|pbroadcast|zeroupper)\w+\s+.*ymm",
    "avx512": r"\bv(?!mov|insert|extract|perm|broadcast|pbroadcast|zeroupper)\w+\s+.*[yz]mm",
    "neon": r"\b(?!mov|dup|ins|umov|ldr|str|ldp|stp)\w+\s+v\d+\.(?:4s|2d|8h|16b|4h|2s)",
}
# loads of several values at once, relative to a register and a running index where the loop is not unrolled
_LOADS = {
    "avx2": r"\bvmov\w+\s+[-\d]*\(%\w+,%\w+,\d\), %ymm",
    "avx512": r"\bvmov\w+\s+[-\d]*\(%\w+,%\w+,\d\), %[yz]mm",
    "neon": r"\bldp\s+q\d+, q\d+",
}
_MASKED = {"avx2": r"vp?maskmov\w+\s+%ymm\d+, %ymm\d+, \(?[^%]*", "avx512": r"(?!)", "neon": r"(?!)"}


def exercise() -> None:
    """Calls every loop once, so that it has the types of its arguments."""
    import torch

    import phalanx as px

    row = torch.randn(9000)
    for text in (
        "qsgd(bits=4)",
        "qsgd(bits=4, coding='elias')",
        "terngrad()",
        "lq(q=1.5)",
        "sign()",
        "stochastic_binary()",
        "top_k(0.01)",
        "top_k(1/64, chunk=4096, values=2)",
        "random_k(0.01)",
    ):
        codec = px.parse(text)
        px.decode(codec, px.encode(codec, row, seed=0))
        rule = "majority()" if text == "sign()" else "mean()"
        px.parse(f"chain(gather({text}), {rule})").aggregate(torch.randn(4, 9000))
    px.parse("chain(cyclic(s=1), mean())").aggregate(torch.randn(5, 9000))
    for rule in (px.aggregators.median(), px.aggregators.bulyan(f=1), px.aggregators.krum(f=1)):
        rule.aggregate(torch.randn(9, 9000))


def loops() -> Iterator[tuple[str, Any, Any]]:
    """Name, function and argument types of every loop that was called."""
    from numba.core.registry import CPUDispatcher

    for module in MODULES:
        for name, found in sorted(vars(importlib.import_module(module)).items()):
            if isinstance(found, CPUDispatcher) and found.py_func.__module__ == module:
                for signature in found.signatures:
                    yield f"{module.rpartition('.')[2]}.{name}", found, signature


def unoptimised(function: Any, signature: Any) -> str:
    """LLVM's code of a loop."""
    from numba import njit

    options = {
        key: value for key, value in function.targetoptions.items() if key in ("nogil", "error_model", "fastmath")
    }
    made = njit(**options)(function.py_func)
    made.compile(signature)
    return next(iter(made.inspect_llvm().values()))


def assembly(code: str, triple: str, cpu: str) -> str:
    """The machine code of a loop on another processor."""
    import llvmlite.binding as llvm

    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features="", opt=3)
    code = re.sub(r'target triple = ".*"', f'target triple = "{triple}"', code)
    code = re.sub(r'target datalayout = ".*"', f'target datalayout = "{machine.target_data}"', code)
    code = re.sub(r'"target-(cpu|features)"="[^"]*"', "", code)
    module = llvm.parse_assembly(code)
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_interleaving = tuning.loop_unrolling = True
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_assembly(module)


def survey() -> dict[str, dict[str, dict[str, int]]]:
    """By loop and processor, the numbers of wide instructions, of wide loads and of stores under a mask."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name, function, signature in loops():
        code = unoptimised(function, signature)
        for target, (triple, cpu) in TARGETS.items():
            lines = assembly(code, triple, cpu)
            counts = {
                "wide": len(re.findall(_WIDE[target], lines)),
                "loads": len(re.findall(_LOADS[target], lines)),
                "masked": len(re.findall(_MASKED[target], lines)),
            }
            found.setdefault(name, {})[target] = counts
    return found


def main() -> None:
    """Prints the survey as JSON."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        # Numba optimises nothing by itself, and what it makes so is kept nowhere
        os.environ |= {"NUMBA_OPT": "0", "NUMBA_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
        exercise()
        json.dump(survey(), sys.stdout)


if __name__ == "__main__":
    main()
