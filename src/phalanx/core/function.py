# SPDX-License-Identifier: Apache-2.0
"""Functions of the user's own in an expression, written as the module and the name: "my_module:loss"."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from phalanx.core.registry import extensions

# whose functions an expression may always name; an expression that came from elsewhere must not call any function
KNOWN_MODULES = ("torch.nn.functional",)
_given: dict[str, Callable[..., Any]] = {}


def _require(ok: bool, sentence: str) -> None:
    if not ok:
        raise ValueError(sentence)


class Function:
    """A function or class at the top level of a module, which every process of a job finds by its name.

    Its repr is the string "module:name", which an expression holds. A name is resolved only if this process was given
    the function itself, or if its module was imported with `--import` or is `torch.nn.functional`.

    Args:
        target: the function, or "module:name".
    Raises:
        ValueError: the function has no name that another process could find, such as a lambda.
    """

    def __init__(self, target: Callable[..., Any] | str) -> None:
        if isinstance(target, str):
            module, colon, name = target.partition(":")
            ok = bool(colon) and all(part.isidentifier() for text in (module, name) for part in text.split("."))
            _require(ok, f"a function is given as an object or as 'module:name', got {target!r}")
            self.reference = target
            self._target = _given.get(target)
            return
        name = getattr(target, "__qualname__", None)
        ok = isinstance(name, str) and "<" not in name and bool(getattr(target, "__module__", None))
        shown = name if isinstance(name, str) else f"an object of {type(target).__name__}"
        _require(
            ok and not inspect.ismethod(target),
            f"a function in an expression stands at the top level of a module, where other processes find it, got "
            f"{shown}; write def at the top level and give that",
        )
        self.reference, self._target = f"{target.__module__}:{name}", target
        _given[self.reference] = target

    @property
    def name(self) -> str:
        """The name without the module."""
        return self.reference.partition(":")[2].rpartition(".")[2]

    @property
    def target(self) -> Callable[..., Any]:
        """The function itself.

        Raises:
            ValueError: it is not known in this process.
        """
        if self._target is None:
            self._target = _given.get(self.reference) or _imported(self.reference)
        return self._target

    @property
    def fingerprint(self) -> str:
        """A hash of the function's own code without its comments; empty if there is no source."""
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(self.target)))
        except (OSError, TypeError, SyntaxError):
            return ""
        return hashlib.blake2b(ast.dump(tree).encode(), digest_size=8).hexdigest()

    def num_arguments(self, most: int) -> int:
        """The number of arguments to call it with: those without a default, and at most `most`.

        Raises:
            ValueError: it needs more.
        """
        try:
            parameters = inspect.signature(self.target).parameters.values()
        except (TypeError, ValueError):
            return 0
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        needed = sum(p.default is p.empty for p in positional)
        keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        _require(
            needed <= most and not keywords,
            f"{self.reference} is called with {most} argument{'s' * (most != 1)} at most, and it needs "
            f"{needed + len(keywords)}; give the others a default",
        )
        return needed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.target(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self.reference)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Function) or self.reference != other.reference:
            return False
        return self._target is None or other._target is None or self._target is other._target

    def __hash__(self) -> int:
        return hash(self.reference)


if TYPE_CHECKING:
    # what a field of an expression takes: the function itself, its name, or a Function, which it becomes
    FunctionLike = Any
else:
    FunctionLike = Function


def said_by(error: Exception) -> str:
    """An exception of the user's code in one line, for a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _imported(reference: str) -> Callable[..., Any]:
    module_name, _, name = reference.partition(":")
    known = [*KNOWN_MODULES, *extensions()]
    listed = any(module_name == module or module_name.startswith(f"{module}.") for module in known)
    way = f"import its module first, as in phalanx run --import {module_name}"
    if module_name == "__main__":
        way = "it stands in a program, so run that program, or move it to a module and name that with --import"
    _require(listed, f"the function {reference!r} is not known in this process; {way}")
    found: Any = sys.modules.get(module_name) or import_module(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f"the module {module_name} has no function {name!r}; correct the name in the expression")
    return found
