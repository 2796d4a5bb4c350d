# SPDX-License-Identifier: Apache-2.0
"""The configuration of the machine on which a client's data lie, for functions that load them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_config: Mapping[str, Any] = MappingProxyType({})


def node_config() -> Mapping[str, Any]:
    """The configuration of the Flower node that this process works for; empty elsewhere, as in a simulation.

    A function that loads a client's data asks it where they are on this machine:

    >>> from pathlib import Path
    >>> from phalanx.data import node_config
    >>> def folder(number):
    ...     return Path(node_config().get("folder", f"clinics/{number}"))
    >>> str(folder(3))
    'clinics/3'
    """
    return _config


def use_node_config(config: Mapping[str, Any]) -> None:
    """Sets what `node_config` returns in this process."""
    global _config
    _config = MappingProxyType(dict(config))
