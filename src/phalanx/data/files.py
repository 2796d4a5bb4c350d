# SPDX-License-Identifier: Apache-2.0
"""The folder of the data files, and their download."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from phalanx.core.expression import require
from phalanx.core.limits import MAX_TOTAL_BYTES


class MissingData(ValueError):
    """A file of a data set is missing and cannot be downloaded."""


def data_folder() -> Path:
    """The folder of all data sets: PHALANX_DATA, or a folder in the user's cache directory."""
    chosen = os.environ.get("PHALANX_DATA")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "phalanx"


def missing_data(name: str, path: Path, reason: str = "") -> MissingData:
    """The error for a data set that is not at `path`."""
    tried = f" and cannot be downloaded ({reason})" if reason else ""
    return MissingData(
        f"{name} is not in {path}{tried}; set PHALANX_DATA to a folder that has it, connect to the network so that it "
        "is downloaded at its first use, or use digits(), which is part of scikit-learn"
    )


def download(
    name: str, sources: Mapping[str, tuple[str, str | None]], target: Path, unpack: Callable[[Path], None]
) -> None:
    """Downloads files, checks and unpacks them, and then moves the results into `target`.

    Several processes may do so at the same time: each works in a folder of its own, and each file is moved in one step.

    Args:
        name: name of the data set, for the error.
        sources: URL and md5 of each file; the md5 is None if `unpack` checks the content.
        target: folder for the results.
        unpack: replaces the downloaded files in a folder by those that belong into `target`.
    Raises:
        MissingData: a file cannot be downloaded, or its md5 differs.
    """
    import pooch

    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target) as work:
            for file, (url, md5) in sources.items():
                fetch: Any = pooch.HTTPDownloader(timeout=30)  # pooch's own types do not accept its downloader
                pooch.retrieve(url, known_hash=md5 and f"md5:{md5}", fname=file, path=work, downloader=fetch)
            unpack(Path(work))
            for path in sorted(Path(work).iterdir()):
                os.replace(path, target / path.name)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise missing_data(name, target, f"{type(error).__name__}: {error}") from error


def check_md5(path: Path, md5: str) -> None:
    """Raises ValueError unless a file has the published md5."""
    actual = hashlib.md5(path.read_bytes()).hexdigest()
    if actual != md5:
        raise ValueError(f"{path.name} has md5 {actual}, and should have {md5}")


def extract(archive: Path, members: Iterable[str], target: Path) -> None:
    """Copies the named regular files, and nothing else, from a tar archive into `target`, then deletes the archive.

    Raises:
        ValueError: a member is missing, or is a link or a folder.
    """
    with tarfile.open(archive) as tar:
        for name in members:
            try:
                member = tar.getmember(name)
            except KeyError:
                raise ValueError(f"{archive.name} has no member {name}") from None
            source = tar.extractfile(member) if member.isreg() else None
            if source is None:
                raise ValueError(f"{name} in {archive.name} is no regular file")
            require(
                member.size <= MAX_TOTAL_BYTES,
                f"{name} in {archive.name} claims {member.size:,} bytes, more than any data set",
            )
            with source, open(target / Path(name).name, "wb") as copy:
                shutil.copyfileobj(source, copy)
    archive.unlink()
