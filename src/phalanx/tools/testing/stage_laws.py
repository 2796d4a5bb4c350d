# SPDX-License-Identifier: Apache-2.0
"""What every method promises, and every stage."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from phalanx.core.aggregator import Aggregator
from phalanx.core.layout import Layout
from phalanx.core.parser import parse
from phalanx.core.stack import Stack
from phalanx.core.stage import TooFewRows
from phalanx.core.trees import copy_tree, flatten
from phalanx.tools.testing.compare import (
    CLOSE,
    Z,
    case,
    expect,
    finite,
    first_difference,
    global_randomness,
    refused,
    same,
)
from phalanx.tools.testing.law import Law, Meter, Trial, law
from phalanx.tools.testing.rows import DTYPES, LAYOUT, hostile_stacks

LAWS: list[Law] = []


@law(LAWS, "method", "repr")
def _repr(t: Trial) -> None:
    """The repr of a method builds it again."""
    again = parse(repr(t.method))
    expect(again == t.method and hash(again) == hash(t.method), f"expected an equal value, saw {again!r}")
    expect(repr(again) == repr(t.method), f"expected the same repr, saw {again!r}")


@law(LAWS, "method", "frozen")
def _frozen(t: Trial) -> None:
    """No field of a method can be set."""
    for name in [f.name for f in dataclasses.fields(t.method)] or ["anything"]:
        with case("field", name), refused(name, dataclasses.FrozenInstanceError):
            setattr(t.method, name, getattr(t.method, name, 1))


@law(LAWS, "method", "fields")
def _fields(t: Trial) -> None:
    """Unknown fields and values of a wrong type are a ValueError that names the field."""
    with refused("no_such_field"):
        parse(f"{t.method.expression_name}(no_such_field=1)")
    hints = typing.get_type_hints(type(t.method))
    for field in dataclasses.fields(t.method):
        if hints[field.name] is not typing.Any:
            with refused(field.name):
                replace(t.method, **{field.name: object()})


# --- all stages


@law(LAWS, "stage", "input and state")
def _input_and_state(t: Trial) -> None:
    """A stage changes neither its rows nor the state that it is given, and shares no memory with them."""
    stack = t.stack()
    before, weights = stack.rows.clone(), stack.weights.clone()
    _, state = t.run(stack)
    kept = copy_tree(state)
    t.run(t.stack(1), state, index=1)
    same("the rows before and after", before, stack.rows)
    same("the weights before and after", weights, stack.weights)
    same("the state before and after", kept, state)
    # safetensors refuses tensors that share memory
    places = [x.untyped_storage().data_ptr() for x in flatten(state)[0].values() if x.numel()]
    expect(
        len(set(places)) == len(places),
        f"expected {len(places)} tensors of their own in the state, saw some that share it",
    )
    # the caller reuses its buffers
    stack.rows.fill_(7.0)
    stack.weights.fill_(7.0)
    same("the state before and after the caller writes to its rows", kept, state)


@law(LAWS, "stage", "arguments only")
def _arguments_only(t: Trial) -> None:
    """A stage depends on its rows, its state and its round only, and on nothing global."""
    outs = []
    for seed in (1, 2):
        with global_randomness(seed):
            outs.append(t.run(t.stack(run_seed=3), seed=t.seed + 3))
    (first, state), (again, state_again) = outs
    same("the rows of two equal calls", first.rows, again.rows)
    expect(first.sources == again.sources, f"expected the sources {first.sources}, saw {again.sources}")
    same("the states of two equal calls", state, state_again)


@law(LAWS, "stage", "shape and dtype")
def _stage_shape(t: Trial) -> None:
    """Shape, dtype and device come out as they went in, with as many rows as `rows_out` says."""
    for dtype in DTYPES:
        with case(dtype):
            out, _ = t.run(t.stack(dtype=dtype))
            expected, seen = (dtype, "cpu", LAYOUT.d), (out.rows.dtype, out.rows.device.type, out.rows.shape[1])
            expect(seen == expected, f"expected rows of {expected}, saw {seen}")
            erased = any(note.kind == "excluded" for note in out.notes)
            count = t.method.rows_out(t.n)
            expect(len(out.rows) == count or erased, f"expected {count} rows, saw {len(out.rows)}")
            workers = {worker for source in out.sources for worker in source}
            expect(workers <= set(range(t.n)), f"expected workers below {t.n}, saw {sorted(workers)}")


@law(LAWS, "stage", "hostile rows")
def _hostile_rows(t: Trial) -> None:
    """Zeros, NaN, huge, tiny, strided, odd, empty or single rows stop no stage; a rule's result stays finite."""
    for name, stack in hostile_stacks(t.method, t.n, t.seed):
        with case(name):
            before = stack.rows.clone()
            try:
                out, _ = t.run(stack)
            except TooFewRows:
                continue
            except ValueError:
                if name == "one row":
                    continue
                raise
            same("the rows before and after", before, stack.rows)
            expected, seen = (stack.rows.dtype, stack.layout.d), (out.rows.dtype, out.rows.shape[1])
            expect(seen == expected, f"expected rows of {expected}, saw {seen}")
            if isinstance(t.method, Aggregator):
                finite("the result", out.rows)


def _in_pieces(t: Trial, stack: Stack, seed: int) -> Tensor:
    """The rows of a stage that sees the columns piece by piece."""
    pieces = []
    for name, part in stack.layout.split(stack.rows).items():
        columns = [part.flatten(1)]
        if t.method.scope == "coordinate":
            columns = list(columns[0].split(3, dim=1))
        for i, piece in enumerate(columns):
            shape = part.shape[1:] if t.method.scope == "tensor" else torch.Size([piece.shape[1]])
            layout = Layout((f"{name}.{i}",), (shape,))
            pieces.append(t.run(replace(stack, rows=piece, layout=layout), seed=seed)[0].rows)
    return torch.cat(pieces, dim=1)


@law(LAWS, "stage", "scope", lambda stage: stage.scope != "vector")
def _scope(t: Trial) -> None:
    """A stage on the pieces that its scope names gives the rows that it gives on the whole, random ones on average."""
    layout = Layout(LAYOUT.names[:-1], LAYOUT.shapes[:-1])
    stack = t.stack()
    stack = replace(stack, rows=stack.rows[:, : layout.d], layout=layout)
    whole, pieces = t.run(stack)[0].rows, _in_pieces(t, stack, t.seed)
    tolerance = (1e-5, 1e-6)
    if not first_difference(whole, pieces, tolerance) or not t.is_random:
        same("the rows of the whole and of its pieces", whole, pieces, tolerance)
        return
    seeds = range(100)
    wholes = torch.stack([t.run(stack, seed=seed)[0].rows for seed in seeds]).double()
    parts = torch.stack([_in_pieces(t, stack, seed) for seed in seeds]).double()
    error = (wholes.mean(dim=0) - parts.mean(dim=0)).abs()
    allowed = Z * ((wholes.var(dim=0) + parts.var(dim=0)) / len(seeds)).sqrt() + 1e-6
    expect((error <= allowed).all(), f"expected equal means of whole and pieces, saw {float(error.max()):.3g} between")


Piece = Callable[[Tensor, Layout, Any, int], tuple[Tensor, Any]]


def check_memory(piece: Piece, rows_of: Callable[[int], Tensor], rounds: int) -> None:
    """Runs rounds on whole rows, and with a memory of its own on cuts of them that change from round to round."""
    layout = LAYOUT.head
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    cuts = [[layout.names], [layout.names[2:], layout.names[:2]], [(name,) for name in reversed(layout.names)]]
    together = apart = None
    for index in range(rounds):
        rows = rows_of(index)
        whole, together = piece(rows, layout, together, index)
        parts = {}
        for names in cuts[index % 3]:
            small = Layout(tuple(names), tuple(shapes[name] for name in names))
            out, apart = piece(small.join(layout.split(rows)), small, apart, index)
            parts.update(small.split(out))
        with case(f"round {index}"):
            same("the rows of the whole and of its pieces", whole, layout.join(parts), CLOSE)
    same("the memories of the whole and of its pieces", together, apart)


@law(LAWS, "row_stage", "memory by name", lambda stage: stage.scope != "vector")
def _row_memory(t: Trial) -> None:
    """Memories serve every cut of the model: DDP rebuilds its buckets, and other pieces come in another order."""

    def piece(rows: Tensor, layout: Layout, state: Any, index: int) -> tuple[Tensor, Any]:
        out, state = t.run(replace(t.stack(), rows=rows, layout=layout), state, index=index)
        return out.rows, state

    # random stages draw other numbers for other pieces
    if not t.is_random:
        check_memory(piece, lambda index: t.stack(index).rows[:, : LAYOUT.stepped], rounds=3)


@law(LAWS, "row_stage", "row by row")
def _row_by_row(t: Trial) -> None:
    """Each row is computed from itself and its worker's memory, and installed values pass untouched."""
    together = apart = None
    for index in range(3):
        stack = t.stack(index)
        out, together = t.run(stack, together, index=index)
        rows, states = [], {}
        for i in range(t.n):
            one, state = t.run(stack.pick([i]), apart, index=index)
            rows.append(one.rows)
            states.update({k: v for k, v in state.items() if k.endswith(f":{i}")})
        apart = states
        with case(f"round {index}"):
            same("the rows together and one by one", out.rows, torch.cat(rows))
            same("the memories together and one by one", together, apart)
            same("the installed values", stack.rows[:, -3:], out.rows[:, -3:])


@law(LAWS, "stage", "bytes", lambda stage: stage.num_wires == 1)
def stage_bytes(t: Trial) -> None:
    """The bytes that a stage notes for a worker are those of the buffers that the worker hands over."""
    world = Meter(t.n)
    out, _ = t.run(t.stack(), world=world)
    noted = dict.fromkeys(range(t.n), 0)
    for note in out.notes:
        if note.kind == "bytes" and note.worker is not None:
            noted[note.worker] += int(note.value)
    same("the bytes handed over and noted", dict(enumerate(world.sizes)), noted)
