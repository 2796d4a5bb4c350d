# SPDX-License-Identifier: Apache-2.0
"""The functions that check the laws of a method."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from phalanx.core.aggregator import Aggregator
from phalanx.core.attack import Attack
from phalanx.core.codec import Codec, PayloadAttack
from phalanx.core.expression import Expression
from phalanx.core.stage import Stage
from phalanx.tools.testing import aggregator_laws, attack_laws, codec_laws, stage_laws
from phalanx.tools.testing.law import KINDS, LEAST_WORKERS, Trial
from phalanx.tools.testing.rows import WORKERS

LAWS = (*stage_laws.LAWS, *aggregator_laws.LAWS, *attack_laws.LAWS, *codec_laws.LAWS)


def laws(kind: str) -> dict[str, str]:
    """The laws of a kind of methods, in the order in which they are checked: names and what they say.

    Args:
        kind: "method", "stage", "row_stage", "aggregator", "attack", "codec" or "payload_attack"; a kind has the laws
            of those that it belongs to as well.
    Raises:
        ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r} has laws; choose from {', '.join(KINDS)}")
    return {law.name: inspect.getdoc(law.check) or "" for law in LAWS if issubclass(KINDS[kind], KINDS[law.kind])}


def check_method(
    method: Expression, only: Collection[str] | None = None, *, workers: int = WORKERS, seed: int = 0
) -> None:
    """Checks every law that holds for a method of this type.

    Args:
        method: a value of a class made by `phalanx.method`.
        only: names of laws; all when None. A law that asks nothing of this method, such as "unbiased" of a biased
            codec, passes.
        workers: rows of a stack, >= 12; take more for a rule that needs more.
        seed: of the rows; another seed draws other ones.
    Raises:
        LawBroken: the first law that the method does not keep.
        ValueError: no such law, too few workers, or no method.
    """
    if not isinstance(method, Expression):
        raise ValueError(f"laws hold for methods, values of a class made by phalanx.method, got {method!r}")
    if workers < LEAST_WORKERS:
        raise ValueError(f"the laws need workers >= {LEAST_WORKERS}, got workers={workers}")
    own = [law for law in LAWS if isinstance(method, KINDS[law.kind])]
    for name in only or ():
        if name not in {law.name for law in own}:
            raise ValueError(f"no law of {type(method).__name__} is {name!r}; choose from {[law.name for law in own]}")
    trial = Trial(method, workers, seed)
    for law in own:
        if only is None or law.name in only:
            trial.keep(law)


def check_stage(stage: Stage, only: Collection[str] | None = None, *, workers: int = WORKERS, seed: int = 0) -> None:
    """`check_method` for a stage, which rewrites rows before or behind the wire or carries them across."""
    _check(Stage, stage, only, workers, seed)


def check_aggregator(
    rule: Aggregator, only: Collection[str] | None = None, *, workers: int = WORKERS, seed: int = 0
) -> None:
    """`check_method` for a rule at the server."""
    _check(Aggregator, rule, only, workers, seed)


def check_attack(
    attack: Attack | PayloadAttack, only: Collection[str] | None = None, *, workers: int = WORKERS, seed: int = 0
) -> None:
    """`check_method` for an attack on rows or on payloads."""
    _check((Attack, PayloadAttack), attack, only, workers, seed)


def check_codec(codec: Codec, only: Collection[str] | None = None, *, workers: int = WORKERS, seed: int = 0) -> None:
    """`check_method` for a codec."""
    _check(Codec, codec, only, workers, seed)


def _check(kind: Any, method: Any, only: Collection[str] | None, workers: int, seed: int) -> None:
    if not isinstance(method, kind):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"this checks values of {names}, got {method!r}; check_method takes a method of any kind")
    check_method(method, only, workers=workers, seed=seed)
