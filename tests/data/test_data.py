# SPDX-License-Identifier: Apache-2.0
import gzip
import hashlib
import io
import struct
import tarfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import phalanx
from phalanx.data import dataset
from phalanx.data.cifar import PIXEL_BYTES
from phalanx.data.dataset import Dataset, evenly_spaced
from phalanx.data.files import MissingData, data_folder, download, extract
from phalanx.data.mnist import read_idx
from phalanx.data.movie_review import tokens
from phalanx.data.shape import Tokens
from tests.cases import each

# the modules, whose names their public functions have
cifar = import_module("phalanx.data.cifar")
mnist = import_module("phalanx.data.mnist")
movie_review = import_module("phalanx.data.movie_review")


def idx(body: bytes, *sizes: int, magic: int = 0x0800) -> bytes:
    return struct.pack(f">I{len(sizes)}I", magic | len(sizes), *sizes) + body


@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), st.booleans(), st.randoms())
def test_idx_round_trip(tmp_path_factory, sizes, packed, random):
    count = torch.Size(sizes).numel()
    body = bytes(random.randrange(256) for _ in range(count))
    path = tmp_path_factory.mktemp("idx") / "file"
    data = idx(body, *sizes)
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    x = read_idx(path, len(sizes))
    assert x.dtype == torch.uint8 and x.shape == tuple(sizes) and bytes(x.flatten().tolist()) == body


GOOD = idx(bytes(range(12)), 3, 2, 2)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes are less than its header of 16"),
        (GOOD[:15], "15 bytes are less"),
        (GOOD[:-1], "3 x 2 x 2 = 12 bytes and holds 11"),
        (GOOD + b"x", "12 bytes and holds 13"),
        (b"\x01" + GOOD[1:], "01000803"),
        (idx(bytes(12), 3, 2, 2, magic=0x0D00), "00000d03"),
        (idx(bytes(12), 3, 4), "2 dimensions, and 3 are expected"),
        (idx(b"", 2**32 - 1, 2**32 - 1, 2**32 - 1), "holds 0"),
        (gzip.compress(GOOD, mtime=0)[:-9], "damaged gzip"),
        (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "damaged gzip"),
        (gzip.compress(GOOD, mtime=0)[:12] + b"\xff\xff\xff\xff" + gzip.compress(GOOD, mtime=0)[16:], "damaged gzip"),
        (gzip.compress(GOOD[:-1], mtime=0), "holds 11"),
        (b"<html>404</html>", "no idx file"),
    ],
)
def test_damaged_idx(tmp_path, data, words):
    path = tmp_path / "file-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)


def record(seed: int, *labels: int) -> bytes:
    planes = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(seed))
    return bytes([*labels, *planes.flatten().tolist()])


def test_cifar_records_are_label_then_red_green_blue_planes(tmp_path):
    path = tmp_path / "batch.bin"
    path.write_bytes(bytes([7]) + b"\x01" * 1024 + b"\x02" * 1024 + b"\x03" * 1024 + record(0, 2))
    images, labels = cifar.CIFAR10.records(path)
    assert labels.tolist() == [7, 2] and labels.dtype == torch.int64
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
    assert [images[0, c].unique().tolist() for c in range(3)] == [[1], [2], [3]]
    # rows of an image are consecutive
    assert bytes(images[1].flatten().tolist()) == record(0, 2)[1:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (record(0, 0)[:-1], "3072 bytes, 3072 more than whole records of 3073"),
        (record(0, 0) + b"x", "1 more than whole"),
        (record(0, 10), "label 10, and CIFAR-10 has 0 to 9"),
    ],
)
def test_damaged_cifar_records(tmp_path, data, words):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as error:
        cifar.CIFAR10.records(path)
    assert str(path) in str(error.value)


def test_cifar100_records_have_the_group_before_the_class(tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes(record(3, 19, 99) + record(4, 0, 7))
    images, labels = cifar.CIFAR100.records(path)
    assert labels.tolist() == [99, 7]
    assert [bytes(x.flatten().tolist()) for x in images] == [record(3), record(4)]
    path.write_bytes(record(3, 0, 7) * 3073)  # a whole number of records of 3,074 bytes, not of CIFAR-10's
    assert len(cifar.CIFAR100.records(path)[0]) == 3073
    path.write_bytes(record(3, 7))
    with pytest.raises(ValueError, match="3073 more than whole records of 3074"):
        cifar.CIFAR100.records(path)
    path.write_bytes(record(3, 0, 100))
    with pytest.raises(ValueError, match="label 100, and CIFAR-100 has 0 to 99"):
        cifar.CIFAR100.records(path)


def sparse(path: Path, head: bytes, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)


def sentences(word: str) -> bytes:
    """5,331 lines, of which every one has a word of its own, and every third is long."""
    lines = (f"{word} film{i}" + ", the caf\xe9's" * (1 + 40 * (i % 3 == 0)) for i in range(5331))
    return "".join(f"{line} \n" for line in lines).encode("latin-1")


SENTENCES = {"rt-polarity.neg": sentences("Bad\x85"), "rt-polarity.pos": sentences("GOOD")}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        raw = tmp_path / "MNIST" / "raw"
        images = idx(b"\x00\xff", count, 28, 28)
        sparse(raw / f"{part}-images-idx3-ubyte", images, 16 + 784 * count)
        labels = bytes(i % 10 for i in range(count))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels, count), 1, mtime=0))
    for i, name in enumerate(cifar.CIFAR10.train + cifar.CIFAR10.test):
        sparse(cifar.CIFAR10.path / name, record(i, i), 10_000 * (1 + PIXEL_BYTES))
    for name, count in (("train.bin", 50_000), ("test.bin", 10_000)):
        sparse(cifar.CIFAR100.path / name, record(count, 19, 99) + record(1, 0, 7), count * (2 + PIXEL_BYTES))
    for name in movie_review.FILES:
        (tmp_path / "rt-polarity").mkdir(exist_ok=True)
        (tmp_path / "rt-polarity" / name).write_bytes(SENTENCES[name])
    yield tmp_path
    dataset._load.cache_clear()


def test_mnist_from_files(fake):
    d = phalanx.data.mnist(train=600, test=7).load()
    assert d.shape == (1, 28, 28) and d.num_classes == 10
    assert d.train_y.tolist() == [100 * i % 10 for i in range(600)]
    assert d.test_y.tolist() == [i * 10_000 // 7 % 10 for i in range(7)]
    x, y = d.train(torch.tensor([0, 1]))
    assert y.tolist() == [0, 0] and x.dtype == torch.float32
    torch.testing.assert_close(x[0, 0, 0, :3], (torch.tensor([0.0, 1.0, 0.0]) - 0.1307) / 0.3081)
    assert phalanx.data.locations()["mnist"] == str(fake / "MNIST" / "raw")


def test_mnist_of_another_size(fake):
    path = fake / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(idx(bytes(784), 1, 28, 28))
    with pytest.raises(ValueError, match=r"\(1, 28, 28\) and \(60000,\), and should be 60000"):
        phalanx.data.mnist().load()
    sparse(path, idx(b"", 60_000, 28, 28), 16 + 784 * 60_000)
    (fake / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(idx(bytes([10]) * 10_000, 10_000))
    with pytest.raises(ValueError, match="go up to 10"):
        phalanx.data.mnist().load()


def test_cifar10_from_files(fake):
    d = phalanx.data.cifar10(train=5, test=1).load()
    assert d.shape == (3, 32, 32)
    assert d.train_y.tolist() == [0, 1, 2, 3, 4] and d.test_y.tolist() == [5]
    for i in range(5):
        assert bytes(d.train_x[i].flatten().tolist()) == record(i)
    small = phalanx.data.cifar10(train=5, test=1, size=16).load()
    want = d.train_x.double().reshape(5, 3, 16, 2, 16, 2).mean(dim=(3, 5))
    assert small.shape == (3, 16, 16) and small.train_x.dtype == torch.uint8
    assert (small.train_x - want).abs().max() <= 0.5
    assert phalanx.data.locations()["cifar10"] == str(fake / "cifar-10-batches-bin")


def test_cifar10_with_a_short_batch(fake):
    (cifar.CIFAR10.path / "data_batch_3.bin").write_bytes(record(0, 0))
    with pytest.raises(ValueError, match=r"data_batch_3.bin has 1 records, and should have 10000"):
        phalanx.data.cifar10().load()


def test_cifar100_from_files(fake):
    d = phalanx.data.cifar100(train=25_000, test=1).load()
    assert d.shape == (3, 32, 32) and d.num_classes == 100
    assert d.train_y[:3].tolist() == [99, 0, 0] and d.test_y.tolist() == [99]
    assert bytes(d.train_x[0].flatten().tolist()) == record(50_000)
    assert bytes(d.test_x[0].flatten().tolist()) == record(10_000)
    assert phalanx.data.cifar100(train=1, test=1, size=16).load().shape == (3, 16, 16)
    assert phalanx.data.locations()["cifar100"] == str(fake / "cifar-100-binary")
    (cifar.CIFAR100.path / "test.bin").write_bytes(record(0, 0, 0))
    with pytest.raises(ValueError, match=r"test.bin has 1 records, and should have 10000"):
        phalanx.data.cifar100().load()


@each(
    ("sentence", "words"),
    [
        ("It's good, isn't it?", "it 's good , is n't it ?"),
        ("they've they're we'll he'd (so far)!", "they 've they 're we 'll he 'd ( so far ) !"),
        ("made-for-home-video: 9/10 caf\xe9. . .", "made for home video 9 10 caf"),
        # an ending is cut off wherever it stands, and quotes stay, as in Kim's rule
        ("'tis o'days' 'scream'", "'tis o 'days' 'scream'"),
        (" \t\x85--  ", ""),
    ],
)
def test_tokens(sentence, words):
    assert tokens(sentence) == words.split()


def test_movie_review_from_files(fake):
    d = phalanx.data.movie_review().load()
    assert isinstance(d.shape, Tokens) and d.shape.length == 56 and d.num_classes == 2
    assert d.train_x.shape == (9596, 56) and d.test_x.shape == (1066, 56)
    assert d.train_y.bincount().tolist() == [4798] * 2 and d.test_y.bincount().tolist() == [533] * 2
    # the, 's, caf and the comma are equally frequent; then the labels' words, then one or two sentences' own
    assert d.shape.vocabulary == 2 + 4 + 2 + len(d.train_x[:, 1].unique())
    bad, good = 6, 7
    assert (d.train_x[:, 0] == torch.where(d.train_y == 0, bad, good)).all()
    assert (d.test_x[:, 0] == torch.where(d.test_y == 0, bad, good)).all()
    short = d.train_x[(d.train_x[:, 6] == 0)]
    assert 0.6 < len(short) / 9596 < 0.73 and (short[:, 6:] == 0).all() and (short[:, :6] > 0).all()
    x, y = d.train(torch.tensor([0, 1, 2]))
    assert x.dtype == torch.int64 and torch.equal(x, d.train_x[:3]) and y.tolist() == [0, 1, 0]
    assert torch.equal(d.test(slice(3, 5))[0], d.test_x[3:5])
    assert phalanx.data.locations()["movie_review"] == str(fake / "rt-polarity")


def test_movie_review_is_split_once_and_for_all(fake):
    whole, part = (
        phalanx.data.movie_review().load(),
        phalanx.data.movie_review(train=101, test=7, length=3, vocabulary=10).load(),
    )
    assert part.train_y.tolist() == whole.train_y[:101].tolist() and part.test_y.tolist() == whole.test_y[:7].tolist()
    assert part.shape == Tokens(3, 10) and part.train_x.shape == (101, 3)
    again = phalanx.data.movie_review().read()
    assert torch.equal(again.train_x, whole.train_x) and torch.equal(again.test_x, whole.test_x)
    assert set(part.train_x.unique().tolist()) <= set(range(10)) and (part.train_x == 1).any()


def test_movie_review_in_the_publishers_folder_and_with_a_line_too_few(fake):
    (fake / "rt-polarity").rename(fake / "rt-polaritydata")
    assert phalanx.data.locations()["movie_review"] == str(fake / "rt-polaritydata")
    assert len(phalanx.data.movie_review().read().train_x) == 9596
    path = fake / "rt-polaritydata" / "rt-polarity.pos"
    path.write_bytes(SENTENCES[path.name].partition(b"\n")[2])
    with pytest.raises(ValueError, match=r"rt-polarity.pos has 5330 lines, and should have 5331"):
        phalanx.data.movie_review().read()


def test_equal_expressions_share_one_copy(fake):
    assert phalanx.data.mnist(train=10).load() is phalanx.parse("mnist(train=10)").load()
    assert phalanx.data.mnist(train=10).load() is not phalanx.data.mnist(train=11).load()


@each(
    "expression",
    [
        "mnist(train=0)",
        "mnist(train=60001)",
        "cifar10(test=-1)",
        "cifar10(test=10001)",
        "cifar10(size=8)",
        "cifar100(train=50001)",
        "cifar100(test=0)",
        "movie_review(train=9597)",
        "movie_review(test=1067)",
        "movie_review(length=0)",
        "movie_review(vocabulary=2)",
    ],
)
def test_subsets_out_of_range(expression):
    with pytest.raises(ValueError, match=expression.partition("(")[0]):
        phalanx.parse(expression)


@given(st.integers(1, 50), st.integers(0, 50))
def test_spaced_positions(total, extra):
    total, count = total + extra, total
    places = torch.arange(total)[evenly_spaced(total, count)]
    assert len(places) == count and places[0] == 0
    steps = places.diff()
    assert not len(steps) or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    assert len(torch.arange(total)[evenly_spaced(total, None)]) == total


def test_digits():
    d = phalanx.data.digits().load()
    assert d.train_x.shape == (1437, 1, 8, 8) and d.test_x.shape == (360, 1, 8, 8)
    x, y = d.train(slice(None))
    assert x.mean().abs() < 0.01 and (x.std() - 1).abs() < 0.01
    assert d.train_y.bincount().min() > 130 and d.test_y.bincount().min() > 25
    both = torch.cat([d.train_x, d.test_x]).flatten(1)
    assert len(both.unique(dim=0)) == 1797  # so no test image is trained on
    assert torch.equal(d.train(torch.tensor([3]))[0], x[3:4]) and y.dtype == torch.int64
    assert d.test(slice(5, 9))[0].shape == (4, 1, 8, 8)
    assert phalanx.data.locations()["digits"] == "part of scikit-learn"


def test_normalising_leaves_the_data_alone():
    d = phalanx.data.digits().load()
    before = d.test_x.clone()
    d.inputs(d.test_x).zero_()
    assert torch.equal(d.test_x, before)
    already = d.test_x.float()
    d.inputs(already)
    assert torch.equal(already, before.float())


@pytest.mark.parametrize("owners", [torch.zeros(2, dtype=torch.int64), torch.zeros(3), torch.zeros(3, 1).long()])
def test_owners_that_do_not_fit(owners):
    x, y = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="toy: owners are int64, one for each of 3 training examples, got"):
        Dataset("toy", x, y, x, y, 10, (0.0,), (1.0,), owners=owners)


def test_images_without_labels():
    x, y = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="3 train images, but 2 labels"):
        Dataset("toy", x, y, x[:2], y, 10, (0.0,), (1.0,))


@each(
    ("x", "words"),
    [
        (torch.zeros(2, 3), r"int64, got \(2, 3\) of torch.float32"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), r"\(N, 2, L\) of int64, got \(2, 1, 4, 4\)"),
        (torch.tensor([[0, 1], [2, 5]]), r"lie in \[0, 5\), got 0 to 5"),
        (torch.tensor([[0, -1], [2, 4]]), r"got -1 to 4"),
    ],
)
def test_texts_that_are_no_token_ids(x, words):
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"toy: train .*{words}"):
        Dataset("toy", x, y, x, y, 2, vocabulary=5)


def test_images_need_a_mean_a_channel():
    x, y = torch.zeros(3, 2, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"toy: train images .* with 1 means and 0 deviations"):
        Dataset("toy", x, y, x, y, 2, mean=(0.5,))


def test_folder(monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", "/some/where")
    assert data_folder() == Path("/some/where")
    monkeypatch.setenv("PHALANX_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_folder() == Path("/cache/phalanx")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert data_folder() == Path("/home/user/.cache/phalanx")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "movie_review"])
def test_missing_data_names_the_set_the_place_and_the_ways_out(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(mnist, "MIRROR", "http://127.0.0.1:9/")
    address = "http://127.0.0.1:9/archive.tar.gz"
    monkeypatch.setattr(movie_review, "URL", address)
    for attribute in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(cifar, attribute, replace(getattr(cifar, attribute), url=address))
    status = phalanx.data.locations()[name]
    with pytest.raises(MissingData) as error:
        phalanx.parse(f"{name}()").load()
    for sentence in (str(error.value), status):
        for word in (name, str(tmp_path), "PHALANX_DATA", "network", "digits()"):
            assert word in sentence
    assert "cannot be downloaded" in str(error.value) and "cannot be downloaded" not in status
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_download_is_checked_and_leaves_only_its_files(served, tmp_path):
    source, url = served
    (source / "a.gz").write_bytes(b"content")
    md5 = hashlib.md5(b"content").hexdigest()
    target = tmp_path / "new" / "place"
    download("toy", {"a.gz": (f"{url}a.gz", md5)}, target, unpack=lambda work: None)
    assert [p.name for p in target.iterdir()] == ["a.gz"] and (target / "a.gz").read_bytes() == b"content"


def test_a_download_with_a_wrong_checksum_leaves_nothing(served, tmp_path):
    source, url = served
    (source / "a").write_bytes(b"content")
    (source / "b").write_bytes(b"something else")
    sources = {name: (url + name, hashlib.md5(b"content").hexdigest()) for name in ("a", "b")}
    with pytest.raises(MissingData, match=r"toy is not in .*hash"):
        download("toy", sources, tmp_path / "place", unpack=lambda work: None)
    with pytest.raises(MissingData, match="404"):
        download("toy", {"c": (f"{url}c", "0" * 32)}, tmp_path / "place", unpack=lambda work: None)
    assert list((tmp_path / "place").iterdir()) == []


def pack(path: Path, members: dict[str, bytes]) -> str:
    """Writes a tar.gz, and gives its md5."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, body in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("attribute", ["CIFAR10", "CIFAR100"])
def test_cifar_by_download(attribute, served, tmp_path, monkeypatch):
    source, url = served
    files = getattr(cifar, attribute)
    labels, archive = files.num_labels, f"{files.folder}.tar.gz"
    names = files.train + files.test
    count = {name: 50_000 // len(files.train) if name in files.train else 10_000 for name in names}
    rest = {name: bytes((count[name] - 1) * (labels + PIXEL_BYTES)) for name in names}
    members = {f"{files.folder}/{name}": record(i, *[i] * labels) + rest[name] for i, name in enumerate(names)}
    md5 = pack(source / archive, members)
    monkeypatch.setattr(cifar, attribute, replace(files, url=url + archive, md5=md5))
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path / "fresh"))
    d = phalanx.parse(f"{files.name}(train={len(files.train)}, test=1)").read()
    assert d.train_y.tolist() == list(range(len(files.train))) and d.test_y.tolist() == [len(files.train)]
    assert {p.name for p in (tmp_path / "fresh" / files.folder).iterdir()} == set(names)


def test_movie_review_by_download(served, tmp_path, monkeypatch):
    source, url = served
    members = {f"rt-polaritydata/{name}": body for name, body in SENTENCES.items()}
    md5 = pack(source / movie_review.ARCHIVE, {"rt-polaritydata.README.1.0.txt": b"about", **members})
    monkeypatch.setattr(movie_review, "MD5", md5)
    monkeypatch.setattr(movie_review, "URL", url + movie_review.ARCHIVE)
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path / "fresh"))
    assert phalanx.data.movie_review().read().train_x.shape == (9596, 56)
    assert {p.name for p in (tmp_path / "fresh" / "rt-polaritydata").iterdir()} == set(SENTENCES)


def test_an_archive_gives_regular_members_only(tmp_path):
    def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> Path:
        path = tmp_path / "archive.tar"
        with tarfile.open(path, "w") as tar:
            for entry, body in entries:
                entry.size = len(body)
                tar.addfile(entry, io.BytesIO(body))
        return path

    out = tmp_path / "inner" / "out"
    out.mkdir(parents=True)
    extract(archive((tarfile.TarInfo("../evil"), b"bad"), (tarfile.TarInfo("d/good"), b"fine")), ["d/good"], out)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["good"]
    extract(archive((tarfile.TarInfo("../climb"), b"tame")), ["../climb"], out)
    assert (out / "climb").read_bytes() == b"tame" and not (out.parent / "climb").exists()
    for kind in (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE):
        entry = tarfile.TarInfo("d/good")
        entry.type, entry.linkname = kind, "/etc/passwd"
        with pytest.raises(ValueError, match="no regular file"):
            extract(archive((entry, b"")), ["d/good"], out)
    with pytest.raises(ValueError, match="no member d/other"):
        extract(archive(), ["d/other"], out)


@given(
    st.integers(0, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 7), st.integers(0, 99)
)
def test_crop_flip_takes_a_window_of_the_padded_image(n, c, h, w, pad, seed):
    x = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(seed))
    augment = phalanx.data.crop_flip(pad)
    y = augment(x, torch.Generator().manual_seed(seed))
    assert y.shape == x.shape and y.dtype == x.dtype
    assert torch.equal(y, augment(x, torch.Generator().manual_seed(seed)))
    padded = F.pad(x, (pad,) * 4)
    for image, wide in zip(y, padded, strict=True):
        windows = [wide[:, top : top + h, left : left + w] for top in range(2 * pad + 1) for left in range(2 * pad + 1)]
        assert any(torch.equal(image, piece) or torch.equal(image, piece.flip(2)) for piece in windows)


def test_crop_flip_draws_every_change_equally_often():
    image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    y = phalanx.data.crop_flip(pad=1)(image.expand(18_000, 1, 3, 3), torch.Generator().manual_seed(0))
    seen, counts = y.unique(dim=0, return_counts=True)
    assert len(seen) == 18  # 3 x 3 places, mirrored or not
    assert ((counts - 1000).abs() < 5 * 1000**0.5).all()


@each("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_crop_flip_keeps_dtype_and_takes_any_strides(dtype):
    x = torch.randint(255, (4, 3, 6, 6)).to(dtype)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    plain, other = (
        phalanx.data.crop_flip(2)(v, g)
        for v, g in zip((x, x.to(memory_format=torch.channels_last)), generators, strict=True)
    )
    assert plain.dtype == dtype and torch.equal(plain, other)


def test_crop_flip_without_padding_only_mirrors():
    x = torch.randn(50, 1, 2, 3)
    y = phalanx.data.crop_flip(pad=0)(x, torch.Generator().manual_seed(0))
    mirrored = (y == x.flip(3)).flatten(1).all(dim=1)
    kept = (y == x).flatten(1).all(dim=1)
    assert (mirrored ^ kept).all() and mirrored.any() and kept.any()
    with pytest.raises(ValueError, match="pad >= 0"):
        phalanx.data.crop_flip(pad=-1)


def moments(images: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of bytes, as fractions of 255, from their histogram."""
    levels = torch.arange(256) / 255.0
    share = images.flatten().bincount(minlength=256).double() / images.numel()
    mean = float(share @ levels.double())
    return mean, float(share @ (levels.double() - mean).square()) ** 0.5


@pytest.mark.data
def test_real_mnist():
    raw = data_folder() / "MNIST" / "raw"
    md5 = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    d = phalanx.data.mnist().load()
    for name, want in md5.items():
        path = raw / name
        data = path.read_bytes() if path.exists() else gzip.decompress((raw / f"{name}.gz").read_bytes())
        assert hashlib.md5(data).hexdigest() == want
    assert d.train_x.shape == (60_000, 1, 28, 28) and d.test_x.shape == (10_000, 1, 28, 28)
    assert d.train_y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert d.test_y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert d.train_y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert moments(d.train_x) == pytest.approx((d.mean[0], d.std[0]), abs=1e-4)


@pytest.mark.data
def test_real_cifar10():
    d = phalanx.data.cifar10().load()
    assert d.train_x.shape == (50_000, 3, 32, 32) and d.test_x.shape == (10_000, 3, 32, 32)
    assert d.train_y.bincount().tolist() == [5000] * 10 and d.test_y.bincount().tolist() == [1000] * 10
    assert d.train_y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    for c in range(3):
        assert moments(d.train_x[:, c]) == pytest.approx((d.mean[c], d.std[c]), abs=1e-3)
    small = phalanx.data.cifar10(train=100, test=10, size=16).load()
    assert small.train_x.shape == (100, 3, 16, 16)
    assert torch.equal(small.train_y, d.train_y[::500])


@pytest.mark.data
def test_real_movie_review():
    d = phalanx.data.movie_review().load()
    place = Path(phalanx.data.movie_review().location())
    md5 = {"rt-polarity.neg": "1e35b7f7c5df24a135ca62b8eecded53", "rt-polarity.pos": "afcc7ff580b3b4df4bdb6528e6558ab5"}
    for name, want in md5.items():
        assert hashlib.md5((place / name).read_bytes()).hexdigest() == want
    assert d.train_x.shape == (9596, 56) and d.test_x.shape == (1066, 56)
    lengths = torch.cat([d.train_x, d.test_x]).ne(0).sum(dim=1)
    assert (int(lengths.min()), int(lengths.max())) == (1, 56)  # as Kim's code finds
    words = {w for name in md5 for line in movie_review._sentences(place / name) for w in tokens(line)}
    assert len(words) == 18_765  # of all sentences; Kim, Table 1
    # every id but that of unknown words
    assert d.vocabulary == 1 + len(d.train_x.unique()) == 1 + int(d.train_x.max()) == 17_798
    assert 0.03 < float((d.test_x == 1).sum() / (d.test_x > 0).sum()) < 0.06
