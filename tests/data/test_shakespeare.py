# SPDX-License-Identifier: Apache-2.0
"""Shakespeare's roles, from files that the tests make in the publisher's two forms."""

import json
import lzma
import sqlite3
from contextlib import closing, suppress
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx
from phalanx.data.files import MissingData
from phalanx.data.shakespeare import CHARACTERS, examples_by_client, ids_of, text_of
from phalanx.data.shape import UNSCORED
from tests.cases import each

# the modules, whose names their public functions have
shakespeare = import_module("phalanx.data.shakespeare")

ROLES = {
    "A": (["Who's there?", "Long live the King!"], ["He."]),
    "B": (["Nay, answer me:\nstand, and unfold yourself."], ["Tush; tush;", "'Twill not appear."]),
    "C": (["Bernardo?"], ["Welcome."]),
    "D": (["O"], ["farewell, honest soldier: who hath reliev'd you?"]),
}


def number(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + number(rest) if rest else bytes([low])


def field(key: int, body: bytes) -> bytes:
    return number(key << 3 | 2) + number(len(body)) + body


def feature(name: str, *values: bytes) -> bytes:
    values_field = field(1, b"".join(field(1, value) for value in values))
    return field(1, field(1, name.encode()) + field(2, values_field))


def example(text: str) -> bytes:
    return field(1, feature("other", b"x", b"y") + feature("snippets", text.encode()))


def jsonl(roles) -> str:
    lines = [{"client": name, "train": train, "test": test} for name, (train, test) in roles.items()]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def plays(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    monkeypatch.setattr(shakespeare, "COUNTS", {"roles": 4, "train": 5, "test": 5})
    path = tmp_path / "shakespeare" / "shakespeare_fed.jsonl"
    path.parent.mkdir()
    path.write_text(jsonl(ROLES))
    return path


def small(**fields) -> phalanx.data.shakespeare:
    return phalanx.data.shakespeare(**{"roles": None, "least": 1, "length": 3, **fields})


def spoken(ids) -> str:
    return "".join(CHARACTERS[i] for i in ids)


def test_the_vocabulary():
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 80 and list(CHARACTERS) == sorted(CHARACTERS)
    assert ids_of("\n {é}Z").tolist() == [0, 1, 1, 1, 79, CHARACTERS.index("Z")]
    assert ids_of("").tolist() == []


def test_every_character_behind_the_first_is_scored_for_the_role_that_says_it(plays):
    data = small()
    d, chosen = data.read(), data.chosen()
    # D's "O" and its line end make no passage of three characters and the one after them
    assert sorted(role.name for role in chosen) == ["A", "B", "C"]
    assert d.shape == phalanx.data.Passage(3, 80) and d.num_classes == 80
    for owner, role in enumerate(chosen):
        assert role.train == "".join(speech + "\n" for speech in ROLES[role.name][0])
        x, y = (t[d.owners == owner] for t in (d.train_x, d.train_y))
        whole = 3 * ((len(role.train) - 1) // 3)
        assert spoken(x.flatten()) == role.train[:whole] and spoken(y.flatten()) == role.train[1 : whole + 1]
    test = "".join(spoken(x) for x in d.test_x)
    assert test == "".join(role.test[: 3 * ((len(role.test) - 1) // 3)] for role in chosen)


def test_one_character_behind_its_own_context(plays):
    data = small(length=1, context=4)
    d, chosen = data.read(), data.chosen()
    assert (d.train_y[:, :4] == UNSCORED).all()
    for owner, role in enumerate(chosen):
        rows = [i for i, who in enumerate(d.owners.tolist()) if who == owner]
        assert [spoken(d.train_x[i]) for i in rows] == [role.train[i : i + 5] for i in range(len(rows))]
        assert spoken(d.train_y[rows, 4]) == role.train[5:]


def test_roles_and_counts(plays):
    assert {role.name for role in small(least=50).chosen()} == {"B"}
    names = [role.name for role in small().chosen()]
    assert [role.name for role in small(roles=2).chosen()] == names[:2]
    whole, part = small().read(), small(train=7, test=3).read()
    assert len(part.train_x) == len(part.owners) == 7 and len(part.test_x) == 3
    keep = torch.arange(7) * len(whole.train_x) // 7
    assert torch.equal(part.train_x, whole.train_x[keep]) and torch.equal(part.owners, whole.owners[keep])
    with pytest.raises(ValueError, match="shakespeare has 3 roles of 1 characters or more, got roles=4; lower roles"):
        small(roles=4).read()
    with pytest.raises(ValueError, match="shakespeare has 0 roles"):
        small(least=10_000).read()
    with pytest.raises(ValueError, match=rf"{len(whole.train_x)} train passages.*got train={len(whole.train_x) + 1}"):
        small(train=len(whole.train_x) + 1).read()


def test_by_owner_gives_each_unit_one_role(plays):
    d = small().read()
    parts = phalanx.data.by_owner().parts(d, 3, 0)
    owners = [d.owners[part].unique().tolist() for part in parts]
    assert sorted(owners) == [[0], [1], [2]] and sum(map(len, parts)) == len(d.train_x)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}\n", "KeyError"),
        ("no json\n", "JSONDecodeError"),
        ("7\n", "TypeError"),
        (jsonl(dict(list(ROLES.items())[:3])), "has {'roles': 3, 'train': 4, 'test': 4}, and should have {'roles': 4"),
    ],
)
def test_a_damaged_file(plays, text, words):
    plays.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        small().read()
    assert str(plays) in str(error.value)


def database(path, roles) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "create table examples (split_name text not null, client_id text not null, serialized_example_proto blob)"
        )
        rows = [
            (part, name, example(speech))
            for name, both in reversed(roles.items())
            for part, speeches in zip(("train", "test"), both, strict=True)
            for speech in speeches
        ]
        connection.executemany("insert into examples values (?, ?, ?)", rows)


def test_shakespeare_by_download(served, plays, monkeypatch):
    source, url = served
    want = small().read()
    plays.unlink()
    monkeypatch.setattr(shakespeare, "URL", url.rstrip("/"))
    with pytest.raises(MissingData, match=r"shakespeare is not in .*404"):
        small().read()
    with pytest.raises(MissingData, match="shakespeare is not in"):
        small().location()
    archive = source / shakespeare.ARCHIVE
    for bad in (b"no archive", lzma.compress(b"no database" * 100)):
        archive.write_bytes(bad)
        with pytest.raises(MissingData, match="no database of examples by client"):
            small().read()
    database(source / "plays", ROLES)
    archive.write_bytes(lzma.compress((source / "plays").read_bytes()))
    got = small().read()
    assert [p.name for p in plays.parent.iterdir()] == [plays.name]
    assert [json.loads(line) for line in plays.read_text().splitlines()] == [
        {"client": name, "train": train, "test": test} for name, (train, test) in ROLES.items()
    ]
    assert torch.equal(got.train_x, want.train_x) and torch.equal(got.owners, want.owners)
    assert small().location() == phalanx.data.locations()["shakespeare"] == str(plays.parent)


@given(st.text(max_size=300))
def test_texts_come_out_of_examples(text):
    assert text_of(example(text), "snippets") == text


@given(st.text(max_size=50), st.integers(0, 200), st.integers(0, 255))
def test_damaged_examples_are_refused_or_read(text, at, byte):
    body = bytearray(example(text))
    body[at % len(body)] = byte
    for hostile in (bytes(body), bytes(body[: at % len(body)])):
        with suppress(ValueError):
            assert isinstance(text_of(hostile, "snippets"), str)


@each(
    ("body", "words"),
    [
        (b"", "no text 'snippets'"),
        (field(1, feature("other", b"x")), "no text 'snippets'"),
        (field(1, feature("snippets")), "no text 'snippets'"),
        (field(1, feature("snippets", b"x", b"y")), "no text 'snippets'"),
        (b"\x0a\x80", "ends within a number"),
        (b"\x0a\x05x", "cut off"),
        (b"\x08\x05", "another kind of field"),
    ],
)
def test_examples_without_the_text(body, words):
    with pytest.raises(ValueError, match=words):
        text_of(body, "snippets")


def test_a_database_in_order(tmp_path):
    database(tmp_path / "plain", ROLES)
    archive = tmp_path / "a.sqlite.lzma"
    archive.write_bytes(lzma.compress((tmp_path / "plain").read_bytes()))
    assert examples_by_client(archive, "train", "snippets") == {name: both[0] for name, both in ROLES.items()}
    assert not (tmp_path / "a.sqlite").exists()
    with pytest.raises(ValueError, match=r"a.sqlite.lzma is no database .* no text 'words'"):
        examples_by_client(archive, "train", "words")


@each(
    "expression",
    [f"shakespeare({field}=0)" for field in ("train", "test", "roles", "least", "length")]
    + ["shakespeare(context=-1)"],
)
def test_fields_out_of_range(expression):
    with pytest.raises(ValueError, match="shakespeare"):
        phalanx.parse(expression)


@pytest.mark.data
def test_shakespeare_as_published():
    data = phalanx.data.shakespeare()
    d = data.load()
    assert d.shape == phalanx.data.Passage(80, 80) and len(d.owners.unique()) == 66
    assert len(phalanx.data.shakespeare(roles=None).chosen()) == 72
    letters = {character for role in data.chosen() for character in role.train + role.test}
    assert letters <= set(CHARACTERS)
    assert len(d.train_x) == 14_356 and len(d.test_x) == 1_631
