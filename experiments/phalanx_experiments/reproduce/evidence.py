# SPDX-License-Identifier: Apache-2.0
"""Measured numbers: the committed results, and those of studies that have just been run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from phalanx.core.expression import require
from phalanx.tools.runner.study import StudyFolder

Document = Mapping[str, Any]  # "results", a list of summaries with their labels and seeds, and "tables", sheets


@dataclass(frozen=True)
class Number:
    """A measured number.

    Args:
        stdev: over the seeds; None where there is one seed, or it is not known.
        seeds: the value of each; empty where only the mean was kept.
    """

    mean: float
    n: int = 1
    stdev: float | None = None
    seeds: Mapping[int, float] = field(default_factory=dict)

    @staticmethod
    def of(seeds: Mapping[int, float]) -> Number | None:
        """Mean and deviation over the seeds; None without any."""
        if not seeds:
            return None
        values = list(seeds.values())
        return Number(mean(values), len(values), stdev(values) if len(values) > 1 else None, dict(seeds))

    def to_json(self) -> dict[str, Any]:
        """The number as plain values for JSON."""
        return {"mean": self.mean, "n": self.n, "stdev": self.stdev}


class Evidence:
    """Measured numbers by recipe, and the files of a folder of results.

    Args:
        root: such as the repository's experiments/results; with None there are no files.
        documents: by recipe, in place of the files; a study run several times has one for each time.
    """

    def __init__(self, root: Path | None, documents: Mapping[str, Sequence[Document]] | None = None) -> None:
        self.root = root
        self._documents = {} if documents is None else dict(documents)
        self._files: dict[str, Any] = {}

    @staticmethod
    def of_studies(folders: Sequence[StudyFolder]) -> Evidence:
        """The results of the studies in these folders."""
        documents: dict[str, list[Document]] = {}
        for folder in folders:
            study, tables = folder.study, folder.path / "tables.json"
            seeds = {label: job.seed for label, job in study.jobs.items()}
            by_recipe = {
                "results": [{"seed": seeds[result["label"]], **result} for result in folder.results(study)],
                "tables": json.loads(tables.read_text()) if tables.exists() else [],
                "seed": next(iter(seeds.values()), 0),
            }
            documents.setdefault(study.recipe, []).append(by_recipe)
        return Evidence(None, documents)

    def documents(self, recipe: str) -> Sequence[Document]:
        """The documents of a recipe."""
        if recipe not in self._documents:
            document = self.file(f"{recipe}/results.json")
            self._documents[recipe] = [] if document is None else [document]
        return self._documents[recipe]

    def file(self, name: str) -> Any:
        """The content of a JSON file under the root; None if there is none."""
        if name not in self._files:
            path = None if self.root is None else self.root / name
            self._files[name] = json.loads(path.read_text()) if path is not None and path.exists() else None
        return self._files[name]


def results_folder(given: Path | None) -> Path | None:
    """The folder of committed results: the given one, that of the working directory, of the source tree or installed.

    Raises:
        ValueError: the given folder holds no results.
    """
    if given is not None:
        require(_holds(given), f"{given} holds no results: no results.json lies in a folder of it")
        return given
    package = Path(__file__).resolve().parents[1]
    here = (Path("results"), Path("experiments/results"))
    folders = (*here, package.parent / "results", package / "results")
    return next((folder for folder in folders if _holds(folder)), None)


def _holds(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*/results.json"))
