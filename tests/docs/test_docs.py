# SPDX-License-Identifier: Apache-2.0
"""Every code block of the documentation is run, or says why not."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

from phalanx.core import registry
from phalanx.tools.runner.recipe import _recipes, recipes
from tests.docs import docs_shell
from tests.docs.docs_blocks import SHELL, Block, alike, blocks, pages
from tests.docs.docs_setup import SETUPS


def _cases() -> Iterator[Any]:
    for page in pages():
        found = blocks(page)
        if found:
            marks: list[pytest.MarkDecorator] = []
            if any("torchrun" in b.text and b.language in SHELL and "not run" not in b.said for b in found):
                marks = [pytest.mark.processes, pytest.mark.timeout(900)]
            yield pytest.param(page, marks=marks, id=page)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own, and nothing of other pages in this process."""
    monkeypatch.chdir(tmp_path)
    kept, before = dict(os.environ), torch.get_rng_state()
    registry.entries()  # loads every method and, below, every recipe: their modules are not executed again
    recipes()
    tables: list[dict[Any, Any]] = [registry._entries, _recipes]  # a page may add a method or a recipe
    known: list[dict[Any, Any]] = [dict(table) for table in tables]
    torch.manual_seed(0)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    torch.set_rng_state(before)
    for table, entries in zip(tables, known, strict=True):
        table.clear()
        table.update(entries)
    os.environ.clear()
    os.environ.update(kept)


@pytest.mark.parametrize("page", list(_cases()))
def test_blocks(page: str, alone: None) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if "needs" in block.said and importlib.util.find_spec(block.said["needs"]) is None:
            pytest.skip(f"{block.place} needs {block.said['needs']}")
        try:
            printed = _tested(block, names, printed)
        except Exception as error:
            raise AssertionError(f"{block.place}: {type(error).__name__}: {error}") from error


def _tested(block: Block, names: dict[str, Any], printed: str) -> str:
    """Runs or checks a block; what it printed, or what the one before it printed."""
    if "setup" in block.said:
        names.update(SETUPS[block.said["setup"]]())
    if block.language == "text" and "output" in block.said:
        assert alike(block.text, printed, block.said["output"]), f"it printed\n{printed}"
        return printed
    if block.language in SHELL:
        return _shell(block)
    if block.language == "yaml":
        yaml.safe_load(block.text)
    if block.language not in ("python", "diff"):
        return printed
    text = block.text if block.language == "python" else _patched(block.text)
    code = compile("\n" * block.line + text, block.page, "exec")
    if block.title:
        Path(block.title).write_text(text)
    elif "not run" not in block.said:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), warnings.catch_warnings():
            if "warns" in block.said:
                warnings.simplefilter("ignore")
            exec(code, names)
        return out.getvalue()
    return printed


def _shell(block: Block) -> str:
    out = ""
    for line, expected in docs_shell.commands(block):
        docs_shell.check(line)
        if "not run" in block.said:
            continue
        got = docs_shell.run(line)
        wanted = not expected.strip() or alike(expected, got, block.said.get("output", ""))
        assert wanted, f"{line} printed\n{got}"
        out += got
    return out


def _patched(diff: str) -> str:
    """What a diff leads to."""
    return "\n".join(line[2:] for line in diff.split("\n") if not line.startswith("-"))


def test_most_blocks_are_run() -> None:
    found = [block for page in pages() for block in blocks(page)]
    left = [block for block in found if "not run" in block.said]
    print(f"{len(left)} of {len(found)} blocks are not run:")
    for block in left:
        print(f"  {block.place}: {block.said['not run']}")
    assert len(left) < len(found) / 3


def test_a_block_in_an_unknown_language_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no language 'rust'"):
        blocks("page.md", "```rust\nfn main() {}\n```\n")
    with pytest.raises(AssertionError, match="no language ''"):
        blocks("page.md", "```\nwords\n```\n")
    with pytest.raises(AssertionError, match="'skip' means nothing"):
        blocks("page.md", "<!-- skip: it is slow -->\n\n```python\n1 / 0\n```\n")
    with pytest.raises(AssertionError, match="say why"):
        blocks("page.md", "<!-- not run: slow -->\n```python\n1 / 0\n```\n")


def test_a_command_that_does_not_exist_is_an_error() -> None:
    docs_shell.check("torchrun --nproc-per-node 4 -m phalanx run quickstart --only krum  # a comment")
    for wrong in (
        "phalanx train quickstart",
        "phalanx run quickstart --scales smoke",
        "phalanx run quickstrat",
        "phalanx run quickstart --only crum",
        "phalanx run quickstart --set optimizer.rate=1",
        "phalanx reproduce table-99.1",
        "python benchmarks/none.py",
        "make coffee",
    ):
        with pytest.raises((AssertionError, ValueError, docs_shell.click.ClickException)):
            docs_shell.check(wrong)


def test_commands_are_run_as_a_shell_would(alone: None) -> None:
    assert docs_shell.run("phalanx list codecs --json > codecs.json && cat codecs.json").startswith("{")
    assert docs_shell.run("phalanx list nothing > nothing.txt; echo $?") == "2\n"
    block = Block("page.md", 1, "console", "$ phalanx doctor \\\n  --json\n{}\n$ ls")
    assert docs_shell.commands(block) == [("phalanx doctor --json", "{}\n"), ("ls", "")]


def test_outputs_are_compared() -> None:
    assert alike("accuracy 95.1 %\nfolder runs/2026-01-01", "accuracy  93 % folder runs/2026-01-01", "")
    assert not alike("accuracy 95.1 %", "accuracy 9.5 %", "")
    assert alike("accuracy 95.1 %", "accuracy 9.5 %", "numbers vary")
    assert alike("a step takes 1.2 ms", "a step takes 800 us", "numbers vary")
    assert not alike("a step takes 1.2 ms", "a step takes 800 us", "")
    assert not alike("worker 3 lied", "worker 3 died", "numbers vary")
    assert alike("first\n...\nlast 1", "first\n2\n3\nlast 4", "")
