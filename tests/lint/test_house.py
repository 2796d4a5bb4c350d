# SPDX-License-Identifier: Apache-2.0
"""What tests/lint/house.py finds, on packages that break one rule each."""

from textwrap import dedent

import pytest

from tests.lint import house


def read(tmp_path, files):
    """The syntax trees of a package of these files."""
    for path, text in files.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text), encoding="utf-8")
    return house.read_package("phalanx", tmp_path)


def complaints(trees):
    graph = house.imports(trees)
    return [
        *house.check_rooms(graph),
        *house.check_circles(graph),
        *house.check_docstrings(trees),
        *house.check_calls(trees),
    ]


def test_this_repository_is_in_order(capsys):
    assert house.main() == 0
    assert capsys.readouterr().out == "the house is in order\n"


def test_a_package_in_order_has_no_complaints(tmp_path):
    files = {
        "__init__.py": "",
        "core/__init__.py": "",
        "core/a.py": '"""Three words here."""\nimport phalanx',
        "codecs/b.py": "from phalanx.core.a import x\nfrom phalanx.core import a",
        "tools/c.py": "def f():\n    import phalanx.codecs.b",
    }
    assert complaints(read(tmp_path, files)) == []


@pytest.mark.parametrize(
    "text",
    [
        "from phalanx.tools.top import x",
        "from phalanx.tools import top",
        "import phalanx.tools.top",
        "def f():\n    from phalanx.tools.top import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from phalanx.tools.top import x",
    ],
    ids=["from module", "from room", "import", "in a function", "for types"],
)
def test_an_import_that_goes_up(tmp_path, text):
    trees = read(tmp_path, {"core/low.py": text, "tools/top.py": "x = 1", "tools/__init__.py": ""})
    (complaint,) = complaints(trees)
    assert complaint.startswith("phalanx.core.low:") and complaint.endswith("core may not import phalanx.tools.top")


def test_a_room_imports_no_module_of_the_root(tmp_path):
    trees = read(tmp_path, {"core/low.py": "from phalanx.loose import x", "loose.py": "x = 1"})
    assert complaints(trees) == ["phalanx.core.low:1: core may not import phalanx.loose"]


def test_two_rooms_that_import_each_other(tmp_path):
    files = {"core/a.py": "", "core/b.py": "import phalanx.data.c", "data/c.py": "import phalanx.core.a"}
    assert complaints(read(tmp_path, files)) == ["phalanx.core.b:1: core may not import phalanx.data.c"]


@pytest.mark.parametrize("typing_only", [False, True])
def test_a_circle_of_files_in_one_room(tmp_path, typing_only):
    back = "from phalanx.core.a import x"
    back = f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {back}" if typing_only else back
    files = {"core/a.py": "import phalanx.core.b", "core/b.py": "import phalanx.core.c", "core/c.py": back}
    (complaint,) = complaints(read(tmp_path, files))
    assert complaint.startswith("these modules import each other in a circle: ")
    assert all(f"phalanx.core.{name}" in complaint for name in "abc")


def test_more_modules_in_the_root_than_allowed(tmp_path):
    files = {f"{name}.py": "" for name in ("__init__", "__main__", "one", "two")}
    assert complaints(read(tmp_path, files)) == []
    (complaint,) = complaints(read(tmp_path, {"three.py": ""}))
    assert complaint.endswith("and these do: phalanx.one, phalanx.three, phalanx.two")


def test_a_package_that_is_no_room_counts_as_modules_of_the_root(tmp_path):
    trees = read(tmp_path, {f"attic/{name}.py": "" for name in "abc"})
    (complaint,) = complaints(trees)
    assert "phalanx.attic.a, phalanx.attic.b, phalanx.attic.c" in complaint


@pytest.mark.parametrize(
    ("docstring", "words"),
    [
        ("Too short.", "a docstring of 2 words"),
        ("Of the rows, the mean.", "begins with Of"),
        ("As the gate says so.", "begins with As"),
        ("Whose row it is now.", "begins with Whose"),
        ("Whom the gate let in.", "begins with Whom"),
    ],
)
def test_docstrings_that_are_no_sentences(tmp_path, docstring, words):
    texts = [
        f'"""{docstring}"""',
        f'def f():\n    """{docstring}"""',
        f'async def f():\n    """{docstring}"""',
        f'class C:\n    """{docstring}"""',
    ]
    trees = read(tmp_path, {f"core/m{i}.py": text for i, text in enumerate(texts)})
    found = complaints(trees)
    assert len(found) == len(texts) and all(words in complaint for complaint in found)


def test_a_wide_dataclass_is_built_with_keywords(tmp_path):
    fields = "\n".join(f"    f{i}: int" for i in range(6))
    head = "from dataclasses import dataclass\nfrom typing import ClassVar\n"
    wide = f"{head}@dataclass(frozen=True)\nclass Wide:\n{fields}\n"
    calls = "Wide(1, 2, 3, 4, 5, 6)\nWide(1, 2, 3, 4, 5, f5=6)\n"
    narrow = wide.replace("class Wide", "class Narrow").replace("f5: int", "f5: ClassVar[int] = 1")
    files = {"core/wide.py": wide + calls, "core/narrow.py": narrow + "Narrow(1, 2, 3, 4, 5, 6)"}
    assert complaints(read(tmp_path, files)) == ["phalanx.core.wide:11: Wide has 6 fields; build it with keywords"]
    (tmp_path / "core/other.py").write_text("import phalanx.core.wide\nphalanx.core.wide.Wide(1, 2, 3, 4, 5, 6)\n")
    assert "phalanx.core.other:2: Wide has 6 fields; build it with keywords" in complaints(read(tmp_path, {}))
