# SPDX-License-Identifier: Apache-2.0
"""Models as rows: state dicts, or records that turn into them, for a stage that is called outside of a round."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

_TO_STATE = "to_torch_state_dict"  # the method of Flower's ArrayRecord


@dataclass(frozen=True)
class StateForm:
    """Names, shapes and dtypes of a state's tensors; floating-point ones make the row, in this order.

    Args:
        parts: (name, shape, dtype) of each tensor.
    """

    parts: tuple[tuple[str, torch.Size, torch.dtype], ...]

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> StateForm:
        """The form of a state."""
        return StateForm(tuple((name, tensor.shape, tensor.dtype) for name, tensor in state.items()))

    @property
    def floats(self) -> list[tuple[str, torch.Size, torch.dtype]]:
        """The floating-point tensors."""
        return [part for part in self.parts if part[2].is_floating_point]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of a row: one that holds all floating-point tensors."""
        return reduce(torch.promote_types, (dtype for _, _, dtype in self.floats), self.floats[0][2])

    def row(self, state: Mapping[str, Tensor]) -> Tensor:
        """The floating-point tensors of a state as one row (d,)."""
        return torch.cat([state[name].detach().reshape(-1).to("cpu", self.dtype) for name, _, _ in self.floats])

    def state(self, row: Tensor, integers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A row and the other tensors as a state; the inverse of `row`."""
        sizes = [math.prod(shape) for _, shape, _ in self.floats]
        values = {
            name: part.reshape(shape).to(dtype)
            for (name, shape, dtype), part in zip(self.floats, row.split(sizes), strict=True)
        }
        return {name: values[name] if name in values else integers[name] for name, _, _ in self.parts}

    def why_not(self, state: Mapping[str, Tensor]) -> str:
        """How a state differs from this form; empty if it does not."""
        for name, shape, dtype in self.parts:
            if name not in state:
                return f"no tensor {name!r}"
            if (state[name].shape, state[name].dtype) != (shape, dtype):
                found = f"{tuple(state[name].shape)} {state[name].dtype}"
                return f"{name!r} is {found} in place of {tuple(shape)} {dtype}"
        names = {name for name, _, _ in self.parts}
        extra = next((name for name in state if name not in names), None)
        return "" if extra is None else f"a tensor {str(extra)[:100]!r} too many"


def is_states(rows: Any) -> bool:
    """Whether these rows are models: a list of mappings, or of what turns into them."""
    return isinstance(rows, list | tuple) and any(isinstance(row, Mapping) or hasattr(row, _TO_STATE) for row in rows)


def states_of(rows: Sequence[Any], name: str) -> tuple[StateForm, list[Mapping[str, Tensor] | str]]:
    """The form of most states, and each state or why it has another.

    Args:
        name: name of the stage, for errors.
    Raises:
        ValueError: no state can be read, or most have no floating-point tensor.
    """
    read = [_read(row) for row in rows]
    forms = Counter(StateForm(tuple(sorted(StateForm.of(s).parts, key=lambda p: p[0]))) for s in read if s is not None)
    if not forms:
        raise ValueError(f"{name} takes states of tensors by name, and none of the {len(rows)} can be read")
    most = forms.most_common(1)[0][0]
    example = next(s for s in read if s is not None and not most.why_not(s))
    form = StateForm.of(example)
    if not form.floats:
        raise ValueError(f"{name} takes states with floating-point tensors, and most have none")
    return form, ["no tensors by name" if s is None else form.why_not(s) or s for s in read]


def middle_integers(form: StateForm, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that are no floating-point numbers, such as counters: the lower median of each entry."""
    names = [name for name, _, dtype in form.parts if not dtype.is_floating_point]
    return {
        name: torch.stack([s[name].detach().cpu() for s in states]).sort(dim=0).values[(len(states) - 1) // 2]
        for name in names
    }


def _read(row: Any) -> dict[str, Tensor] | None:
    """A state, or None where it cannot be read, whoever wrote it."""
    try:
        found = getattr(row, _TO_STATE)() if hasattr(row, _TO_STATE) else row
        state = {str(name): torch.as_tensor(value) for name, value in found.items()}
    except Exception:
        return None
    return None if any(t.is_sparse or t.is_meta or t.dtype.is_complex for t in state.values()) else state
