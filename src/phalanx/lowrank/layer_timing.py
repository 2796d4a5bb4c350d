# SPDX-License-Identifier: Apache-2.0
"""Measured seconds of a training step of single layers, dense and in low rank, on the present machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from phalanx.core.round import make_generator
from phalanx.lowrank.layer import LowRank
from phalanx.lowrank.layer_types import Layer, layers
from phalanx.lowrank.plan import Entry, Plan
from phalanx.lowrank.sample_run import modes_kept, run_sample

_SLOWER = "slower here"
_WARM, _REPEATS, _MOST = 2, 5, 50
_SHORT_S, _LONG_S = 0.05, 2.0  # steps repeat for at least _SHORT_S, and stop after _LONG_S


@dataclass(frozen=True)
class Call:
    """The arguments of a call of a layer; their tensors are leaves, which need gradients if the originals did."""

    args: Any
    kwargs: Any
    leaves: tuple[Tensor, ...]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """A call with the arguments detached from their graph; a tensor that is given twice stays one tensor."""
        leaves: dict[int, Tensor] = {}

        def leaf(tensor: Tensor) -> Tensor:
            detached = leaves.setdefault(id(tensor), tensor.detach())
            return detached.requires_grad_(tensor.requires_grad)

        return cls(_mapped(args, leaf), _mapped(kwargs, leaf), tuple(leaves.values()))

    @property
    def about(self) -> str:
        """A text of everything that the time of the call may depend on, except the values of its tensors."""
        number = {id(leaf): i for i, leaf in enumerate(self.leaves)}

        def description(tensor: Tensor) -> Any:
            shape = tuple(tensor.shape), tensor.stride(), tensor.dtype
            return number[id(tensor)], *shape, tensor.requires_grad

        return repr((_mapped(self.args, description), _mapped(self.kwargs, description)))


class LayerTimer:
    """Measures the layers of a model for one or several plans, on the inputs that they get in a run on a sample.

    Layers with the same class, fields, shapes of weights and inputs are measured once, also for several plans.

    Args:
        model: the dense model.
        model_layers: its layers, from `layers`.
        sample_input: a tensor, a tuple of arguments, or a dictionary of them.
        autocast: dtype of `torch.autocast` in the run on the sample and in the measured steps; None for none.
    Raises:
        ValueError: a weight has no data.
    """

    def __init__(
        self, model: nn.Module, model_layers: list[Layer], sample_input: Any, autocast: torch.dtype | None
    ) -> None:
        empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if empty:
            raise ValueError(
                f"parameter {empty[0]!r} has no data, so no layer can be timed; build the model on a device"
            )
        self._able = {layer.name: layer for layer in model_layers if layer.family is not None and not layer.refusal}
        self._calls: dict[str, list[Call]] = {name: [] for name in self._able}
        self._autocast = autocast
        self._known: dict[Any, tuple[float, ...]] = {}
        device = next((parameter.device.type for parameter in model.parameters()), "cpu")

        def keep(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._calls[layer.name].append(Call.of(args, kwargs))

        with torch.enable_grad(), torch.autocast(device, autocast, enabled=autocast is not None):
            run_sample(model, list(self._able.values()), sample_input, keep)

    def __call__(self, plan: Plan) -> Plan:
        """The plan with the seconds of its layers, and a remark in the reason if a layer is slower in low rank.

        Layers that cannot be factorized, or do not run on the sample, have no times.
        """
        ranks: dict[str, dict[str, int | None]] = {}
        for entry in plan:
            ranks.setdefault(entry.layer, {})[entry.name] = entry.rank
        entries, done = [], set()
        for entry in plan:
            seconds, after = None, None
            if entry.layer not in done:
                done.add(entry.layer)
                seconds, after = self._layer(entry.layer, ranks[entry.layer])
            entries.append(replace(entry, seconds=seconds, seconds_after=after))
        timed = replace(plan, entries=tuple(entries))
        slow = slower(timed)
        return replace(timed, entries=tuple(_marked(entry, slow.get(entry.name)) for entry in timed))

    def _layer(self, name: str, ranks: Mapping[str, int | None]) -> tuple[float | None, float | None]:
        if not self._calls.get(name):
            return None, None
        layer = self._able[name]
        layer_ranks = {factor.name: ranks.get(layer.path(factor)) for factor in layer.factors}
        pairs = [self._pair(layer, layer_ranks, call) for call in self._calls[name]]
        dense, after = sum(pair[0] for pair in pairs), sum(pair[-1] for pair in pairs)
        return float(f"{dense:.4g}"), float(f"{after:.4g}")

    def _pair(self, layer: Layer, ranks: Mapping[str, int | None], call: Call) -> tuple[float, ...]:
        key = (_about(layer.module), tuple(ranks.items()), call.about)
        if key not in self._known:
            forms = [layer.module]
            if layer.family is not None and any(ranks.values()):
                forms.append(_filled(layer.family.like(layer.module, ranks)))
            self._known[key] = step_seconds(forms, call, self._autocast)
        return self._known[key]


def timed(model: nn.Module, plan: Plan, sample_input: Any, autocast: torch.dtype | None = None) -> Plan:
    """The plan with the seconds of a training step of each layer that could be factorized, dense and at its rank.

    Args:
        sample_input: an input of the model (a tensor, a tuple of arguments or a dictionary of them) of the batch size
            of interest. The model runs on it once, and each layer is then measured on the inputs that it got.
        autocast: dtype of `torch.autocast`, such as `torch.bfloat16`; None runs in the model's own dtypes.
    Raises:
        ValueError: the model has low-rank layers, or a weight has no data.
    """
    return LayerTimer(model, layers(model), sample_input, autocast)(plan)


def _marked(entry: Entry, slow: str | None) -> Entry:
    reason = entry.reason.partition(f"; {_SLOWER}")[0]
    return replace(entry, reason=f"{reason}; {slow}" if slow else reason)


def groups(plan: Plan) -> list[list[Entry]]:
    """The low-rank entries in groups that become full together: those of one layer, or that share a weight."""
    group = {entry.layer: entry.layer for entry in plan}
    low = [entry for entry in plan if entry.rank is not None]
    for entry in low:
        if entry.tied:
            old, new = group[entry.layer], group[plan[entry.tied].layer]
            group = {layer: new if its == old else its for layer, its in group.items()}
    by_group: dict[str, list[Entry]] = {}
    for entry in low:
        by_group.setdefault(group[entry.layer], []).append(entry)
    return list(by_group.values())


def slower(plan: Plan) -> dict[str, str]:
    """The low-rank entries of a measured plan whose layers are slower in low rank, each with the reason."""
    words: dict[str, str] = {}
    for group in groups(plan):
        touched = {entry.layer for entry in group}
        times = [(e.seconds or 0.0, e.seconds_after or 0.0) for e in plan if e.layer in touched]
        dense, after = (sum(column) for column in zip(*times, strict=True))
        if after > dense:
            text = f"{_SLOWER}: {1e3 * after:,.2f} ms for {1e3 * dense:,.2f} ms"
            words |= {entry.name: text for entry in group}
    return words


def step_seconds(forms: Sequence[nn.Module], call: Call, autocast: torch.dtype | None) -> tuple[float, ...]:
    """Median seconds of a forward and backward for each form of one layer, in training mode; the forms take turns."""
    device = next(forms[0].parameters()).device
    spent: list[list[float]] = [[] for _ in forms]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), modes_kept(forms[0]):
        steps = [_step(form.train(), call, device, autocast) for form in forms]
        for step in steps * _WARM:
            step()
        while not _enough(spent[0]):
            for step, seconds in zip(steps, spent, strict=True):
                seconds.append(step())
    return tuple(median(seconds) for seconds in spent)


def _enough(spent: Sequence[float]) -> bool:
    total = sum(spent)
    return (len(spent) >= _REPEATS and total >= _SHORT_S) or len(spent) >= _MOST or total >= _LONG_S


def _step(form: nn.Module, call: Call, device: torch.device, autocast: torch.dtype | None) -> Callable[[], float]:
    wanted = [tensor for tensor in (*form.parameters(), *call.leaves) if tensor.requires_grad]

    def step() -> float:
        _wait(device)
        began = time.perf_counter()
        with torch.enable_grad(), torch.autocast(device.type, autocast, enabled=autocast is not None):
            output = _first(form.forward(*call.args, **call.kwargs))
        if output.requires_grad:
            torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)
        _wait(device)
        return time.perf_counter() - began

    return step


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _first(output: Any) -> Tensor:
    if isinstance(output, PackedSequence):
        return output.data
    return output if isinstance(output, Tensor) else _first(output[0])


def _filled(low: LowRank) -> LowRank:
    """The layer with random normal factors, because uninitialised memory may hold numbers that compute slower."""
    with torch.no_grad():
        for parameter in (part for factor in low.factors for part in low.pair(factor)):
            rng = make_generator("times", 0, *parameter.shape)
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / parameter.shape[1] ** 0.5)
    return low


def _about(module: nn.Module) -> tuple[Any, ...]:
    """Everything that the time of a layer may depend on, except the values of its weights."""
    plain = (str, int, float, tuple, type(None))
    fields = [(k, repr(v)) for k, v in vars(module).items() if k[0] != "_" and k != "training" and isinstance(v, plain)]
    weights = [(name, tuple(p.shape), p.stride(), p.dtype, p.requires_grad) for name, p in module.named_parameters()]
    return type(module), tuple(fields), tuple(weights)


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Arguments in which every tensor is replaced by `change(tensor)`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=change(value.data))
    if isinstance(value, Mapping):
        return {name: _mapped(part, change) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_mapped(part, change) for part in value)
    return value
