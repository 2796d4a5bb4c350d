# SPDX-License-Identifier: Apache-2.0
"""Shakespeare's plays, by role, for models that predict characters, from TensorFlow Federated's database."""

from __future__ import annotations

import json
import lzma
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.data.dataset import Data, Dataset, check_count, evenly_spaced
from phalanx.data.files import data_folder, download, missing_data
from phalanx.data.passages import passages

PLACE, FILE = "shakespeare", "shakespeare_fed.jsonl"
URL = "https://storage.googleapis.com/tff-datasets-public"
ARCHIVE = "shakespeare.sqlite.lzma"
COUNTS = {"roles": 715, "train": 16_068, "test": 2_356}  # number of roles, and of speeches in each part
CHARACTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
IDS = {character: i for i, character in enumerate(CHARACTERS)}
UNKNOWN = IDS[" "]


@dataclass(frozen=True)
class Role:
    """The text of a role, with one speech after the other."""

    name: str
    train: str
    test: str


@method("shakespeare", "data")
class Shakespeare(Data):
    """Speeches of the roles in Shakespeare's plays. The label of every character in a passage is the next character.

    The owner of a passage is its role, and a passage contains the text of one role only. The test part has the passages
    of all chosen roles. Of the 715 roles, 72 have 10,000 characters or more, and a fixed random choice takes 66 of
    them. The vocabulary has LEAF's 80 characters; any other one counts as a space. The file shakespeare_fed.jsonl lies
    in shakespeare of the data folder; its lines are {"client": ..., "train": [speech, ...], "test": [speech, ...]}.

    Shapes: token ids and labels (N, context + length) int64.
    Args:
        train: training passages, taken at equal distances; all when None.
        test: test passages, taken at equal distances; all when None.
        roles: number of roles to choose among those with `least` characters; all of these when None.
        least: characters that a role must have in both parts together, >= 1; a role without a whole passage in each
            part is left out.
        length: characters of a passage that are scored, >= 1.
        context: characters before them that a model reads first, >= 0. LEAF's examples are length=1, context=79, which
            are 80 times as many passages and take 80 times the memory and work.
    Source: McMahan et al., 2017, arXiv:1602.05629, section 3; the file is that of TensorFlow Federated. The vocabulary
        is that of Caldas et al., LEAF, 2018, arXiv:1812.01097. Differs from LEAF and FedMA: every character is scored
        once, in passages of `length` that begin with an empty memory, and not after 80 characters of its own; speeches
        follow each other and are not padded with spaces; the test part has 13 % of the characters.
    """

    train: int | None = None
    test: int | None = None
    roles: int | None = 66
    least: int = 10_000
    length: int = 80
    context: int = 0

    def validate(self) -> None:
        for field in ("train", "test", "roles", "least"):
            count = getattr(self, field)
            require(count is None or count >= 1, f"shakespeare needs {field} >= 1, got {field}={count}")
        ok = self.length >= 1 and self.context >= 0
        require(ok, f"shakespeare needs length >= 1 and context >= 0, got {self.length} and {self.context}")

    def read(self) -> Dataset:
        chosen = self.chosen()
        train_x, train_y, owners = self._part("train", [role.train for role in chosen], self.train)
        test_x, test_y, _ = self._part("test", [role.test for role in chosen], self.test)
        count = len(CHARACTERS)
        return Dataset.of("shakespeare", (train_x, train_y), (test_x, test_y), count, vocabulary=count, owners=owners)

    def chosen(self) -> list[Role]:
        """The chosen roles; the owner of a passage is the position of its role in this list."""
        wide = self.length + self.context + 1
        large = [
            role
            for role in _roles()
            if len(role.train) + len(role.test) >= self.least and min(len(role.train), len(role.test)) >= wide
        ]
        wanted, what = 1 if self.roles is None else self.roles, f"{self.least} characters or more"
        sentence = f"shakespeare has {len(large)} roles of {what}, got roles={self.roles}; lower roles or least"
        require(wanted <= len(large), sentence)
        order = torch.randperm(len(large), generator=make_generator("shakespeare"))
        return [large[i] for i in order[: self.roles].tolist()]

    def location(self) -> str:
        if not _path().exists():
            raise missing_data("shakespeare", _path().parent)
        return str(_path().parent)

    def _part(self, field: str, texts: list[str], count: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Passages, their labels and their owners."""
        by_role = [passages(ids_of(text), self.length, self.context) for text in texts]
        owners = torch.arange(len(by_role)).repeat_interleave(torch.tensor([len(x) for x, _ in by_role]))
        check_count("shakespeare", field, count, len(owners), "passages")
        keep = evenly_spaced(len(owners), count)
        x, y = (torch.cat(pieces)[keep] for pieces in zip(*by_role, strict=True))
        return x, y, owners[keep]


def ids_of(text: str) -> Tensor:
    """The id of each character of a text. Shapes: -> (T,)."""
    return torch.tensor([IDS.get(character, UNKNOWN) for character in text], dtype=torch.int64)


def _path() -> Path:
    return data_folder() / PLACE / FILE


def _roles() -> list[Role]:
    path = _path()
    if not path.exists():
        download("shakespeare", {ARCHIVE: (f"{URL}/{ARCHIVE}", None)}, path.parent, _unpack)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        have = {"roles": len(lines)} | {part: sum(len(line[part]) for line in lines) for part in ("train", "test")}
        roles = [Role(line["client"], *("\n".join([*line[part], ""]) for part in ("train", "test"))) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"shakespeare: {path} is damaged ({reason}); delete it and fetch it again") from error
    require(have == COUNTS, f"shakespeare: {path} has {have}, and should have {COUNTS}; delete it and fetch it again")
    return roles


def _unpack(work: Path) -> None:
    archive = work / ARCHIVE
    parts = {part: examples_by_client(archive, part, "snippets") for part in ("train", "test")}
    names = sorted(parts["train"])
    lines = [{"client": name} | {part: parts[part].get(name, []) for part in parts} for name in names]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (work / FILE).write_text(text, encoding="utf-8")
    archive.unlink()


QUERY = "select client_id, serialized_example_proto from examples where split_name = ? order by rowid"


def examples_by_client(archive: Path, part: str, feature: str) -> dict[str, list[str]]:
    """The texts of each client in one part of a compressed database, in the order of the database.

    Args:
        archive: an lzma file; the database is unpacked next to it, and deleted at the end.
        part: name of the part, such as "train".
        feature: name of the text in each example.
    Raises:
        ValueError: the file is damaged or is no such database.
    """
    unpacked = archive.with_suffix("")
    texts: dict[str, list[str]] = {}
    try:
        unpacked.write_bytes(lzma.decompress(archive.read_bytes()))
        with closing(sqlite3.connect(unpacked)) as database:
            for client, example in database.execute(QUERY, (part,)):
                texts.setdefault(client, []).append(text_of(example, feature))
    except (lzma.LZMAError, sqlite3.Error, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{archive.name} is no database of examples by client ({reason})") from error
    finally:
        unpacked.unlink(missing_ok=True)
    return texts


def text_of(example: bytes, feature: str) -> str:
    """The text under a name in a serialized tf.train.Example.

    Raises:
        ValueError: the bytes are no such message, or the example has no such text.
    """
    # Example.features -> Features.feature, a map of entries (1: name, 2: Feature) -> Feature.bytes_list -> value
    for features in _fields(example, 1):
        for entry in _fields(features, 1):
            if b"".join(_fields(entry, 1)) == feature.encode():
                texts = [t for f in _fields(entry, 2) for values in _fields(f, 1) for t in _fields(values, 1)]
                if len(texts) == 1:
                    return texts[0].decode("utf-8")
    raise ValueError(f"an example has no text {feature!r}")


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of all fields with one number in a message whose fields all state their length."""
    place = 0
    while place < len(message):
        key, place = _number(message, place)
        size, place = _number(message, place)
        if key % 8 != 2 or place + size > len(message):
            raise ValueError(
                f"a message of {len(message)} bytes is cut off or has another kind of field at byte {place}"
            )
        if key // 8 == wanted:
            yield message[place : place + size]
        place += size


def _number(message: bytes, place: int) -> tuple[int, int]:
    """A number with seven bits in each byte, the lowest first, and the position after it."""
    value = shift = 0
    while place < len(message):
        byte, place = message[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise ValueError("a message ends within a number")
