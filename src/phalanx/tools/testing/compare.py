# SPDX-License-Identifier: Apache-2.0
"""What a law expects, and the sentence about what it saw instead."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from phalanx.core.stack import Stack

Z = 6.0  # standard errors: one of 10,000 comparisons fails by chance with probability 2e-5
CLOSE = (1.3e-6, 1e-5)  # relative and absolute


class LawBroken(AssertionError):
    """A method does not keep a law; the sentence names both, what was expected, what was seen, and the case."""


def same_bits(a: object, b: object) -> bool:
    """Whether tensors, payloads or states are equal to the bit, shapes and dtypes included."""
    return not first_difference(a, b)


def fail(sentence: str) -> NoReturn:
    """Says that the law is broken."""
    raise LawBroken(sentence)


def expect(ok: object, sentence: str) -> None:
    """Says that the law is broken unless something is as it should be."""
    if not ok:
        fail(sentence)


@contextmanager
def case(*words: object) -> Iterator[None]:
    """Adds words to what fails inside: on which rows it was."""
    try:
        yield
    except Exception as error:
        error.add_note(" ".join(map(str, words)))
        raise


@contextmanager
def refused(words: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """Expects a sentence with these words from what runs inside."""
    try:
        yield
    except error as refusal:
        expect(words in str(refusal), f"expected a {error.__name__} that names {words!r}, saw {str(refusal)!r}")
    else:
        fail(f"expected a {error.__name__} that names {words!r}, saw none")


@contextmanager
def global_randomness(seed: int) -> Iterator[None]:
    """Sets the generators that belong to the process, and puts them back."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


def first_difference(a: object, b: object, tolerance: tuple[float, float] | None = None, place: str = "") -> str:
    """Where and how two values differ, first difference only; without a tolerance (relative, absolute) to the bit."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            return f"{place}: keys {list(a)} and {list(b)}"
        return next(filter(None, (first_difference(a[k], b[k], tolerance, f"{place} {k!r}") for k in a)), "")
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return "" if type(a) is type(b) and a == b else f"{place}: {a!r} and {b!r}"
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{place}: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
    if tolerance:
        wrong = ~torch.isclose(b.double(), a.double(), *tolerance, equal_nan=True)
    elif not a.numel():
        return ""
    else:
        bits = (x.contiguous().reshape(-1).view(torch.uint8).reshape(*x.shape, -1) for x in (a, b))
        wrong = (next(bits) != next(bits)).any(dim=-1)
    if not bool(wrong.any()):
        return ""
    where = tuple(wrong.nonzero()[0].tolist())
    return f"{place} at {list(where)}: {a[where].item()!r} and {b[where].item()!r}, {int(wrong.sum())} entries differ"


def same(what: str, expected: object, seen: object, tolerance: tuple[float, float] | None = None) -> None:
    """Expects equal values: to the bit, or within a tolerance (relative, absolute)."""
    difference = first_difference(expected, seen, tolerance)
    expect(not difference, f"{what} differ (expected and seen){difference}")


def finite(what: str, x: Tensor) -> None:
    """Expects neither NaN nor Inf."""
    bad = x[~x.isfinite()]
    expect(not len(bad), f"expected finite entries in {what}, saw {len(bad)} that are not: {bad[:3].tolist()}")


def stream(seed: int) -> Callable[[], torch.Generator]:
    """Makes what makes a random stream, as codecs take it."""
    return lambda: torch.Generator().manual_seed(seed)


def excluded(stack: Stack) -> set[int | None]:
    """The workers whose rows were excluded."""
    return {note.worker for note in stack.notes if note.kind == "excluded"}
