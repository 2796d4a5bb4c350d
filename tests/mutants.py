# SPDX-License-Identifier: Apache-2.0
"""Mutation testing, outside CI: `python -m tests.mutants --count 400 --jobs 2 --out mutants.json`.

A mutant is the library with one small change: a comparison, an operator, a number or a condition. The tests of its room
A mutant is the library with one small change: a comparison, an operator, a number or a condition. The tests of its room
tests run until the first failure. What survives is listed with its line, to be read one by one: it shows a missing test
or is no change at all.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

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


def run_tests(copy: Path, room: str) -> str:
    """The outcome of a room's tests against the sources of a copy: passed, failed or hung."""
    env = os.environ | {
        "PYTHONPATH": f"{copy / 'src'}:{ROOT}:{ROOT / 'experiments'}",
        "PHALANX_TEST_PROFILE": os.environ.get("PHALANX_TEST_PROFILE", "quick"),
        "NUMBA_CACHE_DIR": str(copy / "numba"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not processes"]
    try:
        done = subprocess.run([*command, *ROOMS[room]], cwd=ROOT, env=env, capture_output=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return "hung"
    return "passed" if done.returncode == 0 else "failed"


def try_mutant(copy: Path, room: str, path: Path, place: int) -> dict[str, object]:
    """Makes a mutant in a copy of the sources, runs the room's tests and takes it back."""
    source = (ROOT / path).read_text(encoding="utf-8")
    mutator = Mutator(place)
    tree = ast.fix_missing_locations(mutator.visit(ast.parse(source)))
    target = copy / path
    target.write_text(ast.unparse(tree), encoding="utf-8")
    try:
        outcome = run_tests(copy, room)
    finally:
        target.write_text(source, encoding="utf-8")
    line = source.splitlines()[mutator.line - 1].strip() if mutator.line else ""
    return {"file": str(path), "line": mutator.line, "change": mutator.change, "code": line, "outcome": outcome}


def main() -> None:
    """Draws mutants, runs them and prints what survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), choices=list(ROOMS))
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    options = parser.parse_args()
    every = [place for room in options.rooms for place in places(room)]
    drawn = random.Random(options.seed).sample(every, min(options.count, len(every)))
    copies: Queue[Path] = Queue()
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for job in range(options.jobs):
            copy = Path(folder) / str(job)
            shutil.copytree(ROOT / "src", copy / "src")
            copies.put(copy)

        def work(item: tuple[str, Path, int]) -> None:
            copy = copies.get()
            try:
                results.append(try_mutant(copy, *item))
            finally:
                copies.put(copy)
            last = results[-1]
            print(f"[{len(results)}/{len(drawn)}] {last['outcome']}  {last['file']}:{last['line']}  {last['change']}")
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(work, drawn))
    killed = sum(result["outcome"] != "passed" for result in results)
    print(f"{killed} of {len(results)} mutants killed ({killed / max(1, len(results)):.0%}); survivors:")
    for result in results:
        if result["outcome"] == "passed":
            print(f"  {result['file']}:{result['line']}  {result['change']}  |  {result['code']}")


if __name__ == "__main__":
    main()
