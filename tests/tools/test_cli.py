# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import phalanx as px
from phalanx.core.registry import kinds
from phalanx.tools.cli.app import app
from phalanx.tools.runner.request import build_study

COMMANDS = ("run", "status", "redteam", "list", "show", "compare", "probe", "advise", "explain", "factorize", "doctor")
TINY = ("--set", "model=mlp(hidden=())", "--set", "work.batch=30", "--set", "evaluate_every=2")


def phalanx(*arguments: str | Path, code: int = 0) -> str:
    """What the command prints on stdout; it ends with this exit code and without a traceback."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    assert "Traceback" not in result.output + result.stderr
    return result.stdout


def sentence(*arguments: str | Path) -> str:
    """The error of a command, which prints nothing else."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr


def process(*arguments: str | Path, launcher: tuple[str, ...] = ("-m", "phalanx")) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


def weights(folder: Path) -> dict[str, str]:
    return {r["label"]: r["weights_sha256"] for r in json.loads((folder / "summary.json").read_text())}


def test_version() -> None:
    assert phalanx("--version") == f"phalanx {px.__version__}\n"


HEAVY = ("torch", "numba", "scipy", "sklearn", "matplotlib", "rich.console", "phalanx_experiments.recipes")


@pytest.mark.parametrize(
    "lines",
    ["import phalanx", "from phalanx.tools.cli.app import app; app(['--help'], standalone_mode=False)"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(lines: str) -> None:
    check = f"import sys; {lines}; print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stderr == "[]\n"


def test_a_command_says_at_once_that_torch_is_loading() -> None:
    running = process("show", "quickstart", "--only", "krum")
    out, err = running.communicate(timeout=120)
    assert (running.returncode, err) == (0, "loading torch ...\n")
    assert out.startswith("# krum\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    text = phalanx(command, "--help")
    assert "Examples:" in text and f"phalanx {command}" in text and "--json" in text


def test_list_names_everything() -> None:
    listed = json.loads(phalanx("list", "--json"))
    names = {row["name"] for rows in listed.values() for row in rows}
    assert {"quickstart", "krum", "dense", "reverse", "digits", "lenet", "evenly_spaced"} <= names
    assert len(listed) == 1 + len(kinds())
    assert all(row["summary"] for rows in listed.values() for row in rows)
    assert "krum" in phalanx("list") and "quickstart" in phalanx("list")
    (krum,) = [row for row in listed["aggregators"] if row["name"] == "krum"]
    assert krum["fields"] == ["f"]


@pytest.mark.parametrize("kind", kinds())
def test_a_kind_is_listed_by_its_singular(kind: str) -> None:
    (rows,) = json.loads(phalanx("list", kind, "--json")).values()
    assert rows
    assert rows[0]["name"] in phalanx("list", kind)


def test_show_prints_what_run_reads(tmp_path: Path) -> None:
    file = tmp_path / "krum.txt"
    file.write_text(phalanx("show", "quickstart", "--only", "krum", "--set", "rounds=2", *TINY))
    plain = json.loads(phalanx("show", file, "--json"))
    assert plain["runs"]["run"] == repr(
        build_study("quickstart", None, ["rounds=2", *TINY[1::2]], ["krum"]).runs["krum"]
    )
    assert json.loads(phalanx("run", file, "--json", "--out", tmp_path / "out"))["results"][0]["rounds"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "run needs a recipe"),
        (["run", "quikstart"], "did you mean quickstart"),
        (["run", "quickstart", "--scale", "big"], "choose from smoke, laptop, paper"),
        (["run", "quickstart", "--set", "optimizer.lr=fast"], "sgd: lr must be a number"),
        (["run", "quickstart", "--set", "scheme=chain(gather(dens()))"], "did you mean dense"),
        (["run", "quickstart", "--set", "byzantin=3"], "did you mean byzantine"),
        (["run", "quickstart", "--set", "scheme=krum(f=3)"], "crosses the wire exactly once"),
        (["run", "--resume", "absent"], "absent holds no study"),
        (
            ["run", "quickstart", "--set", "scheme=chain(median(), gather(dense()))"],
            "median() stands before the wire and sees one row; put it behind gather(...)",
        ),
        (["run", "quickstart", "--set", "scheme=chain(reduce(dense()), median())"], "sees the mean of all rows only"),
        (["show", "quickstart", "--only", "krumm"], "did you mean krum"),
        (["list", "agregators"], "did you mean aggregators"),
        (["compare", "absent"], "absent holds neither a run nor a study"),
        (["run", "run(digits(), __import__('os'))"], "unknown name '__import__'"),
    ],
)
def test_an_error_is_a_sentence_with_the_way_out(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in sentence(*arguments)
    assert sentence(*arguments).startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_there_leaves_a_study_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path / "none"))
    monkeypatch.setattr("pooch.retrieve", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    run = "run(mnist(), mlp(), phases=(phase(gradient(), chain(gather(dense()), mean()), rounds=1),))"
    said = sentence("run", run, "--out", tmp_path / "study")
    assert "set PHALANX_DATA" in said and f"--resume {tmp_path / 'study'}" in said
    assert json.loads((tmp_path / "study" / "study.json").read_text())["runs"] == {"run": run}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A finished study and what it printed."""
    folder = tmp_path_factory.mktemp("studies") / "first"
    return folder, json.loads(phalanx("run", "quickstart", "--scale", "smoke", "--out", folder, "--json"))


def test_the_smoke_quickstart_shows_who_survives(quickstart: tuple[Path, dict]) -> None:
    folder, printed = quickstart
    accuracy = {r["label"]: r["accuracy"] for r in printed["results"]}
    assert accuracy.pop("mean") < 0.2
    assert min(accuracy.values()) > 0.75
    assert accuracy["group vote r=3"] == accuracy["mean, no attack"]
    assert printed["folder"] == str(folder)
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    (krum,) = [r for r in printed["results"] if r["label"] == "krum"]
    assert [row["worker"] for row in krum["accused"]] == [0, 5, 10]


def test_a_study_is_a_folder_of_runs(quickstart: tuple[Path, dict]) -> None:
    folder, printed = quickstart
    about = json.loads((folder / "study.json").read_text())
    assert about["recipe"] == "quickstart" and about["scale"] == "smoke" and "torch" in about["versions"]
    for result in printed["results"]:
        run = px.parse((Path(result["folder"]) / "config.txt").read_text())
        assert repr(run) == about["runs"][result["label"]]
    assert json.loads((folder / "summary.json").read_text()) == printed["results"]


def test_a_finished_study_resumes_to_itself(quickstart: tuple[Path, dict]) -> None:
    folder, printed = quickstart
    before = {p: p.read_bytes() for p in folder.glob("*/*")}
    assert json.loads(phalanx("run", "--resume", folder, "--json"))["results"] == printed["results"]
    assert {p: p.read_bytes() for p in folder.glob("*/*")} == before


def test_a_study_goes_on_as_it_began(quickstart: tuple[Path, dict]) -> None:
    folder, _ = quickstart
    assert "leave out --set" in sentence("run", "--resume", folder, "--set", "seed=3")
    assert "holds quickstart, not other" in sentence("run", "other", "--resume", folder)
    assert "it is a run of the study" in sentence("run", "--resume", folder / "krum")
    assert "is not empty" in sentence("run", "quickstart", "--out", folder)


def test_compare_reads_runs_and_studies(quickstart: tuple[Path, dict], tmp_path: Path) -> None:
    folder, printed = quickstart
    table = phalanx("compare", folder / "krum", folder, "--plot", tmp_path / "all.png")
    assert table.count("krum") == 1 and "geometric median" in table
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads(phalanx("compare", folder, "--json"))
    assert [r["accuracy"] for r in rows] == [r["accuracy"] for r in printed["results"]]
    for row in rows:
        assert row["curve"]["bytes_up"][-1] == row["bytes_up"]
        assert row["curve"]["rounds"] == [10, 20, 30, 40]


def test_runs_of_two_studies_are_told_apart(quickstart: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = quickstart
    run = ("run", "quickstart", "--only", "krum", "--set", "rounds=1", *TINY, "--out", tmp_path / "second")
    assert "krum" in phalanx(*run)
    labels = [r["label"] for r in json.loads(phalanx("compare", folder / "krum", tmp_path / "second", "--json"))]
    assert labels == ["first krum", "second krum"]


def test_doctor_finds_what_a_run_needs() -> None:
    findings = {f["name"]: f for f in json.loads(phalanx("doctor", "--json"))}
    for name in ("torch", "gloo", "numba compiles", "results folder", "data: digits"):
        assert findings[name]["ok"] is True, findings[name]
    assert "gloo" in phalanx("doctor")


def test_doctor_ends_with_1_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **k: (_ for _ in ()).throw(PermissionError(13, "denied")))
    assert "FAULT" in phalanx("doctor", code=1)


LONG = ("run", "quickstart", "--only", "mean", "--only", "krum", "--set", "rounds=200", "--set", "checkpoint_every=10")


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, str]:
    """Weights of both runs of LONG, in one go."""
    study = build_study("quickstart", None, ["rounds=200", *TINY[1::2]], ["mean", "krum"])
    return {label: px.train(run).summary()["weights_sha256"] for label, run in study.runs.items()}


@pytest.mark.processes
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_study_ends_in_the_same_weights(
    how: signal.Signals, code: int, tmp_path: Path, uninterrupted: dict[str, str]
) -> None:
    folder = tmp_path / "a study"
    running = process(*LONG, *TINY, "--out", folder)
    wait_for(folder / "krum" / "checkpoint.safetensors", running)
    running.send_signal(how)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert out == "" and "Traceback" not in err
    if how == signal.SIGINT:
        assert f"phalanx run --resume '{folder}'" in err
    assert not (folder / "krum" / "summary.json").exists()
    kept = (folder / "mean" / "summary.json").stat().st_mtime_ns
    assert "krum" in phalanx("compare", folder)
    phalanx("run", "--resume", folder)
    assert weights(folder) == uninterrupted
    assert (folder / "mean" / "summary.json").stat().st_mtime_ns == kept


@pytest.mark.processes
def test_torchrun_ends_in_the_weights_of_the_simulation(tmp_path: Path) -> None:
    arguments = ("run", "quickstart", "--only", "krum", "--set", "rounds=3", *TINY)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "phalanx")
    running = process(*arguments, "--json", "--out", tmp_path / "two", launcher=torchrun)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    (result,) = json.loads(out)["results"]
    phalanx(*arguments, "--out", tmp_path / "one")
    assert result["weights_sha256"] == weights(tmp_path / "one")["krum"]
    assert err.count("accuracy") == 1


def test_factorize_measures_if_asked():
    found = json.loads(phalanx("factorize", "--model", "resnet18-cifar", "--times", "--batch", "1", "--json"))
    assert (found["parameters_after"], found["step_bytes_after"]) == (3_336_266, 4 * 3_336_266)
    assert found["seconds"] > 0 and all(layer["seconds_after"] > 0 for layer in found["layers"])


def test_factorize_shows_a_plan_and_writes_it(tmp_path):
    found = json.loads(phalanx("factorize", "--model", "resnet18-cifar", "--json"))
    assert (found["parameters"], found["parameters_after"]) == (11_173_962, 3_336_266)
    table = phalanx("factorize", "--model", "resnet18-cifar", "--ratio", "0.5", "--first", "4", "--out", tmp_path / "p")
    assert "the last classifier" in table
    assert px.lowrank.Plan.from_yaml((tmp_path / "p").read_text())["4.conv1"].rank == 32
    assert "no network is called 'lenet'" in sentence("factorize", "--model", "lenet")
    assert "ms" not in table.splitlines()[0] and "MB a step" in table.splitlines()[0]
    assert "batch of at least 1, got 0" in sentence("factorize", "--model", "resnet18-cifar", "--times", "--batch", "0")
    assert "ratio=2.0" in sentence("factorize", "--model", "resnet18-cifar", "--ratio", "2")
    assert "first=0" in sentence("factorize", "--model", "resnet18-cifar", "--first", "0")
