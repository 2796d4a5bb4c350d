# SPDX-License-Identifier: Apache-2.0
"""The live view of a study or a probe: a bar for what is under way, a line for each run that has ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from phalanx.core.heartbeat import Heartbeat
from phalanx.tools.report.score import ACCURACY, Score, is_tested, score_of, value_of
from phalanx.tools.report.tables import console, seconds, size
from phalanx.tools.runner.measurement import Job
from phalanx.training.client_sampler import AllClients
from phalanx.training.phase import Run

_CHANGES = 40  # lines about workers that are out or back, for one run


@dataclass
class _Going:
    """A job under way: its bar, when it began, and what it has sent and reached since."""

    task: Any
    began: float
    sent: float = 0.0
    reached: float | None = None
    score: Score = ACCURACY
    rounds: int | None = None
    everyone: bool = True
    out: dict[int, str] = field(default_factory=dict)
    changes: int = 0
    now: str = "begins"


class Progress:
    """A watcher of a study that draws on stderr, a bar for each job under way.

    It prints a line when a job has ended, and when a worker drops out or comes back. Without a terminal there are no
    bars, but a line when a job begins, and signs of life.

    Args:
        total: runs of the study.
        every_s: without a terminal, seconds of silence after which it says where the jobs are.
    """

    def __init__(self, total: int, every_s: float = 30.0) -> None:
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
        self._say = Heartbeat(lambda line: self._console.print(line, markup=False), self._where, every_s)

    def __enter__(self) -> Progress:
        self._bars.start()
        self._say.__enter__()
        return self

    def _where(self) -> str:
        """Where the jobs are; empty on a terminal, whose bars say it."""
        if self._console.is_terminal:
            return ""
        return "; ".join(f"{label}: {going.now}" for label, going in list(self._going.items()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say.__exit__()
        self._bars.stop()

    def begin(self, label: str, job: Job) -> None:
        """A run or a measurement starts or goes on."""
        rounds = job.rounds if isinstance(job, Run) else None
        self._drop(label)
        place = self._ended + len(self._going) + 1
        task = self._bars.add_task(f"{label} ({place} of {self._total})", total=rounds, numbers="")
        everyone = isinstance(job, Run) and all(isinstance(phase.clients, AllClients) for phase in job.phases)
        self._going[label] = _Going(task, time.perf_counter(), rounds=rounds, everyone=everyone)
        if not self._console.is_terminal:
            self._say(f"[{place}/{self._total}] {label} begins")

    def round(self, label: str, line: dict[str, Any]) -> None:
        """A round has ended, with these metrics."""
        going = self._going[label]
        going.sent += line["bytes_up"]
        if is_tested(line):
            going.reached, going.score = value_of(line), score_of(line)
        out = sorted(map(int, {*line["excluded"], *line["accused"]}))
        loss = "-" if line["loss"] is None else f"{line['loss']:.4f}"
        numbers = f"loss {loss}  {going.score.name} {going.score.words(going.reached)}  {size(going.sent)}"
        if out:
            numbers += f"  out {' '.join(map(str, out))}"
        self._bars.update(going.task, completed=line["step"] + 1, numbers=numbers)
        going.now = f"round {line['step'] + 1} of {going.rounds}, {numbers}"
        self._tell_changes(label, going, line["step"], {int(w): reason for w, reason in line["excluded"].items()})

    def _tell_changes(self, label: str, going: _Going, step: int, out: dict[int, str]) -> None:
        """Says which workers are out since this round, and which are back where a round asks all of them."""
        where = f"round {step}" if self._total == 1 else f"{label}, round {step}"
        lines = [f"{where}: worker {w}: {reason}" for w, reason in sorted(out.items()) if w not in going.out]
        if going.everyone:
            lines += [f"{where}: worker {w} is back" for w in sorted(going.out.keys() - out.keys())]
        going.out = out if going.everyone else {**going.out, **out}
        for line in lines[: max(0, _CHANGES - going.changes)]:
            self._say(line)
        if lines and going.changes < _CHANGES <= going.changes + len(lines):
            self._say(f"{where}: later changes are in metrics.jsonl only")
        going.changes += len(lines)

    def progress(self, label: str, words: str) -> None:
        """A measurement says what comes next."""
        self._going[label].now = words
        self._bars.update(self._going[label].task, numbers=words)

    def end(self, label: str, summary: dict[str, Any]) -> None:
        """A run or a measurement has ended, now or before the study was resumed."""
        self._ended += 1
        going = self._drop(label)
        spent = "kept" if going is None else seconds(time.perf_counter() - going.began)
        reached = "measured"
        if "measured" not in summary:
            lost = f"  {summary['lost_rounds']} rounds lost" if summary["lost_rounds"] else ""
            score = score_of(summary)
            reached, spent = f"{score.name} {score.words(value_of(summary)):>7}", f"{spent}{lost}"
        self._say(f"[{self._ended}/{self._total}] {label:<28} {reached}  {spent}")

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
