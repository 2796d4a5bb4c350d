# SPDX-License-Identifier: Apache-2.0
"""Real DistributedDataParallel jobs over gloo: does every hook optimizer, and what does a step cost?

    python benchmarks/ddp.py                               # 2 ranks, ResNet-18, 200 steps of every hook
    python benchmarks/ddp.py --steps 20 --json out.json "power_sgd(rank=2)" "chain(gather(qsgd()), mean())"

Every hook runs in a job of its own under a watchdog: a job that makes no step for --patience seconds is ended and
reported as hung. Each of our schemes runs with its exchange beside backward and within the hook. Torch's own hooks and
the plain job are there to compare with. The images are small, so that a step is mostly communication; on one machine
the ranks share its cores and the loopback interface is no network: the table says what a hook costs, not what it saves.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from record import keep

SCHEMES = (
    "reduce(dense())",
    "reduce(half('bf16'))",
    "power_sgd(rank=2)",
    "chain(gather(qsgd()), mean())",
    "chain(gather(terngrad()), mean())",
    "chain(gather(atomo(spectral(), budget=3)), mean())",
    "chain(gather(error_feedback(top_k())), mean())",
    "chain(gather(sign()), majority())",
)
PLAIN = "plain DDP"
PEERS = (PLAIN, "torch bf16_compress_hook", "torch powerSGD_hook")
INSIDE = ", within the hook"
WAYS = {"beside": ("",), "within": (INSIDE,), "both": ("", INSIDE)}


def hooked(model: Any, label: str) -> Any:
    """Registers what the label names; our hook, or None for another's."""
    import torch.distributed.algorithms.ddp_comm_hooks.default_hooks as default_hooks
    import torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook as power_sgd

    import phalanx

    if label == PLAIN:
        return None
    if label == "torch bf16_compress_hook":
        return model.register_comm_hook(None, default_hooks.bf16_compress_hook)
    if label == "torch powerSGD_hook":
        state = power_sgd.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
        return model.register_comm_hook(state, power_sgd.powerSGD_hook)
    return phalanx.ddp.register(model, label.removesuffix(INSIDE), overlap=not label.endswith(INSIDE))


def job(label: str, steps: int, size: int, batch: int, folder: Path) -> None:
    """One rank: trains, and leaves the times of its steps, or why there are none."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    import phalanx

    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    rank = dist.get_rank()
    torch.manual_seed(0)
    net = phalanx.models.resnet18().build((3, size, size), 10)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    try:
        hook = hooked(model, label)
    except (TypeError, ValueError, RuntimeError) as error:
        if rank == 0:
            (folder / "refused").write_text(str(error))
        dist.destroy_process_group()
        return
    torch.manual_seed(1 + rank)
    times: list[float] = []
    _sign(folder, model, hook, times)
    for _ in range(steps):
        x, y = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
        begin = time.perf_counter()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begin)
        _sign(folder, model, hook, times)
    dist.barrier()
    dist.destroy_process_group()


def _sign(folder: Path, model: Any, hook: Any, times: list[float]) -> None:
    """Rank 0's sign of life: what there is to report so far."""
    import torch.distributed as dist

    if dist.get_rank() != 0:
        return
    report = {
        "times_s": times,
        "buckets": len(model._get_ddp_logging_data().get("rebuilt_bucket_sizes", "").split(",")),
        "bytes_up": None if hook is None else hook.ledger.bytes_up / dist.get_world_size(),
        "lost_rounds": None if hook is None else hook.ledger.lost_rounds,
    }
    part = folder / "part"
    part.write_text(json.dumps(report))
    part.replace(folder / "times")


def watched(label: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs the job of a label and ends it if it hangs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(args.ranks), __file__, "--job", label, "--folder", name]
        command += ["--steps", str(args.steps), "--size", str(args.size), "--batch", str(args.batch)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            hung = _waits(process, folder / "times", args.patience)
        if (folder / "refused").exists():
            return {"outcome": "refused", "why": (folder / "refused").read_text()}
        done = json.loads((folder / "times").read_text()) if (folder / "times").exists() else {"times_s": []}
        times = done.pop("times_s")
        outcome = "hung" if hung else "finished" if process.returncode == 0 else "failed"
        row: dict[str, Any] = {"outcome": outcome, "steps": len(times), **done}
        if outcome == "failed":
            said = [line for line in (folder / "log").read_text().splitlines() if "Error" in line or "what()" in line]
            row["why"] = said[0][:500] if said else ""
        if len(times) > 5:
            # the first steps compile kernels and rebuild buckets
            row["step_ms"] = 1e3 * statistics.median(times[5:])
            row["least_ms"] = 1e3 * min(times[5:])
        if row.get("bytes_up"):
            row["bytes_per_step"] = row.pop("bytes_up") / len(times)
        return row


def _waits(process: subprocess.Popen[bytes], sign: Path, patience: float) -> bool:
    """Whether the job had to be ended because its sign of life stayed away."""
    last, state = time.monotonic(), None
    while process.poll() is None:
        time.sleep(0.2)
        now = sign.stat().st_mtime_ns if sign.exists() else None
        if now != state:
            last, state = time.monotonic(), now
        if time.monotonic() - last > patience:
            # the launcher ends its workers, which are in groups of their own, when it is asked to
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return True
    return False


def show(result: dict[str, Any]) -> None:
    """The report as a table."""
    from rich.console import Console
    from rich.table import Table

    setting = result["setting"]
    table = Table(title=f"ResNet-18 over gloo, {setting['ranks']} ranks, {setting['steps']} steps")
    table.add_column("hook")
    for head in ("outcome", "steps", "buckets", "step", "/ plain", "least / plain", "bytes a step"):
        table.add_column(head, justify="right")
    plain = result["hooks"].get(PLAIN, {})
    for label, row in result["hooks"].items():
        step = row.get("step_ms")
        ratios = [
            f"{row[name] / plain[name]:.2f}" if name in row and name in plain else ""
            for name in ("step_ms", "least_ms")
        ]
        size = row.get("bytes_per_step")
        table.add_row(
            label,
            row["outcome"],
            str(row.get("steps", "")),
            str(row.get("buckets") or ""),
            "" if step is None else f"{step:.0f} ms",
            *ratios,
            "" if size is None else f"{size:,.0f}",
        )
    Console(width=130).print(table)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schemes", nargs="*", default=SCHEMES, help="expressions (default: a choice of all)")
    parser.add_argument("--steps", type=int, default=200, help="steps of every job (default 200)")
    parser.add_argument("--ranks", type=int, default=2, help="processes of every job (default 2)")
    parser.add_argument("--size", type=int, default=8, help="height and width of the images (default 8)")
    parser.add_argument("--batch", type=int, default=2, help="images of a rank and step (default 2)")
    parser.add_argument(
        "--patience", type=float, default=120, help="seconds without a step that end a job (default 120)"
    )
    parser.add_argument("--alone", action="store_true", help="leave out torch's hooks")
    parser.add_argument("--how", choices=WAYS, default="both", help="the exchange beside backward, or within the hook")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job(args.job, args.steps, args.size, args.batch, args.folder)
        return
    labels = [PLAIN] if args.alone else list(PEERS)
    labels += [scheme + how for scheme in args.schemes for how in WAYS[args.how]]
    import importlib.metadata

    setting = {name: getattr(args, name) for name in ("ranks", "steps", "size", "batch", "patience")}
    machine = {"cores": os.cpu_count(), "torch": importlib.metadata.version("torch")}
    result: dict[str, Any] = {"setting": setting, "machine": machine, "hooks": {}}
    for label in labels:
        row = result["hooks"][label] = watched(label, args)
        print(f"{label}: {row['outcome']} after {row.get('steps', 0)} steps", flush=True)
        keep(args.json, result)
    show(result)


if __name__ == "__main__":
    main()
