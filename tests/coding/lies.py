# SPDX-License-Identifier: Apache-2.0
"""Units, payloads and lies for the cyclic code; the exhaustive script in `benchmarks` uses them too."""

from __future__ import annotations

from typing import Any

import torch

import phalanx as px
from phalanx.coding.cyclic import ROW
from phalanx.coding.reed_solomon import P
from phalanx.core.stack import Stack
from phalanx.core.wire_stage import Upload

KINDS = (
    "zero",
    "constant",
    "negated",
    "random",
    "one entry",
    "last bit",
    "high bit",
    "shifted",
    "another's row",
    "colluding",
    "codeword",
    "small codeword",
)


def units_of(n, d, dtype=torch.float32, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1000 * n + seed), dtype=torch.float64).to(dtype)


def unit_stack(units, s, layout=None):
    """The rows of all units, each shared by the workers that have it."""
    return Stack.of_units(units, px.coding.cyclic(s=s, bits=8).assign(len(units)), layout)


def _round(n, announced, byzantine=()):
    return px.Round(world=px.LocalCollective(n), announced=announced or {}, byzantine=frozenset(byzantine))


def encode(code, stack, n, announced=None, byzantine=()) -> list[Any]:
    uploads, _ = code.upload(stack, None, _round(n, announced, byzantine))
    return [upload.now for upload in uploads]


def decode(code, payloads, n, stack, announced=None):
    return code.receive([Upload(payload) for payload in payloads], stack.pick([]), _round(n, announced))


def names(out, *kinds):
    return {note.worker for note in out.notes if note.kind in (kinds or ("outvoted",))}


def places(n, count, where, seed):
    if where == "adjacent":
        return [(seed + i) % n for i in range(count)]
    if where == "spread":
        return [(seed + i * n // max(count, 1)) % n for i in range(count)]
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count].tolist()


def lie(kind, payloads, false, s, seed):
    """All payloads, of which these workers' are false in every case."""
    generator, n, sent = torch.Generator().manual_seed(seed), len(payloads), [*payloads]
    common = torch.randint(1, P, payloads[0][ROW].shape, generator=generator)
    if kind in ("codeword", "small codeword"):
        attack = px.attacks.codeword(s=s, ratio=1.0 if kind == "codeword" else 1e-9)
        round = px.Round(seed=seed, world=px.LocalCollective(n), byzantine=frozenset(false))
        for worker in false:
            sent[worker] = attack.collude(sent[worker], worker, round)
        return sent
    for i, worker in enumerate(false):
        row = sent[worker][ROW].long()
        flat = row.clone().reshape(-1)
        match kind:
            case "zero":
                flat.zero_()
            case "constant":
                flat.fill_(P - 100)
            case "negated":
                flat = (-flat) % P
            case "random":
                flat = torch.randint(0, P, flat.shape, generator=generator)
            case "one entry":
                flat[seed % max(len(flat), 1) : seed % max(len(flat), 1) + 1] += 1 + i
            case "last bit":
                flat = flat + 1
            case "high bit":
                flat = flat + (1 << 30)
            case "shifted":
                flat = flat.roll(1) + 1
            case "another's row":
                flat = sent[(worker + 1 + len(false)) % n][ROW].long().reshape(-1) + 1 if sent[0] else flat + 1
            case _:
                flat = flat + common.reshape(-1)
        flat = flat % P
        # a lie that is the truth by chance is none
        flat = torch.where(flat.equal(row.reshape(-1)) & torch.ones_like(flat, dtype=torch.bool), (flat + 1) % P, flat)
        sent[worker] = {**sent[worker], ROW: flat.reshape(row.shape).to(torch.int32)}
    return sent
