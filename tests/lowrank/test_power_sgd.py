"""PowerSGD: its identity, its memory, its bytes; the simulation against gloo, and the DDP hook."""

from dataclasses import replace

import pytest
import torch

import phalanx as px
from phalanx.core.stack import Stack
from phalanx.core.stage import memory_key
from tests.distributed.launch import run_job

LAYOUT = px.Layout(
    ("conv", "bias", "thin", "fc", "empty", "running_mean"),
    tuple(map(torch.Size, [(8, 3, 3, 3), (8,), (2, 2), (10, 12), (0, 4), (3,)])),
    num_installed=1,
)
CODED = ("conv", "fc")
RUN = (
    "run(digits(), mlp(hidden=(32,)), phases=(phase(gradient(batch=60), chain(momentum(0.5), power_sgd(rank={rank})), "
    "sgd(lr=0.1), rounds=15),), workers=5, seed=3)"
)
HOOK = "power_sgd(rank=2)"


def rows_of(seed, n=4, dtype=torch.float32):
    rows = torch.randn(n, LAYOUT.d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    layout = px.Layout(LAYOUT.names, LAYOUT.shapes, LAYOUT.num_installed, dtype)
    weights = torch.tensor([1.0, 2.0, 3.0, 2.0], dtype=torch.float64)[:n]
    return Stack(rows, layout, tuple((i,) for i in range(n)), weights)


def round_of(index, n=4):
    return px.Round(index, world=px.LocalCollective(n))


def residuals(state, stack):
    """Each worker's residual as a row (k, d); zero where there is none."""
    out = torch.zeros(len(stack.rows), LAYOUT.d, dtype=torch.float64)
    for i in range(len(out)):
        memory = (state or {}).get(memory_key(i, False), {}).get("residual", {})
        for name, part in LAYOUT.split(out[i]).items():
            part += memory.get(name, 0.0)
    return out


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_what_is_not_decoded_stays_in_the_residuals(rank):
    stage, state = px.lowrank.power_sgd(rank), None
    for index in range(6):
        stack = rows_of(index)
        share = (stack.weights / stack.weights.sum()).unsqueeze(0)
        before = stack.rows.double() + residuals(state, stack)
        out, state = stage(stack, state, round_of(index))
        after = out.rows.double() + share @ residuals(state, stack)
        torch.testing.assert_close(after, share @ before, rtol=1e-5, atol=1e-5)
        assert out.weights.tolist() == [8.0] and out.sources == ((0, 1, 2, 3),)


def test_matrices_come_out_with_the_rank_and_others_exactly():
    stack = rows_of(0)
    out, state = px.lowrank.power_sgd(2)(stack, None, round_of(0))
    share = stack.weights / stack.weights.sum()
    exact, decoded = LAYOUT.split(share @ stack.rows.double()), LAYOUT.split(out.rows[0].double())
    for name in LAYOUT.names:
        if name in CODED:
            assert int(torch.linalg.matrix_rank(decoded[name].flatten(1), rtol=1e-4)) == 2
        else:
            torch.testing.assert_close(decoded[name], exact[name], rtol=1e-6, atol=1e-6)
    assert set(state["row:all"]["right"]) == set(CODED)
    assert set(state["worker:0"]["residual"]) == set(CODED)


def test_rows_of_low_rank_arrive_whole():
    stack = rows_of(0)
    rows = stack.rows.clone()
    for row in rows:
        for name in CODED:
            part = LAYOUT.split(row)[name]
            part.copy_(torch.outer(torch.arange(1.0, len(part) + 1), part[0].flatten()).reshape(part.shape))
    # the left vectors are equal, so the mean has rank one too
    share = (stack.weights / stack.weights.sum()).float()
    out, _ = px.lowrank.power_sgd(1)(replace(stack, rows=rows), None, round_of(0))
    torch.testing.assert_close(out.rows[0], share @ rows, rtol=1e-4, atol=1e-4)


def test_the_warm_start_finds_the_leading_directions():
    """Of a row that stays the same, the power method's error falls to that of the best approximation."""
    stack, state = rows_of(1), None
    exact = LAYOUT.split((stack.weights / stack.weights.sum()) @ stack.rows.double())["fc"]
    errors = []
    for index in range(30):
        out, state = px.lowrank.power_sgd(2)(stack, state, round_of(index))
        state = {"row:all": state["row:all"]}
        errors.append(float((LAYOUT.split(out.rows[0].double())["fc"] - exact).norm()))
    best = float(torch.linalg.svdvals(exact)[2:].norm())
    assert errors[0] > 1.05 * best and errors[-1] == pytest.approx(best, rel=1e-2)


def test_bytes_are_those_of_the_factors_and_the_rest():
    out, _ = px.lowrank.power_sgd(2)(rows_of(0), None, round_of(0))
    floats = 2 * (8 + 27) + 8 + 4 + 2 * (10 + 12) + 3
    assert [note.value for note in out.notes if note.kind == "bytes"] == [4.0 * floats + 8] * 4


def test_memories_serve_every_cut_of_the_model():
    """DDP rebuilds its buckets after the first step: other pieces, in another order."""
    head, whole, parts = LAYOUT.head, None, {}
    shapes = dict(zip(head.names, head.shapes, strict=True))
    for index, cut in enumerate([[head.names], [head.names[3:], head.names[:3]], [[n] for n in head.names]]):
        stack = rows_of(index)
        stack = replace(stack, rows=stack.rows[:, : head.d], layout=head)
        expected, whole = px.lowrank.power_sgd(2)(stack, whole, round_of(index))
        pieces = {}
        for names in cut:
            small = px.Layout(tuple(names), tuple(shapes[n] for n in names))
            part = replace(stack, rows=small.join(head.split(stack.rows)), layout=small)
            out, parts = px.lowrank.power_sgd(2)(part, parts, round_of(index))
            pieces.update(small.split(out.rows))
        torch.testing.assert_close(head.join(pieces), expected.rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_a_bad_round_does_not_poison_the_memory(value):
    _, state = px.lowrank.power_sgd(2)(rows_of(0), None, round_of(0))
    stack = rows_of(1)
    rows = stack.rows.clone()
    rows[0, :] = value
    _, state = px.lowrank.power_sgd(2)(replace(stack, rows=rows), state, round_of(1))
    out, state = px.lowrank.power_sgd(2)(rows_of(2), state, round_of(2))
    assert all(t.isfinite().all() for t in state["row:all"]["right"].values())
    assert all(t.isfinite().all() for i in range(4) for t in state[f"worker:{i}"]["residual"].values())
    assert out.rows.isfinite().all()


def test_a_parameter_without_gradient_wakes_up_again():
    state, zero = None, rows_of(0).with_rows(torch.zeros(4, LAYOUT.d))
    for index in range(2):
        out, state = px.lowrank.power_sgd(2)(zero, state, round_of(index))
        assert not out.rows.any()
    for index in range(2, 4):
        out, state = px.lowrank.power_sgd(2)(rows_of(7), state, round_of(index))
    assert LAYOUT.split(out.rows[0])["fc"].abs().max() > 0.1


def test_a_rank_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="rank >= 1"):
        px.lowrank.power_sgd(0)


@pytest.mark.processes
def test_simulation_equals_gloo(tmp_path):
    runs = {f"rank {rank}": RUN.format(rank=rank) for rank in (1, 4)}
    there = run_job(2, "job_train.py", {"runs": runs}, tmp_path)
    for label, text in runs.items():
        trainer = px.train(px.parse(text))
        here = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        torch.testing.assert_close(here, torch.tensor(there[label]["weights"]), rtol=1e-5, atol=1e-5)
        assert trainer.worker_stats.bytes_up == there[label]["bytes_up"]


@pytest.mark.processes
def test_hook_equals_exchange_and_continues_from_its_state(tmp_path):
    result = run_job(2, "job_ddp.py", {"steps": 6, "both": [HOOK], "whole": [], "refused": []}, tmp_path)
    hook, exchange = result["hook"][HOOK], result["exchange"][HOOK]
    assert hook["buckets"] >= 3 and exchange["lost"] == [""] * 6
    torch.testing.assert_close(torch.tensor(hook["weights"]), torch.tensor(exchange["weights"]), atol=1e-5, rtol=1e-5)
    assert result["resumed"][HOOK]["weights"] == hook["weights"]
    assert not torch.equal(torch.tensor(hook["weights"]), torch.tensor(result["plain"]["weights"]))
