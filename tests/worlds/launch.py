"""Starts a script under torchrun's launcher, with a free port and a time limit, and leaves no children behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    root = HERE.parents[1]
    # this checkout, whichever one is installed
    paths = {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}", "GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def torchrun(processes: int, *argv: str, limit_s: float = 240) -> str:
    if argv[0].endswith(".py"):
        argv = (str(HERE / "job.py"), *argv)
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
    """Writes the task as JSON, runs the script under torchrun, reads the JSON that it leaves."""
    (folder / "task.json").write_text(json.dumps(task))
    torchrun(processes, str(HERE / script), str(folder), limit_s=limit_s)
    return json.loads((folder / "result.json").read_text())
