# SPDX-License-Identifier: Apache-2.0
"""Optional packages, each of which an extra of phalanx-train installs."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MissingPackage(ValueError):
    """An optional package is not installed; the message names the extra that installs it."""


def optional(module: str, what: str, package: str, extra: str) -> Any:
    """Imports a module of an optional package.

    Args:
        what: the feature that needs it; the message begins with it.
        package: the name of the package, for the message.
        extra: the extra of phalanx-train that installs it.
    Raises:
        MissingPackage: the module cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError:
        raise MissingPackage(f"{what} needs {package}; pip install 'phalanx-train[{extra}]'") from None
