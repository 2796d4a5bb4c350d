"""Starts jobs of several processes, with a free port and a time limit, and leaves no children behind."""

import atexit
import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TIMED_OUT = 124  # the exit code of a job


def environment() -> dict[str, str]:
    root = HERE.parents[1]
    # this checkout, whichever one is installed
    paths = {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}", "GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def torchrun(processes: int, *argv: str, limit_s: float = 240) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *argv]
    job = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        out, err = job.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        # the launcher ends its workers, which are in groups of their own, when it is asked to
        job.terminate()
        try:
            out, err = job.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            out, err = job.communicate()
        raise AssertionError(f"{argv} did not end within {limit_s} s\n{out[-2000:]}\n{err[-4000:]}") from None
    assert job.returncode == 0, f"{argv} exited {job.returncode}\n{out[-2000:]}\n{err[-6000:]}"
    return out


def run_job(processes: int, script: str, task: dict[str, Any], folder: Path, limit_s: float = 240) -> Any:
    """Writes the task as JSON, runs the script in processes of the nursery, reads the JSON that it leaves."""
    (folder / "task.json").write_text(json.dumps(task))
    forked(processes, script, str(folder), folder=folder, limit_s=limit_s)
    return json.loads((folder / "result.json").read_text())


def forked(processes: int, script: str, *argv: str, folder: Path, limit_s: float = 240) -> str:
    """What a script prints in processes of the nursery.

    Args:
        folder: for what they print.
    """
    out, err = folder / "out.txt", folder / "err.txt"
    order = {"processes": processes, "argv": [str(HERE / script), *argv], "limit_s": limit_s}
    files = {"out": str(out), "err": str(err), "environment": environment()}
    nursery = _nursery()
    assert nursery.stdin is not None and nursery.stdout is not None
    print(json.dumps({**order, **files}), file=nursery.stdin, flush=True)
    code = int(nursery.stdout.readline())
    if code not in (0, TIMED_OUT) and "Gloo connectFullMesh failed" in err.read_text():
        # gloo lost a connection while it made a group, before the script exchanged anything in it: once more
        print(json.dumps({**order, **files}), file=nursery.stdin, flush=True)
        code = int(nursery.stdout.readline())
    ends = f"{out.read_text()[-2000:]}\n{err.read_text()[-6000:]}"
    assert code != TIMED_OUT, f"{script} did not end within {limit_s} s\n{ends}"
    assert code == 0, f"{script} exited {code}\n{ends}"
    return out.read_text()


@cache
def _nursery() -> subprocess.Popen[str]:
    """One for all jobs of a session."""
    made = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.nursery"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    atexit.register(made.communicate)
    return made
