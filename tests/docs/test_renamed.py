# SPDX-License-Identifier: Apache-2.0
"""The tables of old and new names name what there is."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import phalanx
from tests.docs.docs_blocks import ROOT


def resolved(name: str) -> Any:
    """The object of a dotted name: attributes of `phalanx`, or a module of its own."""
    value: Any = phalanx
    try:
        for part in name.split(".")[1:]:
            value = getattr(value, part)
        return value
    except AttributeError:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(import_module(module), attribute)
        except AttributeError:
            return import_module(name)


def test_new_names_exist_and_old_ones_do_not() -> None:
    text = (ROOT / "docs" / "deprecation.md").read_text("utf-8").partition("## From 0.1 to 0.2")[2]
    moved = re.findall(r"^\| `(phalanx\.\w+)` \| ((?:`\w+`(?:, )?)+) \|$", text, re.M)
    changed = re.findall(r"^\| `phalanx\.(\w+)` \| `(phalanx\.[\w.]+)` \|$", text, re.M)
    assert len(moved) == 14 and len(changed) > 30
    for space, names in moved:
        for name in re.findall(r"`(\w+)`", names):
            assert resolved(f"{space}.{name}") is not None
    for old, new in changed:
        assert resolved(new) is not None
        assert old not in phalanx.__all__
