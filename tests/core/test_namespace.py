# SPDX-License-Identifier: Apache-2.0
"""Public names: every stub says what is there, and what is there is what the stub says."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import phalanx as px
from phalanx.core.namespace import read_stub
from phalanx.core.registry import _stubs
from tests.cases import each

NEEDS_FLOWER = r"^phalanx.integrations.flower needs Flower; pip install 'phalanx-train\[flower\]'$"
WITHOUT_FLOWER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "flwr":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""


def stubs() -> list[tuple[str, Path]]:
    """Every stub of the library and of the installed extensions, with the name of its package."""
    root = Path(px.__file__).parent
    found = []
    for stub in _stubs():
        folder = stub.parent
        inside = folder.relative_to(root.parent).parts if folder.is_relative_to(root) else (folder.name,)
        found.append((".".join(inside), stub))
    return found


def python(program: str) -> str:
    """What a program prints in a process of its own."""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_every_package_with_public_names_has_a_stub():
    assert {name for name, _ in stubs()} >= {
        "phalanx",
        "phalanx.aggregators",
        "phalanx.attacks",
        "phalanx.backdoors",
        "phalanx.codecs",
        "phalanx.coding",
        "phalanx.data",
        "phalanx.federated",
        "phalanx.lowrank",
        "phalanx.matching",
        "phalanx.models",
        "phalanx.training",
    }
    root = Path(px.__file__).parent
    # a stub deeper in the library would not be read by the registry
    assert {stub for _, stub in stubs() if stub.is_relative_to(root)} == set(root.rglob("__init__.pyi"))


@each(("package", "stub"), stubs)
def test_every_name_of_a_stub_is_there(package, stub):
    module = import_module(package)
    for name, target in read_stub(stub).items():
        if name == "flower" and find_spec("flwr") is None:
            with pytest.raises(ImportError, match=NEEDS_FLOWER):
                getattr(module, name)
            continue
        value = getattr(module, name)
        assert value is target.load(), name
        # the second look finds it without the stub
        assert vars(module)[name] is value, name


@each(("package", "stub"), stubs)
def test_all_of_a_stub_is_what_it_imports(package, stub):
    body = ast.parse(stub.read_text(encoding="utf-8")).body
    [listed] = [
        ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    ]
    imported = [alias for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname is not None for alias in imported), "an import without `as` is not public"
    assert set(listed) == {alias.asname for alias in imported}
    assert len(set(listed)) == len(listed) == len(imported)
    optional = {"flower"} if find_spec("flwr") is None else set()
    assert set(import_module(package).__all__) == set(listed) - optional


@each(("package", "stub"), stubs)
def test_dir_has_every_name(package, stub):
    assert set(dir(import_module(package))) >= set(read_stub(stub))


def test_a_module_does_not_take_the_place_of_a_public_name():
    program = """
import sys
import phalanx as px
import phalanx.aggregators.krum, phalanx.attacks.alie, phalanx.codecs.qsgd, phalanx.lowrank.factorize
import phalanx.core.transforms.clip
import phalanx.matching.match_models
assert isinstance(px.aggregators.krum, type) and px.aggregators.krum(f=1) == px.parse("krum(f=1)")
assert px.aggregators.krum is sys.modules["phalanx.aggregators.krum"].Krum
assert isinstance(px.attacks.alie, type) and isinstance(px.codecs.qsgd, type)
assert px.factorize is sys.modules["phalanx.lowrank.factorize"].factorize
assert px.clip is sys.modules["phalanx.core.transforms.clip"].Clip
assert px.match_models is sys.modules["phalanx.matching.match_models"].match_models
"""
    python(program)


@each(("package", "stub"), stubs)
def test_no_public_name_is_a_module_by_accident(package, stub):
    module = import_module(package)
    for name, target in read_stub(stub).items():
        if name == "flower" and find_spec("flwr") is None:
            continue
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            assert value.__name__ == ".".join(target), name


@each(
    ("module", "name", "hint"),
    [
        (px, "agregators", "; did you mean aggregators?"),
        (px.aggregators, "kurm", "; did you mean krum?"),
        (px.codecs, "topk", "; did you mean top_k?"),
        (px.models, "zzzzzz", ""),
        (px, "_private", ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(module, name, hint):
    with pytest.raises(AttributeError) as caught:
        getattr(module, name)
    assert str(caught.value) == f"module {module.__name__!r} has no attribute {name!r}{hint}"


def test_import_phalanx_imports_nothing_else():
    program = (
        "import sys, phalanx; print(*sorted(m for m in sys.modules if m.startswith('phalanx')), 'torch' in sys.modules)"
    )
    assert python(program).split() == ["phalanx", "phalanx.core", "phalanx.core.namespace", "False"]


def test_a_name_imports_its_own_module_only():
    program = """
import sys, phalanx as px
px.aggregators.krum
loaded = {m for m in sys.modules if m.startswith("phalanx.")}
assert "phalanx.aggregators.krum" in loaded
rooms = {"codecs", "attacks", "coding", "data", "models", "training", "federated", "integrations", "backdoors", "tools"}
assert not {m for m in loaded if m.split(".")[1] in rooms}, loaded
"""
    python(program)


@pytest.mark.slow
@each("before", ["", WITHOUT_FLOWER])
def test_star_imports_every_name(before):
    program = f"""{before}
from phalanx import *
import phalanx
assert aggregators.krum(f=1) == parse("krum(f=1)")
assert set(phalanx.__all__) <= set(globals())
print(*sorted(phalanx.__all__))
"""
    names = set(python(program).split())
    assert names >= set(read_stub(Path(px.__file__).with_suffix(".pyi"))) - {"flower"}
    assert not (before and "flower" in names)


def test_classes_keep_their_documentation():
    assert inspect.getdoc(px.aggregators.krum)
    assert str(inspect.signature(px.aggregators.krum)).startswith("(f:")
