# SPDX-License-Identifier: Apache-2.0
"""A SuperLink and SuperNodes on this machine, with free ports and a home of their own; leaves no process behind.

python -m phalanx.integrations.flower.local examples/flower
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from phalanx.core.expression import require
from phalanx.core.heartbeat import Heartbeat

NAME = "here"  # of the connection in Flower's configuration
COLOUR = re.compile(r"\x1b\[\d*m")


@dataclass(frozen=True)
class Ended:
    """How a run ended, "finished:completed" or "finished:failed", and the log of its ServerApp."""

    status: str
    log: str


class Flower:
    """Starts the processes on entry and kills all of them on exit.

    Args:
        folder: for Flower's home and the output of the processes, "superlink.log", "node-0.log", ...
        nodes: SuperNodes; number i has partition-id=i.
        node_config: more entries for each node, in which {i} becomes its number, such as 'folder="/data/{i}"'.
        limit_s: for all to be ready, and for a command of Flower.
        environment: of the processes, besides what Flower needs; this process's when None.
        tell: called with a line for each stage, and with each line that the app logs.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int,
        limit_s: float = 300,
        environment: Mapping[str, str] | None = None,
        tell: Callable[[str], None] = lambda line: None,
        node_config: str = "",
    ) -> None:
        self._tell = tell
        self.folder, self.limit_s = folder, limit_s
        self._surroundings = os.environ if environment is None else environment
        self.home, self.port = folder / "flwr", free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._count, self._node_config = nodes, node_config

    def __enter__(self) -> Flower:
        self.home.mkdir(parents=True)
        address = f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        (self.home / "config.toml").write_text(f'[superlink]\ndefault = "{NAME}"\n\n[superlink.{NAME}]\n{address}')
        try:
            self._tell("starting the SuperLink")
            self._start("superlink", "flower-superlink", "--port", str(self.port))
            self._wait("the SuperLink", self._healthy)
            self._tell(f"starting {self._count} SuperNodes")
            for i in range(self._count):
                self.add(i)
            self._wait("the SuperNodes", lambda: all(map(self.known, range(self._count))))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, i: int) -> None:
        """Starts SuperNode i, also again after it was killed."""
        where = ("--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port()))
        about = f"partition-id={i} num-partitions={self._count} {self._node_config.replace('{i}', str(i))}".strip()
        self._start(f"node-{i}", "flower-supernode", *where, "--node-config", about)

    def known(self, i: int) -> bool:
        """Whether SuperNode i has been registered by the SuperLink."""
        return "SuperNode ID:" in self.log(f"node-{i}")

    def kill(self, i: int) -> None:
        """SIGKILL to SuperNode i and what it has started."""
        process = self.processes[f"node-{i}"]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def submit(self, app: Path, **config: object) -> str:
        """Starts an app and returns the id of its run; values replace those of its [tool.flwr.app.config]."""
        changes = self.folder / "run.toml"
        changes.write_text("".join(f"{key.replace('_', '-')} = {json.dumps(x)}\n" for key, x in config.items()))
        out = self._flwr("run", str(app), NAME, "--format", "json", *(("--run-config", str(changes)) if config else ()))
        about = json.loads(out)
        # a refusal exits with 0
        require(about["success"], f"{app} was not started: {out}{self._ends()}")
        self._tell(f"{app} is submitted as run {about['run-id']}")
        return about["run-id"]

    def wait(self, run_id: str, limit_s: float = 240) -> Ended:
        """Waits until a run has ended."""
        # the stream of a log ends with the run
        log = self._flwr("log", run_id, NAME, "--stream", limit_s=limit_s, tell=self._tell)
        about = json.loads(self._flwr("ls", NAME, "--run-id", run_id, "--format", "json"))
        return Ended(about["runs"][0]["status"], log)

    def run(self, app: Path, limit_s: float = 240, **config: object) -> Ended:
        """Runs an app to its end."""
        return self.wait(self.submit(app, **config), limit_s)

    def log(self, name: str) -> str:
        """What a process, such as "node-0", has printed so far, with what its ClientApps have."""
        return COLOUR.sub("", (self.folder / f"{name}.log").read_text(errors="replace"))

    def close(self) -> None:
        """Kills every process that has this home in its environment, whoever started it and in whichever group."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        # those that lead a group of their own leave with their parents; where there is a list, none is left to chance
        while left := [int(p.name) for p in Path("/proc").glob("[0-9]*") if self._owns(int(p.name))]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for process in self.processes.values():
            process.wait()

    def _owns(self, pid: int) -> bool:
        with suppress(OSError):
            return f"FLWR_HOME={self.home}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False

    def _start(self, name: str, program: str, *argv: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [_program(program), "--insecure", "--host", "127.0.0.1", *argv],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        # Flower's programs start one another by name
        path = f"{Path(sys.executable).parent}{os.pathsep}{self._surroundings.get('PATH', '')}"
        offline = {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }
        ours = {"FLWR_HOME": str(self.home), "PATH": path, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}
        return {**self._surroundings, **offline, **ours}

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + self.limit_s
        while not ready():
            if time.monotonic() > until:
                raise TimeoutError(f"{what} did not start within {self.limit_s} s{self._ends()}")
            time.sleep(0.1)

    def _flwr(self, *argv: str, limit_s: float | None = None, tell: Callable[[str], None] = lambda line: None) -> str:
        lines: list[str] = []
        limit = limit_s or self.limit_s
        with subprocess.Popen(
            [_program("flwr"), *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment(),
        ) as command:
            until, timer = time.monotonic() + limit, threading.Timer(limit, command.kill)
            timer.daemon = True
            timer.start()
            assert command.stdout is not None
            try:
                for line in command.stdout:
                    lines.append(COLOUR.sub("", line))
                    tell(lines[-1].rstrip())
            except BaseException:
                command.kill()  # or the end of `with` waits for it
                raise
            finally:
                timer.cancel()
        out = "".join(lines)
        if command.returncode and time.monotonic() >= until:
            raise TimeoutError(f"flwr {argv} did not end in time\n{out[-4000:]}{self._ends()}")
        if command.returncode:
            raise RuntimeError(f"flwr {argv} exited {command.returncode}\n{out[-4000:]}{self._ends()}")
        return out

    def _ends(self) -> str:
        """The end of what each process has printed."""
        return "".join(f"\n== {name}\n{self.log(name)[-2000:]}" for name in self.processes)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def main() -> None:
    """Starts Flower for an app, runs it, prints each stage and the log of its ServerApp, and stops everything."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("app", type=Path, help="folder with a pyproject.toml")
    parser.add_argument("--clients", type=int, help='SuperNodes; "clients" of [tool.flwr.app.config] by default')
    parser.add_argument("--limit", type=float, default=3600, help="seconds until the run is given up")
    parser.add_argument(
        "--node-config",
        default="",
        help="more entries for each SuperNode; {i} becomes its number: 'folder=\"/data/{i}\"'",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of the run config")
    given = parser.parse_args()
    config = tomllib.loads((given.app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    changes = dict(_change(text, config) for text in given.set)
    clients = given.clients or {**config, **changes}.get("clients")
    if clients is None:
        parser.error('how many clients? give --clients, or "clients" in [tool.flwr.app.config]')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    with (
        Heartbeat(partial(print, flush=True), lambda: f"running for {time.monotonic() - began:.0f} s") as tell,
        tempfile.TemporaryDirectory() as folder,
        Flower(Path(folder), clients, tell=tell, node_config=given.node_config) as flower,
    ):
        outcome = flower.run(given.app.resolve(), given.limit, **changes)
    print(outcome.status)
    sys.exit(outcome.status != "finished:completed")


def _change(text: str, config: Mapping[str, object]) -> tuple[str, object]:
    """A change of the run config, of the type that the value has there."""
    key, equals, value = text.partition("=")
    require(bool(equals) and key in config, f"--set {text}: write KEY=VALUE; the keys are {', '.join(config)}")
    return key, value if isinstance(config[key], str) else json.loads(value)


if __name__ == "__main__":
    main()
