# SPDX-License-Identifier: Apache-2.0
"""Reads named arrays from .npz and .pt files without executing code from them."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phalanx.core.expression import require
from phalanx.core.limits import MAX_RATIO, MAX_TOTAL_BYTES

MAX_BYTES = 2**31  # of one array; the header of a malicious file may claim any size


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by name; pickled objects are refused.

    Raises:
        ValueError: the file is neither .npz nor .pt, is damaged, or holds anything but arrays of numbers.
    """
    suffix = path.suffix.lower()
    require(suffix in (".npz", ".pt"), f"{path} should be an .npz or a .pt file")
    try:
        return _npz(path) if suffix == ".npz" else _pt(path)
    except Exception as error:  # on malicious bytes the readers may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(f"{path} holds no plain arrays that can be read ({reason}); write it again") from error


def _npz(path: Path) -> dict[str, Tensor]:
    arrays = {}
    with zipfile.ZipFile(path) as members:
        total, packed = sum(info.file_size for info in members.infolist()), max(path.stat().st_size, 1)
        require(total <= MAX_TOTAL_BYTES, f"it claims {total:,} bytes in all, more than {MAX_TOTAL_BYTES:,}")
        require(total <= MAX_RATIO * packed, f"it claims {total:,} bytes, more than {packed:,} packed bytes can hold")
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
                require(size <= MAX_BYTES, f"{name} claims {size} bytes, more than {MAX_BYTES}")
                rest = info.file_size - file.tell()
                require(size == rest, f"{name} claims {size} bytes and holds {rest}")
                data = file.read()
            require(len(data) == size, f"{name} claims {size} bytes and holds {len(data)}")
            array = np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
            native = array.astype(dtype.newbyteorder("="), order="C")
            arrays[name.removesuffix(".npy")] = torch.from_numpy(native)
    return arrays


def _pt(path: Path) -> dict[str, Tensor]:
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    ok = isinstance(loaded, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items())
    require(ok, "it should hold a dictionary of tensors by name")
    return loaded
