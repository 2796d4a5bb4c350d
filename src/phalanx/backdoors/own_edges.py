# SPDX-License-Identifier: Apache-2.0
"""Edge-case examples of one's own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from phalanx.backdoors.edges import EdgeCases, EdgeSet
from phalanx.backdoors.fitted import fitted, image_shape
from phalanx.core.expression import method, require
from phalanx.data.arrays import read_arrays
from phalanx.data.dataset import Dataset
from phalanx.data.files import MissingData, data_folder
from phalanx.data.image_folder import Files


@method("own_edges", "edge_cases")
class OwnEdges(EdgeCases):
    """Examples from a folder of images, or from the arrays of an .npz or .pt file.

    A folder holds train and test, each with files of images, whose middle square is seen. A file holds x_train and
    x_test, and perhaps y_train and y_test with the right labels: images as bytes (n, H, W), (n, H, W, C) or (n, C, H,
    W), made as large as the data's, or token ids (n, L). No pickled object is read.

    Args:
        root: relative to the current folder or, if it is not there, to the data folder; or absolute.
        target: the label that the attacker wants.
        label: the right label of all examples, where the file has none.
    Raises:
        ValueError: the arrays or files cannot be read or do not fit the data, nobody says which labels are right, or an
            example to test on is also trained on.
    """

    root: str
    target: int
    label: int | None = None

    def validate(self) -> None:
        ok = self.target >= 0 and (self.label is None or self.label >= 0)
        require(ok, f"own_edges needs labels >= 0, got target={self.target}, label={self.label}")

    def read(self, data: Dataset) -> EdgeSet:
        given = Path(self.root).expanduser()
        path = next((place for place in (given.absolute(), data_folder() / given) if place.exists()), None)
        if path is None:
            places = f"{Path.cwd()} or {data_folder()}" if not given.is_absolute() else "this machine"
            raise MissingData(f"own_edges: there is no {given} in {places}; give the folder or file that holds yours")
        train, test = self._folder(path, data) if path.is_dir() else self._file(path, data)
        rows = [{bytes(row.contiguous().numpy().data) for row in x} for x, _ in (train, test)]
        twice = len(rows[0] & rows[1])
        require(not twice, f"own_edges: {twice} of the examples to test on in {path} are also trained on")
        return EdgeSet("own_edges", *train, self.target, *test)

    def _folder(self, path: Path, data: Dataset) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        _, h, w = image_shape("own_edges", data)
        require(h == w, f"own_edges reads a folder for square images, and {data.name} has {h}x{w}; write an .npz")
        parts = []
        for part in ("train", "test"):
            place = path / part
            require(place.is_dir(), f"own_edges: there is no folder {place}; {path} should hold train and test")
            names = sorted(file.name for file in place.iterdir() if not file.name.startswith("."))
            require(len(names) > 0, f"own_edges: {place} is empty; put images there")
            images = fitted("own_edges", Files(place, names, h)[:], data)
            parts.append((images, self._labels(None, images, part, path)))
        return parts[0], parts[1]

    def _file(self, path: Path, data: Dataset) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        arrays = read_arrays(path)
        parts = []
        for part in ("train", "test"):
            have = ", ".join(sorted(arrays)) or "nothing"
            require(f"x_{part}" in arrays, f"own_edges: {path} has no x_{part}; it holds {have}")
            x = self._examples(arrays[f"x_{part}"], data, f"x_{part} in {path}")
            parts.append((x, self._labels(arrays.get(f"y_{part}"), x, part, path)))
        return parts[0], parts[1]

    def _examples(self, x: Tensor, data: Dataset, where: str) -> Tensor:
        have = f"{tuple(x.shape)} of {x.dtype}"
        require(x.numel() > 0, f"own_edges: {where} is empty")
        if data.vocabulary is not None:
            wide = data.train_x.shape[1:]
            ok = x.dtype == torch.int64 and x.shape[1:] == wide
            require(ok, f"own_edges: {where} should be int64 (n, {', '.join(map(str, wide))}), got {have}")
            low, high = int(x.min()), int(x.max())
            ok = low >= 0 and high < data.vocabulary
            require(ok, f"own_edges: {where} has token ids {low} to {high}, and {data.name} {data.vocabulary} of them")
            return x
        ok = x.dtype == torch.uint8 and x.dim() in (3, 4)
        require(ok, f"own_edges: {where} should be bytes (n, H, W), (n, H, W, C) or (n, C, H, W), got {have}")
        x = x[:, None] if x.dim() == 3 else x
        return fitted("own_edges", x if x.shape[1] in (1, 3) else x.permute(0, 3, 1, 2), data)

    def _labels(self, y: Tensor | None, x: Tensor, part: str, path: Path) -> Tensor:
        if y is None:
            if self.label is None:
                raise ValueError(f"own_edges: {path} does not say which labels are right; name label= or add y_{part}")
            return torch.full((len(x),), self.label)
        ok = y.shape == x.shape[:1] and not y.is_floating_point() and (y.numel() == 0 or int(y.min()) >= 0)
        require(ok, f"own_edges: y_{part} in {path} should be {len(x)} labels >= 0, got {tuple(y.shape)} of {y.dtype}")
        return y.long()
