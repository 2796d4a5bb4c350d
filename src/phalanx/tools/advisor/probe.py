# SPDX-License-Identifier: Apache-2.0
"""What was measured of a job: its link, its work, and the cost of each scheme; a JSON document.

Fields of the document; times in seconds, sizes in bytes, bandwidths in bytes per second on the line:

``format``      1
``run``         expression of the run whose work was measured; its workers are the processes
``processes``   how many took part
``hosts``       name of each process's machine, by rank
``parameters``  d, trained parameters and installed entries of the model
``batch``       examples of one worker in a step
``work_s``      forward and backward of the slowest process, all of them at once; median over steps
``link``        null for a single process; else
                ``gather`` and ``reduce``: the curve ``points`` [[bytes of a process's message, seconds], ...] of the
                operation, called through `gather` and `mean` of `ProcessGroupCollective`, the slowest process, median;
                ``latency_s`` and ``bandwidth``: of the ring that fits them best
``schemes``     for each: ``scheme``, ``quality``, ``sent_bytes``, ``messages`` [{kind, bytes, spread, r}, ...] and
                ``efforts`` [{workers, encode_s, pack_s, decode_s, rule_s, finish_s}, ...], as in `Cost`
``about``       versions, machine, commit and time, as in a run's about.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phalanx.core.parser import parse
from phalanx.distributed.backend import Kind
from phalanx.tools.advisor.link import MeasuredLink
from phalanx.tools.advisor.model import Cost, Effort, Message
from phalanx.training.phase import Run

FORMAT = 1
KINDS: tuple[Kind, ...] = ("gather", "reduce")


@dataclass(frozen=True)
class Probe:
    """A measured job; see above for the fields."""

    run: Run
    hosts: tuple[str, ...]
    parameters: int
    batch: int
    work_s: float
    link: MeasuredLink | None
    costs: tuple[Cost, ...]
    about: Mapping[str, Any]

    @property
    def processes(self) -> int:
        """How many took part."""
        return len(self.hosts)

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values, for JSON; `from_json` is the inverse."""
        return {
            "format": FORMAT,
            "run": repr(self.run),
            "processes": self.processes,
            "hosts": list(self.hosts),
            "parameters": self.parameters,
            "batch": self.batch,
            "work_s": self.work_s,
            "link": None if self.link is None else _link_to_json(self.link),
            "schemes": [asdict(cost) for cost in self.costs],
            "about": dict(self.about),
        }

    @staticmethod
    def from_json(plain: Any, source: str = "the document") -> Probe:
        """The probe that `to_json` described.

        Args:
            source: what to call it in an error.
        Raises:
            ValueError: it is no probe, or a damaged one.
        """
        if not isinstance(plain, dict) or "schemes" not in plain or "format" not in plain:
            raise ValueError(f"{source} is no probe; write one with phalanx probe --out FILE")
        if plain["format"] != FORMAT:
            raise ValueError(
                f"{source} has format {plain['format']}, and this phalanx reads format {FORMAT}; probe again"
            )
        try:
            run = parse(plain["run"])
            if not isinstance(run, Run):
                raise ValueError(f"its run is {run!r}")
            return Probe(
                run=run,
                hosts=tuple(plain["hosts"]),
                parameters=int(plain["parameters"]),
                batch=int(plain["batch"]),
                work_s=float(plain["work_s"]),
                link=None if plain["link"] is None else _link_from_json(plain["link"], len(plain["hosts"])),
                costs=tuple(_cost_from_json(cost) for cost in plain["schemes"]),
                about=plain["about"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{source} is damaged ({type(error).__name__}: {error}); probe again") from None

    @staticmethod
    def read(path: Path) -> Probe:
        """The probe in a file.

        Raises:
            ValueError: the file holds none.
        """
        try:
            plain = json.loads(path.read_text())
        except ValueError:
            raise ValueError(f"{path} is no JSON document; write one with phalanx probe --out FILE") from None
        return Probe.from_json(plain, str(path))


def _link_to_json(link: MeasuredLink) -> dict[str, Any]:
    return {kind: {"points": [list(point) for point in link.curves[kind]], **asdict(link.line(kind))} for kind in KINDS}


def _link_from_json(plain: Mapping[str, Any], processes: int) -> MeasuredLink:
    curves: dict[Kind, tuple[tuple[int, float], ...]] = {
        kind: tuple((int(size), float(seconds)) for size, seconds in plain[kind]["points"]) for kind in KINDS
    }
    return MeasuredLink(processes, curves)


def _cost_from_json(plain: Mapping[str, Any]) -> Cost:
    return Cost(
        plain["scheme"],
        plain["quality"],
        float(plain["sent_bytes"]),
        tuple(Message(**message) for message in plain["messages"]),
        tuple(Effort(**effort) for effort in plain["efforts"]),
    )
