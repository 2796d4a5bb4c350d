# SPDX-License-Identifier: Apache-2.0
"""Micro-batches as payloads: tensors and plain values in tuples, lists and dictionaries, without pickle."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from phalanx.core.limits import check_depth
from phalanx.core.payload import Payload

_FORM = "form as JSON"


def to_payload(tree: Any) -> Payload:
    """A tree of tensors as a payload.

    Raises:
        ValueError: the tree holds something other than tensors, tuples, lists, dictionaries and plain values.
    """
    payload: Payload = {}
    form = json.dumps(_describe(tree, payload))
    return {**payload, _FORM: torch.frombuffer(bytearray(form.encode()), dtype=torch.uint8)}


def from_payload(payload: Payload, device: torch.device) -> Any:
    """The inverse of `to_payload`; the tensors are copies.

    Args:
        device: for the tensors that were on an accelerator; all others go to the CPU.
    """
    text = payload[_FORM].numpy(force=True).tobytes().decode()
    check_depth(text, "the form of a tree")
    return _build(json.loads(text), payload, device)


def cut(tree: Any, examples: int) -> Any:
    """The first examples of every tensor that is as long as the first tensor is."""
    lengths: list[int] = []

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor) and node.dim():
            lengths.append(len(node))
            return node[:examples] if len(node) == lengths[0] else node
        if type(node) in (tuple, list):
            return type(node)(walk(child) for child in node)
        return {key: walk(child) for key, child in node.items()} if type(node) is dict else node

    return walk(tree)


def _describe(node: Any, payload: Payload) -> Any:
    if isinstance(node, Tensor):
        name = str(len(payload))
        value = torch.view_as_real(node.detach().resolve_conj()) if node.is_complex() else node.detach()
        payload[name] = value.to(torch.uint8) if value.dtype == torch.bool else value
        channels_last = (
            node.dim() == 4 and node.is_contiguous(memory_format=torch.channels_last) and not node.is_contiguous()
        )
        kind = "bool" if node.dtype == torch.bool else "complex" if node.is_complex() else "real"
        return {"tensor": name, "kind": kind, "cpu": node.device.type == "cpu", "last": channels_last}
    if type(node) in (tuple, list):
        return {type(node).__name__: [_describe(child, payload) for child in node]}
    if type(node) is dict and all(isinstance(key, str | int) for key in node):
        return {"dict": [[key, _describe(child, payload)] for key, child in node.items()]}
    if node is None or type(node) in (bool, int, float, str):
        return {"plain": node}
    raise ValueError(
        f"a micro-batch travels as tensors in tuples, lists and dictionaries, and {type(node).__name__} is none; "
        "pass its tensors"
    )


def _build(form: dict[str, Any], payload: Payload, device: torch.device) -> Any:
    if "tensor" in form:
        tensor = payload[form["tensor"]].to("cpu" if form["cpu"] else device, copy=True)
        if form["kind"] != "real":
            tensor = tensor.bool() if form["kind"] == "bool" else torch.view_as_complex(tensor)
        # strides decide which kernel computes a convolution, and so its last bits
        return tensor.to(memory_format=torch.channels_last) if form["last"] else tensor.contiguous()
    if "dict" in form:
        return {key: _build(child, payload, device) for key, child in form["dict"]}
    if "plain" in form:
        return form["plain"]
    ((kind, children),) = form.items()
    built = [_build(child, payload, device) for child in children]
    return tuple(built) if kind == "tuple" else built
