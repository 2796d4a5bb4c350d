# SPDX-License-Identifier: Apache-2.0
"""The page "How a round runs" names the files that a round passes, in their order."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType

import phalanx as px
from phalanx.training.trainer import Trainer
from tests.docs.docs_blocks import ROOT, blocks

PAGE = "docs/how_a_round_runs.md"
SOURCES = Path(px.__file__).parent
STEP = re.compile(r"^\d+\. \[(?P<file>[\w/]+\.py)\]\(\.\./src/phalanx/(?P=file)\): `(?P<function>[\w.]+)`", re.M)


def steps() -> list[tuple[str, str]]:
    return STEP.findall((ROOT / PAGE).read_text("utf-8"))


def traced_calls() -> list[tuple[str, str]]:
    """File and function of the library's calls in one round of the page's run, each once and in order."""
    names: dict[str, px.Run] = {}
    exec(blocks(PAGE)[0].text.replace("trainer = px.train(run)", ""), names)
    trainer = Trainer(names["run"])

    def run_round() -> None:
        started = trainer.start_round()
        trainer.finish_round(started, trainer.run_round(started))

    run_round()  # what the first round compiles and imports is no part of a round
    calls: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(SOURCES):
            calls[path.relative_to(SOURCES).as_posix(), frame.f_code.co_qualname] = None

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run_round()
    finally:
        sys.setprofile(before)
    return list(calls)


def test_the_row_passes_the_steps_in_their_order() -> None:
    named, calls = steps(), traced_calls()
    text = (ROOT / PAGE).read_text("utf-8")
    assert len(named) == len(re.findall(r"^\d+\. ", text, re.M)) <= 18
    assert [step for step in calls if step in named] == named


def test_a_round_passes_no_file_that_the_page_does_not_name() -> None:
    text = (ROOT / PAGE).read_text("utf-8")
    others = set(re.findall(r"`([\w/]+\.py)`", text.partition("## Other files")[2]))
    named = {file for file, _ in steps()} | others
    assert all((SOURCES / file).is_file() for file in named)
    assert {file for file, _ in traced_calls()} == named
