# SPDX-License-Identifier: Apache-2.0
"""The live view of a study or a probe: a bar for what is under way, a line for each run that has ended."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from phalanx.tools.report.tables import console, percent, seconds, size
from phalanx.tools.runner.measurement import Job
from phalanx.training.phase import Run


@dataclass
class _Going:
    """A job under way: its bar, when it began, and what it has sent and reached since."""

    task: Any
    began: float
    sent: float = 0.0
    accuracy: float | None = None


class Progress:
    """A watcher of a study that draws on stderr, a bar for each job under way; without a terminal the lines only.

    Args:
        total: runs of the study.
    """

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._console = console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._total, self._ended = total, 0
        self._going: dict[str, _Going] = {}

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, label: str, job: Job) -> None:
        """A run or a measurement starts or goes on."""
        rounds = job.rounds if isinstance(job, Run) else None
        self._drop(label)
        place = self._ended + len(self._going) + 1
        task = self._bars.add_task(f"{label} ({place} of {self._total})", total=rounds, numbers="")
        self._going[label] = _Going(task, time.perf_counter())

    def round(self, label: str, line: dict[str, Any]) -> None:
        """A round has ended, with these metrics."""
        going = self._going[label]
        going.sent += line["bytes_up"]
        going.accuracy = line.get("accuracy", going.accuracy)
        out = sorted({*map(int, line["excluded"]), *line["outvoted"]})
        loss = "-" if line["loss"] is None else f"{line['loss']:.4f}"
        numbers = f"loss {loss}  accuracy {percent(going.accuracy)}  {size(going.sent)}"
        if out:
            numbers += f"  out {' '.join(map(str, out))}"
        self._bars.update(going.task, completed=line["step"] + 1, numbers=numbers)

    def progress(self, label: str, words: str) -> None:
        """A measurement says what comes next."""
        self._bars.update(self._going[label].task, numbers=words)

    def end(self, label: str, summary: dict[str, Any]) -> None:
        """A run or a measurement has ended, now or before the study was resumed."""
        self._ended += 1
        going = self._drop(label)
        spent = "kept" if going is None else seconds(time.perf_counter() - going.began)
        reached = "measured"
        if "measured" not in summary:
            lost = f"  {summary['lost_rounds']} rounds lost" if summary["lost_rounds"] else ""
            reached, spent = f"accuracy {percent(summary['accuracy']):>7}", f"{spent}{lost}"
        self._console.print(f"[{self._ended}/{self._total}] {label:<28} {reached}  {spent}", markup=False)

    def _drop(self, label: str) -> _Going | None:
        """No bar for a job any more."""
        going = self._going.pop(label, None)
        if going is not None:
            self._bars.remove_task(going.task)
        return going


class Steps:
    """A bar on stderr for so many measurements; nothing without a terminal.

    Within `with` it is a function of the words that say what comes next.
    """

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        shown = console(stderr=True)
        columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bars = Bars(*columns, console=shown, transient=True, disable=not shown.is_terminal)
        self._task = self._bars.add_task("", total=total)
        self._told = 0

    def __enter__(self) -> Steps:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, words: str) -> None:
        self._bars.update(self._task, completed=self._told, description=words)
        self._told += 1
