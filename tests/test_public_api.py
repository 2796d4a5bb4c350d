# SPDX-License-Identifier: Apache-2.0
from phalanx.core.registry import entries
from tests.public_api import FILE, packages, surface


def test_the_public_interface_is_the_one_that_is_written_down() -> None:
    written, found = FILE.read_text(encoding="utf-8").splitlines(), surface()
    gone = [line for line in written if line not in found]
    new = [line for line in found if line not in written]
    assert written == found, f"python -m tests.public_api writes it anew if this is meant:\n- {gone}\n+ {new}"


def test_what_is_written_down_has_every_name_of_the_stubs() -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    listed = {line.partition("(")[0] for line in lines}
    assert {f"{package}.{name}" for package, names in packages().items() for name in names} <= listed


def test_what_is_written_down_is_about_the_library_alone() -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "phalanx_experiments" in line or line.startswith("phalanx reproduce")]


def test_every_expression_of_the_library_is_written_down_under_its_kind() -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    listed = {line.partition("(")[0] for line in lines}
    assert {f"{e.kind}: {e.name}" for e in entries() if e.build.__module__.startswith("phalanx.")} <= listed
