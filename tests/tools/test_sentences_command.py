# SPDX-License-Identifier: Apache-2.0
"""Wrong inputs of the command line: each ends with 2 and one sentence on stderr, and leaves nothing behind."""

import errno
import json
import shlex
import shutil
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phalanx.tools.cli.app import app
from tests.sentences import RUN, fits

TINY = (
    "--only",
    "mean",
    "--only",
    "krum",
    "--set",
    "rounds=2",
    "--set",
    "model=mlp(hidden=())",
    "--set",
    "work.batch=30",
)

COMMANDS = [
    ("run", "run needs a recipe, such as quickstart; phalanx list recipes names them all"),
    ("run quikstart", "unknown recipe 'quikstart'; did you mean quickstart? choose from quickstart$"),
    ("run quickstart --jobs 0", "--jobs takes a number of processes >= 1, got 0"),
    ("run quickstart --scale big", "quickstart has no scale 'big'; choose from smoke, laptop, paper"),
    (
        "run quickstart --only krumm",
        "no run is labelled 'krumm'; did you mean krum? choose from mean, no attack, mean, median, trimmed mean, krum, "
        "geometric median, group vote r=3",
    ),
    (
        "run quickstart --set optimizer.lrr=1",
        "optimizer.lrr: sgd has no field 'lrr'; did you mean lr? choose from lr, momentum, weight_decay, $",
    ),
    ("run quickstart --set lr", "--set takes path=value, such as optimizer.lr=0.05, got 'lr'"),
    ("run quickstart --set optimizer.lr=-1", "sgd needs lr > 0, got lr=-1"),
    ("run quickstart --set workers=two", "run: workers must be a whole number, got 'two'"),
    (
        "run quickstart --set byzantine=9",
        "run: byzantine must be an object of Threat, such as evenly_spaced(...) or $ got 9",
    ),
    ("run quickstart --set threads=0", "run needs threads >= 1, got threads=0"),
    (
        "run quickstart --set workers=4",
        "trimmed mean: trimmed_mean needs n > 2f rows, got n=4, f=3; take more workers or a smaller f",
    ),
    ("run quickstart --out full", "full is not empty; go on with it by --resume full, or give a new folder"),
    ("run quickstart --out file", "file is a file; give a new folder"),
    ("run quickstart --out file/below", "file/below leads through a file; give another path"),
    (
        "run quickstart --server",
        "a server needs worker processes: phalanx run RECIPE --server --processes 9 starts nine on this machine; "
        "several machines take torchrun",
    ),
    (
        "run absent.txt",
        "absent.txt is no file; give a recipe (phalanx list recipes), a run(...) or a file that has one",
    ),
    ("run full", "full is a folder; give --resume full, or the config.txt of a run in it"),
    ("run empty.txt", "an expression is empty; write one such as krum(f=2)"),
    ("run picture", "picture is not a text file; give one that holds a run(...)"),
    ("run krum(f=1)", "the expression should be a run(...), got krum(f=1); a measurement will do as well"),
    (f"run '{RUN}' --scale smoke", "a scale belongs to a recipe, not to a single run; use --set rounds=... instead"),
    ("run --resume full", "full holds no study: there is no study.json in it"),
    ("show", "show needs a recipe, such as quickstart; phalanx list recipes names them all"),
    ("show quickstart --set seed=x", "run: seed must be a whole number, got 'x'"),
    (
        "list agregators",
        "nothing is called 'agregators'; did you mean aggregators? choose from recipes, adversaries, aggregators, $",
    ),
    ("compare", "compare needs folders of runs or of studies, such as runs/2026-01-31-120000-quickstart"),
    ("compare full", "full holds neither a run nor a study; give a folder that phalanx run has written"),
    (
        "advise",
        "advise needs a probe, or --bandwidth and --workers, such as --bandwidth 1Gbit --workers 16; "
        "torchrun ... -m phalanx probe --out FILE makes a probe",
    ),
    ("advise absent.json", "absent.json is not there; check the path"),
    ("advise full", "full is a folder where a file is needed; give another path"),
    ("advise empty.txt", "empty.txt is no JSON document; write one with phalanx probe --out FILE"),
    ("advise other.json", "other.json is no probe; write one with phalanx probe --out FILE"),
    ("advise newer.json", "newer.json has format 99, and this phalanx reads format 1; probe again"),
    ("advise cut.json", "cut.json is damaged (KeyError: 'run'); probe again"),
    (
        "advise --bandwidth fast --workers 4",
        "a bandwidth is a number above zero with a unit, such as 100Mbit, 1Gbit or 12.5MB/s; got 'fast'",
    ),
    ("advise --latency 1ms", "--latency describes a link only together with --bandwidth; give both"),
    (
        "advise --bandwidth 1Gbit --workers 1",
        "a step of one worker sends nothing; give --workers of at least 2, got 1",
    ),
    (
        "advise --bandwidth 1Gbit --workers 4 --step-time soon",
        "a time is a number with a unit, such as 0.1ms, 100us or 1.5s; got 'soon'",
    ),
    ("advise --bandwidth 1Gbit --workers 4 --repeats 0", "--repeats takes a number of steps >= 1, got 0"),
    ("advise --byzantine 5", "--byzantine needs the number of all workers; add --workers, such as --workers 45"),
    (
        "advise --byzantine 50 --workers 45",
        "the odds need 0 <= q <= n Byzantine workers, got q=50 of n=45",
    ),
    ("advise --byzantine 5 --workers 45 --risk 2", "--risk takes a probability in [0, 1], got 2.0"),
    ("advise --r 3", "--r is about redundancy; add --byzantine Q"),
    ("probe --repeats 0", "--repeats takes a number of steps >= 1, got 0"),
    ("probe --model digits", "--model takes a model, got digits(); phalanx list model names them"),
    ("probe --batch 0", "--batch takes at least 1 example, got 0"),
    ("probe --only mean", "--scale, --set and --only belong to a recipe; name one, or use --model and --data"),
    ("factorize", "factorize needs --model; choose from vgg19-cifar, vgg19-lth, resnet18-cifar, resnet50, $"),
    (
        "factorize --model resnet18-cifr",
        "no network is called 'resnet18-cifr'; did you mean resnet18-cifar? choose from $",
    ),
    ("factorize --model resnet18-cifar --ratio 2", "plan needs a ratio in (0, 1], got ratio=2.0"),
    (
        f"redteam '{RUN}'",
        "a run of your own needs --edges, such as \"own_edges('folder', target=1)\", or rare_styles() for images",
    ),
    ("redteam --resume full", "full holds no study: there is no study.json in it"),
]

# the default recipe comes with the experiments
REDTEAM = [
    ("redteam --seeds 0", "--seeds takes a number >= 1, got 0"),
    (
        "redteam --fail-if nonsense",
        "--fail-if 'nonsense': unknown number 'nonsense'; choose from attack_success, excess, main_accuracy, $",
    ),
    (
        "redteam --fail-if 'excess > many'",
        "--fail-if 'excess > many': excess > is followed by a number such as 0.1",
    ),
    ("redteam --rule krumm", "no rule of the grid is called 'krumm'; did you mean Krum? choose from FedAvg, $"),
    ("redteam --every 3", "--every belongs to a run of your own, and edge-case-mnist is a recipe; leave it out"),
]


def said(*arguments: str) -> str:
    """The error of a command, after what it told on its way."""
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit) and result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.rpartition("error: ")[2].removesuffix("\n")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two runs."""
    folder = tmp_path_factory.mktemp("made") / "study"
    made = CliRunner().invoke(app, ["run", "quickstart", *TINY, "--out", str(folder)])
    assert made.exit_code == 0, made.stderr
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    for name, text in {
        "full/note": "x",
        "file": "x",
        "empty.txt": "",
        "other.json": "[1]",
        "newer.json": '{"format": 99, "schemes": []}',
        "cut.json": '{"format": 1, "schemes": []}',
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "picture").write_bytes(bytes(range(200, 256)))
    return tmp_path


@pytest.mark.parametrize(("command", "sentence"), [*COMMANDS, *(REDTEAM if find_spec("phalanx_experiments") else [])])
def test_commands(command: str, sentence: str, here: Path) -> None:
    before, words = sorted(here.rglob("*")), shlex.split(command)
    assert fits(said(*words), sentence), said(*words)
    assert sorted(here.rglob("*")) == before


def alter_runs(folder: Path) -> None:
    file = folder / "study.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "runs": {"krum": "krum(f=1)"}}))


def cut_checkpoint(folder: Path) -> None:
    (folder / "krum" / "summary.json").unlink()
    file = folder / "krum" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    (folder / "krum" / "checkpoint.previous.safetensors").unlink(missing_ok=True)


DAMAGES: list[tuple[Callable[[Path], object], str, str]] = [
    (
        lambda p: None,
        "run --resume broken --seed 3",
        "broken goes on as it began; leave out --set, --only, $ and --out",
    ),
    (lambda p: None, "run other --resume broken", "broken holds quickstart, not other; leave the recipe out"),
    (
        lambda p: None,
        "run --resume broken/krum",
        "broken/krum holds no study: there is no study.json in it; it is a run of the study $/broken",
    ),
    (lambda p: None, "compare broken --plot file/a.png", "file is a file where a folder is needed; give another path"),
    (
        lambda p: (p / "study.json").write_text("{not json"),
        "run --resume broken",
        "broken/study.json is damaged (JSONDecodeError: $); begin in a new folder",
    ),
    (
        lambda p: (p / "study.json").write_text("[]"),
        "run --resume broken",
        "broken/study.json is damaged (AttributeError: $); begin in a new folder",
    ),
    (
        alter_runs,
        "run --resume broken",
        "broken/study.json is damaged (ValueError: run 'krum' should be a run(...), got krum(f=1); a measurement will "
        "do as well); begin in a new folder",
    ),
    (
        cut_checkpoint,
        "run --resume broken",
        "broken/krum/checkpoint.safetensors is not a whole checkpoint ($); delete it to begin this run again",
    ),
    (
        lambda p: (p / "krum" / "config.txt").unlink(),
        "compare broken/krum",
        "broken/krum holds neither a run nor a study; give a folder that phalanx run has written",
    ),
    (
        lambda p: (p / "krum" / "summary.json").write_text("{"),
        "compare broken",
        "broken/krum/summary.json is damaged ($); delete the run's folder and resume the study",
    ),
    (
        lambda p: (p / "krum" / "metrics.jsonl").write_text("{nonsense\n"),
        "compare broken",
        "line 1 of broken/krum/metrics.jsonl is damaged ($); delete the run's folder and resume the study",
    ),
]


@pytest.mark.parametrize(("damage", "command", "sentence"), DAMAGES)
def test_studies(damage: Callable[[Path], object], command: str, sentence: str, study: Path, here: Path) -> None:
    shutil.copytree(study, "broken")
    damage(Path("broken"))
    assert fits(said(*command.split()), sentence), said(*command.split())


def test_a_port_that_is_in_use(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        job = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in job.items():
            monkeypatch.setenv(name, value)
        wanted = f"the processes cannot meet at 127.0.0.1:{port} ($); give another --master-port"
        assert fits(said("run", "quickstart"), wanted)


def test_a_folder_that_may_not_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    wanted = "out may not be read or written by this user; give another path, or change its rights"
    assert said("run", "quickstart", "--out", "out") == wanted
