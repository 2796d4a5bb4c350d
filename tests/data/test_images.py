# SPDX-License-Identifier: Apache-2.0
"""Folders of image files, read when a batch asks for them."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import phalanx as px
from phalanx.data.dataset import Dataset, _load
from phalanx.data.images import Images
from phalanx.training.model_state import fingerprint
from phalanx.training.score import assess

SIZES = [(40, 30), (17, 23), (64, 20), (9, 50), (31, 31)]
CLASSES = ("ant", "bee", "cat")


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Smooth, so that the JPEG is near it, and coloured by its seed."""
    g = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(1, 3, 3, 3, generator=g)
    levels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return Image.fromarray(levels[0].permute(1, 2, 0).to(torch.uint8).numpy())


def fill(root: Path) -> Path:
    for part, each in (("train", 5), ("val", 2)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(each):
                image = picture(10 * label + i, *SIZES[(label + i) % len(SIZES)])
                image.save(root / part / name / f"{name}_{i}.JPEG", quality=95)
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    yield fill(tmp_path / "photos")
    _load.cache_clear()


def folder(**fields):
    return px.data.image_folder(root="photos", size=fields.pop("size", 16), **fields)


def test_classes_are_folders_in_order_and_labels_are_at_hand(root):
    (root / "train" / ".cache").mkdir()
    (root / "val" / "ant" / ".hidden").write_bytes(b"")
    d = folder().load()
    assert d.shape == (3, 16, 16) and d.num_classes == 3
    assert d.train_y.tolist() == [0] * 5 + [1] * 5 + [2] * 5 and d.test_y.tolist() == [0, 0, 1, 1, 2, 2]
    assert isinstance(d.train_x, Images) and d.train_x.shape == (15, 3, 16, 16)
    x, y = d.train(torch.tensor([14, 0]))
    assert x.shape == (2, 3, 16, 16) and x.dtype == torch.float32 and y.tolist() == [2, 0]
    assert torch.equal(d.train(slice(14, 15))[0][0], x[0]) and d.train(slice(3, 3))[0].shape == (0, 3, 16, 16)
    some = folder(train=3, test=6).load()
    assert some.train_y.tolist() == [0, 1, 2] and len(some.test_y) == 6
    assert folder().location() == str(root)
    assert px.data.image_folder(root=str(root), size=16).read().num_classes == 3


def test_a_test_part_may_lack_classes(root):
    shutil.rmtree(root / "val" / "ant")
    assert folder().load().test_y.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("size", [16, 224])
def test_the_test_sees_the_middle_of_the_resized_image(root, size):
    levels = folder(size=size).load().test_x[slice(None)]
    for i, got in enumerate(levels):
        label, of_class = divmod(i, 2)
        with Image.open(root / "val" / CLASSES[label] / f"{CLASSES[label]}_{of_class}.JPEG") as image:
            short = round(size * 256 / 224)
            w, h = (short * side // min(image.size) for side in image.size)
            whole = image.resize((w, h), Image.Resampling.BILINEAR)
        left, top = round((w - size) / 2), round((h - size) / 2)
        want = whole.crop((left, top, left + size, top + size))
        want = torch.tensor(list(want.tobytes())).view(size, size, 3).permute(2, 0, 1)
        assert (got.int() - want).abs().max() <= 1


def test_channels_are_normalised_by_imagenets_mean_and_deviation(root):
    d = folder().load()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    want = (d.test_x[slice(None)] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(d.test(slice(None))[0], want)


@pytest.mark.parametrize(
    ("mode", "end"), [("L", "JPEG"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "bmp"), ("LA", "PNG")]
)
def test_every_file_becomes_rgb(root, mode, end):
    image = picture(3, 40, 30).convert(mode)
    image.save(root / "train" / "ant" / f"0.{end}", **({"quality": 95} if end in ("JPEG", "jpg") else {}))
    seen = folder().load().train_x[torch.tensor([0])]
    want = image.convert("RGB").resize((18, 18), Image.Resampling.BILINEAR)
    assert seen.shape == (1, 3, 16, 16) and seen.dtype == torch.uint8
    assert abs(float(seen.float().mean()) - sum(want.tobytes()) / len(want.tobytes())) < 12
    if mode == "L":
        assert (seen - seen[:, :1]).abs().max() == 0


def test_files_are_read_when_a_batch_asks_for_them(root):
    d = folder().load()
    shutil.rmtree(root / "train" / "cat")
    assert d.train(torch.arange(10))[0].shape == (10, 3, 16, 16)
    with pytest.raises(ValueError, match=r"cat_0.JPEG is no image that can be read \(FileNotFoundError"):
        d.train(torch.tensor([3, 10]))


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "wide":
        Image.new("I;16", (20, 20)).save(path, format="PNG")
        return
    path.write_bytes({"text": b"not an image", "empty": b"", "cut": data[: len(data) // 2], "html": b"<html>"}[how])


@pytest.mark.parametrize("how", ["text", "empty", "cut", "html", "wide"])
def test_a_damaged_file_is_named(root, how):
    path = root / "train" / "bee" / "bee_2.JPEG"
    damaged(path, how)
    d = folder().load()
    words = "more than 8 bits" if how == "wide" else "no image that can be read"
    for crops in (None, px.data.resized_crop_flip().crops(1, torch.Generator())):
        with pytest.raises(ValueError, match=words) as error:
            d.train(torch.tensor([7]), crops)
        assert str(path) in str(error.value) and "replace it or remove it" in str(error.value)


def stray(root: Path, how: str) -> None:
    if how == "notes":
        (root / "train" / "bee" / "notes.txt").write_text("hello")
    elif how == "flat":
        (root / "val" / "1.JPEG").write_bytes(b"")
    elif how == "nested":
        (root / "train" / "bee" / "more").mkdir()
    elif how == "unknown":
        (root / "val" / "dog").mkdir()
    elif how == "hollow":
        (root / "train" / "dog").mkdir()
    else:
        shutil.rmtree(root / "val")
        if how == "bare":
            (root / "val").mkdir()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("notes", r"notes.txt has no name of an image file, as a.jpeg is; remove it"),
        ("flat", r"1.JPEG is no folder; every image lies in the folder of its class"),
        ("nested", r"more is no file; remove it"),
        ("unknown", r"val.dog is no class, as .*train has no folder dog"),
        ("hollow", r"dog is empty; put its images there, or remove it"),
        ("no test", r"there is no folder .*val; ImageNet cannot be downloaded without an account"),
        ("bare", r"val has no folders of images"),
    ],
)
def test_a_folder_of_another_layout(root, how, words):
    stray(root, how)
    with pytest.raises(ValueError, match=words):
        folder().load()


def test_subsets_that_there_are_not(root):
    with pytest.raises(ValueError, match="image_folder has 15 train images, so train lies between 1 and 15"):
        folder(train=16).load()
    for expression in ("image_folder(size=0)", "image_folder(train=0)", "image_folder(test=-1)"):
        with pytest.raises(ValueError, match="image_folder needs"):
            px.parse(expression)


def test_without_pillow(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ValueError, match=r"image_folder needs Pillow; pip install 'phalanx-train\[images\]'"):
        folder().load()


def test_files_are_cut_before_they_are_resized(root):
    d = folder(size=8).load()
    box = (3, 5, 27, 29)
    with Image.open(root / "train" / "ant" / "ant_0.JPEG") as image:
        want = image.resize((8, 8), Image.Resampling.BILINEAR, box=box)
    want = torch.tensor(list(want.tobytes()), dtype=torch.uint8).view(1, 8, 8, 3).permute(0, 3, 1, 2)
    assert torch.equal(d.train(torch.tensor([0]), [lambda h, w: box])[0], d.inputs(want))


def test_several_threads_read_the_same_levels(root, threads):
    d, crops = folder().load(), px.data.resized_crop_flip().crops(15, torch.Generator())
    alone = d.train(torch.arange(15), crops)[0]
    threads(3)
    assert torch.equal(d.train(torch.arange(15), crops)[0], alone)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_large_images_are_tested_a_few_at_a_time():
    sizes = []

    class Black(Images):
        shape = torch.Size((250, 3, 224, 224))

        def __getitem__(self, samples):
            return torch.zeros(len(torch.arange(250)[samples]), 3, 224, 224, dtype=torch.uint8)

        def cut(self, samples, crops):
            return self[samples]

    class Watched(torch.nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return torch.zeros(len(x), 2)

    y = torch.zeros(250, dtype=torch.int64)
    mean = (0.0,) * 3, (1.0,) * 3
    assess(Watched(), Dataset("black", Black(), y, Black(), y, 2, *mean), torch.device("cpu"), "float32")
    assert sum(sizes) == 250 and max(sizes) * 3 * 224 * 224 <= 2**24 < (max(sizes) + 1) * 3 * 224 * 224


def test_texts_are_not_read_from_disk():
    class Nothing(Images):
        shape = torch.Size((2, 5))

        def __getitem__(self, samples):
            raise AssertionError

        def cut(self, samples, crops):
            raise AssertionError

    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="toy: train texts are a tensor of token ids, got Nothing"):
        Dataset("toy", Nothing(), y, Nothing(), y, 2, vocabulary=5)


def run_of(model, rounds=4, **fields):
    work = px.training.gradient(batch=6, smoothing=0.1)
    phase = px.Phase(work, px.parse("chain(gather(dense()), mean())"), px.optim.sgd(lr=0.02), rounds=rounds)
    return px.Run(folder(), model, (phase,), workers=2, augment=px.data.resized_crop_flip(), **fields)


def test_a_residual_network_trains_on_files_and_resumes_to_the_same_bits(root, tmp_path):
    run = run_of(px.models.resnet18(), checkpoint_every=2, partition=px.data.dirichlet(alpha=5.0))
    whole = px.train(run)
    assert 0 <= whole.summary()["accuracy"] <= 1 and whole.worker_stats.lost_rounds == 0

    def stop(line):
        if line["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(px.Interrupted):
        px.train(run, folder=px.training.RunFolder(tmp_path / "run"), listener=stop)
    resumed = px.train(run, folder=px.training.RunFolder(tmp_path / "run"))
    assert resumed.rounds_done == 4 and fingerprint(resumed.model) == fingerprint(whole.model)
    assert fingerprint(px.train(px.training.amend(run, "augment", None)).model) != fingerprint(whole.model)
    assert px.parse(repr(run)) == run


def test_a_network_learns_to_tell_the_files_apart(root):
    phase = px.Phase(
        px.training.gradient(batch=15), px.parse("chain(gather(dense()), mean())"), px.optim.adam(lr=0.01), rounds=40
    )
    run = px.Run(folder(), px.models.mlp(hidden=(32,)), (phase,), workers=3)
    trainer = px.train(run)
    # the test's files are the first two of each class
    assert trainer.summary()["accuracy"] == 1
