# SPDX-License-Identifier: Apache-2.0
"""The public interface of the experiments; run as a program, it writes the lines to public_api.txt."""

from importlib import import_module
from pathlib import Path

from tests.public_api import described, exported

FILE = Path(__file__).with_name("public_api.txt")
PACKAGES = ("phalanx_experiments.theory", "phalanx_experiments.recipes")


def surface() -> list[str]:
    """What theory and recipes export, with signatures."""
    lines = []
    for package in PACKAGES:
        module = import_module(package)
        assert module.__file__ is not None
        for name in exported(Path(module.__file__)):
            lines += described(f"{package}.{name}", getattr(module, name))
    return sorted(lines)


def test_the_public_interface_is_the_one_that_is_written_down() -> None:
    written, found = FILE.read_text(encoding="utf-8").splitlines(), surface()
    gone = [line for line in written if line not in found]
    new = [line for line in found if line not in written]
    again = "python -m experiments.tests.test_experiments_api writes it anew if this is meant"
    assert written == found, f"{again}:\n- {gone}\n+ {new}"


if __name__ == "__main__":
    FILE.write_text("\n".join(surface()) + "\n", encoding="utf-8")
