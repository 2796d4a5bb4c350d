# SPDX-License-Identifier: Apache-2.0
"""Edge-case examples of one's own, and files that mean harm."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.backdoors.fitted import fitted
from phalanx.data.arrays import read_arrays
from phalanx.data.files import MissingData
from tests.backdoors.edges import images, texts, toy


def test_own_edges_from_arrays(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    data = toy(c=3)
    x, tests = images(5, 9, 9, 3), images(2, 9, 9, 3, seed=1)
    np.savez(tmp_path / "mine.npz", x_train=x.numpy(), x_test=tests.numpy(), y_train=np.array([2, 2, 3, 3, 3]))
    edges = px.backdoors.own_edges("mine.npz", target=1, label=2).load(data)
    assert edges.train_x.shape == (5, 3, 6, 6) and edges.true_y.tolist() == [2, 2, 3, 3, 3]
    assert edges.test_true.tolist() == [2, 2] and edges.train_y.tolist() == [1] * 5
    torch.save({"x_train": x[..., 0], "x_test": tests[..., 0]}, tmp_path / "mine.pt")
    grey = px.backdoors.own_edges("mine.pt", target=1, label=0).load(data)
    assert torch.equal(grey.train_x[:, 0], grey.train_x[:, 2])
    ids = torch.arange(16).reshape(2, 8)
    torch.save({"x_train": ids, "x_test": ids + 1}, tmp_path / "words.pt")
    assert torch.equal(px.backdoors.own_edges("words.pt", target=1, label=0).load(texts()).train_x, ids)
    torch.save({"x_train": ids + 9, "x_test": ids}, tmp_path / "words.pt")
    with pytest.raises(ValueError, match="has token ids 9 to 24, and toy 20 of them"):
        px.backdoors.own_edges("words.pt", target=1, label=0).load(texts())


def test_own_edges_of_passages_are_refused(tmp_path):
    ids = torch.arange(16).reshape(2, 8)
    torch.save({"x_train": ids, "x_test": ids + 1}, tmp_path / "words.pt")
    with pytest.raises(ValueError, match="both have one label an example, or both one a token"):
        px.backdoors.own_edges(str(tmp_path / "words.pt"), target=1, label=0).load(texts(passages=True))


def test_own_edges_from_a_folder(tmp_path):
    from PIL import Image

    for part, count in (("train", 3), ("test", 2)):
        (tmp_path / part).mkdir()
        for i in range(count):
            pixels = images(12, 10, 3, seed=10 * count + i).numpy()
            Image.fromarray(pixels).save(tmp_path / part / f"{i}.png")
    for c in (1, 3):
        edges = px.backdoors.own_edges(str(tmp_path), target=1, label=0).load(toy(c=c))
        assert edges.train_x.shape == (3, c, 6, 6) and edges.test_x.shape == (2, c, 6, 6)
    (tmp_path / "train" / "x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"x.png is no image that can be read"):
        px.backdoors.own_edges(str(tmp_path), target=1, label=0).load(toy())
    with pytest.raises(ValueError, match=r"there is no folder .*train; .* should hold train and test"):
        px.backdoors.own_edges(str(tmp_path / "test"), target=1, label=0).load(toy())


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": images(2, 6, 6)}, "has no x_test; it holds x_train"),
        (
            {"x_train": images(2, 6, 6), "x_test": images(2, 6, 6)},
            "2 of the examples to test on .* are also trained on",
        ),
        (
            {"x_train": images(2, 6, 6).float(), "x_test": images(2, 6, 6)},
            r"should be bytes .* got \(2, 6, 6\) of torch.fl",
        ),
        ({"x_train": images(0, 6, 6), "x_test": images(2, 6, 6)}, "is empty"),
        ({"x_train": images(2, 5, 6, 6), "x_test": images(2, 6, 6)}, "has 6 channels, and toy 1"),
        (
            {"x_train": images(2, 6, 6), "x_test": images(2, 6, 6, seed=1), "y_test": torch.tensor([1])},
            "should be 2 labels",
        ),
        (
            {"x_train": images(2, 6, 6), "x_test": images(2, 6, 6, seed=1), "y_test": torch.tensor([-1, 2])},
            "labels >= 0",
        ),
    ],
)
def test_own_edges_that_do_not_fit(tmp_path, arrays, words):
    torch.save(arrays, tmp_path / "mine.pt")
    with pytest.raises(ValueError, match=words):
        px.backdoors.own_edges(str(tmp_path / "mine.pt"), target=1, label=0).load(toy())


def test_own_edges_without_labels_or_a_place(tmp_path):
    torch.save({"x_train": images(2, 6, 6), "x_test": images(2, 6, 6, seed=1)}, tmp_path / "mine.pt")
    with pytest.raises(ValueError, match="does not say which labels are right; name label= or add y_train"):
        px.backdoors.own_edges(str(tmp_path / "mine.pt"), target=1).load(toy())
    with pytest.raises(MissingData, match="nowhere"):
        px.backdoors.own_edges(str(tmp_path / "nowhere"), target=1).load(toy())


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


def npy(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


def saved(write) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        ("npz", b""),
        ("npz", saved(lambda f: np.savez(f, x=np.array([Harmful()], object), allow_pickle=True))),
        ("npz", zipped(x=npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999,), }\n", b"abc"))),
        ("npz", zipped(x=npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-3,), }\n", b"abc"))),
        ("npz", zipped(x=npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }\n", b"abc"))),
        ("npz", zipped(x=npy(b"{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }\n", b"abcd"))),
        ("npz", zipped(x=b"\x93NUMPY\x09\x00")),
        ("npz", zipped(x=npy(b"import os\n"))),
        ("npz", saved(lambda f: np.savez(f, x=np.arange(9)))[:-7]),
        ("pt", b""),
        ("pt", pickle.dumps({"x": Harmful()})),
        ("pt", saved(lambda f: torch.save({"x": Harmful()}, f))),
        ("pt", saved(lambda f: torch.save([torch.zeros(2)], f))),
        ("pt", saved(lambda f: torch.save({"x": 3}, f))),
        ("pkl", b""),
    ],
)
def test_hostile_arrays(tmp_path, monkeypatch, suffix, data):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"mine.{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"no plain arrays|should be an .npz or a .pt file") as error:
        read_arrays(path)
    assert str(path) in str(error.value) and not (tmp_path / "harmed").exists()


@given(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(["<f4", ">i4", "|u1", "|b1", "<i8"]), st.booleans())
def test_arrays_round_trip(tmp_path_factory, shape, dtype, fortran):
    array = (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape)
    path = tmp_path_factory.mktemp("arrays") / "a.npz"
    np.savez_compressed(path, x=np.asarray(array, order="F" if fortran else "C"))
    assert np.array_equal(read_arrays(path)["x"].numpy(), array)


@given(st.sampled_from([1, 3]), st.sampled_from([1, 3]), st.integers(2, 12), st.sampled_from([16, 255]))
def test_fitted_images_have_the_form_of_the_data(channels, wanted, side, levels):
    x = images(3, channels, side, side)
    made = fitted("toy", x, toy(c=wanted, levels=levels))
    assert made.shape == (3, wanted, 6, 6) and made.dtype == torch.uint8 and int(made.max()) <= levels
    white = fitted("toy", torch.full_like(x, 255), toy(c=wanted, levels=levels))
    assert (white == levels).all() and (fitted("toy", torch.zeros_like(x), toy(c=wanted)) == 0).all()
    if (side, channels, levels) == (6, wanted, 255):
        assert torch.equal(made, x)


def test_own_edges_are_looked_for_in_the_current_folder_first(tmp_path, monkeypatch):
    here, data_folder = tmp_path / "here", tmp_path / "data"
    here.mkdir(), data_folder.mkdir()
    monkeypatch.setenv("PHALANX_DATA", str(data_folder))
    monkeypatch.chdir(here)
    edges = px.backdoors.own_edges("mine.npz", target=1, label=0)
    with pytest.raises(MissingData) as missing:
        edges.load(toy())
    assert str(here) in str(missing.value) and str(data_folder) in str(missing.value)
    assert "rare_styles()" not in str(missing.value) and "own_edges(" not in str(missing.value)
    x = images(5, 6, 6)
    np.savez(data_folder / "mine.npz", x_train=x[:3].numpy(), x_test=x[3:].numpy())
    assert len(edges.load(toy()).train_x) == 3
    np.savez(here / "mine.npz", x_train=x[:2].numpy(), x_test=x[3:].numpy())
    assert len(px.backdoors.own_edges("mine.npz", target=1, label=0).read(toy()).train_x) == 2
