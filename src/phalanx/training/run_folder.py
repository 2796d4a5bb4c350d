# SPDX-License-Identifier: Apache-2.0
"""A run's folder: configuration, environment, metrics round by round, summary, checkpoint."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import re
import reprlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from phalanx.core.expression import require
from phalanx.core.folder_lock import folder_lock
from phalanx.core.optional import optional
from phalanx.core.trees import flatten, replace_atomic, unflatten, write_atomic

_log = logging.getLogger(__name__)
_FLUSH_S = 2.0  # between two writes of metrics to the disk
PACKAGES = ("phalanx-train", "torch", "numpy", "numba", "scipy", "scikit-learn", "safetensors")
NEWEST, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
RESULTS = "experiments/results"  # folder of committed results


class RunFolder:
    """The files of one run.

    ``config.txt`` the run's expression; ``about.json`` versions, machine, commit; ``metrics.jsonl`` a line a round;
    ``summary.json`` at the end; ``checkpoint.safetensors`` the newest checkpoint, and
    ``checkpoint.previous.safetensors`` the one before it; ``events/`` for TensorBoard on request; ``processes.json`` in
    a server's job, which worker runs where.

    Args:
        path: created when absent.
        tensorboard: also write TensorBoard events.
    """

    def __init__(self, path: Path | str, tensorboard: bool = False) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._writer = _events(self.path / "events") if tensorboard else None
        self._metrics: Any = None
        self._flushed = 0.0
        self._lock = ExitStack()

    def __enter__(self) -> RunFolder:
        """Keeps other runs out of the folder, in this process and in others.

        Raises:
            ValueError: another run is in it.
        """
        self._lock.enter_context(folder_lock(self.path, patience_s=0.0, name=".run.lock"))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._lock.close()

    def begin(self, run: str, processes: Sequence[dict[str, Any]] = ()) -> None:
        """Writes the run's expression and a description of the machine, unless the folder holds this run already.

        Args:
            processes: descriptions of the workers' processes in a server's job, for processes.json.
        Raises:
            ValueError: the folder holds another run.
        """
        config = self.path / "config.txt"
        if config.exists():
            if config.read_text().strip() != run:
                raise ValueError(f"{self.path} holds another run; give a new folder, or resume that run unchanged")
        else:
            write_atomic(config, (run + "\n").encode())
            write_json(self.path / "about.json", about())
        if processes:
            write_json(self.path / "processes.json", list(processes))

    @property
    def config(self) -> str:
        """The expression of the run in this folder."""
        file = self.path / "config.txt"
        if not file.exists():
            raise ValueError(f"{self.path} holds no run: there is no config.txt in it")
        return file.read_text().strip()

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary, once the run has ended."""
        file = self.path / "summary.json"
        return _document(file.read_text(), str(file)) if file.exists() else None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line cut off by a crash is left out."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [_document(line, f"line {i} of {file}") for i, line in enumerate(lines, 1)]

    def log(self, line: dict[str, Any]) -> None:
        """Appends one round's metrics."""
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a")
        self._metrics.write(json.dumps(line) + "\n")
        if time.monotonic() - self._flushed > _FLUSH_S:
            self._metrics.flush()  # for `phalanx status`
            self._flushed = time.monotonic()
        if self._writer is not None:
            for key, value in line.items():
                if isinstance(value, int | float) and key != "step":
                    self._writer.add_scalar(key, value, line["step"])

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replaces the checkpoint, after the metrics up to it are on the disk; the one before it is kept, too."""
        self._flush()
        newest = self.path / NEWEST
        if newest.exists():
            newest.replace(self.path / PREVIOUS)
        save_checkpoint(newest, checkpoint)

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, None when there is none; deletes the metrics of later rounds.

        Raises:
            ValueError: there are checkpoints, and none is whole; or the checkpoint is of another run or seed.
        """
        for part in self.path.glob(".*.part"):  # of a process that was killed while it wrote
            part.unlink(missing_ok=True)
        point = self._whole_checkpoint()
        if point is not None and (self.path / "config.txt").exists():
            same = point.run.strip() == self.config
            require(same, f"{self.path / NEWEST} is of another run or seed than config.txt; delete it to begin again")
        step = point.step if point else 0
        kept = [json.dumps(line) for line in self.metrics() if line["step"] < step]
        write_atomic(self.path / "metrics.jsonl", "".join(line + "\n" for line in kept).encode())
        return point

    def _whole_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint, or the one before it where the newest is missing or damaged."""
        damaged: ValueError | None = None
        for name in (NEWEST, PREVIOUS):
            if (self.path / name).exists():
                try:
                    point = load_checkpoint(self.path / name)
                except ValueError as error:
                    damaged = damaged or error
                    continue
                if damaged is not None:
                    _log.warning("%s; the run goes on from the checkpoint before it, round %d", damaged, point.step)
                return point
        if damaged is not None:
            raise damaged
        return None

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the summary and closes the files."""
        self.close()
        write_json(self.path / "summary.json", summary)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._flush()
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._metrics is not None:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON at once or not at all."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def slug(label: str) -> str:
    """A label as the name of a folder: lower-case letters and digits joined by hyphens."""
    return "-".join(re.findall("[a-z0-9]+", label.lower())) or "run"


def new_folder(name: str, root: Path | str = "runs") -> Path:
    """A folder that does not exist yet, named by time and name, under `root`."""
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        path = Path(root) / f"{stamp}-{name}{suffix}"
        if not path.exists():
            return path
    raise ValueError(f"no free folder name for {name} under {root}")


def about() -> dict[str, Any]:
    """Versions, machine and commit that the numbers of a run depend on."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **versions()},
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "commit": _commit(),
    }


def _document(text: str, source: str) -> dict[str, Any]:
    """Parses a JSON document; an error names its `source`."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} is damaged ({error}); delete the run's folder and resume the study") from None


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "absent"
    return installed


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """The commit of the source tree that runs, '+' behind it when files were changed; None outside a repository.

    Changed results do not count, as no number depends on them.
    """
    here = str(Path(__file__).parent)
    code = [":(top)", f":(top,exclude){RESULTS}"]
    try:
        head = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        state = subprocess.run(
            ["git", "-C", here, "status", "--porcelain", "-uno", "--", *code],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if state.stdout.strip() else "") if head.returncode == 0 else None


def event_writer() -> Any:
    """The class that writes TensorBoard events.

    Raises:
        MissingPackage: it is not installed.
    """
    return optional("torch.utils.tensorboard", "writing events", "TensorBoard", "tensorboard").SummaryWriter


def _events(path: Path) -> Any:
    return event_writer()(str(path))


FORMAT = "phalanx-checkpoint-3"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run as nested dictionaries of tensors, numbers, strings and None.

    Args:
        step: rounds done, over all phases.
        run: the run's expression.
        tree: model, optimizer, memories of stages and workers, statistics.
    """

    step: int
    run: str
    tree: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file and renames it into place; a crash leaves the old one."""
    from safetensors.torch import save_file

    tensors, plain = flatten(checkpoint.tree)
    kept = _apart(tensors)
    about = {"format": FORMAT, "step": str(checkpoint.step), "run": checkpoint.run, "plain": json.dumps(plain)}
    about["digest"] = _checkpoint_digest(kept, about)
    replace_atomic(path, lambda partial: save_file(kept, str(partial), about))


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, none in the memory of another, which the file format refuses."""
    kept, taken = dict[str, torch.Tensor](), set[int]()
    for name, tensor in tensors.items():
        alone = tensor.detach().cpu().contiguous()
        memory = alone.untyped_storage()
        if memory.nbytes() > alone.numel() * alone.element_size() or memory.data_ptr() in taken:
            alone = alone.clone()
        taken.add(alone.untyped_storage().data_ptr())
        kept[name] = alone
    return kept


def _checkpoint_digest(tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> str:
    """The BLAKE3 digest of all tensors by name, with what stands beside them: run with its seed, step, plain values."""
    from blake3 import blake3

    forms = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in sorted(tensors.items())]
    words = [about[key] for key in ("format", "step", "run", "plain")]
    hasher = blake3(json.dumps([words, forms]).encode())
    for _, tensor in sorted(tensors.items()):
        if tensor.numel():
            buffer: Any = tensor.reshape(-1).view(torch.uint8).numpy()  # numpy's types say later that this is a buffer
            hasher.update(buffer)
    return hasher.hexdigest()


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a file that `save_checkpoint` wrote.

    Raises:
        ValueError: another format, or a file that is damaged or was changed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            # a name in the file and its tensor; the file closes before they are used
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole checkpoint ({error}); delete it to begin this run again") from None
    if about.get("format") != FORMAT:
        found = reprlib.repr(about.get("format"))
        raise ValueError(f"{path} holds format {found}, this version reads {FORMAT!r}")
    absent = [key for key in ("step", "run", "plain", "digest") if key not in about]
    require(not absent, f"{path} lacks {', '.join(absent)}; delete it to begin this run again")
    same = about["digest"] == _checkpoint_digest(tensors, about)
    require(same, f"{path} is damaged or was changed: its digest is wrong; delete it to begin this run again")
    return Checkpoint(int(about["step"]), about["run"], unflatten(tensors, json.loads(about["plain"])))
