# SPDX-License-Identifier: Apache-2.0
"""Mutation testing, outside CI: `python -m tests.mutants --count 400 --jobs 2 --out mutants.json`.

A mutant is the library with one small change: a comparison, an operator, a number or a condition. The tests of its room
run until the first failure, those that are named after the changed file first. What survives is listed with its line,
to be read one by one: it shows a missing test or is no change at all. Started again with the same --out, it goes on.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[1]
# rooms whose mathematics the tests hold, and the tests that hold it
ROOMS = {
    "codecs": ("tests/codecs", "tests/test_laws_codecs.py"),
    "aggregators": ("tests/aggregators", "tests/test_laws.py"),
    "coding": ("tests/coding", "tests/test_laws.py"),
    "matching": ("tests/matching",),
    "lowrank": ("tests/lowrank",),
    "federated": ("tests/federated",),
}
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
LIMIT = 300  # seconds of the tests of a mutant; one that hangs is killed


class Mutator(ast.NodeTransformer):
    """Changes the place of a given number; without one it only counts the places."""

    def __init__(self, place: int = -1) -> None:
        self.place, self.count = place, 0
        self.line, self.change = 0, ""

    def _here(self, node: ast.AST, change: str) -> bool:
        hit = self.count == self.place
        self.count += 1
        if hit:
            self.line, self.change = getattr(node, "lineno", 0), change
        return hit

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        kind = type(node.ops[0])
        if kind in COMPARISONS and self._here(node, f"{kind.__name__} -> {COMPARISONS[kind].__name__}"):
            node.ops[0] = COMPARISONS[kind]()
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        kind = type(node.op)
        text = isinstance(node.left, ast.Constant | ast.JoinedStr) and not _is_number(node.left)
        if kind in OPERATORS and not text and self._here(node, f"{kind.__name__} -> {OPERATORS[kind].__name__}"):
            node.op = OPERATORS[kind]()
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        if self._here(node, "and <-> or"):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not | ast.USub) and self._here(node, f"{type(node.op).__name__} dropped"):
            return node.operand
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if _is_number(node) and self._here(node, f"{node.value} -> {node.value + 1}"):
            return ast.copy_location(ast.Constant(node.value + 1), node)
        if isinstance(node.value, bool) and self._here(node, f"{node.value} -> {not node.value}"):
            return ast.copy_location(ast.Constant(not node.value), node)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if self._here(node, "if -> if not"):
            node.test = ast.UnaryOp(ast.Not(), node.test)
        return node

    def _visit_function(self, node: ast.FunctionDef) -> ast.AST:
        # defaults of fields and arguments are configuration, not mathematics
        node.body = [self.visit(statement) for statement in node.body]
        return node

    visit_FunctionDef = _visit_function

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [self.visit(part) if isinstance(part, ast.FunctionDef) else part for part in node.body]
        return node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        node.body = [self.visit(p) if isinstance(p, ast.FunctionDef | ast.ClassDef) else p for p in node.body]
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        # zip's check of equal lengths changes nothing where they are equal
        if node.arg != "strict":
            self.generic_visit(node)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return node


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def places(room: str) -> Iterator[tuple[str, Path, int]]:
    """Every place of a room where a mutant can be made: its room, its file and its number."""
    for path in sorted((ROOT / "src/phalanx" / room).rglob("*.py")):
        counter = Mutator()
        counter.visit(ast.parse(path.read_text(encoding="utf-8")))
        yield from ((room, path.relative_to(ROOT), place) for place in range(counter.count))


def test_files(room: str, path: Path) -> list[str]:
    """The files of a room's tests, those that are most likely to see a change of this file first."""
    files = [
        file
        for place in ROOMS[room]
        for file in (sorted((ROOT / place).rglob("test_*.py")) if (ROOT / place).is_dir() else [ROOT / place])
    ]
    stem = path.stem.removesuffix("_kernels") or room
    return [str(file.relative_to(ROOT)) for file in sorted(files, key=lambda file: stem not in file.stem)]


def run_tests(copy: Path, room: str, path: Path) -> str:
    """The outcome of a room's tests against the sources of a copy: passed, failed or hung.

    They run in a fork of this process, which has imported the slow packages and nothing of the library.
    """
    child = os.fork()
    if not child:
        os.setsid()
        _become_tests(copy, room, path)
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "passed" if status == 0 else "failed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def _become_tests(copy: Path, room: str, path: Path) -> NoReturn:
    """Runs the tests in this process and ends it."""
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        paths = [str(copy / "src"), str(ROOT), str(ROOT / "experiments")]
        os.environ |= {
            "PYTHONPATH": ":".join(paths),
            "PHALANX_TEST_PROFILE": os.environ.get("PHALANX_TEST_PROFILE", "quick"),
            "NUMBA_CACHE_DIR": str(copy / "numba"),
            "OMP_NUM_THREADS": "1",
        }
        sys.path[:0] = paths
        os.chdir(ROOT)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-n", "0", "-m", "not slow and not processes"]
        code = int(pytest.main([*options, *test_files(room, path)]))
    finally:
        os._exit(code)


def try_mutant(copy: Path, room: str, path: Path, place: int) -> dict[str, object]:
    """Makes a mutant in a copy of the sources, runs the room's tests and takes it back."""
    source = (ROOT / path).read_text(encoding="utf-8")
    mutator = Mutator(place)
    tree = ast.fix_missing_locations(mutator.visit(ast.parse(source)))
    target = copy / path
    target.write_text(ast.unparse(tree), encoding="utf-8")
    try:
        outcome = run_tests(copy, room, path)
    finally:
        target.write_text(source, encoding="utf-8")
    line = source.splitlines()[mutator.line - 1].strip() if mutator.line else ""
    return {"file": str(path), "line": mutator.line, "change": mutator.change, "code": line, "outcome": outcome}


def run_share(drawn: list[tuple[str, Path, int]], done: dict[str, Any], out: Path) -> None:
    """Tries mutants one after the other, and writes each result to a line of a file."""
    for name in ("torch", "numba", "scipy", "sklearn"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "src", copy / "src")
        for room in sorted({room for room, _, _ in drawn}):
            outcome = run_tests(copy, room, Path())
            if outcome != "passed":
                raise SystemExit(f"the tests of {room} end as {outcome!r} without any mutant; mend them first")
            print(f"without a mutant the tests of {room} pass", flush=True)
        for room, path, place in drawn:
            key = f"{path}#{place}"
            if key in done:
                continue
            result = {"key": key, **try_mutant(copy, room, path, place)}
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{result['outcome']}  {result['file']}:{result['line']}  {result['change']}", flush=True)


def main() -> None:
    """Draws mutants, runs them and prints what survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), choices=list(ROOMS))
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="a line for each mutant")
    options = parser.parse_args()
    every = [place for room in options.rooms for place in places(room)]
    drawn = random.Random(options.seed).sample(every, min(options.count, len(every)))
    shares = [
        multiprocessing.Process(target=run_share, args=(drawn[job :: options.jobs], _read(options.out), options.out))
        for job in range(options.jobs)
    ]
    for share in shares:
        share.start()
    for share in shares:
        share.join()
    if any(share.exitcode for share in shares):
        raise SystemExit(1)
    results = list(_read(options.out).values())
    killed = sum(result["outcome"] != "passed" for result in results)
    print(f"{killed} of {len(results)} mutants killed ({killed / max(1, len(results)):.0%}); survivors:")
    for result in results:
        if result["outcome"] == "passed":
            print(f"  {result['file']}:{result['line']}  {result['change']}  |  {result['code']}")


def _read(out: Path) -> dict[str, Any]:
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return {result["key"]: result for result in map(json.loads, lines)}


if __name__ == "__main__":
    main()
