# SPDX-License-Identifier: Apache-2.0
"""What every codec promises."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from phalanx.attacks.malformed import Malformed
from phalanx.codecs.error_feedback import ErrorFeedback
from phalanx.core.codec import WEIGHT, Codec, Gather, Reduce, most_bytes, open_row
from phalanx.core.coded_rows import CodedRows
from phalanx.core.columns import divide
from phalanx.core.gate import Gate
from phalanx.core.layout import Layout
from phalanx.core.packing import pack, unpack
from phalanx.core.parser import parse
from phalanx.core.payload import BadPayload, Payload, payload_bytes
from phalanx.core.round import Round
from phalanx.core.row_memory import load
from phalanx.core.stack import Stack
from phalanx.core.stage import chain, memory_key
from phalanx.core.trees import copy_tree, flatten
from phalanx.core.world import LocalCollective
from phalanx.tools.testing.compare import Z, case, excluded, expect, finite, global_randomness, refused, same
from phalanx.tools.testing.law import Law, Meter, Trial, law
from phalanx.tools.testing.rows import DTYPES, LAYOUT, open_messages
from phalanx.tools.testing.stage_laws import check_memory, stage_bytes

LAWS: list[Law] = []
DRAWS = 2000


@law(LAWS, "codec", "arguments only")
def _codec_arguments(t: Trial) -> None:
    """A codec depends on its row, its memory and its generator only, and changes none of them."""
    row, layout = t.rows(21), LAYOUT.head
    memory = t.coded(row, layout)[2]
    kept, before, outs = copy_tree(memory), row.clone(), []
    for seed in (1, 2):
        with global_randomness(seed):
            outs.append(t.coded(row, layout, memory))
    for what, first, again in zip(("payloads", "decoded rows", "memories"), *outs, strict=True):
        same(f"the {what} of two equal calls", first, again)
    same("the memory before and after", kept, memory)
    same("the row before and after", before, row)


@law(LAWS, "codec", "shape and dtype")
def _codec_shape(t: Trial) -> None:
    """Rows keep shape and dtype, also of zeros and of the largest values, and come back finite."""
    for dtype in DTYPES:
        layout, top = replace(LAYOUT, dtype=dtype).head, min(torch.finfo(dtype).max, 1e18)
        tiny = t.rows(21) * torch.finfo(dtype).tiny
        for values in (torch.zeros(21), t.rows(21), torch.full((21,), top), torch.linspace(-top, top, 21), tiny):
            row = values.to(dtype)
            before = row.clone()
            with case(f"{dtype} row {row[:3].tolist()} ..."):
                _, decoded, _ = t.coded(row, layout)
                expected, seen = (dtype, row.shape), (decoded.dtype, decoded.shape)
                expect(seen == expected, f"expected a row of {expected}, saw {seen}")
                finite("the decoded row", decoded)
                same("the row before and after", before, row)


@law(LAWS, "codec", "empty and strided rows")
def _empty_and_strided(t: Trial) -> None:
    """Rows of no or one entry, and rows that are strided in memory, are rows as others are."""
    for layout in (Layout((), ()), Layout.flat(0), Layout.flat(1)):
        with case(f"a row of {layout.d} entries"):
            _, decoded, _ = t.coded(torch.ones(layout.d), layout)
            expect(decoded.shape == (layout.d,), f"expected a row of ({layout.d},), saw {tuple(decoded.shape)}")
    table = t.rows(42).reshape(21, 2)
    _, strided, _ = t.coded(table[:, 0], LAYOUT.head)
    _, plain, _ = t.coded(table[:, 0].contiguous(), LAYOUT.head)
    same("the decoded rows", plain, strided)


@law(LAWS, "codec", "wire")
def _wire(t: Trial) -> None:
    """A payload says all that decoding needs: packed, unpacked and read by an equal codec it gives the same row."""
    for dtype in DTYPES:
        layout = replace(LAYOUT, dtype=dtype).head
        for row in (t.rows(21).to(dtype), torch.full((21,), torch.nan, dtype=dtype)):
            with case(f"{dtype} row {row[:3].tolist()} ..."):
                payload, decoded, _ = t.coded(row, layout)
                arrived = unpack(pack(payload))
                same("the payloads", payload, arrived)
                expect(list(arrived) == list(payload), f"expected the keys {list(payload)}, saw {list(arrived)}")
                # what the codec itself remembers is of another row now
                t.coded(torch.zeros_like(row), layout)
                same("the decoded rows", decoded, replace(t.method).decode(arrived, layout))


@law(LAWS, "codec", "length")
def _length(t: Trial) -> None:
    """A payload is never longer than a server admits, with little beyond 16 bytes an entry."""
    most = most_bytes(4096) - most_bytes(0) + 4096
    spike = torch.zeros(4096, dtype=torch.float64)
    spike[7] = 1e6
    for row in (t.rows(4096).double(), t.rows(4096), torch.ones(4096, dtype=torch.float64), spike):
        layout = Layout(("a", "b"), (torch.Size([60, 64]), torch.Size([256])), dtype=row.dtype)
        size = payload_bytes(t.coded(row, layout)[0])
        expect(size <= most, f"expected {most} bytes at most, saw {size}")


@law(LAWS, "codec", "shards", lambda codec: codec.scope != "vector")
def _shards(t: Trial) -> None:
    """What owners of columns decode of their parts is the decoded row to the bit; a part of another form is refused."""
    big = Layout(("a", "empty", "b"), (torch.Size([40, 50]), torch.Size([0]), torch.Size([1203])))
    for layout, owners in ((LAYOUT.head, 3), (big, 2), (big, 7), (Layout.flat(2), 5), (Layout.flat(0), 2)):
        with case(f"{owners} owners of {layout.sizes}"):
            row = t.rows(layout.d)
            shards, (payload, decoded, _) = divide(layout, owners, t.method.grain), t.coded(row, layout)
            expect(sum(shard.layout.d for shard in shards) == layout.d, "expected shards of all columns")
            seen = torch.full_like(decoded, torch.nan)
            if t.method.grain is None:
                memory: Any = {}
                parts = []
                for shard in shards:
                    part, memory = t.method.encode(shard.take(row), shard.layout, memory, t.stream())
                    parts.append(part)
            else:
                parts = t.method.split(payload, layout, shards)
            for shard, part in zip(shards, parts, strict=True):
                # views would send more than their own bytes, and a part has to survive the wire
                arrived = unpack(pack(part))
                shard.put(seen, t.method.decode_part(arrived, layout, shard))
                with refused("", BadPayload):
                    t.method.decode_part({f"not {key}": tensor for key, tensor in arrived.items()}, layout, shard)
            same("the decoded row and its parts", decoded, seen)


def _sent_rows(t: Trial, layout: Layout, spoilt: bool) -> Stack:
    """Seven rows, of which two hold what no gate admits if they are spoilt."""
    rows = t.rows(7 * layout.d).reshape(7, layout.d)
    if spoilt and layout.d:
        rows[1, 0], rows[4, -1] = torch.nan, torch.inf
    weights = torch.arange(7, dtype=torch.float64) % 3 + 2
    return replace(Stack.of(rows, layout), weights=weights)


def _decoded_first(codec: Codec, arrived: Sequence[Payload | BadPayload], sent: Stack) -> tuple[Stack, Tensor]:
    """The admitted rows, each decoded on its own, and their mean, added up in their order."""
    rows, sources, weights = list[Tensor](), list[tuple[int, ...]](), list[float]()
    for worker, payload in enumerate(arrived):
        try:
            if isinstance(payload, BadPayload):
                raise payload
            parts, weight = open_row(codec, payload, sent.layout)
        except BadPayload:
            continue
        rows.append(torch.cat(parts))
        sources.append((worker,))
        weights.append(weight)
    table = torch.stack(rows) if rows else sent.rows[:0]
    stack = Stack(table, sent.layout, tuple(sources), torch.tensor(weights, dtype=torch.float64), received=True)
    admitted = Gate().admit(stack)
    share = (admitted.weights / admitted.weights.sum()).to(table.dtype)
    total = torch.zeros(sent.layout.d, dtype=table.dtype)
    for row, own in zip(admitted.rows, share, strict=True):
        total += row * own
    return admitted, total


@law(LAWS, "codec", "decoding into the sum")
def _decoding_into_the_sum(t: Trial) -> None:
    """A mean of coded rows has the bits of the mean of decoded rows, for rows and payloads of any kind."""
    wire, mean, threads = Gather(t.method), parse("mean()"), torch.get_num_threads()
    big = Layout(("a", "empty", "b", "c"), tuple(map(torch.Size, ([40, 50], [0], [40_001], [3]))), num_installed=1)
    for layout in (LAYOUT, big, Layout.flat(0), Layout.flat(1), Layout.flat(9)):
        if t.method.scope == "vector" and layout is big:
            continue
        for spoilt in (False, True):
            stack = _sent_rows(t, layout, spoilt)
            arrived: list[Any] = _sent(wire, stack)
            arrived[2] = BadPayload("nothing arrived")
            if spoilt:
                arrived[5] = {key: tensor[:-1] for key, tensor in arrived[5].items()}
            admitted, expected = _decoded_first(t.method, arrived, stack)
            for threads_now in (1, 2):
                torch.set_num_threads(threads_now)
                try:
                    with case(f"tensors of {layout.sizes}, spoilt={spoilt}, {threads_now} threads"):
                        received = open_messages(wire, arrived, stack)
                        expect(
                            received.sources == admitted.sources, f"expected {admitted.sources}, saw {received.sources}"
                        )
                        if not len(received.rows):
                            continue
                        seen = mean(received, None, Round())[0].rows[0]
                        rows = received.rows
                        is_coded = isinstance(rows, CodedRows)
                        unread = not isinstance(rows, CodedRows) or not rows.is_read
                        expect(unread, "expected a mean without a table of rows")
                        # without an adder the order of the additions is that of a matrix product
                        same("the mean", expected + 0.0, seen + 0.0, None if is_coded else (1e-6, 1e-6))
                        part = slice(layout.d // 3, layout.d // 2 + 1)
                        same("some columns", admitted.rows[:, part] + 0.0, received.rows[:, part] + 0.0)
                        same("the decoded rows", admitted.rows, received.rows)
                finally:
                    torch.set_num_threads(threads)


@law(LAWS, "codec", "checks", lambda codec: codec.adder(LAYOUT.head) is not None)
def _checks(t: Trial) -> None:
    """What checks payloads without decoding them refuses those that decoding refuses, and bounds the rows of others."""
    row, adder = t.rows(LAYOUT.stepped), t.method.adder(LAYOUT.head)
    good = {**t.coded(row, LAYOUT.head)[0], WEIGHT: torch.ones(1, dtype=torch.float64)}
    for name, forged in _forgeries(good):
        payload = {key: tensor for key, tensor in forged.items() if key != WEIGHT}
        with case(f"a payload with {name}"):
            try:
                decoded = t.method.decode(payload, LAYOUT.head)
            except BadPayload:
                with refused("", BadPayload):
                    adder.check(payload)
                continue
            largest, bound = float(torch.linalg.vector_norm(decoded, torch.inf)), adder.check(payload).bound
            expect(largest <= bound or not bound < torch.inf, f"expected a bound of at least {largest}, saw {bound}")


@law(LAWS, "codec", "keeps")
def _keeps(t: Trial) -> None:
    """Equal rows of two workers and sums of rows come out as a codec's `keeps` says, so that votes and codes work."""
    one, other = (64 * t.rows(2 * 21)).round().reshape(2, 21) / 64
    if t.method.keeps != "nothing":
        # another generator is another worker
        first_worker, second_worker = (t.coded(one, LAYOUT.head, seed=seed)[0] for seed in (1, 2))
        same("the payloads of two workers", first_worker, second_worker)
    if t.method.keeps == "sums":
        first, second, total = (t.coded(row, LAYOUT.head)[1] for row in (one, other, one + other))
        same("the sum of the decoded rows", total, first + second)


@law(LAWS, "codec", "linear")
def _linear(t: Trial) -> None:
    """A codec that says linear gives the same mean by all-reduce and by gathering; reduce refuses any other."""
    if not t.method.linear:
        with refused("linear"):
            Reduce(t.method)
        return
    floats = [x.element_size() for x in t.coded(t.rows(21), LAYOUT.head)[0].values() if x.is_floating_point()]
    # the mean of 16-bit payloads is rounded once more
    tolerance = (0.01, 0.01) if min(floats, default=4) < 4 else (1e-6, 1e-6)
    reducing, gathering = Reduce(t.method), chain(Gather(t.method, gate=Gate(weights="trusted")), parse("mean()"))
    reduced_state = gathered_state = None
    for index in range(3):
        stack = t.stack(index)
        reduced, reduced_state = t.run(stack, reduced_state, stage=reducing, index=index, path=(0,))
        gathered, gathered_state = t.run(stack, gathered_state, stage=gathering, index=index)
        with case(f"round {index}"):
            same("the gathered and the reduced mean", gathered.rows, reduced.rows, tolerance)
            same("the weights", gathered.weights, reduced.weights)
            expect(reduced.sources == gathered.sources, f"expected {gathered.sources}, saw {reduced.sources}")


@law(LAWS, "codec", "unbiased", lambda codec: codec.unbiased)
def _unbiased(t: Trial) -> None:
    """The mean of many decodings of a row by a codec that says unbiased passes a z-test against the row."""
    layout, row = LAYOUT.head, t.rows(LAYOUT.stepped, seed=1)
    draws = torch.stack([t.coded(row, layout, seed=seed)[1] for seed in range(DRAWS)]).double()
    error = (draws.mean(dim=0) - row.double()).abs()
    # Bernstein's second term, for what is drawn too rarely to show a standard error
    rare = Z**2 / 3 * (draws.amax(dim=0) - draws.amin(dim=0)).max() / DRAWS
    allowed = Z * draws.std(dim=0) / DRAWS**0.5 + rare + 1e-6
    worst = int((error - allowed).argmax())
    expect(
        (error <= allowed).all(),
        f"expected {row[worst]:.4g} +- {allowed[worst]:.2g} at entry {worst}, saw {draws[:, worst].mean():.4g}, the "
        f"mean of {DRAWS} draws",
    )


@law(LAWS, "codec", "error feedback")
def _error_feedback(t: Trial) -> None:
    """With error feedback nothing is lost: what is decoded and what is kept add up to what was there."""
    around = Trial(ErrorFeedback(t.method), t.n, t.seed)
    for dtype in DTYPES:
        layout, state = replace(LAYOUT, dtype=dtype).head, {}
        for index in range(6):
            row = t.rows(layout.d, seed=index).to(dtype) * 10.0 ** (index - 3)
            zero = torch.zeros_like(row)
            old = load(state.get("residual", {}), layout, zero)
            with case(f"{dtype}, round {index}"):
                payload, decoded, state = around.coded(row, layout, state, seed=index)
                new = load(state["residual"], layout, zero)
                scale = float((row.abs() + old.abs() + decoded.abs()).max())
                same("what was there and the sum", row.to(old) + old, decoded.to(new) + new, (1e-6, 1e-6 * scale))
                if not state["inner"]:
                    plain = t.method.encode((row.to(old) + old).to(dtype), layout, {}, t.stream(index))[0]
                    same("the payloads without and with feedback", plain, payload)


@law(LAWS, "codec", "memory by name", lambda codec: codec.scope != "vector")
def _codec_memory(t: Trial) -> None:
    """Memories serve every cut of the model: DDP rebuilds its buckets, and other pieces come in another order."""

    def piece(rows: Tensor, layout: Layout, state: Any, index: int) -> tuple[Tensor, Any]:
        return t.coded(rows, layout, state)[1:]

    check_memory(piece, lambda index: t.rows(LAYOUT.stepped, seed=index), rounds=6)


@law(LAWS, "codec", "bytes")
def _codec_bytes(t: Trial) -> None:
    """Metered bytes are those of the buffers that a worker hands over, and of the packed message without its header."""
    for wire in (Gather(t.method), *([Reduce(t.method)] if t.method.linear else [])):
        stage_bytes(replace(t, method=wire))
    world = Meter(t.n)
    t.run(t.stack(), stage=Gather(t.method), world=world)
    for payload in world.messages:
        header = 6 + sum(4 + len(name) + 8 * tensor.dim() for name, tensor in payload.items())
        expected, seen = header + payload_bytes(payload), len(pack(payload))
        expect(seen == expected, f"expected a message of {expected} bytes, saw {seen}")


@law(LAWS, "codec", "malformed payloads")
def _malformed_payloads(t: Trial) -> None:
    """Payloads of a wrong form are erasures with a reason, and the others arrive."""
    honest = tuple(i for i in range(t.n) if i not in t.byzantine)
    for how in ("short", "long", "dtype", "keys", "missing", "weight", "negative_weight"):
        wire, state = Gather(t.method, forge=Malformed(how)), None
        for index in range(2):
            stack = t.stack(index)
            # without installed entries, whose form is checked by the wire
            stack = replace(stack, rows=stack.rows[:, : LAYOUT.stepped], layout=LAYOUT.head) if index else stack
            with case(f"malformed({how!r}), round {index}"):
                out, state = t.run(stack, state, stage=wire, index=index)
                expect(excluded(out) == t.byzantine, f"expected to exclude {set(t.byzantine)}, saw {excluded(out)}")
                expect(all(n.reason for n in out.notes if n.kind == "excluded"), "expected a reason, saw none")
                expected, seen = (len(t.byzantine), honest), (out.erased, out.ids)
                expect(seen == expected, f"expected erased rows and workers {expected}, saw {seen}")


def _forgeries(payload: Payload) -> Iterator[tuple[str, Payload]]:
    """Well-formed messages whose contents no worker computed."""
    yield "nothing", {}
    yield "a tensor more", {**payload, "more": torch.zeros(3)}
    yield "the weight only", {WEIGHT: payload[WEIGHT]}
    for key, tensor in payload.items():
        yield f"no {key}", {k: v for k, v in payload.items() if k != key}
        yield f"{key} with a dimension more", {**payload, key: tensor.unsqueeze(0)}
        yield f"the sum of {key}", {**payload, key: tensor.sum()}
        yield f"an empty {key}", {**payload, key: tensor.new_empty(0)}
        yield f"a long {key}", {**payload, key: torch.zeros(2**20)}
        if tensor.is_floating_point():
            limits = torch.nan, torch.inf, -torch.inf, torch.finfo(tensor.dtype).max, torch.finfo(tensor.dtype).min
        else:
            limits = -1 % 256, torch.iinfo(tensor.dtype).max, torch.iinfo(tensor.dtype).min, len(tensor), LAYOUT.d
        for limit in limits:
            yield f"{key} of {limit} only", {**payload, key: torch.full_like(tensor, limit)}
            spoilt = tensor.clone()
            spoilt.view(-1)[-1:] = limit
            yield f"{key} that ends with {limit}", {**payload, key: spoilt}


def _check_survives(wire: Gather, arrived: Sequence[Payload | BadPayload], stack: Stack) -> None:
    """The server opens three messages of which the middle one is forged."""
    out = open_messages(wire, arrived, stack)
    finite("the rows", out.rows)
    expect({0, 2} <= set(out.ids), f"expected the rows of the honest workers 0 and 2, saw {out.ids}")
    expect(len(out.rows) + out.erased == 3, f"expected 3 rows or erasures, saw {len(out.rows)} and {out.erased}")


def _sent(wire: Gather, stack: Stack) -> list[Any]:
    return [upload.now for upload in wire.upload(stack, None, Round(world=LocalCollective(len(stack.rows))))[0]]


@law(LAWS, "codec", "hostile payloads")
def _hostile_payloads(t: Trial) -> None:
    """No payload stops the server, whatever values it holds: it is a row or a BadPayload, and the others arrive."""
    wire = Gather(t.method)
    for dtype in DTYPES:
        stack = t.stack(n=3, dtype=dtype)
        good = _sent(wire, stack)
        for name, payload in _forgeries(good[1]):
            with case(f"{dtype} payload with {name}"):
                _check_survives(wire, [good[0], payload, good[2]], stack)


@law(LAWS, "codec", "damaged messages")
def _damaged_messages(t: Trial) -> None:
    """No bytes stop the server: changed, cut, lengthened, or random from end to end."""
    chance, wire, stack = random.Random(t.seed), Gather(t.method), t.stack(n=3)
    good = _sent(wire, stack)
    message = pack(good[1])
    for trial in range(120):
        damaged = message.clone()
        for _ in range(1 + trial % 4):
            damaged[chance.randrange(len(damaged) if trial % 2 else 40)] = chance.randrange(256)
        if trial % 5 == 0:
            damaged = damaged[: chance.randrange(len(damaged))]
        if trial % 7 == 0:
            damaged = torch.cat([damaged, damaged[: chance.randrange(9)]])
        if trial % 11 == 0:
            damaged = torch.randint(256, (60,), generator=t.stream(trial)()).to(torch.uint8)
        try:
            payload = unpack(damaged)
        except BadPayload as error:
            payload = error
        with case(f"damaged message {trial}"):
            _check_survives(wire, [good[0], payload, good[2]], stack)


@law(LAWS, "codec", "random payloads")
def _random_payloads(t: Trial) -> None:
    """Random bytes of the right form stop no server, and take no honest worker with them."""
    wire = Gather(t.method, forge=Malformed("random"))
    for index in range(12):
        with case(f"round {index}"):
            out, _ = t.run(t.stack(), stage=wire, index=index)
            finite("the rows", out.rows)
            expect(
                excluded(out) <= t.byzantine, f"expected to exclude none but {set(t.byzantine)}, saw {excluded(out)}"
            )


@law(LAWS, "codec", "bad rounds")
def _bad_rounds(t: Trial) -> None:
    """NaN and Inf in one round do not stay in a worker's memory."""
    wire, state = Gather(t.method), None
    out = t.stack()
    for index, value in enumerate((1.0, torch.nan, torch.inf, -torch.inf, 1.0, 1.0)):
        stack = t.stack(index)
        rows = stack.rows.clone()
        rows[0, index] = value
        with case(f"round {index}, an entry of {value}"):
            out, state = t.run(replace(stack, rows=rows), state, stage=wire, index=index)
            for name, tensor in flatten(state.get(memory_key(0, False), {}))[0].items():
                finite(f"the memory {name}", tensor)
    expect(out.ids == tuple(range(t.n)), f"expected a row of each worker in the end, saw {out.ids}")
