# SPDX-License-Identifier: Apache-2.0
import phalanx as px
from tests.public_api import FILE, exported, surface


def test_the_public_interface_is_the_one_that_is_written_down() -> None:
    written, found = FILE.read_text().splitlines(), surface()
    gone = [line for line in written if line not in found]
    new = [line for line in found if line not in written]
    assert written == found, f"python -m tests.public_api writes it anew if this is meant:\n- {gone}\n+ {new}"


def test_every_public_name_is_there() -> None:
    names = exported("phalanx")
    assert len(set(names)) == len(names)
    assert all(hasattr(px, name) for name in names)
