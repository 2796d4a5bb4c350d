# SPDX-License-Identifier: Apache-2.0
"""Moments and averages that go on in the factors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

import phalanx as px
from phalanx.lowrank.decay import factors_of
from phalanx.lowrank.optimizer_state import tangent
from phalanx.lowrank.parameter_map import ThinFactors, parameter_map
from tests.cases import each
from tests.lowrank.full_rank import close, full_rank


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class First(nn.Module):
    """The first of what a module returns."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *inputs):
        return self.inner(*inputs)[0]


class Myself(nn.Module):
    """Attention of a text to itself."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(9, 5), nn.Linear(5, 5), nn.Linear(5, 9)
        self.head.weight = self.embed.weight

    def forward(self, words):
        return self.head(self.body(self.embed(words)).tanh())


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), drawn(4, 5)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.Flatten(),
            nn.Linear(32, 4),
        ),
        drawn(3, 3, 4, 4),
    ),
    "lstm": (lambda: First(nn.LSTM(4, 5, num_layers=2, bidirectional=True)), drawn(6, 2, 4)),
    "gru": (lambda: First(nn.GRU(4, 5)), drawn(6, 2, 4)),
    "attention": (Myself, drawn(2, 5, 6)),
    "encoder": (lambda: nn.TransformerEncoderLayer(6, 2, 10, 0.0, "gelu", batch_first=True), drawn(2, 5, 6)),
    "tied": (Tied, torch.arange(8).reshape(2, 4)),
}  # fmt: skip
# Adam's step with a gradient of zero is as long for all entries only while eps is nothing beside their squares
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-30),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0, eps=1e-30),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True, eps=1e-30),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3, eps=1e-30),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-3, eps=1e-30),
    # divides by the second moments from the fourth step on
    "radam, rectified": lambda p: torch.optim.RAdam(p, lr=1e-3, betas=(0.9, 0.99), eps=1e-30),
}


class Lion(torch.optim.Optimizer):
    """The sign of a moment, as published."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                moment = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(group["lr"] * (group["betas"][0] * moment + (1 - group["betas"][0]) * p.grad).sign())
                moment.lerp_(p.grad, 1 - group["betas"][1])


def made(kind, optimizer):
    torch.manual_seed(1)
    build, x = MODELS[kind]
    model = build().double()
    return model, OPTIMIZERS[optimizer](model.parameters()), x


def trained(model, optimizer, x, steps=3):
    target = drawn(*model(x).shape, seed=9)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - target).square().sum().backward()
        optimizer.step()


def coasted(model, optimizer, lr):
    """The change of all dense weights in a step with gradients of zero."""
    before = {n: p.detach().clone() for n, p in px.lowrank.merge(model).named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = lr
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {n: (p.detach() - before[n]) / lr for n, p in px.lowrank.merge(model).named_parameters()}


@each("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_next_step_is_that_of_the_dense_model_to_first_order(kind, optimizer):
    model, of_dense, x = made(kind, optimizer)
    trained(model, of_dense, x)
    low = full_rank(model)
    of_low = OPTIMIZERS[optimizer](model.parameters())
    of_low.load_state_dict(of_dense.state_dict())
    px.lowrank.transfer_optimizer(of_low, model, low)
    assert len(factors_of(low)) >= 2
    lr = 1e-7
    wanted, found = coasted(model, of_dense, lr), coasted(low, of_low, lr)
    assert wanted.keys() == found.keys()
    for name, step in wanted.items():
        assert close(found[name], step, 2e-3), name


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 2), st.integers(0, 99))
def test_the_tangent_is_the_best_first_order(rows, columns, rank, copies, seed):
    left, right = drawn(copies, rows, rank, seed=seed), drawn(copies, rank, columns, seed=seed + 1)
    step = drawn(copies, rows, columns, seed=seed + 2)
    of_left, of_right = tangent(step, left, right)
    for i in range(copies):
        # all that the product can do to first order, as one matrix
        moves = torch.cat(
            [
                torch.stack([(e.reshape(rows, rank) @ right[i]).flatten() for e in torch.eye(rows * rank).double()], 1),
                torch.stack(
                    [(left[i] @ e.reshape(rank, columns)).flatten() for e in torch.eye(rank * columns).double()], 1
                ),
            ],
            dim=1,
        )
        kept = torch.linalg.svdvals(left[i]), torch.linalg.svdvals(right[i])
        if any(float(s[-1] / s[0]) < 0.02 for s in kept):
            continue
        best = moves @ torch.linalg.lstsq(moves, step[i].flatten(), driver="gelsd").solution
        assert close((left[i] @ of_right[i] + of_left[i] @ right[i]).flatten(), best, 1e-6)


def test_factors_of_zero_stay_where_they_are():
    of_left, of_right = tangent(drawn(1, 4, 3), torch.zeros(1, 4, 2).double(), torch.zeros(1, 2, 3).double())
    assert not of_left.any() and not of_right.any()


@pytest.mark.parametrize("kind", MODELS)
def test_gradient_moments_are_those_of_factors_that_were_there_all_along(kind):
    model, _, x = made(kind, "momentum")
    low = full_rank(model)
    standing = [torch.optim.SGD(m.parameters(), lr=0.0, momentum=0.9) for m in (model, low)]
    for m, optimizer in zip((model, low), standing, strict=True):
        trained(m.train(False), optimizer, x)
    px.lowrank.transfer_optimizer(standing[0], model, low, "gradient")
    own, carried = (optimizer.state for optimizer in standing[::-1])
    for name, parameter in low.named_parameters():
        assert close(carried[parameter]["momentum_buffer"], own[parameter]["momentum_buffer"], 1e-6), name


@given(st.integers(1, 5), st.integers(0, 99))
def test_squares_are_exact_where_a_factor_is_diagonal(size, seed):
    # then every entry of u's gradient is one entry of the weight's, times a number
    dense = nn.Linear(size, size).double()
    low = px.factorize(dense, px.lowrank.plan(dense, classifier=False).with_ranks({"": size}))
    (move,) = [m for m in parameter_map(dense, low) if len(m.new) == 2]
    with torch.no_grad():
        low.v.copy_(torch.diag(drawn(size, seed=seed)))
    gradient = drawn(1, size, size, seed=seed + 1)
    at = ThinFactors.of(move)
    assert torch.allclose(
        at.chained_squares(gradient.square(), gradient.square())[0], at.chained(gradient, gradient)[0].square()
    )


@each("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", MODELS)
@each("moments", ["step", "gradient", "fresh"])
def test_every_parameter_is_there_once_and_training_goes_on(kind, optimizer, moments):
    model, own, x = made(kind, optimizer)
    trained(model, own, x)
    scheduler = torch.optim.lr_scheduler.StepLR(own, 1, gamma=0.5)
    low = px.factorize(model, 1 / 2, embedding=True)
    px.lowrank.transfer_optimizer(own, model, low, moments)
    held = [p for group in own.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in low.parameters()} and len(held) == len({id(p) for p in held})
    assert len(own.state) == (0 if moments == "fresh" else len(held))
    for parameter, state in own.state.items():
        assert all(s.shape == parameter.shape for s in state.values() if isinstance(s, torch.Tensor) and s.dim())
        assert all(torch.isfinite(s).all() for s in state.values() if isinstance(s, torch.Tensor))
    trained(low, own, x)
    scheduler.step()
    assert own.param_groups[0]["lr"] == 5e-4
    assert all(torch.isfinite(p).all() for p in low.parameters())


@each("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["linear", "conv", "lstm", "attention"])
def test_smaller_ranks_take_over_the_moments_of_larger_ones(kind, optimizer):
    model, _, x = made(kind, optimizer)
    low = px.factorize(model, 1 / 2)
    own = OPTIMIZERS[optimizer](low.parameters())
    trained(low, own, x)
    # the same products in other factors: what the first order can do is the same, so the step is too
    again = px.factorize(px.lowrank.merge(low), 1 / 2)
    of_again = OPTIMIZERS[optimizer](low.parameters())
    of_again.load_state_dict(own.state_dict())
    px.lowrank.transfer_optimizer(of_again, low, again)
    lr = 1e-7
    wanted, found = coasted(low, own, lr), coasted(again, of_again, lr)
    for name, step in wanted.items():
        assert close(found[name], step, 2e-3), name


@pytest.mark.parametrize("kind", MODELS)
def test_an_average_is_moved_along(kind):
    model, own, x = made(kind, "momentum")
    average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for _ in range(3):
        trained(model, own, x, 1)
        average.update_parameters(model)
    with torch.no_grad():
        # near enough for a first order
        for a, p in zip(average.module.parameters(), model.parameters(), strict=True):
            a.copy_(p + 1e-6 * (a - p))
    low = full_rank(model)
    moved = px.lowrank.transfer_average(average.module, low)
    assert type(moved) is type(low) and not set(map(id, moved.parameters())) & set(map(id, low.parameters()))
    wanted, found = dict(average.module.named_parameters()), dict(px.lowrank.merge(moved).named_parameters())
    before = dict(model.named_parameters())
    for name, value in wanted.items():
        assert close(found[name] - before[name], value - before[name], 1e-3), name
    for name, buffer in moved.named_buffers():
        assert torch.equal(buffer, dict(average.module.named_buffers())[name])


@pytest.mark.parametrize("kind", MODELS)
def test_decay_of_the_product_is_its_gradient(kind):
    model, _, _ = made(kind, "momentum")
    low = px.factorize(model, 1 / 3, embedding=True)
    for parameter in low.parameters():
        parameter.grad = torch.zeros_like(parameter)
    px.lowrank.frobenius_decay(low, 0.3)
    found = {id(p): p.grad.clone() for p in factors_of(low)}
    low.zero_grad()
    products = {}
    for layer in low.modules():
        if isinstance(layer, px.lowrank.layer.LowRank):
            for factor in layer.factors:
                u, v = layer.pair(factor)
                products[id(u)] = factor.product(u, v)
    (0.15 * sum(product.square().sum() for product in products.values())).backward()
    assert found and all(close(found[id(p)], p.grad) for p in factors_of(low))


def test_what_cannot_be_carried_is_said():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    low = px.factorize(model, 1 / 4)
    own = torch.optim.Adagrad(model.parameters())
    trained(model.double(), own, drawn(3, 8), 1)
    with pytest.raises(ValueError, match=r"moments of Adagrad are not known; those of SGD.* moments=\"fresh\""):
        px.lowrank.transfer_optimizer(own, model, low)
    px.lowrank.transfer_optimizer(own, model, low, "fresh")
    with pytest.raises(ValueError, match="no parameter of the old model"):
        px.lowrank.transfer_optimizer(torch.optim.SGD(nn.Linear(3, 3).parameters()), model, low)
    with pytest.raises(ValueError, match="moments must be 'step' or 'gradient' or 'fresh', got 'none'"):
        px.lowrank.transfer_optimizer(torch.optim.SGD(model.parameters()), model, low, "none")
    with pytest.raises(ValueError, match="the old model has no layer '0'"):
        px.lowrank.transfer_optimizer(torch.optim.SGD(nn.Linear(3, 3).parameters()), nn.Linear(3, 3), low)
    with pytest.raises(ValueError, match="weight_decay >= 0, got -1"):
        px.lowrank.frobenius_decay(low, -1)


NETWORK = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False)).double()


@each("build", [Lion, lambda p: torch.optim.Muon(p, lr=0.0)])
def test_steps_that_are_no_multiple_of_the_moment_are_refused_or_are_those_of_the_factors(build):
    model, low = NETWORK, full_rank(NETWORK)
    of_dense, of_low = ([build(m.parameters()), m] for m in (model, low))
    for own, m in (of_dense, of_low):
        own.param_groups[0]["lr"] = 0.0
        trained(m, own, drawn(5, 6))
    with pytest.raises(ValueError, match=r"(Lion|Muon) takes .* moments of two factors cannot repeat; .*gradient"):
        px.lowrank.transfer_optimizer(of_dense[0], model, low)
    px.lowrank.transfer_optimizer(of_dense[0], model, low, "gradient")
    for parameter in low.parameters():
        for key, moment in of_low[0].state[parameter].items():
            assert close(of_dense[0].state[parameter][key], moment, 1e-6)
    before = [p.detach().clone() for p in low.parameters()]
    for own, _ in (of_dense, of_low):
        own.param_groups[0]["lr"] = 1e-3
        for p in low.parameters():
            p.grad = torch.zeros_like(p)
        own.step()
        if own is of_dense[0]:
            steps = [p.detach() - b for p, b in zip(low.parameters(), before, strict=True)]
            for p, b in zip(low.parameters(), before, strict=True):
                p.data.copy_(b)
    for p, b, step in zip(low.parameters(), before, steps, strict=True):
        assert step.abs().max() > 0 and close(p.detach() - b, step, 1e-4)


@pytest.mark.parametrize("kind", ["linear", "conv", "lstm"])
def test_adafactor_goes_on_with_the_squares_of_the_factors(kind):
    model, _, x = made(kind, "adam")
    own = torch.optim.Adafactor(model.parameters(), lr=1e-3)
    trained(model, own, x)
    low = px.factorize(model, 1 / 2)
    squares = {}
    for entry in parameter_map(model, low):
        if len(entry.new) == 2:
            state = own.state[entry.old[0]]
            row, column = state["row_var"], state["col_var"]
            whole = entry.factor.matrices(row @ column / row.mean(dim=-2, keepdim=True))
            factors = ThinFactors.of(entry)
            u, v = entry.pulled(factors.left.square().mT @ whole, whole @ factors.right.square().mT)
            squares[entry.new[0]], squares[entry.new[1]] = u, v
    px.lowrank.transfer_optimizer(own, model, low)
    assert len(squares) >= 2
    for parameter, expected in squares.items():
        state = own.state[parameter]
        assert close(state["row_var"], expected.mean(dim=-1, keepdim=True), 1e-6)
        assert close(state["col_var"], expected.mean(dim=-2, keepdim=True), 1e-6) and float(state["step"]) == 3
    trained(low, own, x)
    assert all(torch.isfinite(p).all() for p in low.parameters())


def test_a_state_unlike_the_optimizers_is_refused():
    class AdamW(torch.optim.AdamW):
        pass

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).double()
    own = AdamW(model.parameters())
    trained(model, own, drawn(3, 8), 1)
    low = px.factorize(model, 1 / 4)
    for state in own.state.values():
        state["ema"] = state["exp_avg"].clone()
    with pytest.raises(ValueError, match="the state of this AdamW has ema, unlike that of torch's AdamW"):
        px.lowrank.transfer_optimizer(own, model, low)
    for state in own.state.values():
        del state["ema"], state["exp_avg_sq"]
    with pytest.raises(ValueError, match="the state of this AdamW lacks exp_avg_sq, unlike"):
        px.lowrank.transfer_optimizer(own, model, low)
