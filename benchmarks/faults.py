# SPDX-License-Identifier: Apache-2.0
"""Real jobs with a server and nine workers, of which four fail at random moments; every run should end well.

    python benchmarks/faults.py --repeats 20 --json out.json
    python benchmarks/faults.py --repeats 20 --width 1500 --rounds 30    # a model of 9.4 MB
    python benchmarks/faults.py --repeats 3 --width 5000 --rounds 8      # a model of 101 MB

From outside, one worker process is killed (SIGKILL), and the process that guards it and would start it again, too; one
is stopped (SIGSTOP); each after a random part of the run;
one more sends random bytes from a random round on, and one NaN. Strangers keep connections open that drip bytes, and
send hellos with guessed secrets and nested JSON; and somebody with the key of the third bad worker floods the server,
reports twice and sends what nobody asked for. Every run must finish, name these four and nobody else, and end
within a point of the same run undisturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from phalanx.training.run_folder import about
from record import keep

WORKERS = 9
LATEST_S = 1.5  # of the strikes from outside; an undisturbed run takes three times as long
RUN = (
    "run(digits(), mlp(hidden={hidden}), phases=(phase(gradient(batch=288), chain(nan(), vote(dense(), r=3, "
    "placement=in_order()), mean()), sgd(lr=0.1), rounds={rounds}),), workers={workers}, "
    "byzantine=workers(workers={byzantine}), faults={faults}, seed={seed})"
)


def server_of(job: int) -> int:
    """The process of rank 0, which listens and is no guard: the child of the job with the most listening ports."""
    children = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _parent(p) == job]
    return max(children, key=lambda pid: len(listening(pid)))


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return -1


def listening(pid: int) -> list[int]:
    """The ports that a process listens at."""
    inodes = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
        lines = (
            Path(f"/proc/{pid}/net/tcp").read_text().splitlines()
            + Path(f"/proc/{pid}/net/tcp6").read_text().splitlines()
        )
    except OSError:
        return []
    rows = [line.split() for line in lines[1:] if ":" in line.split()[1]]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes]


def start_attackers(server: int, process: int) -> list[subprocess.Popen[str]]:
    """Strangers and one with the key of a bad worker, at every port where the server listens."""
    folders = sorted(Path(tempfile.gettempdir()).glob("phalanx-*/worker-0"), key=lambda path: path.stat().st_mtime)
    secret = (folders[-1].with_name(f"worker-{process}")).read_text() if folders else ""
    command = [sys.executable, str(Path(__file__).with_name("faults_attacker.py")), str(process), secret]
    return [subprocess.Popen([*command, str(port)], text=True) for port in listening(server)]


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def job(expression: str, out: Path) -> subprocess.Popen[str]:
    """A server and its workers."""
    command = [sys.executable, "-m", "phalanx", "run", expression, "--server", "--processes", str(WORKERS)]
    command += ["--deadline", "1", "--out", str(out)]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=quiet, start_new_session=True
    )


def attempt(seed: int, work: Path, hidden: str, num_rounds: int) -> dict[str, Any]:
    """One disturbed run."""
    chance = random.Random(seed)
    # a group of three stands one lie, or two that are missing
    first, second, third = chance.sample([range(3 * g, 3 * g + 3) for g in range(3)], 3)
    killed, stopped = chance.sample(first, 2)
    garbled, liar = chance.choice(second), chance.choice(third)
    garble_at = chance.randrange(1, num_rounds // 2)
    faults = f"(garble(worker={garbled}, at={garble_at}),)"
    expression = RUN.format(
        hidden=hidden, rounds=num_rounds, workers=WORKERS, byzantine=f"({liar},)", seed=seed, faults=faults
    )
    out, attackers, peak = work / f"run-{seed}", [], 0
    process = job(expression, out)
    folder, plan = out / "run", {}
    try:
        listed = folder / "processes.json"
        until = time.monotonic() + 120
        while not listed.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        pids = {entry["workers"][0]: entry["pid"] for entry in json.loads(listed.read_text())}
        server = server_of(process.pid)
        attackers = start_attackers(server, garbled)
        strikes: tuple[tuple[str, int, signal.Signals], ...] = (
            (f"worker {killed}", pids[killed], signal.SIGKILL),
            (f"guard of worker {killed}", _parent(Path(f"/proc/{pids[killed]}")), signal.SIGKILL),
            (f"worker {stopped}", pids[stopped], signal.SIGSTOP),
        )
        moments = sorted((chance.uniform(0, LATEST_S), what, pid, how) for what, pid, how in strikes)
        began = time.monotonic()
        base = peak_bytes(server)
        for moment, struck, pid, how in moments:
            time.sleep(max(0.0, began + moment - time.monotonic()))
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
                    plan[struck] = f"{how.name} after {moment:.2f} s"
        while process.poll() is None and time.monotonic() < began + 500:
            peak = max(peak, peak_bytes(server))
            time.sleep(0.1)
        _, err = process.communicate(timeout=40)
    finally:
        for attacker in attackers:
            attacker.kill()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=40)
    summary = json.loads((folder / "summary.json").read_text()) if (folder / "summary.json").exists() else None
    bad = {killed, stopped, garbled, liar}
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if summary else ()
    # a worker that is killed comes back, so no single round names all four
    named = {int(w) for line in lines for key in ("excluded", "accused") for w in line.get(key, {})}
    return {
        "seed": seed,
        "finished": summary is not None and process.returncode == 0,
        "error": "" if summary is not None else err[-500:],
        "bad": sorted(bad),
        "named": sorted(named),
        # one that reported, was killed and is back before the next round begins has missed nothing
        "right": bad - {killed} <= named <= bad,
        "accuracy": summary and summary["accuracy"],
        "lost_rounds": summary and summary["lost_rounds"],
        "weights_sha256": summary and summary["weights_sha256"],
        "server_peak_bytes": peak,
        "server_bytes_at_start": base,
        "plan": {**plan, garbled: f"random bytes from round {garble_at}", liar: "NaN"},
    }


def undisturbed(seed: int, hidden: str, num_rounds: int) -> tuple[float, str]:
    """Accuracy and weights of the same run without failures, in a simulation."""
    import phalanx as px

    run = px.parse(
        RUN.format(hidden=hidden, rounds=num_rounds, workers=WORKERS, byzantine="()", seed=seed, faults="()")
    )
    summary = px.train(run).summary()
    return summary["accuracy"], summary["weights_sha256"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run (default 0)")
    parser.add_argument("--width", type=int, help="of two hidden layers; a small network if left out")
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as work:
        for seed in range(options.first, options.first + options.repeats):
            hidden = "(64,)" if options.width is None else f"({options.width}, {options.width})"
            result = attempt(seed, Path(work), hidden, options.rounds)
            accuracy, weights = undisturbed(seed, hidden, options.rounds)
            result |= {"undisturbed": accuracy, "same_bits": weights == result.pop("weights_sha256")}
            results.append(result)
            print({k: v for k, v in result.items() if k not in ("plan", "error")}, result["error"], flush=True)
            keep(options.json, {"good": sum(map(well, results)), "runs": results, "about": about()})
    good = sum(map(well, results))
    print(f"{good} of {len(results)} finished, named the right four and ended within a point")


def well(result: dict[str, Any]) -> bool:
    """Whether a run kept every promise."""
    return result["finished"] and result["right"] and abs(result["accuracy"] - result["undisturbed"]) <= 0.01


if __name__ == "__main__":
    main()
