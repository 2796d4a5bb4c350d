# SPDX-License-Identifier: Apache-2.0
import pytest
from tests.data.test_images import fill, folder

import phalanx as px
from phalanx.data.dataset import _load
from phalanx_experiments.recipes.pufferfish_imagenet import configured, hybrid


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    yield fill(tmp_path / "photos")
    _load.cache_clear()


def test_the_imagenet_recipe_runs_on_a_folder(root):
    made = configured(folder(size=32), px.models.resnet50(stem="large"), hybrid(1 / 2), rounds=2, batch=4)
    trainer = px.train(made)
    assert trainer.summary()["rounds"] == 2 and trainer.worker_stats.lost_rounds == 0
    # as published, with three classes where ImageNet has 1,000
    assert trainer.summary()["parameters"] == 15_202_344 - 997 * 2049
