# SPDX-License-Identifier: Apache-2.0
"""Files of edge-case examples, in the folder edge-case of the data folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from phalanx.backdoors.edges import absent
from phalanx.core.expression import require
from phalanx.data.arrays import read_arrays
from phalanx.data.files import data_folder

PLACE = "edge-case"


def published(name: str, file: str) -> Path:
    """Returns the path of a file; raises MissingData if it does not exist."""
    path = data_folder() / PLACE / file
    if not path.exists():
        raise absent(name, path)
    return path


def arrays(name: str, file: str, *wanted: str) -> list[Tensor]:
    """Reads some arrays of a file; raises ValueError if one is missing."""
    path = published(name, file)
    by_name = read_arrays(path)
    lacks = [key for key in wanted if key not in by_name]
    have = ", ".join(sorted(by_name)) or "nothing"
    require(not lacks, f"{path} has no {' and no '.join(lacks)}; it holds {have}")
    return [by_name[key] for key in wanted]


def check_bytes(where: str, array: Tensor, *shape: int) -> None:
    """Raises ValueError unless the array is of bytes, (n, *shape)."""
    have = f"{tuple(array.shape)} of {array.dtype}"
    ok = array.dtype == torch.uint8 and array.shape[1:] == shape and len(array) > 0
    require(ok, f"{where} should be bytes (n, {', '.join(map(str, shape))}), got {have}")
