# SPDX-License-Identifier: Apache-2.0
"""Packages that only some users need, each brought by an extra."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MissingPackage(ValueError):
    """An optional package is not installed; the sentence names the extra that brings it."""


def optional(module: str, what: str, package: str, extra: str) -> Any:
    """A module of an optional package.

    Args:
        what: what needs it, the first word of the sentence.
        package: its name for a reader.
        extra: of phalanx-train, which brings it.
    Raises:
        MissingPackage: it cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError:
        raise MissingPackage(f"{what} needs {package}; pip install 'phalanx-train[{extra}]'") from None
