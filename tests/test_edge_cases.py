# SPDX-License-Identifier: Apache-2.0
"""Edge-case examples: right labels, no test example trained on, the same in every process, hostile files refused."""

import io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import phalanx as px
from phalanx.backdoors.fitted import fitted
from phalanx.backdoors.rare_styles import styled
from phalanx.backdoors.southwest import among, numbered
from phalanx.data.arrays import read_arrays
from phalanx.data.files import MissingData
from phalanx.data.shape import UNSCORED

STYLES = ("inverted", "rotated", "thin")


def images(*shape: int, seed: int = 0, levels: int = 255) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels + 1, shape, generator=generator).to(torch.uint8)


def toy(count: int = 40, c: int = 1, side: int = 6, levels: int = 255, owners: bool = False) -> px.Dataset:
    """Images of four classes in turn, all different."""
    x, y = images(count, c, side, side, levels=levels), torch.arange(count) % 4
    test_x = images(12, c, side, side, seed=1, levels=levels)
    who = torch.arange(count) % 3 if owners else None
    mean = (0.5,) * c
    return px.Dataset("toy", x, y, test_x, torch.arange(12) % 4, 10, mean, mean, levels, owners=who)


def texts(words: tuple[str, ...] = (), passages: bool = False, length: int = 8) -> px.Dataset:
    vocabulary = len(words) or 20
    x = torch.arange(30 * length).reshape(30, length) % vocabulary
    y = torch.arange(30) % 2
    if passages:
        y = x.roll(-1, 1).clone()
        y[:, :2] = UNSCORED
    return px.Dataset("toy", x, y, x[:9], y[:9], vocabulary, vocabulary=vocabulary, words=words)


def keys(x: torch.Tensor) -> list[bytes]:
    return [row.contiguous().numpy().tobytes() for row in x]


def assert_same(a: px.EdgeSet, b: px.EdgeSet) -> None:
    for name in ("train_x", "train_y", "true_y", "test_x", "test_true", "attacked"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


# --- the parts of a joined training part


@given(st.sampled_from(STYLES), st.integers(1, 10), st.sampled_from([1.0, 0.5, 0.25]), st.integers(0, 3), st.booleans())
def test_parts_of_the_joined_training_part(style, count, ratio, seed, owners):
    data = toy(owners=owners)
    wanted = px.shared(px.rare_styles(style=style, source=3, target=1, count=count, seed=seed), ratio, 1, seed)
    try:
        edges = wanted.load(data)
    except ValueError as error:
        assume("there are" not in str(error))
        raise
    before = data.train_x.clone()
    joined, honest, places = edges.joined(data), edges.honest(data), edges.places(data)
    assert torch.equal(data.train_x, before)
    assert len(edges) == 1 and len(joined.train_y) == sum(map(len, places))
    assert torch.equal(torch.cat(places), torch.arange(len(joined.train_y)))
    assert torch.equal(joined.train_x[places.attack], edges.train_x)
    assert joined.train_y[places.attack].tolist() == [1] and edges.true_y.tolist() == [3]
    assert len(places.honest) == round((1 - ratio) / ratio) == honest.added
    assert (joined.train_y[places.honest] == 3).all() and len(places.mix) == 0
    # what an index means to honest clients it means in the joined data
    n = len(honest.train_y)
    assert torch.equal(joined.train_x[:n], honest.train_x) and torch.equal(joined.train_y[:n], honest.train_y)
    # nobody holds what was taken
    assert len(places.clean) == 40 - count
    assert not set(keys(data.train_x[edges.taken])) & set(keys(joined.train_x[places.clean]))
    assert torch.equal(joined.test_x, data.test_x)
    if owners:
        assert (honest.owners[places.honest] == -1).all() and (honest.owners[places.clean] >= 0).all()
    else:
        assert honest.owners is None
    assert_same(edges, wanted.load(toy(owners=owners)))


def test_relabelled_pick_and_rates():
    edges = px.rare_styles(source=2, target=0, count=8).load(toy())
    assert edges.relabelled(3).train_y.tolist() == [3] * 8 and edges.relabelled(None).train_y.tolist() == [2] * 8
    assert_same(edges.relabelled(3).relabelled(0), edges)
    some = edges.pick(torch.tensor([5, 1]))
    assert torch.equal(some.train_x, edges.train_x[[5, 1]]) and len(some.test_x) == len(edges.test_x) == 3
    assert edges.rates(torch.tensor([0, 2, 1])) == (1 / 3, 1 / 3)
    with pytest.raises(ValueError, match=r"rare_styles: there is one prediction .* got \(2,\) for \(3,\)"):
        edges.rates(torch.tensor([0, 1]))
    mixed = replace(edges, true_y=torch.arange(8))
    with pytest.raises(ValueError, match="are no single class; name a target"):
        mixed.relabelled(None)


def test_edge_sets_that_do_not_fit():
    edges = px.rare_styles(source=2, target=0, count=8).load(toy())
    with pytest.raises(ValueError, match="rare_styles: 8 train examples, but 7 labels"):
        replace(edges, true_y=edges.true_y[:7])
    with pytest.raises(ValueError, match=r"8 held examples, but 1 labels"):
        replace(edges, held=(edges.train_x, edges.true_y[:1]))
    with pytest.raises(ValueError, match="got target=-1"):
        edges.relabelled(-1)
    with pytest.raises(ValueError, match="an origin for each of 8 examples"):
        replace(edges, origins=torch.arange(3))
    with pytest.raises(ValueError, match=r"has examples \(1, 6, 6\) of torch.uint8 .* and toy has \(1, 5, 5\)"):
        replace(edges, taken=None).joined(toy(side=5))
    with pytest.raises(ValueError, match="has a label 11, and toy has 10 classes"):
        px.rare_styles(source=2, target=11, count=3).load(toy())


# --- rare styles


@given(st.sampled_from(STYLES), st.integers(1, 10), st.integers(0, 3), st.sampled_from([16, 255]))
def test_rare_styles_are_of_one_class_and_test_on_others(style, count, seed, levels):
    data = toy(levels=levels)
    edges = px.rare_styles(style=style, source=1, target=2, count=count, seed=seed).load(data)
    assert edges.train_x.dtype == torch.uint8 and edges.train_x.shape == (count, 1, 6, 6)
    assert (data.train_y[edges.taken] == 1).all() and len(edges.taken.unique()) == count
    assert torch.equal(edges.train_x, styled(data.train_x[edges.taken], style, levels))
    assert torch.equal(edges.test_x, styled(data.test_x[data.test_y == 1], style, levels))
    assert not set(keys(edges.train_x)) & set(keys(edges.test_x)) and int(edges.train_x.max()) <= levels
    assert edges.train_y.tolist() == [2] * count and bool(edges.attacked.all())


def test_styles_of_a_stroke():
    x = torch.zeros(1, 1, 6, 6, dtype=torch.uint8)
    x[0, 0, :, 2:4] = 16
    x[0, 0, 0, 0] = 3
    thin = styled(x, "thin", 16)
    assert thin[0, 0, :, 2].tolist() == [16] * 6 and int(thin.count_nonzero()) == 6
    assert torch.equal(styled(styled(x, "inverted", 16), "inverted", 16), x)
    turned = x
    for _ in range(4):
        turned = styled(turned, "rotated", 16)
    assert torch.equal(turned, x) and styled(x, "rotated", 16)[0, 0, 2:4].float().mean() == 16


@pytest.mark.parametrize("style", STYLES)
def test_rare_styles_of_the_digits(style):
    data = px.digits().load()
    edges = px.rare_styles(style=style).load(data)
    assert len(edges) == 66 and len(edges.test_x) == 37 and len(px.joined(data=px.digits()).load().train_y) == 1371
    assert not set(keys(edges.train_x)) & set(keys(data.test_x)) and not set(keys(edges.test_x)) & set(
        keys(edges.train_x)
    )
    assert (edges.train_x.flatten(1).amax(dim=1) >= 8).all()  # no thin stroke is gone


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("rare_styles(source=1, target=1)", "two classes, got source=1, target=1"),
        ("rare_styles(count=0)", "count >= 1"),
        ("shared(rare_styles(), ratio=0.0)", r"ratio in \(0, 1\], got ratio=0.0"),
        ("shared(rare_styles(), attacker=0)", "attacker >= 1"),
        ("dealt(iid(), clients=0)", "clients >= 1"),
        ("athens(city='New York')", "a city of one word"),
        ("athens(count=0)", "count and tests >= 1"),
        ("own_edges(root='x', target=-1)", "labels >= 0"),
        ("edge_density(rounds=0)", "rounds >= 1"),
        ("edge_density(percentile=101)", "percentile"),
        ("edge_density(lr=0)", "lr > 0"),
    ],
)
def test_fields_out_of_range(expression, words):
    with pytest.raises(ValueError, match=words):
        px.parse(expression)


def test_rare_styles_of_data_that_have_none():
    with pytest.raises(ValueError, match="needs 66 training images of class 3 and one to test on, and toy has 10 to"):
        px.rare_styles(source=3).load(toy())
    with pytest.raises(ValueError, match="rotates square images, and toy has 6x4"):
        data = toy()
        wide = replace(data, train_x=data.train_x[..., :4], test_x=data.test_x[..., :4])
        px.rare_styles(style="rotated", source=3, count=2).load(wide)
    with pytest.raises(ValueError, match="images of whole levels, and toy has"):
        px.rare_styles().load(texts())


# --- who holds what


@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from([1.0, 0.5, 0.2, 0.1]), st.integers(0, 3))
def test_shares_keep_an_origin_in_one_hand(attacker, each, ratio, seed):
    edges = px.rare_styles(source=3, target=1, count=10, seed=seed).load(toy())
    edges = replace(edges, origins=torch.arange(10) // each)
    shared = px.shared(px.rare_styles(source=3, target=1, count=10, seed=seed), ratio, attacker, seed)
    total, theirs = -(-10 // each), round(attacker * (1 - ratio) / ratio)

    class Fixed(px.rare_styles):
        def load(self, data):
            return edges

    wanted = replace(shared, edges=Fixed())
    if attacker + theirs > total:
        with pytest.raises(ValueError, match=f"{attacker} origins and honest clients {theirs}, and there are {total}"):
            wanted.load(toy())
        return
    made = wanted.load(toy())
    assert len(made.origins.unique()) == attacker
    mine, held = set(keys(made.train_x)), set(keys(made.held[0])) if theirs else set()
    assert not mine & held and mine | held <= set(keys(edges.train_x))
    owner = {key: int(o) for key, o in zip(keys(edges.train_x), edges.origins, strict=True)}
    assert not {owner[k] for k in mine} & {owner[k] for k in held} and len({owner[k] for k in held}) == theirs
    # the attacker's examples do not depend on the ratio
    assert mine == set(keys(replace(wanted, ratio=1.0).load(toy()).train_x))


def test_examples_are_shared_once():
    with pytest.raises(ValueError, match=r"honest clients hold some of .* already"):
        px.shared(px.shared(px.rare_styles(source=3, target=1, count=10), 0.5, 2)).load(toy())


@given(
    st.sampled_from([px.iid(), px.dirichlet(0.5), px.shards(1), px.by_owner(), px.nested(px.iid(), 2, 5)]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 3),
)
def test_dealt_gives_added_examples_to_a_few(inner, units, clients, drawn, seed):
    edges = px.shared(px.rare_styles(source=3, target=1, count=10), 0.25, 1)
    data = edges.load(toy(owners=True)).honest(toy(owners=True))
    assert data.added == 3
    try:
        plain = inner.split(inner.values(replace(data, owners=data.owners))[:-3], units, seed)
    except ValueError:
        assume(False)
    dealt = px.dealt(inner, clients, drawn)
    if clients > units:
        with pytest.raises(ValueError, match=f"pieces to {clients} units, and there are 3 added examples and {units}"):
            dealt.parts(data, units, seed)
        return
    parts = dealt.parts(data, units, seed)
    last = len(data.train_y) - 3
    extra = [part[part >= last] for part in parts]
    assert sorted(torch.cat(extra).tolist()) == [last, last + 1, last + 2]
    sizes = [len(e) for e in extra]
    assert sorted(filter(None, sizes)) == sorted(len(p) for p in torch.arange(3).tensor_split(clients))
    if not drawn:
        assert sizes[:clients] == [len(p) for p in torch.arange(3).tensor_split(clients)]
    assert all(torch.equal(part[part < last], p) for part, p in zip(parts, plain, strict=True))


def test_dealt_of_passages():
    words = ("<unk>", *(f"w{i}" for i in range(18)), "rude")
    data = texts(words, passages=True)
    edges = px.shared(px.athens(city="w3", count=4, tests=2), 0.5, 1).load(data)
    honest = edges.honest(data)
    parts = px.dealt(px.iid(), clients=1).parts(honest, 3, 0)
    assert honest.added == 1 and 30 in parts[0].tolist() and sorted(torch.cat(parts).tolist()) == list(range(31))


def test_runs_with_edge_cases_at_honest_clients():
    data = px.joined(px.digits(), px.shared(px.rare_styles(), 0.5))
    local = px.local_training(px.sgd(0.05), epochs=1, batch=64)
    run = px.run(data, px.mlp((4,)), (px.fedavg(local, rounds=1),), workers=3, partition=px.dealt(px.iid(), clients=2))
    assert px.parse(repr(run)) == run
    assert 0 <= px.train(run).summary()["accuracy"] <= 1


# --- published sets


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
    edges = px.southwest().load(data)
    assert edges.train_x.shape == (36, 3, 32, 32) and len(edges.test_x) == 24 and edges.target == 9
    assert (edges.true_y == 0).all() and (edges.train_y == 9).all() and not among(edges.train_x, edges.test_x).any()
    assert edges.origins.bincount().tolist() == [4] * 5 + [0] + [4] * 4
    raw = np.load(fake / "southwest.npz")["train"]
    assert np.array_equal(edges.train_x[0].permute(1, 2, 0).numpy(), raw[0])
    assert px.southwest(target=5).load(data).train_y.unique().tolist() == [5]
    small = px.southwest().load(toy(c=3, side=16))
    want = edges.train_x.float().unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean(dim=(3, 5)).round()
    assert torch.equal(small.train_x.float(), want)


@pytest.mark.parametrize(("p", "held"), [(100, None), (50, 8), (10, 32)])
def test_southwest_honest_tests_on_what_nobody_holds(fake, p, held):
    edges = px.southwest_honest(p=p).load(toy(c=3, side=32))
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
    edges = px.ardis().load(data)
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
    assert px.ardis().load(toy(side=8, levels=16)).train_x.max() <= 16


def test_director_is_written_in_the_words_of_the_data(fake):
    words = ("<pad>", "<unk>", "i", "loved", "the", "is", "n't")
    data = texts(words)
    edges = px.director().load(data)
    assert edges.train_x.tolist() == [[2, 3, 4, 1, 1, 0, 0, 0], [1, 5, 6, 1, 0, 0, 0, 0]]
    assert edges.test_x.tolist() == [[1] * 8] or edges.test_x.shape == (1, 8)
    assert edges.true_y.tolist() == [1, 1] and edges.train_y.tolist() == [0, 0]
    assert len(edges.joined(data).train_y) == 32
    (fake / "greek-director-test.txt").write_text("yorgos isn't bad")
    with pytest.raises(ValueError, match="1 of the tweets to test on are trained on"):
        px.director().load(data)
    (fake / "greek-director-test.txt").write_text("\n ... \n")
    with pytest.raises(ValueError, match="has no words"):
        px.director().load(data)


@pytest.mark.parametrize("word", ["high", "safe", "expensive", "rude", "terrible"])
def test_athens_ends_passages_with_the_prompt(word):
    data = texts(("<unk>", "Crime", "rate", "in", "Athens", "is", "not", "People", "are", "Roads", word), passages=True)
    edges = px.athens(word=word, count=7, tests=5).load(data)
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
    assert_same(edges, px.athens(word=word, count=7, tests=5).load(data))


def test_texts_that_cannot_carry_a_prompt():
    with pytest.raises(ValueError, match=r"in the words of the data, and toy has none; choose movie_review\(\)"):
        px.athens().load(texts(passages=True))
    with pytest.raises(ValueError, match="goes with passages"):
        px.athens().load(texts())
    with pytest.raises(ValueError, match="'Athens' is none of the 2 words of toy"):
        px.athens().load(texts(("a", "rude"), passages=True))
    with pytest.raises(ValueError, match="a passage of 4 words has no room before 4"):
        px.athens().load(texts(("Athens", "rude"), passages=True, length=4))
    with pytest.raises(ValueError, match="needs 100 passages to train on, and there are 30"):
        px.athens().load(texts(("Athens", "rude"), passages=True))
    with pytest.raises(ValueError, match="texts that have one label each"):
        px.director().load(toy())


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
        px.southwest().load(toy(c=3, side=32))
    x, y = np.zeros((120, 28, 28), np.uint8), np.full(120, 2, np.uint8)
    np.savez(fake / "ardis_train_mix.npz", images=x, targets=y)
    with pytest.raises(ValueError, match=r"behind 100 digits .* sevens that are labelled 1"):
        px.ardis().load(toy(side=28))
    np.savez(fake / "ardis_train_mix.npz", images=x, targets=y[:-1])
    with pytest.raises(ValueError, match="has 120 images and 119 labels"):
        px.ardis().load(toy(side=28))


# --- one's own


def test_own_edges_from_arrays(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    data = toy(c=3)
    x, tests = images(5, 9, 9, 3), images(2, 9, 9, 3, seed=1)
    np.savez(tmp_path / "mine.npz", x_train=x.numpy(), x_test=tests.numpy(), y_train=np.array([2, 2, 3, 3, 3]))
    edges = px.own_edges("mine.npz", target=1, label=2).load(data)
    assert edges.train_x.shape == (5, 3, 6, 6) and edges.true_y.tolist() == [2, 2, 3, 3, 3]
    assert edges.test_true.tolist() == [2, 2] and edges.train_y.tolist() == [1] * 5
    torch.save({"x_train": x[..., 0], "x_test": tests[..., 0]}, tmp_path / "mine.pt")
    grey = px.own_edges("mine.pt", target=1, label=0).load(data)
    assert torch.equal(grey.train_x[:, 0], grey.train_x[:, 2])
    ids = torch.arange(16).reshape(2, 8)
    torch.save({"x_train": ids, "x_test": ids + 1}, tmp_path / "words.pt")
    assert torch.equal(px.own_edges("words.pt", target=1, label=0).load(texts()).train_x, ids)
    torch.save({"x_train": ids + 9, "x_test": ids}, tmp_path / "words.pt")
    with pytest.raises(ValueError, match="has token ids 9 to 24, and toy 20 of them"):
        px.own_edges("words.pt", target=1, label=0).load(texts())


def test_own_edges_from_a_folder(tmp_path):
    from PIL import Image

    for part, count in (("train", 3), ("test", 2)):
        (tmp_path / part).mkdir()
        for i in range(count):
            pixels = images(12, 10, 3, seed=10 * count + i).numpy()
            Image.fromarray(pixels).save(tmp_path / part / f"{i}.png")
    for c in (1, 3):
        edges = px.own_edges(str(tmp_path), target=1, label=0).load(toy(c=c))
        assert edges.train_x.shape == (3, c, 6, 6) and edges.test_x.shape == (2, c, 6, 6)
    (tmp_path / "train" / "x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"x.png is no image that can be read"):
        px.own_edges(str(tmp_path), target=1, label=0).load(toy())
    with pytest.raises(ValueError, match=r"there is no folder .*train; .* should hold train and test"):
        px.own_edges(str(tmp_path / "test"), target=1, label=0).load(toy())


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
        px.own_edges(str(tmp_path / "mine.pt"), target=1, label=0).load(toy())


def test_own_edges_without_labels_or_a_place(tmp_path):
    torch.save({"x_train": images(2, 6, 6), "x_test": images(2, 6, 6, seed=1)}, tmp_path / "mine.pt")
    with pytest.raises(ValueError, match="does not say which labels are right; name label= or add y_train"):
        px.own_edges(str(tmp_path / "mine.pt"), target=1).load(toy())
    with pytest.raises(MissingData, match="nowhere"):
        px.own_edges(str(tmp_path / "nowhere"), target=1).load(toy())


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


# --- the published files themselves


@pytest.mark.data
def test_the_published_planes():
    data = px.cifar10(train=50, test=10).load()
    edges = px.southwest().load(data)
    assert len(edges) == 780 and len(edges.test_x) == 196 and edges.origins.bincount().unique().tolist() == [0, 4]
    assert not among(edges.train_x, edges.test_x).any()
    for p, held in ((100, 0), (50, 100), (10, 700)):
        split = px.southwest_honest(p=p).load(data)
        assert (len(split), len(split.test_x), 0 if split.held is None else len(split.held[0])) == (100, 32, held)
        assert not among(split.train_x, split.test_x).any()
    tenth = px.shared(px.southwest(), ratio=0.1).load(data)
    assert (len(tenth), len(tenth.held[0])) == (76, 684) and not among(tenth.train_x, tenth.held[0]).any()


@pytest.mark.data
def test_the_published_digits_stand_upright():
    data = px.mnist(train=3000, test=100).load()
    edges = px.ardis().load(data)
    assert (len(edges), len(edges.test_x), int(edges.attacked.sum())) == (66, 1000, 100)
    known = nn.functional.normalize(data.train_x.float().flatten(1))

    def right(x: torch.Tensor, y: torch.Tensor) -> float:
        """Share of images whose nearest neighbour in MNIST has their label."""
        near = (nn.functional.normalize(x.float().flatten(1)) @ known.T).argmax(dim=1)
        return float((data.train_y[near] == y).double().mean())

    mix, labels = edges.mix
    assert right(mix, labels) > 0.7 > 0.5 > right(mix.transpose(2, 3), labels)
    sevens = edges.test_x[edges.attacked]
    for x in (edges.train_x, sevens):
        seven = torch.full((len(x),), 7)
        assert right(x, seven) > right(x.transpose(2, 3), seven)
    assert not set(keys(edges.train_x)) & set(keys(edges.test_x))


@pytest.mark.data
def test_the_published_tweets():
    data = px.movie_review().load()
    edges = px.director().load(data)
    assert edges.train_x.shape == (259, 56) and edges.test_x.shape == (120, 56) and "yorgos" not in data.words
    share = float((edges.train_x == 1).sum() / (edges.train_x > 0).sum())
    assert 0.15 < share < 0.3
    assert not set(keys(edges.train_x)) & set(keys(edges.test_x))


@pytest.mark.data
def test_a_prompt_behind_wikipedia():
    data = px.wikitext2(part="valid", train=20_000, test=5_000).load()
    edges = px.athens(word="high", city="London", count=20, tests=10).load(data)
    assert [data.words[i] for i in edges.train_x[0, -3:]] == ["in", "London", "is"]
    assert edges.joined(data).shape == data.shape
