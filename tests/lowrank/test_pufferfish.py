# SPDX-License-Identifier: Apache-2.0
"""A run that becomes low-rank on its way: in the simulation, after a crash, over processes, with every scheme."""

from importlib import import_module

import pytest
import torch

import phalanx as px
from phalanx.lowrank.linear import LowRankLinear
from phalanx.training.model_state import fingerprint
from phalanx.training.trainer import Trainer
from tests.cases import each
from tests.distributed.launch import run_job
from tests.training.interrupted import stopped_and_resumed

RUN = (
    "run(digits(), mlp(hidden=(24, 24)), phases=(phase(gradient(batch=60), {scheme}, {optimizer}, rounds={rounds}, "
    "surgery={surgery}),), workers=6, evaluate_every=7, checkpoint_every=3, seed=1)"
)
MEAN = "chain(gather(dense()), mean())"
MOMENTUM = "sgd(lr=0.1, momentum=0.9, weight_decay=0.001, schedule=cosine())"
SURGERY = "pufferfish(warmup=0.5)"
AUTO = "pufferfish(warmup='auto', rank='auto', ratio=0.25, adapt=(0.75,), energy=0.9)"


def text(scheme=MEAN, optimizer=MOMENTUM, rounds=12, surgery=SURGERY):
    return repr(px.parse(RUN.format(scheme=scheme, optimizer=optimizer, rounds=rounds, surgery=surgery)))


def trained(**changes):
    lines = []
    return px.train(px.parse(text(**changes)), listener=lines.append), lines


def test_the_model_is_factorized_once_and_trains_on():
    trainer, lines = trained(rounds=60)
    told = {line["step"]: line["operated"] for line in lines if "operated" in line}
    # 64 -> 24 -> 24 -> 10; ranks 6 and 6; the classifier stays full
    assert told == {30: "pufferfish: 2,410 trained parameters become 1,114"}
    assert trainer.summary()["parameters"] == 1114 == 6 * (64 + 24) + 24 + 6 * (24 + 24) + 24 + 24 * 10 + 10
    low = [m for m in trainer.model.modules() if isinstance(m, LowRankLinear)]
    assert len(low) == 2
    # float32, and the number of examples behind each row
    assert [lines[i]["bytes_up"] for i in (29, 30)] == [6 * (4 * 2410 + 8), 6 * (4 * 1114 + 8)]
    assert trainer.summary()["accuracy"] > 0.8


def test_the_schedule_goes_on():
    run = px.parse(text(optimizer="sgd(lr=0.1, schedule=milestones(at=(0.25,)))"))
    rates = []

    def listener(line):
        del line
        rates.append(trainer.model_state.optimizer.param_groups[0]["lr"])

    trainer = Trainer(run, px.LocalCollective(6))
    trainer.run(listener=listener)
    assert rates == [0.1] * 3 + [pytest.approx(0.01)] * 9


@pytest.mark.parametrize("decay", ["factors", "product"])
@pytest.mark.parametrize("moments", ["step", "gradient", "fresh"])
@pytest.mark.parametrize("optimizer", [MOMENTUM, "adam(lr=0.01, weight_decay=0.001)"])
def test_it_learns_however_the_moments_are_carried(optimizer, moments, decay):
    surgery = f"pufferfish(warmup=0.5, moments='{moments}', decay='{decay}')"
    trainer, _ = trained(rounds=80, surgery=surgery, optimizer=optimizer)
    assert trainer.worker_stats.lost_rounds == 0
    assert trainer.summary()["accuracy"] > 0.8


def test_decay_of_the_product_differs_from_that_of_the_factors():
    ends = {fingerprint(trained(surgery=f"pufferfish(decay='{d}')")[0].model) for d in ("factors", "product")}
    assert len(ends) == 2


def test_from_scratch_means_the_spectrum_of_the_first_weights():
    trainer, lines = trained(rounds=1, surgery="pufferfish(warmup=0.0)", optimizer="sgd(lr=1e-30)")
    start = Trainer(px.parse(text()), px.LocalCollective(6)).model
    wanted = px.lowrank.merge(px.factorize(start, 1 / 4))
    for found, want in zip(px.lowrank.merge(trainer.model).parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(found, want, atol=1e-6)
    assert "operated" in lines[0]


SCHEMES = (
    "chain(gather(qsgd(bits=4)), mean())",
    "chain(gather(error_feedback(top_k(0.1))), mean())",
    "chain(power_sgd(rank=2))",
    "chain(gather(atomo(spectral(), budget=2)), mean())",
    "chain(momentum(0.9), gather(dense()), krum(f=1))",
    "chain(vote(qsgd(bits=4), r=3), mean())",
    "chain(cyclic(s=1))",
    "chain(reduce(dense()))",
)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_goes_on_with_the_new_rows(scheme):
    trainer, lines = trained(scheme=scheme)
    assert trainer.worker_stats.lost_rounds == 0
    if "rank" not in scheme and "spectral" not in scheme:  # which send as little of a thin matrix as of a full one
        sizes = [line["bytes_up"] for line in lines]
        assert max(sizes[7:]) < min(sizes[1:6])
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("stop_at", [1, 4, 5, 6, 8])
@pytest.mark.parametrize("decay", ["factors", "product"])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, stop_at, decay):
    scheme = "chain(momentum(0.5), gather(error_feedback(top_k(0.2))), mean())"
    run = px.parse(text(scheme=scheme, optimizer="adam(lr=0.01)", surgery=f"pufferfish(warmup=0.5, decay='{decay}')"))
    whole = px.train(run)

    again = stopped_and_resumed(run, tmp_path, stop_at)
    assert fingerprint(again.model) == fingerprint(whole.model)


def test_later_phases_go_on_with_the_low_rank_model(tmp_path):
    run = px.parse(text())
    (phase,) = run.phases
    later = px.Phase(phase.work, phase.scheme, px.optim.sgd(lr=0.01), rounds=5)
    run = px.training.amend(run, "phases", (phase, later))
    whole = px.train(run)
    assert whole.summary()["parameters"] == 1114

    assert fingerprint(stopped_and_resumed(run, tmp_path, 14).model) == fingerprint(whole.model)


RUNS = {
    "auto": text(rounds=40, surgery=AUTO),
    "dense": text(),
    "memory": text(
        scheme="chain(momentum(0.5), gather(error_feedback(top_k(0.2))), mean())", optimizer="adam(lr=0.01)"
    ),
    "vote": text(scheme="chain(vote(qsgd(bits=4), r=3), mean())", surgery="pufferfish(warmup=0.5, decay='product')"),
}


@pytest.mark.processes
def test_processes_end_with_the_bits_of_the_simulation(tmp_path):
    found = run_job(2, "job_train.py", {"runs": RUNS}, tmp_path)
    for label, expression in RUNS.items():
        assert found[label]["weights_sha256"] == px.train(px.parse(expression)).summary()["weights_sha256"], label


@pytest.mark.processes
def test_another_number_of_processes_goes_on_behind_the_surgery(tmp_path):
    runs = {"memory": RUNS["memory"]}
    first = run_job(3, "job_train.py", {"runs": runs, "stop_at": {"memory": 8}}, tmp_path)
    assert first["memory"] == {"interrupted": 8}
    second = run_job(2, "job_train.py", {"runs": runs}, tmp_path)
    assert second["memory"]["weights_sha256"] == px.train(px.parse(runs["memory"])).summary()["weights_sha256"]


@pytest.mark.processes
def test_a_server_s_workers_follow(tmp_path):
    task = {"runs": RUNS, "timeouts": {"least_s": 10.0, "factor": 3.0}}
    found = run_job(4, "job_server.py", task, tmp_path)
    for label, expression in RUNS.items():
        assert not any(line["excluded"] for line in found[label]["metrics"]), label
        assert found[label]["weights_sha256"] == px.train(px.parse(expression)).summary()["weights_sha256"], label


def test_the_warm_up_ends_when_the_ranks_have_settled(monkeypatch):
    # steps of nothing: the ranks stand still from the first look on, and are seen to do so at the fourth
    trainer, lines = trained(rounds=40, optimizer="sgd(lr=1e-30)", surgery="pufferfish(warmup='auto')")
    assert [line["step"] for line in lines if "operated" in line] == [3]
    monkeypatch.setattr(import_module("phalanx.lowrank.pufferfish"), "ranks_converged", lambda looks: False)
    trainer, lines = trained(rounds=40, surgery="pufferfish(warmup='auto')")
    assert [line["step"] for line in lines if "operated" in line] == [20]
    assert set(trainer.model_state.memories["0"]) == {"shape"}


def test_ranks_are_chosen_and_lowered_later():
    trainer, lines = trained(rounds=80, surgery=AUTO)
    told = {line["step"]: line["operated"] for line in lines if "operated" in line}
    assert len(told) == 2 and max(told) == 60
    before, after = (int(told[step].split()[-1].replace(",", "")) for step in sorted(told))
    assert trainer.summary()["parameters"] == after < before <= 1114
    assert trainer.summary()["accuracy"] > 0.7


def test_ranks_that_would_save_nothing_leave_the_model_as_it_is():
    # as high as the stable ranks ask for, factors are larger than these small matrices
    trainer, lines = trained(rounds=40, surgery="pufferfish(warmup='auto', rank='auto', ratio=None)")
    assert not any("operated" in line for line in lines)
    assert trainer.summary()["parameters"] == 2410


@pytest.mark.parametrize("stop_at", [2, 14, 31])
def test_a_run_that_chooses_by_itself_resumes_to_the_same_bits(tmp_path, stop_at):
    run = px.parse(text(rounds=40, surgery=AUTO, optimizer="adam(lr=0.01)"))
    whole = px.train(run)

    assert fingerprint(stopped_and_resumed(run, tmp_path, stop_at).model) == fingerprint(whole.model)


@each(
    ("fields", "sentence"),
    [
        ("ratio=0.0", r"a ratio in \(0, 1\], got 0.0"),
        ("ratio=None", 'needs a ratio, or rank="auto"'),
        ("start='drawn'", "drawn factors forgets a warm-up; set warmup=0, not 0.25"),
        ("adapt=(0.2,)", r"in \(0.25, 1\), got adapt=\(0.2,\)"),
        ("warmup='auto', adapt=(0.4,)", r"in \(0.5, 1\), got adapt=\(0.4,\)"),
        ("energy=2.0", r"an energy in \(0, 1\], got energy=2.0"),
        ("warmup=1.0", r"a warmup in \[0, 1\) or 'auto', got warmup=1.0"),
        ("first=0", "first >= 1, got first=0"),
    ],
)
def test_fields_are_checked(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        px.parse(f"pufferfish({fields})")


@pytest.mark.processes
def test_a_loop_of_one_s_own_goes_on_under_ddp_and_exchange(tmp_path):
    schemes = [
        "chain(reduce(dense()))",
        "chain(gather(qsgd(bits=4)), mean())",
        "chain(gather(error_feedback(top_k(0.2))), mean())",
        "chain(power_sgd(rank=2))",
    ]
    found = run_job(2, "job_factorized.py", {"schemes": schemes}, tmp_path)
    for how in ("hook", "exchange"):
        for scheme in schemes:
            there = found[how][scheme]
            assert there["equal"], (how, scheme)
            # 16 of 64 for both layers; the classifier stays full
            assert there["parameters"] == 10 * (40 + 64) + 64 + 16 * 128 + 64 + 650, (how, scheme)
            assert there["lr"] == pytest.approx(0.05 * 0.9**6)
            first, last = there["losses"][:5], there["losses"][-5:]
            assert sum(last) < 0.9 * sum(first), (how, scheme)


def test_with_decay_on_the_product_the_optimizer_does_not_decay_the_factors():
    model = px.factorize(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)), 0.25)
    factors = {id(p) for module in model.modules() if isinstance(module, LowRankLinear) for p in (module.u, module.v)}
    assert factors
    every = [p for p in model.parameters() if p.requires_grad]
    assert list(map(id, px.lowrank.pufferfish(decay="factors").groups(model))) == list(map(id, every))
    others, decayed = px.lowrank.pufferfish(decay="product").groups(model)
    assert {id(p) for p in decayed["params"]} == factors and decayed["weight_decay"] == 0.0
    assert [id(p) for p in others["params"]] == [id(p) for p in every if id(p) not in factors]
    assert "weight_decay" not in others
    dense = torch.nn.Linear(8, 8)
    assert list(px.lowrank.pufferfish(decay="product").groups(dense)) == list(dense.parameters())
