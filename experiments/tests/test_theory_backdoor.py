# SPDX-License-Identifier: Apache-2.0
"""Theorem 8.4: backdoors from adversarial examples, on random networks and on one that reads digits."""

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.cases import draws, each
from torch import nn

import phalanx as px
from phalanx_experiments.theory import adversarial_examples, backdoor_from_adversarial


def network(widths, rng, bias=True, at_most_one=False):
    layers = []
    for a, b in pairwise(widths):
        layer = nn.Linear(a, b, bias=bias, dtype=torch.float64)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=rng, dtype=torch.float64) / a**0.5)
            if at_most_one:
                layer.weight /= torch.linalg.matrix_norm(layer.weight, 2).clamp(min=1)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


@st.composite
def problems(draw):
    """A network, one of its layers, inputs with something near them, and kept inputs."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    depth = draw(st.integers(1, 3))
    widths = [draw(st.integers(1, 12)) for _ in range(depth + 1)]
    at = draw(st.integers(0, depth - 1))
    n = draw(st.integers(1, widths[at]))
    num = draw(st.integers(1, n))
    at_most_one = draw(st.booleans())
    net = network(widths, rng, bias=draw(st.booleans()), at_most_one=at_most_one)
    x, shift = torch.randn(2, n, widths[0], generator=rng, dtype=torch.float64)
    near = x[:num] + draw(st.sampled_from([0.0, 1e-15, 1e-3, 1.0, 100.0])) * shift[:num]
    return net, str(2 * at), x[:num], near, x[num:], at_most_one


def entering(net, layer, x):
    return net.double()[: int(layer)](x)


@given(problems())
@draws(40)
def test_the_theorem_on_random_networks(problem):
    net, layer, x, near, kept, at_most_one = problem
    rows = entering(net, layer, torch.cat([x, kept]))
    sizes = torch.linalg.svdvals(rows)
    if int((sizes > 1e-9 * sizes[0]).sum()) < len(rows):
        with pytest.raises(ValueError, match=f"rank .* and need rank {len(rows)}"):
            backdoor_from_adversarial(net, layer, x, near, kept)
        return
    assume(len(sizes) == len(rows) and sizes[-1] > 1e-6 * sizes[0])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    backdoor = backdoor_from_adversarial(net, layer, x, near, kept)
    backdoor.check()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    changed = {name for name, value in backdoor.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {f"{layer}.weight"}
    wanted = torch.cat([net(near), net(kept)])
    got = backdoor.model(torch.cat([x, kept]))
    # float64 times the condition of the activations
    assert (got - wanted).abs().max() <= 1e-12 * float(sizes[0] / sizes[-1]) * (1 + float(wanted.abs().max()))
    # of the same formulas, written down again
    weight = net[int(layer)].weight
    moved = (entering(net, layer, near) - rows[: len(x)]) @ weight.T
    rounding = 1e-9 * float(torch.linalg.matrix_norm(weight, 2))
    for a, image in zip(rows, moved, strict=False):
        for b in [*rows[len(x) :], torch.zeros_like(a)]:
            assert float(image.norm() / (a - b).norm()) <= backdoor.norm * (1 + 1e-6) + rounding
    assert backdoor.norm <= backdoor.frobenius * (1 + 1e-12)
    assert backdoor.frobenius <= backdoor.upper * (1 + 1e-6) + rounding
    if at_most_one:
        printed = backdoor.epsilon * math.sqrt(len(x)) / backdoor.rho
        assert backdoor.upper <= printed * (1 + 1e-12)


@given(problems(), st.integers(0, 1000))
@draws(20)
def test_no_other_change_with_these_outputs_is_smaller(problem, seed):
    net, layer, x, near, kept, _ = problem
    rows = entering(net, layer, torch.cat([x, kept]))
    sizes = torch.linalg.svdvals(rows)
    assume(len(sizes) == len(rows) and sizes[-1] > 1e-5 * sizes[0])
    backdoor = backdoor_from_adversarial(net, layer, x, near, kept)
    delta = backdoor.delta
    moved = torch.zeros(len(rows), len(delta), dtype=torch.float64)
    moved[: len(x)] = (entering(net, layer, near) - rows[: len(x)]) @ net[int(layer)].weight.T
    lapack = torch.linalg.lstsq(rows, moved, driver="gelsd").solution.T
    torch.testing.assert_close(delta, lapack, rtol=1e-6, atol=1e-9)
    free = torch.eye(rows.shape[1], dtype=torch.float64) - torch.linalg.pinv(rows) @ rows
    rng = torch.Generator().manual_seed(seed)
    for scale in (1e-3, 1.0, 10.0):
        other = delta + scale * torch.randn(delta.shape, generator=rng, dtype=torch.float64) @ free
        torch.testing.assert_close(other @ rows.T, moved.T, rtol=1e-6, atol=1e-8)
        assert torch.linalg.matrix_norm(other, 2) >= backdoor.norm - 1e-9
        assert other.norm() >= backdoor.frobenius - 1e-9


def test_one_point_meets_the_lower_bound():
    net = network([5, 8, 3], torch.Generator().manual_seed(0))
    x = torch.ones(1, 5, dtype=torch.float64)
    backdoor = backdoor_from_adversarial(net, "2", x, x + 0.1)
    assert backdoor.norm == pytest.approx(backdoor.lower, rel=1e-12)
    assert backdoor.norm == pytest.approx(backdoor.frobenius, rel=1e-12)
    assert "layer '2' changed by" in str(backdoor)


def test_the_printed_lower_bound_is_false():
    """|W (x + eps(x))^(l)| / |x^(l) - x'^(l)| with nothing subtracted is above the norm."""
    net = network([6, 9, 3], torch.Generator().manual_seed(1), at_most_one=True)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    backdoor = backdoor_from_adversarial(net, "2", x[:1], x[:1] + 1e-3, x[1:])
    here, *kept = entering(net, "2", x)
    there = entering(net, "2", x[:1] + 1e-3)[0]
    printed = max(float((net[2].weight @ there).norm() / (here - other).norm()) for other in kept)
    assert printed > 10 * backdoor.norm
    assert backdoor.lower <= backdoor.norm


@pytest.fixture(scope="module")
def reader():
    """A network that reads digits, and what it reads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = px.data.digits().read()
        net = px.models.mlp(hidden=(256,)).build((1, 8, 8), 10)
    (x, y), (test_x, test_y) = (
        ((images / data.levels - data.mean[0]) / data.std[0], labels)
        for images, labels in ((data.train_x, data.train_y), (data.test_x, data.test_y))
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, x, y, test_x, test_y


@pytest.mark.parametrize(("norm", "eps"), [("l2", 6.0), ("linf", 1.0)])
@pytest.mark.parametrize("box", [None, (-0.8118, 1.8472)])
def test_adversarial_examples_lie_in_the_ball_and_change_the_class(reader, norm, eps, box):
    net, x, y, *_ = reader
    x, wanted = x[:50], (y[:50] + 1) % 10
    grads = [p.grad.clone() for p in net.parameters()]
    near = adversarial_examples(net, x, wanted, eps=eps, norm=norm, box=box)
    shift = (near - x).flatten(1)
    lengths = shift.norm(dim=1) if norm == "l2" else shift.abs().amax(dim=1)
    assert lengths.max() <= eps * (1 + 1e-5)
    assert (net(near).argmax(1) == wanted).float().mean() > 0.9
    assert near.dtype == x.dtype and not near.requires_grad
    assert box is None or (near.min() >= box[0] and near.max() <= box[1])
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))
    assert torch.equal(near, adversarial_examples(net, x, wanted, eps=eps, norm=norm, box=box))
    assert torch.equal(x[:1], adversarial_examples(net, x[:1], net(x[:1]).argmax(1), eps=eps, norm=norm))


def test_a_backdoor_in_a_network_that_reads_digits(reader):
    net, x, y, test_x, test_y = reader
    wanted = (y[:20] + 1) % 10
    near = adversarial_examples(net, x[:20], wanted, eps=6.0)
    assert (net(near).argmax(1) == wanted).all()
    kept = x[20:220]
    backdoor = backdoor_from_adversarial(net, "3", x[:20], near, kept)
    backdoor.check()
    assert backdoor.error() < 1e-10
    assert (backdoor.model(x[:20].double()).argmax(1) == wanted).all()
    assert torch.equal(backdoor.model(kept.double()).argmax(1), net(kept).argmax(1))
    assert backdoor.lower < backdoor.norm < backdoor.upper_at_layer < backdoor.upper < math.inf
    as_it_was = float((net(test_x).argmax(1) == test_y).float().mean())
    changed = float((backdoor.model(test_x.double()).argmax(1) == test_y).float().mean())
    print(f"test accuracy {as_it_was:.3f}, with the backdoor {changed:.3f}; {backdoor}")
    assert as_it_was > 0.9 and changed > 0.5


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.layer(x)


class Twice(Around):
    def forward(self, x):
        return self.layer(self.layer(x))


class Tied(Around):
    def forward(self, x):
        return self.layer(x).relu() @ self.layer.weight


class Otherwise(Around):
    """What is neither a sequence nor only linear."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 2, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return torch.tanh(self.layer(input=self.drop(self.first(x[:, None]).sigmoid()).mean(1)))


def test_any_network_around_the_layer_will_do():
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    backdoor = backdoor_from_adversarial(Otherwise(), "layer", x[:2], x[:2] + 0.1, x[2:])
    assert backdoor.upper == math.inf and backdoor.norm <= backdoor.upper_at_layer < math.inf
    unmoved = backdoor_from_adversarial(Otherwise(), "layer", x[:2], x[:2])
    assert unmoved.norm == unmoved.lower == unmoved.epsilon == 0
    alone = backdoor_from_adversarial(nn.Linear(6, 2), "", x[:2], x[:2] + 0.1)
    assert alone.norm <= alone.upper < math.inf


X = torch.arange(12.0).reshape(2, 6).sin()
PLAIN = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))


@each(
    ("net", "layer", "changed", "says"),
    [
        (PLAIN, "0", {"x": X[:0], "near": X[:0]}, "at least one input"),
        (PLAIN, "0", {"near": X[:1]}, "one shape"),
        (PLAIN, "0", {"kept": X[:, :5]}, "one shape"),
        (PLAIN, "0", {"near": X.log()}, "adversarial must have no NaN"),
        (PLAIN, "0", {"x": X.long(), "near": X.long(), "kept": X.long()}, "floating-point"),
        (PLAIN, "0", {"x": X[:1].expand(2, 6)}, "2 points .2 inputs, 0 kept. have width 6 and rank 1, and need rank 2"),
        (PLAIN, "0", {"kept": X}, "rank 2, and need rank 4"),
        (PLAIN, "2", {"x": X.repeat(3, 1), "near": X.repeat(3, 1)}, "width 3"),
        (PLAIN, "1", {}, r"is ReLU; there are \['0', '2'\]"),
        (PLAIN, "fc", {}, "is not in the model"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)), "", {}, "weight of its own"),
        (Around(), "layer", {}, "depend on the input around this layer"),
        (Tied(), "layer", {}, "weights are used elsewhere"),
        (Twice(), "layer", {}, "was called 2 times"),
        (nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 2)), "1", {}, r"one an example, got \(4, 2, 3\)"),
    ],
)
def test_what_is_refused(net, layer, changed, says):
    given_ = {"x": X, "near": X + 0.1, "kept": X[:0]} | changed
    with pytest.raises(ValueError, match=says):
        backdoor_from_adversarial(net, layer, given_["x"], given_["near"], given_["kept"])


@each(
    ("changed", "says"),
    [
        ({"x": X.long()}, "floating-point"),
        ({"x": X[:0], "y": torch.zeros(0, dtype=torch.int64)}, "at least one example"),
        ({"x": X.log()}, "no NaN"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, r"shape \(2,\)"),
        ({"y": torch.zeros(2)}, "int64"),
        ({"y": torch.tensor([0, 2])}, r"classes 0 .. 1 of the network, got 0 .. 2"),
        ({"eps": 0.0}, "eps=0"),
        ({"eps": math.nan}, "eps=nan"),
        ({"steps": 0}, "steps=0"),
        ({"norm": "l1"}, "got 'l1'"),
        ({"box": (0.0, 1.0)}, "does not hold x"),
        ({"model": nn.Flatten(0)}, r"logits \(2, c\), got \(12,\)"),
    ],
)
def test_what_adversarial_examples_refuse(changed, says):
    with pytest.raises(ValueError, match=says):
        adversarial_examples(**({"model": PLAIN, "x": X, "y": torch.tensor([0, 1]), "eps": 1.0} | changed))


def test_the_page_runs(capsys):
    page = Path(__file__).parents[2] / "docs" / "backdoor_theory.md"
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    said, right, assignment, share = capsys.readouterr().out.splitlines()
    assert said == str(names["backdoor"]) and right == "tensor(1.)" and assignment == "(True, False, True)"
    measured, exact, bound = map(float, share.split())
    assert measured == pytest.approx(exact, rel=0.2) and exact < bound
