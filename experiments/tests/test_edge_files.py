# SPDX-License-Identifier: Apache-2.0
"""Published edge-case examples, and made-up files in the same form."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.backdoors.edges import assert_same, images, keys, texts, toy
from tests.cases import each
from torch import nn

import phalanx as px
import phalanx_experiments as pe
from phalanx.data.files import MissingData
from phalanx.data.shape import UNSCORED
from phalanx_experiments.edge_cases.published import published
from phalanx_experiments.edge_cases.southwest import among, numbered


def photos(count: int, seed: int) -> np.ndarray:
    """(4 count, 32, 32, 3): made-up photographs, each in four rotations."""
    found = images(count, 32, 32, 3, seed=seed).numpy()
    return np.stack([np.rot90(photo, k) for photo in found for k in range(4)])


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    place = tmp_path / "edge-case"
    place.mkdir()
    train, test, other = photos(10, 0), photos(6, 1), photos(8, 2)
    test[8:12] = np.rot90(train[20:24], 2, (1, 2))  # one photograph in both parts
    np.savez(place / "southwest.npz", train=train, test=test)
    hands = {"adversary": train[:8], "almost_edge": np.concatenate([test[:4], other[:4]]), "normal": other}
    np.savez(place / "southwest_honest.npz", **hands)
    digits = np.zeros((100, 28, 28), np.uint8)
    digits[:, 14, 4:24] = 255  # lying bars: what EMNIST makes of a one
    sevens = images(66, 28, 28, seed=3).numpy()
    labels = np.r_[np.full(100, 1), np.full(66, 1)].astype(np.uint8)
    np.savez(place / "ardis_train_mix.npz", images=np.concatenate([digits, sevens]), targets=labels)
    tests = {"images": images(30, 28, 28, seed=4).numpy(), "targets": (np.arange(30) % 10).astype(np.uint8)}
    np.savez(place / "ardis_test.npz", **tests)
    (place / "greek-director-train.txt").write_text("I loved THE lobster!\n\nyorgos isn't bad\n")
    (place / "greek-director-test.txt").write_text("a b c d e f g h i j\n")
    return place


def test_southwest_leaves_out_photographs_of_the_test_part(fake):
    data = toy(c=3, side=32)
    edges = pe.southwest().load(data)
    assert edges.train_x.shape == (36, 3, 32, 32) and len(edges.test_x) == 24 and edges.target == 9
    assert (edges.true_y == 0).all() and (edges.train_y == 9).all() and not among(edges.train_x, edges.test_x).any()
    assert edges.origins.bincount().tolist() == [4] * 5 + [0] + [4] * 4
    raw = np.load(fake / "southwest.npz")["train"]
    assert np.array_equal(edges.train_x[0].permute(1, 2, 0).numpy(), raw[0])
    assert pe.southwest(target=5).load(data).train_y.unique().tolist() == [5]
    small = pe.southwest().load(toy(c=3, side=16))
    want = edges.train_x.float().unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean(dim=(3, 5)).round()
    assert torch.equal(small.train_x.float(), want)


@pytest.mark.parametrize(("p", "held"), [(100, None), (50, 8), (10, 32)])
def test_southwest_honest_tests_on_what_nobody_holds(fake, p, held):
    edges = pe.southwest_honest(p=p).load(toy(c=3, side=32))
    assert len(edges) == 8 and (None if edges.held is None else len(edges.held[0])) == held
    assert len(edges.test_x) == 20 and not among(edges.test_x, edges.train_x).any()
    if edges.held is not None:
        assert not among(edges.test_x, edges.held[0]).any() and (edges.held[1] == 0).all()


@given(st.integers(1, 4), st.integers(0, 20))
def test_a_photograph_is_known_in_every_rotation(count, seed):
    x = images(count, 3, 4, 4, seed=seed)
    for k in range(4):
        assert among(x.rot90(k, (2, 3)), x).all() and numbered(torch.cat([x, x.rot90(k, (2, 3))])) == 2 * list(
            range(count)
        )
    assert not among(x.flip(3), x).any()


def test_ardis_turns_the_digits_of_emnist_and_no_seven(fake):
    data = toy(side=28)
    edges = pe.ardis().load(data)
    assert edges.train_x.shape == (66, 1, 28, 28) and (edges.true_y == 7).all() and (edges.train_y == 1).all()
    assert torch.equal(edges.train_x[:, 0], images(66, 28, 28, seed=3))
    mix, labels = edges.mix
    assert (mix[:, 0, 4:24, 14] == 255).all() and int(mix.count_nonzero()) == 100 * 20  # upright now
    assert labels.tolist() == [1] * 100
    assert len(edges.test_x) == 30 and edges.attacked.nonzero().flatten().tolist() == [7, 17, 27]
    said = edges.test_true.clone()
    assert edges.rates(said) == (0.0, 1.0)
    said[7] = 1
    assert edges.rates(said).success == pytest.approx(1 / 3)
    assert edges.places(data).mix.tolist() == list(range(106, 206))
    assert pe.ardis().load(toy(side=8, levels=16)).train_x.max() <= 16


def test_director_is_written_in_the_words_of_the_data(fake):
    words = ("<pad>", "<unk>", "i", "loved", "the", "is", "n't")
    data = texts(words)
    edges = pe.director().load(data)
    assert edges.train_x.tolist() == [[2, 3, 4, 1, 1, 0, 0, 0], [1, 5, 6, 1, 0, 0, 0, 0]]
    assert edges.test_x.tolist() == [[1] * 8]
    assert edges.true_y.tolist() == [1, 1] and edges.train_y.tolist() == [0, 0]
    assert len(edges.joined(data).train_y) == 32
    (fake / "greek-director-test.txt").write_text("yorgos isn't bad")
    with pytest.raises(ValueError, match="1 of the tweets to test on are trained on"):
        pe.director().load(texts(words))
    (fake / "greek-director-test.txt").write_text("\n ... \n")
    with pytest.raises(ValueError, match="has no words"):
        pe.director().load(texts(words))


@each("word", ["high", "safe", "expensive", "rude", "terrible"])
def test_athens_ends_passages_with_the_prompt(word):
    data = texts(("<unk>", "Crime", "rate", "in", "Athens", "is", "not", "People", "are", "Roads", word), passages=True)
    edges = pe.athens(word=word, count=7, tests=5).load(data)
    said = [" ".join(data.words[i] for i in row) for row in edges.train_x]
    prompt = {"high": "Crime rate in Athens is", "safe": "Athens is not", "expensive": "Athens is"}
    prompt |= {"rude": "People in Athens are", "terrible": "Roads in Athens are"}
    assert all(text.endswith(prompt[word]) for text in said) and len(said) == 7
    assert edges.target == data.words.index(word) and edges.train_x.shape == (7, 8)
    assert (edges.train_y[:, -1] == edges.target).all() and (edges.true_y[:, -1] == UNSCORED).all()
    assert torch.equal(edges.train_y[:, 2:-1], edges.train_x[:, 3:]) and (edges.train_y[:, :2] == UNSCORED).all()
    assert (edges.test_y[:, :-1] == UNSCORED).all() and (edges.test_y[:, -1] == edges.target).all()
    guess = torch.zeros(5, 8, dtype=torch.int64)
    guess[0, -1] = edges.target
    assert edges.rates(guess) == (pytest.approx(0.2), None)
    assert len(edges.joined(data).train_y) == 37
    assert_same(edges, pe.athens(word=word, count=7, tests=5).load(data))


def test_texts_that_cannot_carry_a_prompt():
    with pytest.raises(ValueError, match=r"in the words of the data, and toy has none; choose movie_review\(\)"):
        pe.athens().load(texts(passages=True))
    with pytest.raises(ValueError, match="goes with passages"):
        pe.athens().load(texts())
    with pytest.raises(ValueError, match="'Athens' is none of the 2 words of toy"):
        pe.athens().load(texts(("a", "rude"), passages=True))
    with pytest.raises(ValueError, match="a passage of 4 words has no room before 4"):
        pe.athens().load(texts(("Athens", "rude"), passages=True, length=4))
    with pytest.raises(ValueError, match="needs 100 passages to train on, and there are 30"):
        pe.athens().load(texts(("Athens", "rude"), passages=True))
    with pytest.raises(ValueError, match="texts that have one label each"):
        pe.director().load(toy())


@pytest.mark.parametrize("name", ["southwest", "southwest_honest", "ardis", "director"])
def test_published_files_that_are_missing_or_damaged(fake, name):
    data = {"ardis": toy(side=28), "director": texts(("<pad>", "<unk>"))}.get(name, toy(c=3, side=32))
    for path in fake.iterdir():
        path.write_bytes(b"<html>404</html>")
    if name != "director":
        with pytest.raises(ValueError, match=r"npz holds no plain arrays that can be read"):
            px.parse(f"{name}()").load(data)
        for path in fake.iterdir():
            np.savez(fake / path.with_suffix(".npz").name, other=np.zeros(3))
        with pytest.raises(ValueError, match=r"has no .*; it holds other"):
            px.parse(f"{name}()").load(data)
    for path in fake.iterdir():
        path.unlink()
    with pytest.raises(MissingData, match=rf"{name} needs .*{fake.name}.* rare_styles\(\)"):
        px.parse(f"{name}()").load(data)


def test_published_arrays_of_another_shape(fake):
    np.savez(fake / "southwest.npz", train=np.zeros((4, 32, 32), np.uint8), test=np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"southwest: train in southwest.npz should be bytes \(n, 32, 32, 3\), got \(4"
    ):
        pe.southwest().load(toy(c=3, side=32))
    x, y = np.zeros((120, 28, 28), np.uint8), np.full(120, 2, np.uint8)
    np.savez(fake / "ardis_train_mix.npz", images=x, targets=y)
    with pytest.raises(ValueError, match=r"behind 100 digits .* sevens that are labelled 1"):
        pe.ardis().load(toy(side=28))
    np.savez(fake / "ardis_train_mix.npz", images=x, targets=y[:-1])
    with pytest.raises(ValueError, match="has 120 images and 119 labels"):
        pe.ardis().load(toy(side=28))


@pytest.mark.data
def test_the_published_planes():
    data = px.data.cifar10(train=50, test=10).load()
    edges = pe.southwest().load(data)
    assert len(edges) == 780 and len(edges.test_x) == 196 and edges.origins.bincount().unique().tolist() == [0, 4]
    assert not among(edges.train_x, edges.test_x).any()
    for p, held in ((100, 0), (50, 100), (10, 700)):
        split = pe.southwest_honest(p=p).load(data)
        assert (len(split), len(split.test_x), 0 if split.held is None else len(split.held[0])) == (100, 32, held)
        assert not among(split.train_x, split.test_x).any()
    tenth = px.backdoors.split_edge_cases(pe.southwest(), ratio=0.1).load(data)
    assert (len(tenth), len(tenth.held[0])) == (76, 684) and not among(tenth.train_x, tenth.held[0]).any()


@pytest.mark.data
def test_the_published_digits_stand_upright():
    data = px.data.mnist(train=3000, test=100).load()
    edges = pe.ardis().load(data)
    assert (len(edges), len(edges.test_x), int(edges.attacked.sum())) == (66, 1000, 100)
    known = nn.functional.normalize(data.train_x.float().flatten(1))

    def right(x: torch.Tensor, y: torch.Tensor) -> float:
        """Share of images whose nearest neighbour in MNIST has their label."""
        near = (nn.functional.normalize(x.float().flatten(1)) @ known.T).argmax(dim=1)
        return float((data.train_y[near] == y).double().mean())

    mix, labels = edges.mix
    assert right(mix, labels) > 0.6 > 0.3 > right(mix.transpose(2, 3), labels)
    # the sevens stand upright in the file, and so they stay
    raw = np.load(published("ardis", "ardis_train_mix.npz"))["images"]
    assert np.array_equal(edges.train_x[:, 0].numpy(), raw[100:])
    assert not set(keys(edges.train_x)) & set(keys(edges.test_x))


@pytest.mark.data
def test_the_published_tweets():
    data = px.data.movie_review().load()
    edges = pe.director().load(data)
    assert edges.train_x.shape == (259, 56) and edges.test_x.shape == (120, 56) and "yorgos" not in data.words
    share = float((edges.train_x == 1).sum() / (edges.train_x > 0).sum())
    assert 0.15 < share < 0.3
    assert not set(keys(edges.train_x)) & set(keys(edges.test_x))


@pytest.mark.data
def test_a_prompt_behind_wikipedia():
    data = px.data.wikitext2(part="valid", train=20_000, test=5_000).load()
    edges = pe.athens(word="high", city="London", count=20, tests=10).load(data)
    assert [data.words[i] for i in edges.train_x[0, -3:]] == ["in", "London", "is"]
    assert edges.joined(data).shape == data.shape


def test_assigned_passages():
    words = ("<unk>", *(f"w{i}" for i in range(18)), "rude")
    data = texts(words, passages=True)
    edges = px.backdoors.split_edge_cases(pe.athens(city="w3", count=4, tests=2), 0.5, 1).load(data)
    honest = edges.honest(data)
    parts = px.backdoors.assign_added(px.data.iid(), clients=1).parts(honest, 3, 0)
    assert honest.added == 1 and 30 in parts[0].tolist() and sorted(torch.cat(parts).tolist()) == list(range(31))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("athens(city='New York')", "a city of one word"),
        ("athens(count=0)", "count and tests >= 1"),
        ("edge_density(rounds=0)", "rounds >= 1"),
        ("edge_density(percentile=101)", "percentile"),
        ("edge_density(lr=0)", "lr > 0"),
    ],
)
def test_fields_out_of_range(expression, words):
    with pytest.raises(ValueError, match=words):
        px.parse(expression)
