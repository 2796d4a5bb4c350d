# SPDX-License-Identifier: Apache-2.0
"""Everything that a run is, in one safetensors file that replaces its predecessor at once or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phalanx.world import Payload

FORMAT = "phalanx-checkpoint-1"
_PLAIN = "plain leaves as JSON"


@dataclass(frozen=True)
class Checkpoint:
    """Nested dictionaries of tensors, numbers, strings and None.

    Args:
        step: rounds done, over all phases.
        run: the run's expression.
        tree: model, optimizer, stage state, ledger.
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


def flatten(tree: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Paths to tensors, and paths to all other leaves. Keys are joined by '/', which a key itself writes as '%2F'."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            path = prefix + str(key).replace("%", "%25").replace("/", "%2F")
            if isinstance(value, dict):
                walk(value, path + "/")
            elif isinstance(value, Tensor):
                tensors[path] = value
            else:
                plain[path] = value

    walk(tree, "")
    return tensors, plain


def unflatten(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, without empty dictionaries."""
    tree: dict[str, Any] = {}
    for path, value in (*plain.items(), *tensors.items()):
        *parents, last = (k.replace("%2F", "/").replace("%25", "%") for k in path.split("/"))
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def to_payload(tree: dict[str, Any]) -> Payload:
    """A tree as tensors only, for a world to carry."""
    tensors, plain = flatten(tree)
    about = bytearray(json.dumps(plain).encode())
    return {**tensors, _PLAIN: torch.frombuffer(about, dtype=torch.uint8)}


def from_payload(payload: Payload) -> dict[str, Any]:
    """The inverse of `to_payload`, without empty dictionaries."""
    plain = json.loads(bytes(payload[_PLAIN].tolist()))
    return unflatten({k: t for k, t in payload.items() if k != _PLAIN}, plain)


def copied_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with tensors of its own."""
    return {
        key: copied_tree(x) if isinstance(x, dict) else x.detach().clone() if isinstance(x, Tensor) else x
        for key, x in tree.items()
    }


def merge(trees: list[dict[str, Any]]) -> dict[str, Any]:
    """The union of nested dictionaries; where several have a leaf, the first one's counts."""
    out: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            if isinstance(value, dict) and isinstance(out.get(key), dict):
                out[key] = merge([out[key], value])
            else:
                out.setdefault(key, value)
    return out


def own(state: dict[str, Any], ids: tuple[int, ...]) -> dict[str, Any]:
    """Stage state without the memories of workers that other processes play."""
    kept: dict[str, Any] = {}
    for key, value in state.items():
        kind, _, worker = key.partition(":")
        if kind == "worker" and int(worker) not in ids:
            continue
        kept[key] = own(value, ids) if isinstance(value, dict) else value
    return kept


def memories_of(state: dict[str, Any], ids: tuple[int, ...]) -> dict[str, Any]:
    """The memories of these workers in a stage state, and nothing else."""
    kept: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, dict):
            continue
        kind, _, worker = key.partition(":")
        if kind == "worker":
            found = value if worker in map(str, ids) else {}
        else:
            found = {} if kind == "row" else memories_of(value, ids)
        if found:
            kept[key] = found
    return kept


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces a file at once: written beside it, flushed to the disk, renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
