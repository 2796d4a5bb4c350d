# SPDX-License-Identifier: Apache-2.0
"""LSTM and GRU with gate matrices of low rank."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from phalanx.core._torch_private import is_persistent
from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import LowRank, Ranks, empty_pair
from phalanx.lowrank.macs import words_of
from phalanx.lowrank.scan import GruScan, LstmScan, Sizes, gru_steps, lstm_steps

States = tuple[Tensor, ...]  # of one layer and direction, each (B, hidden)


class LowRankRecurrent(LowRank):
    """A stack of recurrent layers with factors of the matrices of each gate.

    The input part of all gates is one thin product and one batched product for all time steps together. The hidden part
    is one thin and one batched product for each step. Both biases of PyTorch are kept, so the function is the same.

    Shapes: those of `nn.LSTM` and `nn.GRU`: (T, B, in), (B, T, in), (T, in) or a `PackedSequence`. Factors of layer 0:
        u_ih_l0 (gates * rank, in), v_ih_l0 (gates * hidden, rank), u_hh_l0, v_hh_l0; the gates in PyTorch's order.
    Raises:
        ValueError: an input or a state has another shape, or there is no time step.
    Source: Wang et al., Pufferfish, 2021, arXiv:2103.03936, section 2.3. Differs: two biases for each gate; each layer
        continues with its own state, where the published stack gives the state of layer 2 to layer 1.
    """

    gates: ClassVar[int]
    dense_type: ClassVar[Any]

    def __init__(self, dense: nn.RNNBase, ranks: Ranks) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = dense.input_size, dense.hidden_size, dense.num_layers
        self.bias, self.batch_first, self.dropout = dense.bias, dense.batch_first, dense.dropout
        self.bidirectional = dense.bidirectional
        self._factors: list[Factor] = []
        for factor in self.dense_factors(dense):
            weight, rank = dense.get_parameter(factor.weight), ranks[factor.name]
            if rank is None:
                self.register_parameter(factor.weight, weight)
                continue
            u, v = empty_pair(factor, rank, weight)
            self.register_parameter(factor.u, u)
            self.register_parameter(factor.v, v)
            self._factors.append(factor)
        for end in self._ends() if self.bias else ():
            for name in (f"bias_ih{end}", f"bias_hh{end}"):
                bias = getattr(dense, name)
                if isinstance(bias, nn.Parameter):
                    self.register_parameter(name, bias)
                else:  # zeros that are not trained, as in `tied_lstm`
                    self.register_buffer(name, bias, is_persistent(dense, name))

    @classmethod
    def dense_factors(cls, dense: nn.Module) -> tuple[Factor, ...]:
        old, factors_of_layers = cast(nn.RNNBase, dense), []
        for layer in range(old.num_layers):
            for suffix in ("", "_reverse") if old.bidirectional else ("",):
                for side in ("ih", "hh"):
                    end = f"{side}_l{layer}{suffix}"
                    name, shape = f"weight_{end}", tuple(old.get_parameter(f"weight_{end}").shape)
                    factors_of_layers.append(
                        Factor(name, name, shape, f"u_{end}", f"v_{end}", copies=cls.gates, layer=f"l{layer}")
                    )
        return tuple(factors_of_layers)

    @classmethod
    def refusal(cls, dense: nn.Module) -> str:
        size = cast(nn.RNNBase, dense).proj_size
        return f"it projects its states (proj_size={size}), which are of low rank already" if size else ""

    @classmethod
    def like(cls, dense: nn.Module, ranks: Ranks) -> Self:
        return cls(cast(nn.RNNBase, dense), ranks)

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(self._factors)

    def dense_like(self) -> nn.Module:
        dense = self.dense_type(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            device="meta",
        )
        dense.dropout = self.dropout  # as an argument it would cause a warning if there is only one layer
        for name, parameter in self.named_parameters():
            if name.startswith(("weight_", "bias_")):
                setattr(dense, name, parameter)
        for name, bias in self.named_buffers():
            delattr(dense, name)
            dense.register_buffer(name, bias, is_persistent(self, name))
            setattr(dense, name, bias)  # also puts it into the list from which the kernels read
        return dense

    def macs(self, inputs: tuple[Any, ...], output: Any) -> int:
        return words_of(inputs[0]) * sum(parameter.numel() for parameter in self.parameters() if parameter.dim() > 1)

    def flatten_parameters(self) -> None:
        """Does nothing, as `nn.LSTM` does without cuDNN."""

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """The outputs and last states, as `nn.LSTM` or `nn.GRU` returns them for the same input and initial states."""
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, back = input
            y, states = self._run(
                data, tuple(batch_sizes.tolist()), self._initial(hx, data, int(batch_sizes[0]), order)
            )
            return PackedSequence(y, batch_sizes, order, back), self._final(states, back)
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            wanted = f"(steps, {self.input_size}) or with a batch"
            raise ValueError(f"{type(self).__name__} reads {wanted}, got the shape {tuple(input.shape)}")
        alone, axis = input.dim() == 2, 0 if self.batch_first else 1
        if alone:
            input, hx = input.unsqueeze(axis), _each(hx, lambda state: state.unsqueeze(1))
        if self.batch_first:
            input = input.transpose(0, 1)
        length, batch = input.shape[:2]
        if length == 0:
            raise ValueError(f"{type(self).__name__} needs at least one time step, got none")
        initial = self._initial(hx, input, batch, None)
        y, states = self._run(input.reshape(length * batch, self.input_size), (batch,) * length, initial)
        y = y.unflatten(0, (length, batch))
        y = y.transpose(0, 1) if self.batch_first else y
        final = self._final(states, None)
        return (y.squeeze(axis), _each(final, lambda state: state.squeeze(1))) if alone else (y, final)

    @abstractmethod
    def _scan(self, x: Tensor, states: States, end: str, sizes: Sizes, reverse: bool) -> tuple[Tensor, ...]:
        """The outputs (n, hidden) and the last states of one layer in one direction."""

    @abstractmethod
    def _input_bias(self, end: str) -> Tensor:
        """The bias (gates * hidden,) of the input part."""

    @property
    def _num_states(self) -> int:
        return 2 if self.kind == "lstm" else 1

    def _ends(self) -> list[str]:
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{suffix}" for layer in range(self.num_layers) for suffix in suffixes]

    def _initial(self, hx: Any, data: Tensor, batch: int, order: Tensor | None) -> list[States]:
        count, shape = self._num_states, (len(self._ends()), batch, self.hidden_size)
        if hx is None:
            states: States = tuple(data.new_zeros(shape) for _ in range(count))
        else:
            states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        got = [tuple(state.shape) for state in states]
        if got != [shape] * count:
            name = type(self).__name__
            raise ValueError(f"{name} needs {count} initial state(s) of shape {shape}, got the shapes {got}")
        if order is not None and hx is not None:
            states = tuple(state.index_select(1, order) for state in states)
        return [tuple(state[i] for state in states) for i in range(shape[0])]

    def _final(self, states: list[States], back: Tensor | None) -> Any:
        final: States = tuple(torch.stack(each) for each in zip(*states, strict=True))
        if back is not None:
            final = tuple(state.index_select(1, back) for state in final)
        return final if len(final) > 1 else next(iter(final))

    def _run(self, data: Tensor, sizes: Sizes, states: list[States]) -> tuple[Tensor, list[States]]:
        final, directions, narrow = [], 2 if self.bidirectional else 1, self._narrow(data)
        outputs: list[Tensor] = []
        for i, end in enumerate(self._ends()):
            if i > 0 and not outputs:
                data = F.dropout(data, self.dropout, self.training)
            x, layer_states = self._input(data, end).to(narrow), tuple(state.to(narrow) for state in states[i])
            # autocast does not cast products that write into a given tensor
            with torch.autocast(data.device.type, enabled=False):
                y, *last = self._scan(x, layer_states, end, sizes, i % directions == 1)
            outputs.append(y)
            final.append(tuple(last))
            if len(outputs) == directions:
                data, outputs = outputs[0] if directions == 1 else torch.cat(outputs, dim=1), []
        return data, final

    def _narrow(self, data: Tensor) -> torch.dtype:
        device = data.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else data.dtype

    def _input(self, data: Tensor, end: str) -> Tensor:
        """The input part of the gates, (gates, n, hidden)."""
        size = (self.gates, self.hidden_size)
        bias = self._input_bias(end).view(self.gates, 1, self.hidden_size) if self.bias else None
        full = getattr(self, f"weight_ih{end}", None)
        if full is not None:
            x = F.linear(data, full).unflatten(1, size).transpose(0, 1)
            return (x if bias is None else x + bias).contiguous()
        u, v = self.get_parameter(f"u_ih{end}"), self.get_parameter(f"v_ih{end}").unflatten(0, size)
        thin = F.linear(data, u).unflatten(1, (self.gates, -1)).transpose(0, 1)
        return torch.bmm(thin, v.mT) if bias is None else torch.baddbmm(bias, thin, v.mT)

    def _hidden(self, end: str, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """The hidden factors u (gates * rank, hidden) and v (gates, hidden, rank), or None and the full weight."""
        size, full = (self.gates, self.hidden_size), getattr(self, f"weight_hh{end}", None)
        if full is not None:
            return None, full.to(dtype).unflatten(0, size)
        return (
            self.get_parameter(f"u_hh{end}").to(dtype),
            self.get_parameter(f"v_hh{end}").to(dtype).unflatten(0, size),
        )

    def extra_repr(self) -> str:
        rest = ", bidirectional=True" if self.bidirectional else ""
        ranks = sorted({self.rank(factor) for factor in self._factors})
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}{rest}, ranks={ranks}"


class LowRankLstm(LowRankRecurrent):
    """`nn.LSTM` with factors for the gates i, f, g, o; shapes, errors and source as in `LowRankRecurrent`."""

    kind = "lstm"
    gates = 4
    dense_type = nn.LSTM

    def _input_bias(self, end: str) -> Tensor:
        return getattr(self, f"bias_ih{end}") + getattr(self, f"bias_hh{end}")

    def _scan(self, x: Tensor, states: States, end: str, sizes: Sizes, reverse: bool) -> tuple[Tensor, ...]:
        u, v = self._hidden(end, x.dtype)
        scan: Any = LstmScan.apply if _trains(x, *states, u, v) else lstm_steps
        return scan(x, *states, u, v, sizes, reverse)


class LowRankGru(LowRankRecurrent):
    """`nn.GRU` with factors for the gates r, z, n; shapes, errors and source as in `LowRankRecurrent`."""

    kind = "gru"
    gates = 3
    dense_type = nn.GRU

    def _input_bias(self, end: str) -> Tensor:
        return getattr(self, f"bias_ih{end}")

    def _scan(self, x: Tensor, states: States, end: str, sizes: Sizes, reverse: bool) -> tuple[Tensor, ...]:
        u, v = self._hidden(end, x.dtype)
        shape = (self.gates, 1, self.hidden_size)
        bias = getattr(self, f"bias_hh{end}").to(x.dtype).view(shape) if self.bias else x.new_zeros(shape)
        scan: Any = GruScan.apply if _trains(x, *states, u, v, bias) else gru_steps
        return scan(x, *states, u, v, bias, sizes, reverse)


def _trains(*tensors: Tensor | None) -> bool:
    """Whether a backward may follow and no tracer is running."""
    needed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return needed and not torch.compiler.is_compiling()


def _each(states: Any, change: Any) -> Any:
    if states is None or isinstance(states, Tensor):
        return None if states is None else change(states)
    return tuple(change(state) for state in states)
