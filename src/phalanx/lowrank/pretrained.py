# SPDX-License-Identifier: Apache-2.0
"""Saves a factorized model in a folder, as its tensors and its plan, and loads it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from phalanx.core.optional import optional
from phalanx.core.trees import write_atomic
from phalanx.lowrank.factorize import apply
from phalanx.lowrank.merge import applied
from phalanx.lowrank.plan import Plan

FORMAT = "phalanx-low-rank-1"
HUGGINGFACE = "phalanx.lowrank.huggingface"
TENSORS, PLAN = "model.safetensors", "plan.yaml"


def save_pretrained(model: nn.Module, folder: str | PathLike[str]) -> None:
    """Writes `model.safetensors`, which also holds the plan, and `plan.yaml`, for people to read.

    A tensor that layers share is written once. A crash leaves the old files. A model of Hugging Face's transformers
    saves itself: its own `save_pretrained` does the same, with the plan in `config.json`.

    Args:
        folder: the folder to write to; it is made if it does not exist.
    Raises:
        ValueError: the model's state has an entry that is no tensor.
    """
    from safetensors.torch import save as to_bytes

    if "transformers" in sys.modules and isinstance(model, import_module("transformers").PreTrainedModel):
        cast(Any, model).save_pretrained(folder)
        write_atomic(Path(folder) / PLAN, applied(model).to_yaml().encode())
        return
    plan, (tensors, same) = applied(model).to_yaml(), _state(model)
    about = {"format": FORMAT, "plan": plan, "same": json.dumps(same)}
    written = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / TENSORS, to_bytes(written, about))
    write_atomic(path / PLAN, plan.encode())


def from_pretrained(folder: str | PathLike[str], model: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
    """A factorized model as it was saved: the plan is applied to a dense model without an SVD, then tensors are loaded.

    Args:
        folder: a folder that `save_pretrained` wrote.
        model: a dense model of the same architecture, or a function that builds one; it is not changed. A model that
            transformers saved is built from its `config.json`, so None will do.
    Raises:
        ValueError: the folder has no such file, the file is damaged, or the model has another architecture, other
            dtypes or other shared tensors.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / TENSORS
    config = Path(folder) / "config.json"
    if config.is_file() and f'"quant_method": "{HUGGINGFACE}"' in config.read_text():
        optional("transformers", "loading this folder", "transformers", "hf")
        given = model if isinstance(model, nn.Module) or model is None else model()
        return import_module(HUGGINGFACE).load(folder, given)
    if model is None:
        raise ValueError(f"{folder} says not which dense model it was made from; give it, or a function that builds it")
    if not path.is_file():
        raise ValueError(f"{folder} holds no {TENSORS}; give a folder that save_pretrained wrote")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            # a name in the file and its tensor; the file closes before they are used
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole file ({error}); save the model again") from None
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} holds format {about.get('format')!r}, this version reads {FORMAT!r}")
    dense = model if isinstance(model, nn.Module) else model()
    low = apply(dense, Plan.from_yaml(about["plan"]), None)
    own, same = _state(low)
    _compare(path, tensors, json.loads(about["same"]), own, same)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    return low


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor under its first name, and for each further name of a tensor its first name."""
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"the model's state holds {name!r}, a {type(value).__name__}; only tensors can be saved")
        if id(value) in first:
            same[name] = first[id(value)]
        else:
            first[id(value)] = name
            tensors[name] = value
    return tensors, same


def _compare(
    path: Path, tensors: dict[str, Tensor], same: dict[str, str], own: dict[str, Tensor], own_same: dict[str, str]
) -> None:
    """Raises ValueError unless the file and the model have the same tensors."""
    if same != own_same:
        differing = sorted(set(same.items()) ^ set(own_same.items()))[0]
        where = "the file" if differing in same.items() else "the model"
        raise ValueError(f"{path}: {' and '.join(differing)} are one tensor in {where} only; tie the model as it was")
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or extra:
        lacks, has = ", ".join(missing[:5]) or "none", ", ".join(extra[:5]) or "none"
        raise ValueError(f"{path} is of another model: it lacks {lacks}, and the model lacks {has}")
    for name, tensor in own.items():
        saved = tensors[name]
        if saved.shape != tensor.shape:
            raise ValueError(f"{path}: {name!r} has the shape {list(saved.shape)}, the model {list(tensor.shape)}")
        if saved.dtype != tensor.dtype:
            raise ValueError(
                f"{path}: {name!r} is {saved.dtype}, the model has {tensor.dtype}; convert the model first"
            )
