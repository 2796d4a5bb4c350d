# SPDX-License-Identifier: Apache-2.0
"""The checkpoint of a run: one safetensors file that replaces the previous one at once or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phalanx.core.trees import flatten, unflatten, write_atomic

FORMAT = "phalanx-checkpoint-2"


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


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file and renames it into place; a crash leaves the old one."""
    from safetensors.torch import save as to_bytes

    tensors, plain = flatten(checkpoint.tree)
    about = {"format": FORMAT, "step": str(checkpoint.step), "run": checkpoint.run, "plain": json.dumps(plain)}
    write_atomic(path, to_bytes({k: t.detach().cpu().clone().contiguous() for k, t in tensors.items()}, about))


def load(path: Path) -> Checkpoint:
    """Reads a file that `save` wrote.

    Raises:
        ValueError: another format, or a damaged file.
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
        raise ValueError(f"{path} holds format {about.get('format')!r}, this version reads {FORMAT!r}")
    return Checkpoint(int(about["step"]), about["run"], unflatten(tensors, json.loads(about["plain"])))
