# SPDX-License-Identifier: Apache-2.0
"""Runs what is missing of the evidence: each recipe of the catalogue with each seed, most valuable per minute first."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phalanx.core.expression import require
from phalanx.tools.report.collect import collect
from phalanx.tools.runner.measurement import Job, parse_job
from phalanx.tools.runner.recipe import find
from phalanx.tools.runner.request import build_study
from phalanx.tools.runner.study import Study, StudyFolder
from phalanx.training.phase import Run, amend
from phalanx.training.run_folder import slug, write_json
from phalanx_experiments.reproduce.evidence import Document, Evidence
from phalanx_experiments.reproduce.item import Item, Part

UNKNOWN_MINUTES = 30.0  # of a seed whose time nobody has measured
TABLES = ("seeds_of_tables", "tables", "tables_of_the_first_seed")
QUIET_LOAD = 0.5  # processes that wait for a core, at most, when something is timed


@dataclass(frozen=True)
class Missing:
    """Runs of a recipe that have no committed result for a seed.

    Args:
        items: keys of the tables and figures that they serve.
        numbers: how many numbers and claims of these items need the recipe.
        minutes: estimated for these runs at laptop scale on two cores.
        timed: whether seconds are what it measures, so that it has to run alone.
    """

    recipe: str
    seed: int
    labels: tuple[str, ...]
    items: tuple[str, ...]
    numbers: int
    minutes: float
    timed: bool

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{slug(self.recipe)}-seed-{self.seed}"

    @property
    def value(self) -> float:
        """Numbers per minute; the second and third seed are worth as much as the first."""
        return self.numbers / max(self.minutes, 0.1)


def missing(items: Sequence[Item], evidence: Evidence, seeds: int, scale: str) -> list[Missing]:
    """What has no committed result yet, most numbers per minute first.

    A result counts only if the recipe still asks for the run that made it: other settings make another number.

    Args:
        seeds: number of seeds that each run of a recipe is wanted with: those that it has most results of, then the
            least that are free.
    Raises:
        ValueError: fewer than one seed.
    """
    require(seeds >= 1, f"--seeds takes a number of seeds >= 1, got {seeds}")
    served: dict[str, list[Item]] = {}
    for item in items:
        for part in item.parts:
            if scale in part.scales and scale in item.scales:
                served.setdefault(part.recipe, []).append(item)
    wanted = []
    for recipe, of_recipe in served.items():
        jobs = find(recipe).jobs(scale)
        parts = list(dict.fromkeys(part for item in of_recipe for part in item.parts if part.recipe == recipe))
        minutes = _minutes(parts, scale)
        there = _there(evidence.documents(recipe), jobs)
        numbers = sum(len(item.rows) + len(item.claims) or 1 for item in dict.fromkeys(of_recipe))
        for seed in _seeds(there, seeds):
            left = tuple(label for label in minutes if seed not in there.get(label, ()))
            if left:
                wanted.append(
                    Missing(
                        recipe=recipe,
                        seed=seed,
                        labels=left,
                        items=tuple(dict.fromkeys(item.key for item in of_recipe)),
                        numbers=numbers,
                        minutes=sum(minutes[label] for label in left),
                        timed=any(part.timed for part in parts),
                    )
                )
    return sorted(wanted, key=lambda each: (-each.value, each.recipe, each.seed))


def _seeds(there: Mapping[str, set[int]], seeds: int) -> list[int]:
    """The seeds of a recipe: the same for all its runs, so that they can be compared seed by seed."""
    counts = Counter(seed for of_label in there.values() for seed in of_label)
    used = sorted(counts, key=lambda seed: (-counts[seed], seed))
    free = [seed for seed in range(seeds + len(used)) if seed not in counts]
    return sorted([*used, *free][:seeds])


def _minutes(parts: Sequence[Part], scale: str) -> dict[str, float]:
    """Minutes of each label of these parts: the least that a part, shared out among its labels, says of it."""
    minutes: dict[str, float] = {}
    for part in parts:
        labels = part.labels(scale)
        for label in labels:
            share = (UNKNOWN_MINUTES if part.minutes is None else part.minutes) / len(labels)
            minutes[label] = min(share, minutes.get(label, share))
    return minutes


def _there(documents: Sequence[Document], jobs: Mapping[str, Job]) -> dict[str, set[int]]:
    """The seeds of each label whose committed run is the one that the recipe has today."""
    seeds: dict[str, set[int]] = {}
    for document in documents:
        texts = {_bare(label): text for label, text in document.get("runs", {}).items()}
        for result in document["results"]:
            label = _bare(result["label"])
            text = result.get("run", texts.get(label))
            if label in jobs and text is not None and not result.get("superseded") and _same(text, jobs[label]):
                seeds.setdefault(label, set()).add(result.get("seed", 0))
    return seeds


def _bare(label: str) -> str:
    return re.sub(r", seed \d+$", "", label)


def _same(text: str, job: Job) -> bool:
    """Whether a committed expression computes the same numbers as a job, but for the seed."""
    try:
        committed = parse_job(text, "a committed result")
    except ValueError:
        return False
    return repr(_numbers_only(committed)) == repr(_numbers_only(job))


def _numbers_only(job: Job) -> Job:
    """The job without its seed and without what changes no number: what is watched, and when it is saved."""
    job = amend(job, "seed", 0)
    return replace(job, observers=(), checkpoint_every=Run.checkpoint_every) if isinstance(job, Run) else job


def study(wanted: Missing, scale: str) -> Study:
    """The study that makes these results, checked before anything is computed."""
    return build_study(wanted.recipe, scale, (), list(wanted.labels), wanted.seed)


def open_folder(wanted: Missing, scale: str, root: Path, argv: Sequence[str]) -> StudyFolder:
    """The folder of these runs under `root`: the one that an earlier command began, or a new one.

    Raises:
        ValueError: the folder holds runs of other settings.
    """
    path, asked = root / wanted.name, study(wanted, scale)
    if not (path / "study.json").exists():
        return StudyFolder.create(asked, path, argv)
    folder = StudyFolder(path)
    begun = folder.study
    for label, job in asked.jobs.items():
        same = label in begun.jobs and repr(begun.jobs[label]) == repr(job)
        require(same, f"{path} was begun with other settings of {label!r}; give another --out, or delete it")
    return folder


def keep(folder: StudyFolder, root: Path, results: Path, load: float | None) -> Path:
    """Adds the results of an ended study to RECIPE/results.json, and plot and tables of all its seeds.

    Args:
        root: where the folders of the other seeds are.
        load: processes that waited for a core when it began, for a study that is timed.
    Returns:
        the file.
    """
    done = folder.study
    recipe = find(done.recipe)
    about = json.loads((folder.path / "study.json").read_text())
    require(
        about.get("commit") is not None,
        f"{folder.path} has no commit, so nobody can run it again; start it in a clone of the repository",
    )
    file = results / done.recipe / "results.json"
    document: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    texts = {_bare(label): text for label, text in document.get("runs", {}).items()}
    new = {label: _plain(result, done.jobs[label], about, load) for label, result in _results(folder, done)}
    kept = []
    for result in document.get("results", []):
        label = _bare(result["label"])
        known = result.get("run", texts.get(label))
        replaced = label in new and (result.get("seed", 0) == new[label]["seed"] or not _same(known, done.jobs[label]))
        if not replaced:
            kept.append(result if "run" in result or known is None else {**result, "run": known})
    order = list(recipe.jobs(done.scale or "laptop"))
    everything = sorted([*kept, *new.values()], key=lambda each: (_place(order, each["label"]), each.get("seed", 0)))
    seeds = sorted({each.get("seed", 0) for each in everything})
    # plot and tables are of the seeds whose folders are here; they stay as they are unless every run is in some folder
    folders = {seed: path for seed in seeds if (path := root / f"{slug(done.recipe)}-seed-{seed}").is_dir()}
    curves = collect(list(folders.values()))
    shown: dict[str, Any] = {key: document[key] for key in TABLES if key in document}
    if {_bare(each["label"]) for each in everything} <= {_bare(curve.name) for curve in curves}:
        shown = {"seeds_of_tables": list(folders), "tables": [sheet.to_json() for sheet in recipe.tables(curves)]}
        title = f"{done.recipe}, {done.scale}, seeds {' '.join(map(str, folders))}"
        (results / done.recipe).mkdir(parents=True, exist_ok=True)
        recipe.plot(curves, title, results / done.recipe / "plot.png")
    write_json(
        file,
        {
            "recipe": done.recipe,
            "scale": done.scale,
            "command": f"phalanx run {done.recipe} --scale {done.scale}",
            "seeds": seeds,
            "about": {key: about[key] for key in ("time", "versions", "machine", "commit")},
            **{key: value for key, value in document.items() if key in ("note", "observed", "settings")},
            "runs": {**document.get("runs", {}), **{label: repr(job) for label, job in done.jobs.items()}},
            "results": everything,
            **shown,
        },
    )
    return file


def _results(folder: StudyFolder, done: Study) -> list[tuple[str, dict[str, Any]]]:
    return [(result["label"], result) for result in folder.results(done)]


def _plain(result: Mapping[str, Any], job: Job, about: Mapping[str, Any], load: float | None) -> dict[str, Any]:
    """A summary as it is committed: with its seed, its run, its commit and its machine."""
    machine = about["machine"]
    return {
        **{key: _rounded(value) for key, value in result.items() if key != "folder"},
        "seed": job.seed,
        "run": repr(job),
        "commit": about["commit"],
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['accelerator'] or 'no accelerator'}",
        **({} if load is None else {"load": round(load, 2)}),
    }


def _rounded(value: Any) -> Any:
    """Floats with six digits, also inside of lists and objects."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return value


def _place(order: Sequence[str], label: str) -> int:
    """The position of a label in the recipe; that of one which the recipe no longer has is the last."""
    bare = _bare(label)
    return order.index(bare) if bare in order else len(order)
