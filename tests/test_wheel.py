# SPDX-License-Identifier: Apache-2.0
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import phalanx as px

ROOT = Path(__file__).parents[1]
EXTRAS = {"flower", "hf", "images", "plots", "tensorboard", "translation", "dev"}


def files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))))


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    source = ROOT / "src" / "phalanx"
    wanted = {
        f"phalanx/{path.relative_to(source)}": path
        for path in source.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".nbi", ".nbc")
    }
    results = ROOT / "results"
    wanted |= {f"phalanx/reproduce/results/{p.relative_to(results)}": p for p in results.rglob("*.json")}
    assert {"phalanx/py.typed", "phalanx/report/page.css"} < wanted.keys()
    assert "phalanx/reproduce/results/quickstart/results.json" in wanted
    about = f"phalanx_train-{px.__version__}.dist-info/"
    found = files(wheel)
    assert {name for name in found if not name.startswith(about)} == wanted.keys()
    assert all(found[name] == path.read_bytes() for name, path in wanted.items())
    assert found[f"{about}entry_points.txt"].decode() == "[console_scripts]\nphalanx = phalanx.tools.cli.app:main\n"
    assert f"{about}licenses/LICENSE" in found


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    text = files(wheel)[f"phalanx_train-{px.__version__}.dist-info/METADATA"].decode()
    about = Parser().parsestr(text)
    needs = about.get_all("Requires-Dist") or []
    assert about["Metadata-Version"] == "2.4"
    assert about["Requires-Python"] == ">=3.11" and about["License-Expression"] == "Apache-2.0"
    assert set(about.get_all("Provides-Extra") or []) >= EXTRAS
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} < set(
        about.get_all("Classifier") or []
    )
    core = [need for need in needs if "extra ==" not in need]
    optional = ("matplotlib", "tensorboard", "transformers", "flwr", "pillow", "sacrebleu")
    assert any(need.startswith("torch") for need in core)
    assert not [need for need in core if need.startswith(optional)]


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    source = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path)))
    with tarfile.open(source) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "unpacked", filter="data")
    (inside,) = (tmp_path / "unpacked").iterdir()
    again = Path(next(WheelBuilder(str(inside)).build(directory=str(tmp_path / "again"))))
    assert again.read_bytes() == wheel.read_bytes()
    for file in ("tests/test_wheel.py", "benchmarks/codecs.py", "docs/pattern.md", "SECURITY.md", "Makefile"):
        assert f"{inside.name}/{file}" in names


def test_an_editable_installation_points_to_the_source(tmp_path: Path) -> None:
    made = Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["editable"])))
    (place,) = [text.decode() for name, text in files(made).items() if name.endswith(".pth")]
    assert place.strip() == str(ROOT / "src")
