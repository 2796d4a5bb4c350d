# SPDX-License-Identifier: Apache-2.0
"""Named arrays in .npz and .pt files, read without running what a stranger wrote."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phalanx.core.expression import require

MOST_BYTES = 2**31  # of one array; headers of hostile files claim anything


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by name; pickled objects are refused.

    Raises:
        ValueError: it is neither .npz nor .pt, is damaged, or holds anything but arrays of numbers.
    """
    suffix = path.suffix.lower()
    require(suffix in (".npz", ".pt"), f"{path} should be an .npz or a .pt file")
    try:
        return _npz(path) if suffix == ".npz" else _pt(path)
    except Exception as error:  # the readers of hostile bytes raise whatever they come upon
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(f"{path} holds no plain arrays that can be read ({reason}); write it anew") from error


def _npz(path: Path) -> dict[str, Tensor]:
    found = {}
    with zipfile.ZipFile(path) as members:
        for info in members.infolist():
            name = info.filename
            require(name.endswith(".npy"), f"{name} is no array")
            with members.open(info) as file:
                version = np.lib.format.read_magic(file)
                require(version in ((1, 0), (2, 0)), f"{name} is of version {version}")
                first = version == (1, 0)
                header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = header(file)
                require(dtype.kind in "uifb", f"{name} holds {dtype}, no numbers")
                size = math.prod(shape) * dtype.itemsize
                require(size <= MOST_BYTES, f"{name} claims {size} bytes, more than {MOST_BYTES}")
                rest = info.file_size - file.tell()
                require(size == rest, f"{name} claims {size} bytes and holds {rest}")
                data = file.read()
            require(len(data) == size, f"{name} claims {size} bytes and holds {len(data)}")
            array = np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
            native = array.astype(dtype.newbyteorder("="), order="C")
            found[name.removesuffix(".npy")] = torch.from_numpy(native)
    return found


def _pt(path: Path) -> dict[str, Tensor]:
    made: Any = torch.load(path, map_location="cpu", weights_only=True)
    ok = isinstance(made, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in made.items())
    require(ok, "it should hold a dictionary of tensors by name")
    return made
