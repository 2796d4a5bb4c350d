# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phalanx.core.optional import MissingPackage, optional
from phalanx.tools.cli.app import app

TINY = ("--only", "mean", "--set", "rounds=1", "--set", "model=mlp(hidden=())", "--set", "work.batch=30")
OPTIONAL = ("matplotlib", "tensorboard", "transformers", "flwr", "PIL", "sacrebleu")
BARE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import phalanx.tools.cli.app
phalanx.tools.cli.app.main()
"""


def bare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process where no optional package can be imported."""
    command = [sys.executable, "-c", BARE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_a_run_needs_no_optional_package(tmp_path: Path) -> None:
    ended = bare(tmp_path, "run", "quickstart", *TINY, "--out", "study")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("a plot needs matplotlib; pip install 'phalanx-train[plots]'\n") == 1
    assert "mean" in ended.stdout and "plot " not in ended.stdout
    assert {p.name for p in (tmp_path / "study").iterdir()} == {"study.json", "lock", "mean", "summary.json"}


@pytest.mark.parametrize(
    ("absent", "arguments", "sentence"),
    [
        (
            "torch.utils.tensorboard",
            ("run", "quickstart", "--tensorboard"),
            "writing events needs TensorBoard; pip install 'phalanx-train[tensorboard]'",
        ),
        (
            "matplotlib.backends.backend_agg",
            ("compare", "study", "--plot", "all.png"),
            "a plot needs matplotlib; pip install 'phalanx-train[plots]'",
        ),
    ],
)
def test_what_is_asked_for_and_missing_is_named(
    absent: str, arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(app, ["run", "quickstart", *TINY, "--out", "study"])
    assert made.exit_code == 0, made.stderr
    monkeypatch.setitem(sys.modules, absent, None)
    result = CliRunner().invoke(app, list(arguments))
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {sentence}\n")


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(MissingPackage, match=r"^poetry needs Sonnets; pip install 'phalanx-train\[poems\]'$"):
        optional("no_such_package", "poetry", "Sonnets", "poems")
    assert optional("json", "a document", "JSON", "json").dumps(1) == "1"
