# SPDX-License-Identifier: Apache-2.0
"""The studies that make a table or a figure, in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phalanx.core.expression import require
from phalanx.core.registry import suggest
from phalanx.tools.runner.request import build_study
from phalanx.tools.runner.study import Study, StudyFolder
from phalanx.training.run_folder import new_folder, slug, write_json
from phalanx_experiments.reproduce.catalogue import find
from phalanx_experiments.reproduce.item import Item

FILE = "reproduce.json"


@dataclass(frozen=True)
class Planned:
    """An item that is being run, and the folders of its studies.

    Args:
        studies: one for each recipe and seed.
    """

    item: Item
    path: Path
    studies: tuple[StudyFolder, ...]

    @staticmethod
    def create(item: Item, studies: Sequence[Study], out: Path | None, argv: Sequence[str]) -> Planned:
        """Makes new folders at `out`, or under runs/ when None.

        Raises:
            ValueError: there is something at `out` already.
        """
        path = new_folder(item.key.replace(".", "-")) if out is None else out
        free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        require(free, f"{path} is not empty; go on with it by --resume {path}, or give a new folder")
        names = [_name(study) for study in studies]
        folders = tuple(
            StudyFolder.create(study, path / name, argv) for study, name in zip(studies, names, strict=True)
        )
        write_json(path / FILE, {"item": item.key, "studies": names})
        return Planned(item, path, folders)

    @staticmethod
    def open(path: Path) -> Planned:
        """Opens the folders that `create` has made.

        Raises:
            ValueError: the folder is another one.
        """
        file = path / FILE
        require(file.exists(), f"{path} holds no table or figure: there is no {FILE} in it")
        try:
            plain = json.loads(file.read_text())
            return Planned(find(plain["item"]), path, tuple(StudyFolder(path / name) for name in plain["studies"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from None


def studies(
    item: Item, scale: str | None, settings: Sequence[str], only: Sequence[str], seeds: Sequence[int]
) -> list[Study]:
    """The studies of an item, checked before anything is computed.

    Args:
        scale: that of the committed results when None.
        only: labels to keep, of any of the item's recipes.
        seeds: one study of each recipe for each; those of the recipe when empty.
    Raises:
        ValueError: nothing of it can be run, or a scale, label or setting does not fit.
    """
    _check(item, scale)
    scale = scale or item.usual
    labels = {part: part.labels(scale) for part in item.parts}
    everything = [label for of_part in labels.values() for label in of_part]
    for wanted in only:
        known = slug(wanted) in map(slug, everything)
        require(known, f"{item.key} has no run labelled {wanted!r}; {suggest(wanted, everything)}")
    planned = []
    for part, of_part in labels.items():
        kept = [label for label in of_part if not only or slug(label) in map(slug, only)]
        if kept:
            planned += [build_study(part.recipe, scale, settings, kept, seed) for seed in seeds or (None,)]
    return planned


def _check(item: Item, scale: str | None) -> None:
    """Raises ValueError unless the item can be run in a scale."""
    absent = [part.recipe for part in item.parts if not part.scales]
    require(not absent, f"{item.key} needs the recipe {', '.join(absent)}, which this version does not have")
    way = f"; its numbers come from: {item.command}" if item.command else ""
    require(bool(item.parts), f"{item.key} is no run of a recipe ({item.state}){way}")
    choices = ", ".join(item.scales)
    require(scale is None or scale in item.scales, f"{item.key} has no scale {scale!r}; choose from {choices}")
    if scale is None and item.usual == "paper":
        raise ValueError(f"{item.key} {item.state}: {item.why} Ask for it by --scale paper")


def _name(study: Study) -> str:
    """The name of the folder for a recipe and a seed."""
    seeds = sorted({job.seed for job in study.jobs.values()})
    return f"{slug(study.recipe)}-seed-{'-'.join(map(str, seeds))}"
