# SPDX-License-Identifier: Apache-2.0
"""The files for several hosts: manifests fit their schemas, scripts are sound, commands are those that there are."""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml
from torch.distributed.run import get_args_parser

from phalanx.tools.cli.app import app
from slow_network import hosts
from tests.test_slow_network import unable

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "scaling"
MANIFESTS = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
SCRIPTS = [EXAMPLES / "host.sh", EXAMPLES / "train.sbatch"]
PAGE = ROOT / "docs" / "scaling.md"
KUBERNETES = "1.34"
RUN = (
    "run(digits(), mlp(hidden=()), phases=(phase(gradient(batch=8), chain(gather(dense()), mean()), rounds=600),), "
    "workers=2, evaluate_every=600, checkpoint_every=10)"
)
# of `#SBATCH` lines, as `sbatch --help` has them
SBATCH = {"job-name", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "time", "requeue", "open-mode", "output"}


@pytest.fixture
def able() -> None:
    if (reason := unable()) is not None:
        pytest.skip(reason)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def of_kind(path: Path, kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents(path) if document["kind"] == kind)
    return found


def scripts_of(path: Path) -> str:
    return of_kind(path, "ConfigMap")["data"]["start.sh"]


JOBS = [path for path in MANIFESTS if any(document["kind"] == "Job" for document in documents(path))]


def blocks(page: Path) -> str:
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S))


def commands(text: str) -> list[list[str]]:
    """The words of the first torchrun or phalanx in each line of a shell script."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = re.sub(r'"\$\{ask\[@\]\}" "\$@"|"\$\{ask\[@\]\}"|"\$@"', "quickstart", line)
        if re.match(r"\s*#", line):
            continue
        if match := re.search(r"(?<![\w/.-])(torchrun|phalanx) (?=[-a-z])", line):
            rest = re.split(r"' | && | \|\| |[;|]| > | {2,}#", line[match.start() :])[0]
            found.append(shlex.split(re.sub(r"\$\w+|\$\{[^}]*\}|\$\([^)]*\)|[A-Z]+_(?=\b)", "1", rest), comments=True))
    return found


def check(words: list[str]) -> argparse.Namespace | None:
    """Parses a command as it would be, and returns what torchrun was told."""
    told = None
    if words[0] == "torchrun":
        told = get_args_parser().parse_args(words[1:])
        if not told.module:
            return told
        assert told.training_script == "phalanx", words
        words = ["phalanx", *told.training_script_args]
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    name, *rest = words[1:]
    command = group.commands[name]
    command.make_context(name, rest)
    return told


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_fit_their_schemas(path):
    import kubernetes_validate

    for document in documents(path):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    broken = documents(path)[0] | {"spek": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_has_as_many_pods_as_torchrun_waits_for_and_finds_the_first(path):
    job, service = of_kind(path, "Job"), of_kind(path, "Service")
    name, spec = job["metadata"]["name"], job["spec"]
    (words,) = commands(scripts_of(path))
    told = check(words)
    assert told is not None
    assert spec["completionMode"] == "Indexed"
    assert int(told.nnodes) == spec["completions"] == spec["parallelism"]
    assert told.master_addr == f"{name}-0.{service['metadata']['name']}"
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    # names of pods are labels: index and all they have at most 63 letters
    assert len(f"{name}-{spec['completions']}") <= 63


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_what_a_pod_mounts_is_there(path):
    pod = of_kind(path, "Job")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    (claim,) = (document for path in MANIFESTS for document in documents(path) if document["kind"].endswith("Claim"))
    assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volumes["start"]["configMap"]["name"] == of_kind(path, "ConfigMap")["metadata"]["name"]
    assert "emptyDir" in volumes["shm"]
    cores = container["resources"]["limits"]["cpu"]
    assert next(e["value"] for e in container["env"] if e["name"] == "OMP_NUM_THREADS") == cores


@pytest.mark.parametrize("shell", [*SCRIPTS, *JOBS], ids=lambda path: path.name)
def test_shell_scripts_are_sound(shell, tmp_path):
    text = shell.read_text() if shell in SCRIPTS else "#!/usr/bin/env bash\n" + scripts_of(shell)
    script = tmp_path / "script.sh"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(shellcheck), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (words,) = commands(text)
    check(words)


def test_slurm_is_asked_for_what_it_knows():
    text = SCRIPTS[1].read_text()
    lines = re.findall(r"^#SBATCH (.*)$", text, re.M)
    options = {line.split("=")[0].removeprefix("--") for line in lines}
    assert options == SBATCH | {"signal"}
    assert not any(line.count(" ") for line in lines)
    # slurm reads no option behind the first command
    assert text.index("\nset -euo") > text.rindex("#SBATCH")


def test_the_commands_of_the_page_are_there():
    found = commands(blocks(PAGE))
    assert {words[0] for words in found} == {"torchrun", "phalanx"}
    for words in found:
        check(words)


def test_a_host_goes_on_where_there_is_a_folder(tmp_path):
    """With a torchrun that only prints what it was told."""
    (tmp_path / "torchrun").write_text('#!/usr/bin/env bash\necho "$GLOO_SOCKET_IFNAME" "$OMP_NUM_THREADS" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)

    def said() -> str:
        command = ["bash", str(SCRIPTS[0]), "1", "2", "127.0.0.1", str(tmp_path / "run"), "quickstart", "--json"]
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin:/usr/sbin:/sbin", "CARD": "net0", "OMP_NUM_THREADS": "3"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said().endswith(f"phalanx run quickstart --out {tmp_path / 'run'} --json\n")
    assert said().startswith("net0 3 --nnodes 2 --node-rank 1 --nproc-per-node 1 --master-addr 127.0.0.1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study.json").touch()
    assert said().endswith(f"phalanx run --resume {tmp_path / 'run'} --json\n")


@pytest.mark.processes
def test_a_run_goes_on_with_the_hosts_that_are_left(able, tmp_path):
    """Two hosts as the page has them; one is lost, and the other goes on alone to the end."""
    folder, bin_folder = tmp_path / "run", Path(sys.executable).parent
    environment = {**os.environ, **hosts.job_environment(), "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    metrics = folder / "run" / "metrics.jsonl"

    def rounds() -> int:
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def begin(network: hosts.Hosts, rank: int, count: int) -> subprocess.Popen[bytes]:
        command = ["bash", str(SCRIPTS[0]), str(rank), str(count), network.address(0), str(folder), RUN]
        return network.start(rank, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)

    with hosts.Hosts(2, "1gbit") as network:
        both = [begin(network, rank, 2) for rank in (0, 1)]
        until = time.monotonic() + 120
        while rounds() < 20 and time.monotonic() < until:
            time.sleep(0.05)
        hosts.kill(network.names[1])
        assert both[0].wait(timeout=60) != 0
        have = rounds()
        assert 20 <= have < 600
        assert begin(network, 0, 1).wait(timeout=120) == 0
    assert rounds() == 600
