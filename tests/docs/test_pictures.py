# SPDX-License-Identifier: Apache-2.0
"""The pictures of the documentation are those that their script makes."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from xml.etree import ElementTree

from phalanx.distributed.server.messages import Kind
from tests.docs.docs_blocks import ROOT

SVG = "{http://www.w3.org/2000/svg}"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pictures", ROOT / "docs" / "pictures" / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_the_pictures_are_what_the_script_makes() -> None:
    made = script()
    assert {path.name for path in made.FOLDER.glob("*.svg")} == set(made.PICTURES)
    for name, make in made.PICTURES.items():
        assert (made.FOLDER / name).read_text("utf-8") == make(), f"{name} is old; run python docs/pictures/make.py"


def test_pictures_need_nothing_from_elsewhere() -> None:
    for make in script().PICTURES.values():
        picture = make()
        assert "prefers-color-scheme: dark" in picture
        assert not any(f"{key}=" in picture for key in ("href", "src")) and "url(http" not in picture


def test_the_picture_of_the_server_has_every_message() -> None:
    named = words(script().messages())
    assert [kind.name.lower() for kind in Kind] == [name for name in named if name.upper() in Kind.__members__]
