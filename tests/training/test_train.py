"""The training loop: interruption at any moment, resume, lost rounds, accusations, phases."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import nn

import phalanx as px
from phalanx.attacks.alie import Alie
from phalanx.core.trees import flatten, keep_local_memories, unflatten
from phalanx.models.model import Model
from phalanx.training.model_state import fingerprint
from phalanx.training.run_folder import NEWEST, PREVIOUS
from phalanx.training.trainer import Trainer

RUN = (
    "run(digits(), mlp(hidden=(16,)), phases=("
    "phase(gradient(batch=60), {scheme}, sgd(lr=0.1, momentum=0.9), rounds={rounds}), "
    "phase(gradient(batch=40), chain(gather(dense()), median()), adam(lr=0.01), rounds=5)), workers=6, "
    "byzantine=random(1), evaluate_every=7, checkpoint_every=3, seed=1)"
)
SCHEME = "chain(momentum(0.9), reverse(), noise(0.001), gather(error_feedback(half())), krum(f=1))"


def text(rounds: int = 20, scheme: str = SCHEME) -> str:
    return RUN.format(rounds=rounds, scheme=scheme)


@pytest.mark.processes
def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    run = text(rounds=150)
    whole = px.train(px.parse(run), folder=px.training.RunFolder(tmp_path / "whole"))
    folder = tmp_path / "killed"
    chance = random.Random(0)
    job = [sys.executable, str(Path(__file__).parent / "job_killed.py"), run, str(folder)]
    kills = 0
    for attempt in range(12):
        process = subprocess.Popen(job, start_new_session=True)
        try:
            if attempt < 3:
                # not before there is something to lose
                deadline = time.monotonic() + 60
                before = _lines(folder)
                while _lines(folder) == before and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(chance.uniform(0, 0.2))
                process.send_signal(signal.SIGKILL)
            process.wait(timeout=120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills >= 2
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["weights_sha256"] == fingerprint(whole.model)
    metrics = px.training.RunFolder(folder).metrics()
    assert [line["step"] for line in metrics] == list(range(155))
    timeless = [{k: v for k, v in line.items() if not k.endswith("_s")} for line in metrics]
    there = px.training.RunFolder(tmp_path / "whole").metrics()
    assert timeless == [{k: v for k, v in line.items() if not k.endswith("_s")} for line in there]
    assert summary["accused"] == whole.worker_stats.table()


def _lines(folder: Path) -> int:
    file = folder / "checkpoint.safetensors"
    return file.stat().st_mtime_ns if file.exists() else 0


@pytest.mark.parametrize("stop_at", [0, 2, 3, 19, 20, 21, 22])
def test_ctrl_c_leaves_a_run_that_resumes(tmp_path, stop_at):
    run = px.parse(text())
    whole = px.train(run)

    def listener(line):
        if line["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(px.Interrupted, match="stopped after round"):
        px.train(run, folder=px.training.RunFolder(tmp_path), listener=listener)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = px.train(run, folder=px.training.RunFolder(tmp_path))
    assert fingerprint(again.model) == fingerprint(whole.model)
    assert again.worker_stats.to_json() == whole.worker_stats.to_json()


def test_a_folder_holds_one_run(tmp_path):
    px.train(px.parse(text(rounds=1)), folder=px.training.RunFolder(tmp_path))
    with pytest.raises(ValueError, match="holds another run"):
        px.train(px.parse(text(rounds=2)), folder=px.training.RunFolder(tmp_path))
    assert px.training.RunFolder(tmp_path).config == repr(px.parse(text(rounds=1)))


def test_too_few_workers_is_an_error_before_the_first_round():
    with pytest.raises(ValueError, match=r"krum needs n >= 2f \+ 3 rows, got n=6, f=2"):
        px.train(px.parse(text(scheme="chain(gather(dense()), krum(f=2))")))


@pytest.mark.parametrize(
    "scheme", ["chain(gather(dense()), nnm(f=1))", "mean()", "chain(gather(dense()), reduce(dense()), mean())"]
)
def test_a_scheme_crosses_one_wire_to_one_row(scheme):
    with pytest.raises(ValueError, match=r"exactly once|one update|stands behind"):
        px.train(px.parse(text(scheme=scheme)))


def test_rounds_without_enough_rows_are_lost_and_the_run_goes_on():
    run = px.parse(text(rounds=3, scheme="chain(nan(), gather(dense()), krum(f=1))"))
    run = px.training.amend(run, "byzantine", px.adversary.workers((0, 1, 2, 3)))
    lines = []
    trainer = px.train(run, listener=lines.append)
    # two rows are left of six: krum needs three even when all faults are known; the second phase's median needs one
    assert [bool(line["lost"]) for line in lines] == [True] * 3 + [False] * 5
    assert trainer.worker_stats.lost_rounds == 3
    assert all(line["excluded"] == dict.fromkeys("0123", "NaN") for line in lines[:3])


@pytest.mark.parametrize("scheme", ["chain(gather(qsgd()), mean())", "chain(reduce(dense()))", "chain(power_sgd())"])
def test_the_parts_of_a_round_are_timed(scheme):
    lines = []
    trainer = px.train(px.parse(text(rounds=3, scheme=scheme)), listener=lines.append)
    for line in lines[:3]:
        parts = [line[part] for part in ("encode_s", "wire_s", "decode_s")]
        assert min(parts) > 0 and sum(parts) <= line["scheme_s"]
    assert trainer.summary()["encode_s"] > 0


def test_what_the_adversary_takes_for_itself_is_no_part_of_a_round(monkeypatch):
    spent, plain, real = [0.0], Alie.forge, time.perf_counter

    def thoughtful(self, *args):
        spent[0] += 1e6
        return plain(self, *args)

    monkeypatch.setattr(Alie, "forge", thoughtful)
    monkeypatch.setattr(time, "perf_counter", lambda: real() + spent[0])
    run = px.parse(text(rounds=3, scheme="chain(alie(), gather(dense()), mean())"))
    lines = []
    px.train(px.training.amend(run, "byzantine", px.adversary.workers((2,))), listener=lines.append)
    for line in lines[:3]:
        assert line["attack_s"] >= 1e6
        assert 0 < line["work_s"] + line["scheme_s"] + line["finish_s"] < 1e5
    px.train(run, listener=lines.append)
    assert lines[-1]["attack_s"] == 0


def test_one_bad_row_spoils_a_blind_mean_and_the_run_says_so():
    run = px.training.amend(
        px.parse(text(rounds=3, scheme="chain(nan(), reduce(dense()))")), "byzantine", px.adversary.workers((2,))
    )
    lines = []
    trainer = px.train(run, listener=lines.append)
    assert [line["lost"] for line in lines[:3]] == ["the update is not finite"] * 3
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_accusations_are_right_about_a_loud_adversary():
    run = px.training.amend(
        px.parse(text(scheme="chain(reverse(), gather(dense()), median())")), "byzantine", px.adversary.workers((4,))
    )
    run = px.training.amend(run, "phases.1.rounds", 0)
    trainer = px.train(run)
    # of five rows with batches of twelve, the spread is known so badly that some rounds tell nothing
    assert set(trainer.worker_stats.accused) == {4} and trainer.worker_stats.accused[4] >= 12
    assert trainer.worker_stats.recall >= 0.6 and trainer.worker_stats.precision == 1.0


@px.method("norm_mlp", "model")
class NormMlp(Model):
    """A small network with BatchNorm."""

    def build(self, shape, num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))


@px.method("toy_texts", "data")
class ToyTexts(px.data.Data):
    """Five words, the label is whether one of them is word 2."""

    def read(self) -> px.data.Dataset:
        x = torch.randint(3, 10, (600, 5), generator=torch.Generator().manual_seed(0))
        y = torch.arange(600) % 2
        x[torch.arange(600), torch.arange(600) % 5] = torch.where(y == 1, 2, 1)
        return px.data.Dataset("toy_texts", x[:500], y[:500], x[500:], y[500:], 2, vocabulary=10)

    def location(self) -> str:
        return "in this test"


TEXTS = "run(toy_texts(), {model}, phases=(phase(gradient(batch=60), {scheme}, adam(lr=0.01), rounds=40),), workers=6)"


def test_texts_are_learnt():
    scheme = "chain(gather(dense()), median())"
    run = px.parse(TEXTS.format(model="cnn_rand(dim=8, maps=8, windows=(1, 2))", scheme=scheme))
    assert px.train(run).evaluate()[0] > 0.95
    with pytest.raises(ValueError, match=r"^crop_flip changes images, and the data are sequences of 5 token ids"):
        Trainer(px.training.amend(run, "augment", px.data.crop_flip()), px.LocalCollective(6))
    with pytest.raises(ValueError, match=r"^lenet reads images, and the data are sequences of 5 token ids"):
        Trainer(px.training.amend(run, "model", px.models.lenet()), px.LocalCollective(6))


def batch_norm_run(rule: str) -> Trainer:
    return px.train(
        px.parse(
            "run(digits(), norm_mlp(), phases=(phase(gradient(batch=60), "
            f"chain(constant(1e6), gather(dense()), {rule}), "
            "rounds=3),), workers=3, byzantine=workers((1,)))"
        )
    )


def test_batch_norm_statistics_travel_and_are_protected():
    trainer = batch_norm_run("median()")
    norm = trainer.model[2]
    assert trainer.layout.num_installed == 2
    assert 0 < norm.running_mean.abs().max() < 100
    assert norm.running_var.min() > 0 and norm.running_var.max() < 100
    assert batch_norm_run("mean()").model[2].running_mean.max() > 1e5


def test_redundant_work_is_computed_once_and_the_mean_of_votes_is_the_mean():
    scheme = "chain(gather(dense()), group_vote(r=3), mean())"
    run = px.training.amend(px.parse(text(scheme=scheme)), "byzantine", px.adversary.none())
    run = px.training.amend(px.training.amend(run, "optimizer", px.optim.sgd(lr=0.1)), "scheme", px.parse(scheme))
    voted = px.train(run)
    plain = px.train(px.training.amend(run, "scheme", px.parse("chain(gather(dense()), mean())")))
    for a, b in zip(voted.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_amend_reaches_every_field_and_lists_the_choices():
    run = px.parse(text())
    assert px.training.amend(run, "optimizer.lr", 0.5).phases[1].optimizer.lr == 0.5
    assert px.training.amend(run, "phases.0.optimizer.lr", 0.5).phases[1].optimizer.lr == 0.01
    assert px.training.amend(run, "phases.0.scheme.1.c", 5.0).phases[0].scheme.stages[1].c == 5.0
    assert px.training.amend(run, "byzantine.count", 0).byzantine == px.adversary.random(0)
    for path, message in [
        ("sheme", "did you mean scheme"),
        ("optimizer.rl", "sgd has no field 'rl'"),
        ("phases.7.rounds", "choose from 0 to 1"),
        ("seed.x", "has no fields"),
        ("workers", "a whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            px.training.amend(run, path, "x")


def test_memories_of_other_processes_are_left_out():
    state = {"0": {"worker:1": {"m": 1}, "worker:2": {"m": 2}, "row:2": {"m": 3}}, "1": {"x": 4}}
    assert keep_local_memories(state, (2,)) == {"0": {"worker:2": {"m": 2}, "row:2": {"m": 3}}, "1": {"x": 4}}


def test_flatten_round_trip():
    tree = {"a/b": {"c%": torch.ones(2), "d": None}, "e": 3, "f": {"g": "h"}}
    tensors, plain = flatten(tree)
    back = unflatten(tensors, plain)
    assert back["a/b"]["c%"].equal(torch.ones(2))
    assert {**back, "a/b": {"d": back["a/b"]["d"]}} == {"a/b": {"d": None}, "e": 3, "f": {"g": "h"}}


def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = px.training.RunFolder(tmp_path)
    px.train(px.parse(text(rounds=4)), folder=folder)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    (tmp_path / PREVIOUS).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        px.training.RunFolder(tmp_path).restore()


SHORT = (
    "run(digits(), mlp(hidden=(16,)), phases=(phase(gradient(batch=60), chain(momentum(0.9), gather(dense()), "
    "median()), sgd(lr=0.1), rounds=4),), workers=3, checkpoint_every=2, seed={seed})"
)


def saved(folder, seed=1):
    """A finished run with checkpoints after rounds 2 and 4."""
    px.train(px.parse(SHORT.format(seed=seed)), folder=px.training.RunFolder(folder))
    return folder / NEWEST


@pytest.mark.parametrize("where", ["head", "middle", "end"])
def test_one_flipped_bit_is_seen_and_the_checkpoint_before_is_taken(tmp_path, caplog, where):
    whole = px.train(px.parse(SHORT.format(seed=1))).summary()["weights_sha256"]
    file = saved(tmp_path)
    content = bytearray(file.read_bytes())
    content[{"head": content.index(b"digest") + 12, "middle": len(content) // 2, "end": len(content) - 1}[where]] ^= 1
    file.write_bytes(content)
    (tmp_path / "summary.json").unlink()
    folder = px.training.RunFolder(tmp_path)
    with caplog.at_level("WARNING"):
        point = folder.restore()
    assert point is not None and point.step == 2 and [line["step"] for line in folder.metrics()] == [0, 1]
    assert len(caplog.records) == 1 and "goes on from the checkpoint before it, round 2" in caplog.text
    assert px.train(px.parse(SHORT.format(seed=1)), folder=folder).summary()["weights_sha256"] == whole


def test_two_damaged_checkpoints_are_refused_and_a_missing_one_is_none(tmp_path):
    file = saved(tmp_path)
    for each in (file, tmp_path / PREVIOUS):
        each.write_bytes(each.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        px.training.RunFolder(tmp_path).restore()
    file.unlink()
    (tmp_path / PREVIOUS).unlink()
    assert px.training.RunFolder(tmp_path).restore() is None


def edited(file, **changes):
    """The checkpoint with other words in its head, and tensors as they were."""
    with safe_open(str(file), framework="pt") as opened:
        about = dict(opened.metadata())
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    about |= {key: value for key, value in changes.items() if value is not None}
    file.write_bytes(to_bytes(tensors, {k: v for k, v in about.items() if changes.get(k, "") is not None}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": "3"}, "its digest is wrong"),
        ({"plain": "{}"}, "its digest is wrong"),
        ({"run": "another"}, "its digest is wrong"),
        ({"digest": None}, "lacks digest"),
        ({"step": None, "plain": None}, "lacks step, plain"),
        ({"format": "x" * 5000}, "holds format 'xxx"),
    ],
)
def test_an_edited_checkpoint_is_refused(tmp_path, changes, words):
    file = saved(tmp_path)
    (tmp_path / PREVIOUS).unlink()
    edited(file, **changes)
    with pytest.raises(ValueError, match=words) as caught:
        px.training.RunFolder(tmp_path).restore()
    assert len(str(caught.value)) < 500


def test_another_seed_s_checkpoint_is_refused(tmp_path):
    other = saved(tmp_path / "other", seed=9)
    file = saved(tmp_path / "mine")
    (tmp_path / "mine" / PREVIOUS).unlink()
    file.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=r"of another run or seed than config\.txt"):
        px.training.RunFolder(tmp_path / "mine").restore()


def test_what_a_killed_writer_left_is_cleaned_up(tmp_path):
    saved(tmp_path)
    part = tmp_path / f".{NEWEST}.12345.part"
    part.write_bytes(b"half")
    px.training.RunFolder(tmp_path).restore()
    assert not part.exists()


def test_tensorboard_events_on_request(tmp_path):
    px.train(px.parse(text(rounds=2)), folder=px.training.RunFolder(tmp_path, tensorboard=True))
    assert list((tmp_path / "events").glob("events.*"))


def test_two_runs_in_one_folder_are_refused(tmp_path):
    run = px.Run(
        px.data.digits(),
        px.models.mlp((8,)),
        (px.Phase(px.training.gradient(batch=40), px.parse("chain(gather(dense()), mean())"), px.optim.sgd(0.1), 3),),
        workers=4,
    )
    seen = []

    def listen(line):
        if line["step"] == 1:
            with pytest.raises(ValueError, match="being run by another process; wait until it ends"):
                px.train(run, folder=px.training.RunFolder(tmp_path))
            seen.append(line)

    px.train(run, folder=px.training.RunFolder(tmp_path), listener=listen)
    assert seen and len(px.training.RunFolder(tmp_path).metrics()) == 3
    # once it has ended the folder is free
    assert px.train(run, folder=px.training.RunFolder(tmp_path)).rounds_done == 3
