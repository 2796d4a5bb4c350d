# SPDX-License-Identifier: Apache-2.0
"""The distributions of the library and of the experiments: what is in them, and what they ask for."""

import configparser
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import phalanx as px

ROOT = Path(__file__).parents[1]
PROJECTS = {"phalanx_train": ROOT, "phalanx_experiments": ROOT / "experiments"}
EXTRAS = {"flower", "hf", "images", "plots", "tensorboard", "translation", "dev"}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def about(project: str) -> str:
    """The folder of a wheel that describes it."""
    return f"{project}-{px.__version__}.dist-info/"


def sources(folder: Path, package: str) -> dict[str, Path]:
    """The files of a package, by their names in a wheel."""
    return {
        f"{package}/{path.relative_to(folder)}": path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".nbi", ".nbc")
    }


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dist")
    return {
        project: Path(next(WheelBuilder(str(root)).build(directory=str(folder)))) for project, root in PROJECTS.items()
    }


@pytest.fixture(scope="module")
def metadata(wheels: dict[str, Path]) -> dict[str, Message]:
    return {
        project: Parser().parsestr(contents(wheel)[f"{about(project)}METADATA"].decode())
        for project, wheel in wheels.items()
    }


def entry_points(wheel: Path, project: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser()
    parser.read_string(contents(wheel)[f"{about(project)}entry_points.txt"].decode())
    return {section: dict(parser[section]) for section in parser.sections()}


@pytest.mark.parametrize("project", PROJECTS)
def test_a_wheel_has_every_file_of_its_package(project: str, wheels: dict[str, Path]) -> None:
    if project == "phalanx_train":
        wanted = sources(ROOT / "src" / "phalanx", "phalanx")
        assert {"phalanx/py.typed", "phalanx/tools/report/page.css", "phalanx/codecs/__init__.pyi"} < wanted.keys()
    else:
        wanted = sources(ROOT / "experiments" / "phalanx_experiments", project)
        results = ROOT / "experiments" / "results"
        wanted |= {f"{project}/results/{p.relative_to(results)}": p for p in results.rglob("*.json")}
        assert {f"{project}/__init__.pyi", f"{project}/results/quickstart/results.json"} < wanted.keys()
    packed = contents(wheels[project])
    assert {name for name in packed if not name.startswith(about(project))} == wanted.keys()
    assert all(packed[name] == path.read_bytes() for name, path in wanted.items())
    assert f"{about(project)}licenses/LICENSE" in packed


def test_commands_and_recipes_are_found_by_entry_points(wheels: dict[str, Path]) -> None:
    assert entry_points(wheels["phalanx_train"], "phalanx_train") == {
        "console_scripts": {"phalanx": "phalanx.tools.cli.app:main"},
        "phalanx.recipes": {"quickstart": "phalanx.tools.runner.quickstart"},
    }
    assert entry_points(wheels["phalanx_experiments"], "phalanx_experiments") == {
        "phalanx.methods": {"dissertation": "phalanx_experiments"},
        "phalanx.recipes": {"dissertation": "phalanx_experiments.recipes"},
        "phalanx.commands": {"reproduce": "phalanx_experiments.reproduce.command:reproduce"},
    }


def test_the_wheel_says_what_it_needs(metadata: dict[str, Message]) -> None:
    library = metadata["phalanx_train"]
    needs = library.get_all("Requires-Dist") or []
    assert library["Metadata-Version"] == "2.4"
    assert library["Requires-Python"] == ">=3.11" and library["License-Expression"] == "Apache-2.0"
    assert set(library.get_all("Provides-Extra") or []) >= EXTRAS
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} < set(
        library.get_all("Classifier") or []
    )
    core = [need for need in needs if "extra ==" not in need]
    optional = ("matplotlib", "tensorboard", "transformers", "flwr", "pillow", "sacrebleu", "phalanx")
    assert any(need.startswith("torch") for need in core)
    assert not [need for need in core if need.startswith(optional)]


def test_the_experiments_need_the_library_of_their_version(metadata: dict[str, Message]) -> None:
    experiments = metadata["phalanx_experiments"]
    assert experiments["Version"] == metadata["phalanx_train"]["Version"] == px.__version__
    assert "phalanx-train" in (experiments.get_all("Requires-Dist") or [])
    assert experiments["License-Expression"] == "Apache-2.0"


@pytest.mark.parametrize(
    ("project", "files"),
    [
        (
            "phalanx_train",
            ("tests/test_wheel.py", "benchmarks/codecs.py", "docs/pattern.md", "SECURITY.md", "Makefile"),
        ),
        ("phalanx_experiments", ("tests/test_recipes.py", "results/README.md", "README.md")),
    ],
)
def test_a_source_distribution_builds_the_same_wheel(
    project: str, files: tuple[str, ...], wheels: dict[str, Path], tmp_path: Path
) -> None:
    source = next(SdistBuilder(str(PROJECTS[project])).build(directory=str(tmp_path)))
    with tarfile.open(source) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "unpacked", filter="data")
    (inside,) = (tmp_path / "unpacked").iterdir()
    again = Path(next(WheelBuilder(str(inside)).build(directory=str(tmp_path / "again"))))
    assert again.read_bytes() == wheels[project].read_bytes()
    for file in files:
        assert f"{inside.name}/{file}" in names


@pytest.mark.parametrize(("project", "folder"), [("phalanx_train", "src"), ("phalanx_experiments", "experiments")])
def test_an_editable_installation_points_to_the_source(project: str, folder: str, tmp_path: Path) -> None:
    wheel = Path(next(WheelBuilder(str(PROJECTS[project])).build(directory=str(tmp_path), versions=["editable"])))
    (path,) = [text.decode() for name, text in contents(wheel).items() if name.endswith(".pth")]
    assert path.strip() == str(ROOT / folder)
