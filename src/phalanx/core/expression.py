# SPDX-License-Identifier: Apache-2.0
"""Values whose repr is the expression that builds them.

Every method, data set, model and run of the library is such a value: a frozen dataclass made by `method`, registered
under one lower-case name, checked on construction, and printed as ``name(field=value)`` with defaults left out.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

from phalanx.core.function import Function
from phalanx.core.registry import entries, register

_SHOWN = 100  # characters of a wrong value that an error shows

T = TypeVar("T")


class Expression:
    """A registered value; `validate` holds the range checks of a subclass."""

    expression_name: ClassVar[str]
    expression_kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field, hint in _fields(type(self)):
            value = getattr(self, field)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field, value)
            if _takes_function(hint) and (callable(value) or isinstance(value, str)):
                value = value if isinstance(value, Function) else Function(value)
                object.__setattr__(self, field, value)
            if not _fits(value, hint):
                name, shown = self.expression_name, " ".join(repr(value).split())
                shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
                raise ValueError(f"{name}: {field} must be {_describe(hint)}, got {shown}")
        self.validate()

    def validate(self) -> None:
        """Raises ValueError for numbers that no run can use."""

    def __repr__(self) -> str:
        parts, leading = [], True
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is not dataclasses.MISSING and _same(value, field.default):
                leading = False
                continue
            leading = leading and isinstance(value, Expression)
            parts.append(repr(value) if leading else f"{field.name}={value!r}")
        return f"{self.expression_name}({', '.join(parts)})"


def functions_of(value: Any) -> dict[str, str]:
    """The fingerprints of all functions of the user's own in an expression, by their references."""
    if isinstance(value, Function):
        return {value.reference: value.fingerprint}
    if isinstance(value, tuple):
        parts = value
    elif isinstance(value, Expression):
        parts = tuple(getattr(value, field.name) for field in dataclasses.fields(value))  # type: ignore[arg-type]
    else:
        parts = ()
    return {reference: code for part in parts for reference, code in functions_of(part).items()}


def require(ok: bool, sentence: str) -> None:
    """Raises ValueError(sentence) unless ok."""
    if not ok:
        raise ValueError(sentence)


def require_entries(saved: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError unless a saved state has all entries that `state_dict` wrote."""
    missing = [name for name in names if name not in saved]
    require(not missing, f"the state lacks {', '.join(missing)}; load what state_dict() returned, or begin without")


@dataclass_transform(frozen_default=True)
def method(name: str, kind: str, listed: bool = True) -> Callable[[type[T]], type[T]]:
    """Makes a class a frozen dataclass, registered as `name` among the objects of `kind`.

    With listed=False the name is left for a function that builds the class.
    """

    def wrap(cls: type[T]) -> type[T]:
        frozen: Any = dataclasses.dataclass(frozen=True, repr=False)(cls)
        frozen.expression_name, frozen.expression_kind = name, kind
        if listed:
            register(name, kind, frozen)
        return frozen

    return wrap


def _same(a: object, b: object) -> bool:
    return type(a) is type(b) and (a == b or (a != a and b != b))


@cache
def _fields(cls: type) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(cls)]


def _takes_function(hint: Any) -> bool:
    return hint is Function or (get_origin(hint) in (Union, types.UnionType) and Function in get_args(hint))


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        inner = get_args(hint)
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    if origin is Literal:
        return " or ".join(repr(option) for option in get_args(hint))
    if origin is tuple:
        return f"a tuple of {_describe(get_args(hint)[0])}"
    if hint is type(None):
        return "None"
    if issubclass(hint, Expression):
        made = [entry for entry in entries() if entry.makes(hint)]
        examples = " or ".join(f"{entry.name}(...)" for entry in made[:2])
        own = f", or a class of your own with @method(name, {made[0].kind!r})" if made else ""
        return f"an object of {hint.__name__}, such as {examples}{own}" if made else f"an object of {hint.__name__}"
    words = {int: "a whole number", float: "a number", str: "a string", bool: "True or False", Function: "a function"}
    return words.get(hint, f"a {hint.__name__.lower()}")
