# SPDX-License-Identifier: Apache-2.0
"""phalanx status: how far a study is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from phalanx.tools.cli.common import Json, print_json, user_command


@user_command
def status(
    folder: Annotated[Path | None, typer.Argument(metavar="FOLDER", help="The folder of a study.")] = None,
    as_json: Json = False,
) -> None:
    """Shows how far a study is, while it runs or later.

    It reads the folder only, so it works from any process that sees it. A run is done, running, stopped or waiting; the
    workers that its newest round left out are named with the reason.

    \b
    Examples:
      phalanx status runs/2026-01-31-120000-quickstart
      phalanx status runs/2026-01-31-120000-quickstart --json
    """
    from phalanx.core.folder_lock import is_locked
    from phalanx.tools.report import tables
    from phalanx.tools.report.score import common_score, score_of, value_of
    from phalanx.tools.runner.study import StudyFolder

    if folder is None:
        raise ValueError("status needs the folder of a study, such as runs/2026-01-31-120000-quickstart")
    held = StudyFolder(folder)
    study, running = held.study, is_locked(folder)
    rows = [_row(held, label, getattr(job, "rounds", None), running) for label, job in study.jobs.items()]
    if as_json:
        print_json({"folder": str(folder), "running": running, "jobs": rows})
        return
    scores = [score_of(row) for row in rows]
    common = common_score(score for score, row in zip(scores, rows, strict=True) if value_of(row) is not None)
    title = "score" if common is None else common.name
    table = tables.make_table("run", " state", ">round", f">{title}", ">loss", ">written", " left out")
    for row, score in zip(rows, scores, strict=True):
        of = "" if row["rounds"] is None else f" of {row['rounds']}"
        out = "; ".join(f"worker {worker}: {reason}" for worker, reason in row["excluded"].items())
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        age = "-" if row["age_s"] is None else f"{tables.seconds(row['age_s'])} ago"
        reached = score.words(value_of(row))
        reached = reached if common is not None else f"{score.name} {reached}"
        cells = (f"{row['round']}{of}", reached, loss, age, f" {out}")
        tables.add_row(table, row["label"], f" {row['state']}", *cells)
    tables.console().print(table)
    typer.echo(f"{folder} is {'being run' if running else 'not being run'}")


def _row(held: Any, label: str, rounds: int | None, running: bool) -> dict[str, Any]:
    """What a table line says about a job."""
    from phalanx.tools.report.score import is_tested, value_of

    path, metrics = held.run_path(label) / "metrics.jsonl", []
    if path.exists():
        from phalanx.training.run_folder import RunFolder

        metrics = RunFolder(path.parent).metrics()
    last = metrics[-1] if metrics else {}
    tested = [line for line in metrics if is_tested(line) and value_of(line) is not None]
    score = {"score": tested[-1]["score"]} if tested and "score" in tested[-1] else {}
    done = (held.run_path(label) / "summary.json").exists()
    begun = "running" if running else "stopped"
    return {
        "label": label,
        "state": "done" if done else begun if held.run_path(label).exists() else "waiting",
        "round": last["step"] + 1 if last else 0,
        "rounds": rounds,
        "accuracy": tested[-1].get("accuracy") if tested else None,
        **score,
        "loss": last.get("loss"),
        "age_s": time.time() - path.stat().st_mtime if path.exists() else None,
        "excluded": last.get("excluded", {}),
    }
