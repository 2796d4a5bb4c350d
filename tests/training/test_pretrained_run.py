# SPDX-License-Identifier: Apache-2.0
"""A run that begins with the model that another run ended with."""

from importlib import import_module

import pytest
import torch

import phalanx as px
from phalanx.training.pretrained import _weights

FIRST = px.Run(
    px.data.digits(),
    px.models.mlp((8,)),
    (px.Phase(px.training.gradient(16), px.reduce(px.codecs.dense()), px.optim.sgd(0.1), 5),),
    workers=1,
    seed=3,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    _weights.cache_clear()
    return tmp_path


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_run_begins_where_the_other_ended_whatever_its_seed(folder, capsys):
    end = weights(px.train(FIRST).model)
    for seed in (0, 1):
        rounds = px.Phase(px.training.gradient(16), px.reduce(px.codecs.dense()), px.optim.sgd(0.1), 0)
        assert weights(
            px.train(px.Run(px.data.digits(), px.training.pretrained(FIRST), (rounds,), seed=seed)).model
        ).equal(end)
    assert capsys.readouterr().err.count("once") == 1
    _weights.cache_clear()
    assert weights(px.training.pretrained(FIRST).build((1, 8, 8), 10)).equal(end)
    assert not capsys.readouterr().err
    assert px.parse(repr(px.training.pretrained(FIRST))) == px.training.pretrained(FIRST)


def test_a_seed_draws_its_own_start_and_draws_it_again(folder):
    rounds = px.Phase(px.training.gradient(16), px.reduce(px.codecs.dense()), px.optim.sgd(0.1), 0)
    drawn = px.training.pretrained(FIRST, drawn=True)
    ends = [weights(px.train(px.Run(px.data.digits(), drawn, (rounds,), seed=seed)).model) for seed in (0, 1, 0)]
    assert ends[0].equal(ends[2]) and not ends[0].equal(ends[1])
    assert len(list((folder / "trained").iterdir())) == 2


def test_one_that_was_stopped_goes_on(folder, monkeypatch):
    end = weights(px.train(FIRST).model)
    monkeypatch.setattr(px.training.RunFolder, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        px.training.pretrained(FIRST).build((1, 8, 8), 10)
    monkeypatch.undo()
    monkeypatch.setenv("PHALANX_DATA", str(folder))
    assert weights(px.training.pretrained(FIRST).build((1, 8, 8), 10)).equal(end)


def test_a_folder_of_another_checkpoint_format_counts_as_absent(folder, monkeypatch, capsys):
    with monkeypatch.context() as older:
        for name in ("run_folder", "pretrained"):
            older.setattr(import_module(f"phalanx.training.{name}"), "FORMAT", "phalanx-checkpoint-0")
        start = weights(px.training.pretrained(FIRST).build((1, 8, 8), 10))
    _weights.cache_clear()
    assert weights(px.training.pretrained(FIRST).build((1, 8, 8), 10)).equal(start)
    assert capsys.readouterr().err.count("once") == 2
    assert len(list((folder / "trained").iterdir())) == 2


def test_what_does_not_fit_is_refused(folder):
    with pytest.raises(ValueError, match="and the data of this run"):
        px.training.pretrained(FIRST).build((1, 28, 28), 10)
    with pytest.raises(ValueError, match="keep the shape"):
        px.training.pretrained(px.training.amend(FIRST, "phases.0.surgery", px.lowrank.pufferfish()))
    (folder / "file").write_text("")
    with pytest.raises(ValueError, match="set PHALANX_DATA to a folder that can"):
        _weights(FIRST, str(folder / "file"))
