# SPDX-License-Identifier: Apache-2.0
"""The outputs of single filters, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import figure, save
from phalanx.tools.report.sheet import Sheet

SIZE = 1.75  # inches of a picture
AGREEMENTS = {"client 2": "its match at client 2", "FedMA": "FedMA's average", "FedAvg": "FedAvg's average"}
TITLE = "first convolution: correlation of what a filter of client 1 sees with what others see"


def plot_filters(results: Sequence[Result], title: str, path: Path) -> None:
    """The image, and a row for each pair of matched filters: both clients, FedMA and FedAvg, each with its weights.

    Pictures are what a filter sees, bright where it answers, each on a scale of its own.
    """
    measured = [result.summary["measured"] for result in results if result.summary]
    pairs = [(of_run["image"], pair) for of_run in measured for pair in of_run["pairs"]]
    fig = figure(5 * SIZE + 0.4, (SIZE + 0.35) * max(1, len(pairs)) + 0.5)
    axes: Any = fig.subplots(max(1, len(pairs)), 5, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for number, (line, (image, pair)) in enumerate(zip(axes, pairs, strict=False)):
        if number == 0:
            _draw(line[0], _picture(image), "the image")
        for ax, (kind, filter_number) in zip(line[1:], pair["numbers"].items(), strict=True):
            _draw(ax, pair["seen"][kind], f"{kind}, filter {filter_number}")
            inset = ax.inset_axes((0.0, 0.0, 0.22, 0.22))
            inset.imshow(_scaled(pair["filters"][kind]), cmap="gray")
            inset.set_xticks([])
            inset.set_yticks([])
    save(fig, title, path)


def filter_tables(results: Sequence[Result]) -> list[Sheet]:
    """How many filters were matched, and how much the outputs of matched filters agree."""
    rows = []
    for result in results:
        if result.summary:
            measured = result.summary["measured"]
            agreements = [measured["agreement"].get(kind) for kind in AGREEMENTS]
            rows.append((result.label, f"{measured['matched']} of {measured['filters']}", *agreements))
    return [Sheet(TITLE, ("clients", "matched filters", *AGREEMENTS.values()), tuple(rows))] if rows else []


def _draw(ax: Any, picture: Any, words: str) -> None:
    ax.imshow(picture, cmap="gray")
    ax.set_title(words, fontsize=9)


def _picture(channels: list[Any]) -> Any:
    """The picture with its channels last; a picture of one channel stays as it is."""
    import numpy as np

    x = np.array(channels).transpose(1, 2, 0)
    return x[..., 0] if x.shape[-1] == 1 else x


def _scaled(filter_: list[Any]) -> Any:
    """Weights as a picture from the least to the most."""
    x = _picture(filter_)
    return (x - x.min()) / max(float(x.max() - x.min()), 1e-9)
