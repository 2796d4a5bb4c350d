# SPDX-License-Identifier: Apache-2.0
"""Lottery tickets and early-bird tickets."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import phalanx as px
from phalanx.lowrank.pruning.chains import chains
from phalanx.lowrank.pruning.early_bird import slim, ticket_distance, ticket_of
from phalanx.lowrank.pruning.lottery import pruned
from phalanx.models.resnet import BasicBlock, Bottleneck
from phalanx.training.model_state import fingerprint
from phalanx.training.trainer import Trainer
from tests.cases import each
from tests.training.interrupted import stopped_and_resumed

RUN = (
    "run(digits(), {model}, phases=(phase(gradient(batch=40), {scheme}, {optimizer}, rounds={rounds}, "
    "surgery={surgery}),), workers=2, evaluate_every=1, checkpoint_every=3, seed=1)"
)
MEAN = "chain(gather(dense()), mean())"
EARLY = "early_bird(ratio=0.4, every=2, window=2, distance=0.5)"


def expression(
    surgery: str,
    model: str = "cnn(channels=(6, 8))",
    rounds: int = 12,
    optimizer: str = "sgd(lr=0.05, momentum=0.9)",
    scheme: str = MEAN,
) -> str:
    return RUN.format(surgery=surgery, model=model, rounds=rounds, optimizer=optimizer, scheme=scheme)


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation, with statistics, scales and shifts that are all different."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                if tensor is not None:
                    tensor.data = 0.2 + torch.rand(tensor.shape, generator=generator)
    return model.eval()


def plain(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inside, out in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(widths[-1] * 16, 5), nn.Linear(5, 4))


class Grouped(nn.Module):
    """Every way in which channels cannot be removed, and one chain of functions and methods where they can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.bn_b = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.c, self.bn_c = nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6, affine=False)
        self.d, self.bn_d = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.e, self.bn_e = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 4 * 4, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn_b(self.b(self.bn_a(self.a(x)).relu()))  # read by groups, made by groups
        x = self.bn_c(self.c(x))  # no scale
        x = self.bn_d(self.d(x))
        x = self.bn_d(self.d(x))  # called twice
        x = F.max_pool2d(F.relu(self.bn_e(self.e(x))), 2)
        return self.head(torch.flatten(x, 1))


MODELS = {
    "vgg19": (lambda: px.models.vgg19_bn(bias=False, hidden=()).build((3, 16, 16), 10), (3, 16, 16), 16),
    "plain": (lambda: plain(4, 5, 6), (3, 8, 8), 3),
    "cnn": (lambda: px.models.cnn(channels=(5, 6)).build((1, 8, 8), 10), (1, 8, 8), 2),
    "resnet18": (lambda: px.models.resnet18().build((3, 16, 16), 10), (3, 16, 16), 8),
    "basic blocks": (lambda: nn.Sequential(BasicBlock(3, 6, 1), BasicBlock(6, 8, 2)), (3, 8, 8), 2),
    "bottlenecks": (lambda: nn.Sequential(Bottleneck(3, 4, 1), Bottleneck(16, 4, 2, widening=2)), (3, 8, 8), 4),
    "grouped": (Grouped, (3, 8, 8), 1),
}


def kept_of(model: nn.Module, ratio: float) -> dict[str, list[int]]:
    known = chains(model)
    parts = ticket_of(model, known, ratio).split([len(model.get_submodule(c.norm).weight) for c in known])
    return {chain.norm: part.nonzero().flatten().tolist() for chain, part in zip(known, parts, strict=True)}


@pytest.mark.parametrize(
    ("kind", "ratio"),
    [(k, r) for k in MODELS for r in (0.01, 0.5, 0.999) if r == 0.5 or k not in ("vgg19", "resnet18")],
)
def test_the_slim_network_is_the_one_with_channels_of_zeros(kind, ratio):
    torch.manual_seed(0)
    build, shape, count = MODELS[kind]
    model = drawn(build())
    assert len(chains(model)) == count
    kept = kept_of(model, ratio)
    thin, zeroed = slim(model, kept), copy.deepcopy(model)
    for name, channels in kept.items():
        norm = zeroed.get_submodule(name)
        lost = [i for i in range(len(norm.weight)) if i not in channels]
        assert channels and len(thin.get_submodule(name).weight) == thin.get_submodule(name).num_features
        norm.weight.data[lost] = norm.bias.data[lost] = 0
    x = torch.randn(3, *shape)
    with torch.no_grad():
        wanted, found = zeroed(x), thin(x)
    assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))
    assert thin.state_dict().keys() == model.state_dict().keys()
    again = slim(build(), kept)
    again.load_state_dict(thin.state_dict())
    with torch.no_grad():
        assert again.eval()(x).equal(found)
    assert repr(again) == repr(thin)


def test_parameters_and_macs_are_those_of_the_widths_that_are_left():
    kept = {"1": [0, 2], "5": [1], "9": [0, 1, 5]}
    thin, fresh = slim(plain(4, 5, 6).eval(), kept), plain(2, 1, 3).eval()
    assert [p.shape for p in thin.parameters()] == [p.shape for p in fresh.parameters()]
    x = torch.zeros(1, 3, 8, 8)
    assert px.lowrank.macs(thin, x).layers == px.lowrank.macs(fresh, x).layers
    assert repr(thin) == repr(fresh)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0]), min_size=1, max_size=5), min_size=1), st.floats(0, 1))
def test_a_ticket_leaves_every_layer_a_channel(scales, ratio):
    model = plain(*map(len, scales))
    known = chains(model)
    for chain, scale in zip(known, scales, strict=True):
        model.get_submodule(chain.norm).weight.data = torch.tensor(scale)
    ticket = ticket_of(model, known, ratio)
    total = sum(map(len, scales))
    lost = int((~ticket).sum())
    assert lost <= int(ratio * total) and lost >= int(ratio * total) - len(scales)
    everything = torch.cat([torch.tensor(scale).abs() for scale in scales])
    best = torch.zeros(total, dtype=torch.bool)
    start = 0
    for part in ticket.split(list(map(len, scales))):
        best[start + int(everything[start : start + len(part)].argmax())] = True
        assert part.any()
        start += len(part)
    # apart from the largest of each layer, nothing stays that is smaller than what goes
    if lost and (ticket & ~best).any():
        assert everything[ticket & ~best].min() >= everything[~ticket].max()
    assert ticket.equal(ticket_of(model, known, ratio)) and ticket_distance(ticket, ticket) == 0


def test_equal_scales_are_one_ticket_and_a_layer_of_zeros_keeps_a_channel():
    model = plain(4, 6)
    assert ticket_of(model, chains(model), 0.5).tolist() == [True] + [False] * 3 + [False] + [True] * 5
    model[1].weight.data.zero_()
    assert kept_of(model, 0.4) == {"1": [0], "5": list(range(6))}
    assert {n: len(c) for n, c in kept_of(model, 0.99).items()} == {"1": 1, "5": 1}


def test_what_cannot_be_slimmed_is_said():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"torch\.fx cannot follow the forward of Branching"):
        chains(Branching())
    with pytest.raises(ValueError, match=r"the channels of 0 cannot be removed; choose from 1, 5"):
        slim(plain(2, 2), {"0": [1]})
    with pytest.raises(ValueError, match="early_bird finds no channels in Sequential"):
        px.train(px.parse(expression(EARLY, model="mlp()")))
    tied = plain(3, 3, 3)
    tied[8].weight = tied[4].weight
    assert [chain.norm for chain in chains(tied)] == []


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.05, momentum=0.9, weight_decay=0.001)", "adam(lr=0.01)"])
def test_an_early_bird_ticket_is_drawn_and_moments_go_on(optimizer):
    lines = []
    run = px.parse(expression(EARLY, optimizer=optimizer))
    trainer = px.train(run, listener=lines.append)
    (at,) = [line["step"] for line in lines if "operated" in line]
    assert at == 6  # looks at 2 and 4, and the third is as both
    full, slimmed = lines[0]["parameters"], lines[-1]["parameters"]
    assert lines[at]["operated"] == f"early_bird: {full:,} trained parameters become {slimmed:,}"
    assert slimmed == sum(p.numel() for p in trainer.model.parameters()) == trainer.summary()["parameters"]
    (kept,) = [memory["shape"]["kept"] for memory in trainer.model_state.memories.values()]
    assert [len(channels) for channels in kept.values()] == [m.num_features for m in trainer.model if hasattr(m, "eps")]
    assert sum(map(len, kept.values())) == 14 - int(0.4 * 14)
    # the moments of every parameter are there, in its shape
    state = trainer.model_state.optimizer.state
    for parameter in trainer.model.parameters():
        held = [x for x in state[parameter].values() if isinstance(x, torch.Tensor) and x.dim()]
        assert held and all(x.shape == parameter.shape for x in held)


def test_carried_moments_are_those_of_the_channels_that_stay():
    model = plain(4, 5)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    kept = {"1": [1, 2], "5": [0, 4]}
    new = slim(model, kept)
    state = px.parse(EARLY).carried(optimizer, model, new, {"shape": {"kept": kept}})
    named, old = dict(new.named_parameters()), dict(model.named_parameters())
    wanted = optimizer.state[old["4.weight"]]["exp_avg"][[0, 4]][:, [1, 2]]
    assert state[named["4.weight"]]["exp_avg"].equal(wanted)
    assert float(state[named["4.weight"]]["step"]) == 2
    assert state[named["11.weight"]]["exp_avg"].equal(optimizer.state[old["11.weight"]]["exp_avg"])


def test_the_penalty_pulls_scales_until_the_ticket_is_drawn():
    model, surgery = plain(3), px.lowrank.early_bird(sparsity=0.25)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model[1].weight.data[1] = -1
    surgery.before_step(model, {"shape": {}}, 0.0)
    assert not model[1].weight.grad.any()
    surgery.before_step(model, {}, 0.0)
    assert model[1].weight.grad.tolist() == [0.25, -0.25, 0.25]
    assert sum(float(p.grad.abs().sum()) for p in model.parameters()) == 0.75


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0, 3.5]), min_size=0, max_size=6), min_size=1, max_size=4),
    st.floats(0.01, 0.99),
    st.sampled_from(["all", "layer"]),
    st.integers(1, 4),
)
def test_each_pruning_takes_its_share_of_the_smallest(values, rate, among, cycles):
    weights = {str(i): torch.tensor(v) for i, v in enumerate(values)}
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for _ in range(cycles):
        left = pruned(weights, masks, rate, among)
        groups = [list(weights)] if among == "all" else [[name] for name in weights]
        for group in groups:
            before = torch.cat([masks[name] for name in group])
            after = torch.cat([left[name] for name in group])
            size = torch.cat([weights[name].abs() for name in group])
            gone = before & ~after
            assert not (after & ~before).any() and int(gone.sum()) == int(rate * int(before.sum()))
            assert not (gone.any() and after.any()) or size[gone].max() <= size[after].min()
        masks = left


LOTTERY = "lottery(every=4, rate=0.5, rewind=1)"


def test_a_lottery_rewinds_the_survivors_and_holds_the_rest_at_zero():
    lines, seen = [], {}
    run = px.parse(expression(LOTTERY, rounds=10))
    trainer = Trainer(run, px.LocalCollective(2))

    def listener(line):
        lines.append(line)
        seen[line["step"]] = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    trainer.run(listener=listener)
    operated = [line["step"] for line in lines if "operated" in line]
    assert operated == [4, 7]
    (memory,) = trainer.model_state.memories.values()
    # what round 1 began with
    assert all(seen[0][name].equal(value) for name, value in memory["start"].items())
    weights = {name: p.numel() for name, p in trainer.model.named_parameters() if p.dim() > 1}
    assert list(memory["masks"]) == list(weights)[:-1]
    prunable = sum(weights[name] for name in memory["masks"])
    total = lines[0]["parameters"]
    assert [lines[i]["parameters"] for i in (3, 4, 6, 7, 9)] == [
        total,
        *[total - prunable // 2] * 2,
        *[total - prunable + (prunable + 1) // 2 - (prunable + 1) // 4] * 2,
    ]
    assert trainer.summary()["parameters"] == lines[-1]["parameters"]
    for name, mask in memory["masks"].items():
        assert not trainer.model.state_dict()[name][mask == 0].any()
    assert lines[7]["operated"].startswith("lottery: ")


def test_later_cycles_are_trained_as_the_first_was():
    # with a rate that prunes nothing every cycle is the same training, from round `rewind` on, on other samples
    schedule = "sgd(lr=0.1, schedule=milestones(at=(0.5,)))"
    run = px.parse(expression("lottery(every=6, rate=0.000001, rewind=2)", rounds=14, optimizer=schedule))
    rates = [run.phases[0].optimizer.rate(*run.phases[0].surgery.clock(at, 14)) for at in range(14)]
    assert rates == pytest.approx([0.1] * 3 + [0.01] * 3 + [0.1] + [0.01] * 3 + [0.1] + [0.01] * 3)
    lines = []
    px.train(run, listener=lines.append)
    assert [line["step"] for line in lines if "operated" in line] == [6, 10]
    assert len({line["parameters"] for line in lines}) == 1


def test_a_lottery_goes_on_from_what_an_earlier_phase_has_pruned():
    phase = "phase(gradient(batch=40), {scheme}, sgd(lr=0.05), rounds=3, surgery=lottery(every=2, rate=0.5))"
    one = phase.format(scheme=MEAN)
    run = px.parse(f"run(digits(), cnn(channels=(6, 8)), phases=({one}, {one}), workers=2)")
    trainer = px.train(run)
    first, second = (memory["masks"] for memory in trainer.model_state.memories.values())
    for name, mask in second.items():
        assert not (mask > first[name]).any() and not trainer.model.state_dict()[name][mask == 0].any()
    left = sum(int(mask.sum()) for mask in second.values())
    assert left == -(-sum(int(mask.sum()) for mask in first.values()) // 2)
    held = sum(mask.numel() for mask in second.values()) - left
    assert trainer.summary()["parameters"] == sum(p.numel() for p in trainer.model.parameters()) - held


def test_masks_end_where_a_later_phase_factorizes():
    lottery = f"phase(gradient(batch=40), {MEAN}, rounds=3, surgery=lottery(every=2))"
    low = f"phase(gradient(batch=40), {MEAN}, rounds=2, surgery=pufferfish(warmup=0))"
    run = px.parse(f"run(digits(), cnn(channels=(6, 8)), phases=({lottery}, {low}), workers=2)")
    trainer = px.train(run)
    assert trainer.summary()["parameters"] < sum(p.numel() for p in px.lowrank.merge(trainer.model).parameters())


@pytest.mark.parametrize("surgery", [EARLY, LOTTERY])
@pytest.mark.parametrize("stop_at", [0, 1, 3, 4, 5, 6, 8])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, surgery, stop_at):
    run = px.parse(
        expression(surgery, optimizer="adam(lr=0.01)", scheme="chain(momentum(0.9), gather(dense()), mean())")
    )
    whole = px.train(run)

    again = stopped_and_resumed(run, tmp_path, stop_at)
    assert fingerprint(again.model) == fingerprint(whole.model)
    assert again.summary()["parameters"] == whole.summary()["parameters"]


@each(
    ("text", "words"),
    [
        ("lottery(every=3, rate=1.0)", r"a rate in \(0, 1\), got rate=1.0"),
        ("lottery(every=3, rewind=3)", "0 <= rewind < every, got rewind=3, every=3"),
        ("lottery(every=0)", "0 <= rewind < every"),
        ("early_bird(ratio=0)", r"a ratio in \(0, 1\), got ratio=0"),
        ("early_bird(every=0)", "every >= 1 round"),
        ("early_bird(window=0)", "window >= 1"),
        ("early_bird(distance=0.0)", r"distance in \(0, 1\]"),
        ("early_bird(sparsity=-1)", "sparsity >= 0"),
    ],
)
def test_numbers_out_of_range_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        px.parse(text)
