# SPDX-License-Identifier: Apache-2.0
"""Wrong inputs in Python: each is a ValueError of one sentence that names the object, the numbers and the way out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import phalanx as px
from tests.cases import each
from tests.sentences import RUN, fits, with_scheme

ROWS = torch.zeros(5, 4)
NET = nn.Sequential(nn.Linear(3, 2))


def trained(run: str) -> Callable[[], Any]:
    return lambda: px.train(px.parse(run))


EXPRESSIONS = [
    ("", "an expression is empty; write one such as krum(f=2)"),
    (
        "trimed_mean(f=1)",
        "unknown name 'trimed_mean'; did you mean trimmed_mean? choose from trimmed_mean, $ in all); "
        "a name of your own needs its module, as in phalanx run --import MODULE (character 1)\n"
        "  trimed_mean(f=1)\n  ^",
    ),
    (
        "gather(dens())",
        "unknown name 'dens'; did you mean dense? choose from atomo, chunked_dct, $ (character 8)\n$",
    ),
    ("krum(g=2)", "krum has no field 'g'; choose from f (character 6)\n  krum(g=2)\n       ^"),
    ("krum()", "krum: missing a required argument: 'f'; its fields are f (character 1)\n  krum()\n  ^"),
    ("krum", "krum is called like a function: krum(...) (character 1)\n  krum\n  ^"),
    ("os.system('x')", "an expression holds names, literals and calls only (character 1)\n  os.system('x')\n  ^"),
    ("chain(mean()", "not an expression: '(' was never closed (character 6)\n  chain(mean()\n       ^"),
    ("1" * 30_000, "an expression has at most 20000 characters, got 30000"),
]

METHODS = [
    (lambda: px.aggregators.krum(f="two"), "krum: f must be a whole number, got 'two'"),  # type: ignore[arg-type]
    (lambda: px.aggregators.krum(f=-1), "krum needs f >= 0, got f=-1"),
    (
        lambda: px.aggregators.krum(f=3).aggregate(ROWS),
        "krum needs n >= 2f + 3 rows, got n=5, f=3; take more workers or a smaller f",
    ),
    (
        lambda: px.aggregators.bulyan(f=1).aggregate(ROWS),
        "bulyan needs n >= 4f + 3 rows, got n=5, f=1; take more workers or a smaller f",
    ),
    (
        lambda: px.aggregators.median().aggregate(ROWS * float("nan")),
        "median needs n > 2f rows, got n=0, f=0; 5 were left out, missing or not finite",
    ),
    (lambda: px.aggregators.median().aggregate(ROWS[0]), "median takes rows of shape (n, d), got (4,)"),
    (
        lambda: px.aggregators.median().aggregate(ROWS.long()),
        "median takes floating-point rows, got torch.int64; convert them first",
    ),
    (
        lambda: px.aggregators.median().aggregate(ROWS, weights=torch.ones(2)),
        "median takes one weight a row, got 2 weights for n=5 rows",
    ),
    (lambda: px.coding.repetition(r=2), "repetition needs an odd r >= 1, got r=2"),
    (lambda: px.coding.vote(px.codecs.dense(), r=0), "vote needs r >= 1, got r=0"),
    (lambda: px.optim.sgd(-0.1), "sgd needs lr > 0, got lr=-0.1"),
    (lambda: px.optim.sgd(0.1, momentum=1.5), "sgd needs momentum in [0, 1), got momentum=1.5"),
    (lambda: px.codecs.qsgd(bits=0), "qsgd needs 1 to 8 bits, got bits=0"),
    (lambda: px.codecs.top_k(1.5), "top_k needs 0 < ratio <= 1, got ratio=1.5"),
    (lambda: px.lowrank.power_sgd(rank=0), "power_sgd needs rank >= 1, got rank=0"),
    (lambda: px.clip(0), "clip needs a finite norm > 0, got norm=0"),
    (lambda: px.attacks.alie(z=float("nan")), "alie needs a finite z, got z=nan"),
    (lambda: px.data.dirichlet(0), "dirichlet needs alpha in (0, 1e6], got alpha=0"),
    (lambda: px.reduce(px.codecs.sign()), "reduce needs a linear codec, and sign() is not; use gather(sign()), mean()"),
    (
        lambda: px.gather(px.aggregators.mean()),  # type: ignore[arg-type]
        "gather: codec must be an object of Codec, such as atomo(...) or chunked_dct(...), or a class of your own with "
        "@method(name, 'codec'), got mean()",
    ),
    (
        lambda: px.Run(px.data.digits(), NET, ()),  # type: ignore[arg-type]
        "run: model must be an object of Model, such as alexnet(...) or char_lstm(...), or a class of your own with "
        "@method(name, 'model'), got Sequential( (0): Linear(in_features=3, out_features=2, bias=True) )",
    ),
    (
        lambda: px.aggregators.median().aggregate([{"weight": object()}]),  # type: ignore[list-item]
        "median takes states of tensors by name, and none of the 1 can be read",
    ),
    (
        lambda: px.aggregators.median().aggregate(NET.state_dict()),  # type: ignore[arg-type]
        "median takes rows as a tensor, an array or a list of these, got OrderedDict",
    ),
    (
        lambda: px.aggregators.krum(f=1).aggregate([None]),  # type: ignore[list-item]
        "krum takes a tensor for each row, got NoneType ($)",
    ),
    (
        lambda: px.chain(px.codecs.dense()),  # type: ignore[arg-type]
        "a chain holds stages, got dense(); a codec goes inside gather(...) or reduce(...)",
    ),
    (
        lambda: px.Layout(("a",), (torch.Size([2, 3]),)).split(torch.zeros(2, 5)),
        "rows of length 5 do not fit a layout of length 6",
    ),
]

RUNS = [
    (
        with_scheme("chain(krum(f=0))"),
        "a scheme crosses the wire exactly once, and chain(krum(f=0)) does 0 times; "
        "write gather(codec) or reduce(codec) once",
    ),
    (
        with_scheme("chain(gather(dense()))"),
        "chain(gather(dense())) ends with 3 rows where one update belongs; end it with mean() or a robust rule",
    ),
    (
        with_scheme("chain(cyclic(s=2))"),
        "cyclic needs n > 2s workers, got n=3, s=2; take more workers or a smaller s",
    ),
    (
        with_scheme("chain(gather(dense()), trimmed_mean(f=2))"),
        "trimmed_mean needs n > 2f rows, got n=3, f=2; take more workers or a smaller f",
    ),
    (
        RUN.replace("workers=3", "workers=3, byzantine=evenly_spaced(7)"),
        "evenly_spaced(7) needs at least 7 workers, got n=3 (character 1)\n$",
    ),
    (
        RUN.replace("workers=3", "workers=3, byzantine=workers((9,))"),
        "workers names [9], and there are workers 0 to 2 (character 1)\n$",
    ),
    (
        RUN.replace("mlp(hidden=())", "tied_lstm()"),
        "tied_lstm reads passages, and the data are 1x8x8 images; choose cnn() or mlp()",
    ),
    (
        RUN.replace("batch=30", "batch=300000"),
        "a batch of 300000 is more than the 1437 samples there are; lower the batch",
    ),
    (
        RUN.replace("batch=30", "batch=2"),
        "a batch of 2 leaves some of 3 units without a sample; raise the batch to 3 or more",
    ),
    (
        RUN.replace("workers=3", "workers=3, precision='fp8'"),
        "run: precision must be 'float32' or 'bf16', got 'fp8' (character 1)\n$",
    ),
    (
        RUN.replace("rounds=3", "rounds=3, secure=True"),
        "secure=True shows the server the sum of the rows only, and gather(dense()) hands them to its gate one by one; "
        "write reduce(dense()) in place of it and mean()",
    ),
    (
        with_scheme("chain(gather(dense()), krum(f=1))").replace("rounds=3", "rounds=3, secure=True"),
        "secure=True shows the server the sum of the rows only, and krum(f=1) needs them one by one; let the workers "
        "clip, as in chain(clip(norm=1.0), reduce(dense())), or leave secure=True out",
    ),
    (
        RUN.replace("workers=3", "workers=3, observers=(spectrum(layer='nothing'),)"),
        "spectrum: the model has no layer 'nothing'; choose from 1.weight",
    ),
]

NETWORKS = [
    (
        lambda: px.ddp.register(NET, "chain(gather(dense()), mean())"),  # type: ignore[arg-type]
        "register takes a model wrapped in DistributedDataParallel, got Sequential; wrap it first",
    ),
    (lambda: px.DiLoCo(NET, every=0), "outer steps come every >= 1 local steps, got every=0"),
    (lambda: px.sdc.check(NET, every=0), "an audit needs every >= 1, got every=0"),
    (
        lambda: px.factorize(NET, "1/4"),  # type: ignore[arg-type]
        "plan needs a ratio as a number, such as 1 / 4, got ratio='1/4'",
    ),
    (
        lambda: px.factorize({}),  # type: ignore[arg-type]
        "factorize takes a torch module, got dict",
    ),
    (
        lambda: px.match_models([NET, NET], {"x": ROWS}),  # type: ignore[arg-type]
        "match_models takes a tensor as example_input, got dict; a model with other inputs goes into a module whose "
        "forward takes one tensor",
    ),
    (
        lambda: px.exchange(NET, "chain(gather(dense()), mean())", world=px.LocalCollective(1)).load_state_dict({}),
        "the state lacks scheme, $, ledger; load what state_dict() returned, or begin without",
    ),
    (lambda: px.factorize(NET, 1.5), "plan needs a ratio in (0, 1], got ratio=1.5"),
    (lambda: px.lowrank.plan(NET, 0.5, keep=("nolayer",)), "keep='nolayer' fits no layer; the layers are 0"),
    (lambda: px.lowrank.Plan.from_yaml("a: 1"), "the plan has no list of layers; start from plan(model).to_yaml()"),
    (
        lambda: px.matching.match([[ROWS], [ROWS]]),  # type: ignore[arg-type]
        "match takes one layer of each client, (neurons, weights), as a tensor, got list",
    ),
    (
        lambda: px.matching.match([ROWS, torch.zeros(3, 5)]),
        "bbp needs neurons of one width, got 5 entries from client 1 and 4 from client 0",
    ),
    (
        lambda: px.match_models([NET, nn.Linear(4, 2)], torch.zeros(1, 3)),
        "Linear cannot take an example of shape (1, 3) ($); give one that fits",
    ),
    (
        lambda: px.encode(ROWS, px.codecs.dense(), seed=0),  # type: ignore[arg-type]
        "encode takes a codec and a tensor, got Tensor and Dense",
    ),
    (lambda: px.decode(px.codecs.dense(), b"abc"), "not a coded tensor of phalanx"),
    (
        lambda: px.decode(px.codecs.dense(), px.encode(px.codecs.dense(), ROWS, seed=0)[:-3]),
        "$ bytes that were damaged, cut or lengthened: their digest is wrong",
    ),
    (
        lambda: px.training.amend(px.parse(RUN), "optimizer.lrr", 0.1),
        "optimizer.lrr: sgd has no field 'lrr'; did you mean lr? choose from lr, momentum, weight_decay, $",
    ),
]


def said(wrong: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as raised:
        wrong()
    return str(raised.value)


@each(("text", "sentence"), EXPRESSIONS)
def test_expressions(text: str, sentence: str) -> None:
    assert fits(said(lambda: px.parse(text)), sentence)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@each(("wrong", "sentence"), METHODS + NETWORKS)
def test_calls(wrong: Callable[[], Any], sentence: str) -> None:
    assert fits(said(wrong), sentence), said(wrong)


@pytest.mark.parametrize(("run", "sentence"), RUNS)
def test_runs(run: str, sentence: str) -> None:
    assert fits(said(trained(run)), sentence), said(trained(run))


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    monkeypatch.setattr("pooch.retrieve", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    assert fits(
        said(px.data.mnist().load),
        f"mnist is not in {tmp_path}/MNIST/raw and cannot be downloaded (OSError: no network); set PHALANX_DATA to a "
        "folder that has it, connect to the network so that it is downloaded at its first use, or use digits(), which "
        "is part of scikit-learn",
    )
    assert fits(
        said(lambda: px.lowrank.from_pretrained(tmp_path, NET)),
        f"{tmp_path} holds no model.safetensors; give a folder that save_pretrained wrote",
    )
    (tmp_path / "model.safetensors").write_bytes(b"\x05\x00")
    assert fits(
        said(lambda: px.lowrank.from_pretrained(tmp_path, NET)),
        f"{tmp_path}/model.safetensors is not a whole file ($); save the model again",
    )
    once, other = px.parse(RUN), px.parse(RUN.replace("sgd(0.1)", "sgd(0.2)"))
    folder = tmp_path / "run"
    px.train(once, folder=px.training.RunFolder(folder))
    assert fits(
        said(lambda: px.train(other, folder=px.training.RunFolder(folder))),
        f"{folder} holds another run; give a new folder, or resume that run unchanged",
    )


@pytest.mark.data
def test_a_data_file_that_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = px.data.locations()["mnist"]
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in Path(whole).iterdir():
        with file.open("rb") as source:
            (raw / file.name).write_bytes(source.read(1000))
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    wanted = f"{raw}/train-images-idx3-ubyte says 60000 x 28 x 28 = 47040000 bytes and holds 984; $ fetch it again"
    assert fits(said(px.data.mnist().load), wanted)
