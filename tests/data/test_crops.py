# SPDX-License-Identifier: Apache-2.0
"""Random parts of images, resized and mirrored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from tests.cases import each


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.floats(0.001, 1),
    st.floats(0.001, 1),
    st.floats(1, 4),
    st.integers(0, 99),
)
def test_crops_lie_in_the_image_and_keep_area_and_ratio(height, width, a, b, ratio, seed):
    low, high = min(a, b), max(a, b)
    augment = px.data.resized_crop_flip(area=(low, high), ratio=ratio)
    boxes = [crop(height, width) for crop in augment.crops(3, torch.Generator().manual_seed(seed))]
    assert boxes == [crop(height, width) for crop in augment.crops(3, torch.Generator().manual_seed(seed))]
    for left, top, right, bottom in boxes:
        w, h = right - left, bottom - top
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert w <= h * ratio + 0.5 * (1 + ratio) and h <= w * ratio + 0.5 * (1 + ratio)
        middle = abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1
        # sides are rounded to whole pixels
        within = (w - 0.5) * (h - 0.5) <= high * height * width and (w + 0.5) * (h + 0.5) >= low * height * width
        assert within or middle


def test_crops_are_spread_over_areas_ratios_and_places():
    boxes = [crop(1000, 1000) for crop in px.data.resized_crop_flip().crops(4000, torch.Generator().manual_seed(0))]
    left, top, right, bottom = torch.tensor(boxes, dtype=torch.float64).T
    w, h = right - left, bottom - top
    area, slant = w * h / 1e6, (w / h).log()
    # a part of area A fits with probability min(1, -log A / log(4/3)), else another is drawn
    assert area.mean() == pytest.approx(0.4778, abs=0.015) and area.min() < 0.1 and area.max() > 0.95
    assert slant.mean().abs() < 0.02 and slant.min() < -0.28 and slant.max() > 0.28
    assert (left - (1000 - right)).mean().abs() < 12 and (top - (1000 - bottom)).mean().abs() < 12


@each("fields", ["area=(0, 1)", "area=(0.5, 0.4)", "area=(0.5, 1.1)", "ratio=0.9", "ratio=inf"])
def test_crops_out_of_range(fields):
    with pytest.raises(ValueError, match="resized_crop_flip needs"):
        px.parse(f"resized_crop_flip({fields})")


def test_tensors_of_images_are_cropped_alike():
    d = px.data.digits().load()
    x = d.train_x[:5].float()
    whole = d.train(slice(0, 5), [lambda h, w: (0, 0, w, h)] * 5)[0]
    torch.testing.assert_close(whole, d.inputs(x))
    corner = d.train(slice(0, 5), [lambda h, w: (0, 0, 1, 1)] * 5)[0]
    torch.testing.assert_close(corner, d.inputs(x[..., :1, :1]).expand(-1, -1, 8, 8))
    phase = px.Phase(
        px.training.gradient(batch=60), px.parse("chain(gather(dense()), mean())"), px.optim.sgd(0.1), rounds=30
    )
    run = px.Run(
        px.data.digits(), px.models.mlp(), (phase,), workers=2, augment=px.data.resized_crop_flip(area=(0.6, 1))
    )
    assert px.train(run).summary()["accuracy"] > 0.5


@pytest.mark.parametrize("augment", [px.data.crop_flip(0), px.data.resized_crop_flip()])
def test_half_of_the_images_are_mirrored(augment):
    x = torch.rand(400, 3, 2, 5)
    y = augment(x, torch.Generator().manual_seed(1))
    same, mirrored = (y == x).all(dim=(1, 2, 3)), (y == x.flip(3)).all(dim=(1, 2, 3))
    assert (same ^ mirrored).all() and 150 < int(mirrored.sum()) < 250
