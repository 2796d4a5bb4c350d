# SPDX-License-Identifier: Apache-2.0
"""The rules of this repository that ruff does not know: `python tests/lint/house.py` prints what breaks them.

Imports: a room (a package directly in `phalanx`) imports only from rooms before it in `ROOMS`, and no files import each
other in a circle. Imports inside functions and under TYPE_CHECKING count as well.

Prose: a docstring has at least three words and does not begin with one of `WEAK_STARTS`.

Calls: a dataclass of more than `MAX_POSITIONAL` fields is built with keywords, except for its first fields.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = {
    "phalanx": REPOSITORY / "src/phalanx",
    "phalanx_experiments": REPOSITORY / "experiments/phalanx_experiments",
}
# from the bottom to the top
ROOMS = (
    "core",
    "aggregators",
    "attacks",
    "data",
    "lowrank",
    "matching",
    "distributed",
    "codecs",
    "models",
    "coding",
    "training",
    "federated",
    "integrations",
    "backdoors",
    "tools",
)
MAX_ROOT_MODULES = 2  # beside __init__ and __main__
MIN_WORDS = 3
WEAK_STARTS = ("Of", "As", "Whom", "Whose")
MAX_POSITIONAL = 5

Trees = Mapping[str, ast.Module]  # the syntax tree of each module, by its name


def read_package(name: str, folder: Path) -> dict[str, ast.Module]:
    """The syntax trees of all modules of a package, by module name."""
    trees: dict[str, ast.Module] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = [name, *path.relative_to(folder).with_suffix("").parts]
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[module] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


def imports(trees: Trees) -> dict[str, dict[str, int]]:
    """For each module the modules of the same trees that it imports, each with the line of the import."""
    found: dict[str, dict[str, int]] = {}
    for module, tree in trees.items():
        targets = found.setdefault(module, {})
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                while name and name not in trees:
                    name = name.rpartition(".")[0]
                # everybody may import the package itself, whose names are loaded when they are used
                if "." in name and name != module:
                    targets.setdefault(name, node.lineno)
    return found


def check_rooms(graph: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Imports that go up, rooms that are not in ROOMS, and modules that stand in no room."""
    in_root = set()
    for module, targets in graph.items():
        room = room_of(module)
        if room is None:
            if module not in ("phalanx", "phalanx.__main__"):
                in_root.add(module)
            continue
        for target, line in targets.items():
            other = room_of(target)
            if other is None or ROOMS.index(other) > ROOMS.index(room):
                yield f"{module}:{line}: {room} may not import {target}"
    if len(in_root) > MAX_ROOT_MODULES:
        yield f"at most {MAX_ROOT_MODULES} modules stand in no room, and these do: {', '.join(sorted(in_root))}"


def room_of(module: str) -> str | None:
    """The room of a module of phalanx; None for a module that stands in none."""
    room = [*module.split("."), ""][1]
    return room if room in ROOMS else None


def check_circles(graph: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Modules that import each other in a circle, one circle for each call."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"these modules import each other in a circle: {' -> '.join(error.args[1][::-1])}"


def check_docstrings(trees: Trees) -> Iterator[str]:
    """Docstrings that are too short, or that are no sentence."""
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            words = (ast.get_docstring(node) or "").split()
            place = f"{module}:{getattr(node, 'lineno', 1)}"
            if words and len(words) < MIN_WORDS:
                yield f"{place}: a docstring of {len(words)} words: {' '.join(words)}"
            if words and words[0].rstrip(",:") in WEAK_STARTS:
                yield f"{place}: a docstring that begins with {words[0]}: {' '.join(words[:8])} ..."


def check_calls(trees: Trees) -> Iterator[str]:
    """Dataclasses with many fields that are built with many positional arguments."""
    num_fields: dict[str, int] = defaultdict(int)
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields = [x for x in node.body if isinstance(x, ast.AnnAssign) and "ClassVar" not in ast.unparse(x)]
                num_fields[node.name] = max(num_fields[node.name], len(fields))
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            if num_fields.get(name, 0) > MAX_POSITIONAL and len(node.args) > MAX_POSITIONAL:
                yield f"{module}:{node.lineno}: {name} has {num_fields[name]} fields; build it with keywords"


def main() -> int:
    """Prints all that breaks a rule; the exit code says whether something does."""
    trees = {name: read_package(name, folder) for name, folder in PACKAGES.items()}
    everything = {**trees["phalanx"], **trees["phalanx_experiments"]}
    graph = imports(everything)
    library = {module: targets for module, targets in graph.items() if module in trees["phalanx"]}
    complaints = [*check_rooms(library), *check_circles(graph), *check_docstrings(everything), *check_calls(everything)]
    print("\n".join(complaints or ["the house is in order"]))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
