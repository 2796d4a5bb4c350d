# SPDX-License-Identifier: Apache-2.0
"""Images of which some lose their colours."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx
from phalanx.core.expression import method
from phalanx.data.dataset import Data, Dataset, _load


@method("tests_colours", "data", listed=False)
class Colours(Data):
    """Images without a grayscale one among them, every one different."""

    each: tuple[int, ...] = (40, 40, 40, 40)
    tests: int = 10

    def read(self) -> Dataset:
        y = torch.arange(len(self.each)).repeat_interleave(torch.tensor(self.each))
        test_y = torch.arange(self.tests) % len(self.each)
        train, test = (images(len(labels), seed) for seed, labels in enumerate((y, test_y)))
        mean = (0.1, 0.2, 0.3)
        return Dataset("colours", train, y, test, test_y, len(self.each), mean, mean)

    def location(self) -> str:
        return "nowhere"


def images(count: int, seed: int) -> torch.Tensor:
    x = torch.randint(256, (count, 3, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    x[:, 0, 0, 0] = 7 - x[:, 1, 0, 0] % 2
    x[:, 1, 0, 0] = 200
    return x


def is_gray(x: torch.Tensor) -> torch.Tensor:
    return ((x[:, :1] == x[:, 1:]).flatten(1)).all(dim=1)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=5), st.floats(0, 0.5), st.integers(0, 3))
def test_the_skew_is_right_to_the_image(each, minor, seed):
    colours = Colours(tuple(each))
    d, plain = phalanx.data.grayscale(colours, minor=minor, seed=seed).read(), colours.read()
    gray = is_gray(d.train_x)
    assert torch.equal(d.train_y, plain.train_y) and torch.equal(d.train_x[~gray], plain.train_x[~gray])
    domains = [d.owners[d.train_y == label].unique().tolist() for label in range(len(each))]
    for label, count in enumerate(each):
        if count:
            (owner,) = domains[label]
            share = minor if owner else 1 - minor
            assert int(gray[d.train_y == label].sum()) == round(share * count)
    assert domains.count([0]) <= len(each) // 2 <= domains.count([0]) + each.count(0)
    for label in range(len(each)):
        mine = is_gray(d.test_x)[d.test_y == label]
        assert int(mine.sum()) == round(0.5 * len(mine))
    assert (d.mean, d.std, d.shape) == (plain.mean, plain.std, plain.shape)


def test_gray_is_the_luminance():
    d, plain = phalanx.data.grayscale(Colours(), minor=0.0).read(), Colours().read()
    gray = is_gray(d.train_x)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    want = (plain.train_x[gray] * weights).sum(dim=1, keepdim=True)
    assert (d.train_x[gray] - want).abs().max() <= 0.501
    assert torch.equal(gray, d.owners == 0) and gray.sum() == 80
    assert torch.equal(plain.train_x, Colours().read().train_x)


def test_the_data_that_are_shared_stay_as_they_are():
    colours = Colours((9, 9))
    before = colours.load().train_x.clone()
    phalanx.data.grayscale(colours, minor=0.5).load()
    assert torch.equal(colours.load().train_x, before)
    _load.cache_clear()


def test_the_seed_draws_classes_and_images():
    first, again, other = (phalanx.data.grayscale(Colours(), seed=s).read() for s in (0, 0, 1))
    assert torch.equal(first.train_x, again.train_x) and torch.equal(first.test_x, again.test_x)
    assert not torch.equal(first.train_x, other.train_x) and not torch.equal(first.test_x, other.test_x)
    drawn = {tuple(phalanx.data.grayscale(Colours(), seed=s).read().owners[::40].tolist()) for s in range(20)}
    assert len(drawn) > 2 and all(sum(classes) == 2 for classes in drawn)


@given(st.lists(st.integers(20, 40), min_size=2, max_size=4), st.sampled_from([0.05, 0.3, 0.5]))
def test_oversampling_makes_both_kinds_equal(each, minor):
    colours = Colours(tuple(each))
    skewed, d = (
        phalanx.data.grayscale(colours, minor).read(),
        phalanx.data.grayscale(colours, minor, oversampled=True).read(),
    )
    n = len(skewed.train_y)
    assert torch.equal(d.train_x[:n], skewed.train_x) and torch.equal(d.train_y[:n], skewed.train_y)
    gray = is_gray(d.train_x)
    for label in range(len(each)):
        mine = gray[d.train_y == label]
        assert int(mine.sum()) * 2 == len(mine)
        have = {(bytes(x.flatten().tolist())) for x in skewed.train_x[skewed.train_y == label]}
        assert {(bytes(x.flatten().tolist())) for x in d.train_x[d.train_y == label]} == have
        assert len(d.owners[d.train_y == label].unique()) == 1
    assert torch.equal(d.test_x, skewed.test_x)


def test_by_owner_makes_two_clients():
    d = phalanx.data.grayscale(Colours((30, 30, 30, 30))).read()
    parts = phalanx.data.by_owner().parts(d, 2, 0)
    assert [len(part) for part in parts] == [60, 60]
    assert sorted(label for part in parts for label in d.train_y[part].unique().tolist()) == [0, 1, 2, 3]


def test_what_it_cannot_read():
    with pytest.raises(ValueError, match=r"colour images \(N, 3, H, W\) in memory, and digits\(\) has Tensor of shape"):
        phalanx.data.grayscale(phalanx.data.digits()).read()
    with pytest.raises(ValueError, match=r"all 5 images of class . are alike, and none is there to draw again; raise"):
        phalanx.data.grayscale(Colours((5, 5)), oversampled=True).read()
    for minor in ("0.6", "-0.1", "nan"):
        with pytest.raises(ValueError, match="minor in"):
            phalanx.parse(f"grayscale(minor={minor})")
    assert phalanx.data.grayscale(Colours()).location() == "nowhere"


@pytest.mark.data
def test_skewed_cifar10():
    small = phalanx.data.cifar10(train=2000, test=400, size=16)
    d = phalanx.data.grayscale(small).load()
    assert d.shape == (3, 16, 16) and len(d.train_x) == 2000
    few, many = [], []
    for label in range(10):
        mine = is_gray(d.train_x[d.train_y == label])
        (many if d.owners[d.train_y == label][0] == 0 else few).append(float(mine.float().mean()))
    # about one photograph in 90 has no colours of its own
    assert len(few) == len(many) == 5 and max(few) < 0.12 and min(many) > 0.94
