# SPDX-License-Identifier: Apache-2.0
"""Nested dictionaries of tensors and plain values: to flatten, merge and send them; and atomic file writes."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phalanx.core.limits import check_depth
from phalanx.core.payload import BadPayload, Payload

State = dict[str, Any]  # nested dictionaries with string keys; leaves are tensors, numbers or None
_PLAIN = "plain leaves as JSON"


def flatten(tree: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by path, and all other leaves by path. Keys are joined by '/', which a key itself writes as '%2F'."""
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
            if not isinstance(node, dict):
                raise ValueError(f"{reprlib.repr(path)} lies below a value")
        node[last] = value
    return tree


def to_payload(tree: dict[str, Any]) -> Payload:
    """A tree as a payload, for a world to send."""
    tensors, plain = flatten(tree)
    encoded = bytearray(json.dumps(plain).encode())
    return {**tensors, _PLAIN: torch.frombuffer(encoded, dtype=torch.uint8)}


def from_payload(payload: Payload) -> dict[str, Any]:
    """The inverse of `to_payload`, without empty dictionaries.

    Raises:
        ValueError: the payload is none that `to_payload` wrote.
    """
    if _PLAIN not in payload:
        raise BadPayload("a tree without its plain values")
    text = payload[_PLAIN].numpy(force=True).tobytes().decode()
    check_depth(text, "a tree of plain values")
    plain = json.loads(text)
    if not isinstance(plain, dict):
        raise BadPayload("plain values that are no dictionary")
    return unflatten({k: t for k, t in payload.items() if k != _PLAIN}, plain)


def copy_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of the tree with copies of its tensors."""
    return {
        key: copy_tree(x) if isinstance(x, dict) else x.detach().clone() if isinstance(x, Tensor) else x
        for key, x in tree.items()
    }


def merge(trees: list[dict[str, Any]]) -> dict[str, Any]:
    """The union of nested dictionaries; where several have a leaf, the leaf of the first one counts."""
    out: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            if isinstance(value, dict) and isinstance(out.get(key), dict):
                out[key] = merge([out[key], value])
            else:
                out.setdefault(key, value)
    return out


def keep_local_memories(state: dict[str, Any], ids: tuple[int, ...]) -> dict[str, Any]:
    """The state of a stage without the memories of workers of other processes."""
    kept: dict[str, Any] = {}
    for key, value in state.items():
        kind, _, worker = key.partition(":")
        if kind == "worker" and int(worker) not in ids:
            continue
        kept[key] = keep_local_memories(value, ids) if isinstance(value, dict) else value
    return kept


def memories_of(state: dict[str, Any], ids: tuple[int, ...]) -> dict[str, Any]:
    """The memories of these workers in the state of a stage, and nothing else."""
    kept: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, dict):
            continue
        kind, _, worker = key.partition(":")
        if kind == "worker":
            memories = value if worker in map(str, ids) else {}
        else:
            memories = {} if kind == "row" else memories_of(value, ids)
        if memories:
            kept[key] = memories
    return kept


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces a file atomically: writes a file beside it, flushes it to the disk, and renames it."""
    replace_atomic(path, lambda partial: partial.write_bytes(content))


def replace_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces a file atomically by one that `write` writes at the path it is given."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    write(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
