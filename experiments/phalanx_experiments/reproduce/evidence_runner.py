# SPDX-License-Identifier: Apache-2.0
"""Runs all missing results one after the other, at low priority; may be killed and started again at any moment."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import typer

from phalanx.core.expression import require
from phalanx.distributed.job import Processes
from phalanx.tools.cli.common import print_json
from phalanx.tools.cli.study_progress import run_with_progress
from phalanx.tools.report import tables
from phalanx.tools.runner.finish import finish_study
from phalanx.tools.runner.study import StudyFolder
from phalanx_experiments.reproduce import words
from phalanx_experiments.reproduce.evidence import Evidence
from phalanx_experiments.reproduce.item import Item
from phalanx_experiments.reproduce.missing import QUIET_LOAD, Missing, keep, missing, open_folder

EVIDENCE = Path("runs/evidence")
LOW_PRIORITY = 10  # of `nice`


def run_missing(
    items: Sequence[Item],
    evidence: Evidence,
    seeds: int,
    scale: str,
    out: Path,
    show: bool,
    as_json: bool,
    argv: Sequence[str],
) -> None:
    """Runs what has no committed result, most numbers per minute first, and adds each result to its JSON at once.

    What is timed waits until the machine is quiet, and is tried again at the end.

    Args:
        show: print what is left, and run nothing.
    Raises:
        ValueError: there is no folder of results to add to.
        typer.Exit: the code is 1 if something failed or still waits.
    """
    left = missing(items, evidence, seeds, scale)
    if show:
        _print(left, as_json)
        return
    results = evidence.root
    require(results is not None, "there is no folder of results to add to; give --results PATH")
    assert results is not None
    os.nice(LOW_PRIORITY)
    failed: list[str] = []
    waiting: list[Missing] = []
    for wanted in left:
        if wanted.timed and not _quiet():
            waiting.append(wanted)
        else:
            failed += _tried(wanted, scale, out, results, argv)
    for wanted in waiting:
        if _quiet():
            failed += _tried(wanted, scale, out, results, argv)
    rest = missing(items, Evidence(results), seeds, scale)
    _print(rest, as_json)
    for sentence in failed:
        _say(sentence)
    if rest:
        raise typer.Exit(1)


def _tried(wanted: Missing, scale: str, out: Path, results: Path, argv: Sequence[str]) -> list[str]:
    """Runs it and keeps its results; the sentence on what went wrong, if anything did."""
    _say(f"{wanted.name}: {len(wanted.labels)} runs for {', '.join(wanted.items)}, {words.duration(wanted.minutes)}")
    load = os.getloadavg()[0] if wanted.timed else None
    try:
        folder = open_folder(wanted, scale, out, argv)
        study = folder.study
        again = partial(_again, argv)
        run_with_progress(study, folder, folder.finished(study), again, Processes())
        finish_study(study, folder, _say)
        _say(f"{wanted.name}: kept in {keep(folder, out, results, load)}")
    except (ValueError, RuntimeError, OSError) as error:
        _say(f"{wanted.name} failed, the others go on: {error}")
        return [f"{wanted.name} failed: {error}"]
    return []


def _quiet() -> bool:
    """Whether so little runs on this machine that seconds can be measured."""
    return os.getloadavg()[0] <= QUIET_LOAD


def _again(argv: Sequence[str], folder: StudyFolder) -> str:
    """The command goes on where it stopped."""
    return shlex.join(["phalanx", *argv[1:]])


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _print(left: Sequence[Missing], as_json: bool) -> None:
    """What has no committed result yet, a line for each recipe and seed."""
    if as_json:
        print_json({"left": [asdict(each) for each in left]})
        return
    rows = [
        (
            each.recipe,
            str(each.seed),
            str(len(each.labels)),
            words.duration(each.minutes),
            "alone" if each.timed else "",
            ", ".join(each.items),
        )
        for each in left
    ]
    header = ("recipe", "seed", "runs", "time", "", "for")
    tables.console().print(tables.plain_table("no committed result", header, rows))
    typer.echo(f"{len(left)} studies are left, {words.duration(sum(each.minutes for each in left)) or 'no time'}")
