# SPDX-License-Identifier: Apache-2.0
"""Local training of clients, who takes part, FedAvg and its kin, and matched averaging layer by layer."""

import math

import pytest
import torch
from torch import nn

import phalanx as px
from phalanx.core.expression import method
from phalanx.core.layout import Layout
from phalanx.core.stack import Stack
from phalanx.federated.local_training import LocalTraining
from phalanx.matching.match_stage import MatchReply
from phalanx.matching.neuron_axes import OUTPUTS, Axis
from phalanx.models.model import Model
from phalanx.training.model_state import PhaseModels, fingerprint
from phalanx.training.trainer import Trainer
from tests.training.interrupted import stopped_and_resumed

LOCAL = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), epochs=1, batch=20)
OWN = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), epochs=2, batch=20, own=True)
MATCHED = px.matching.bbp(average="plain")


def run(phase, workers=4, model=None, **options):
    phases = phase if isinstance(phase, tuple) else (phase,)
    options = {"partition": px.data.iid(), "evaluate_every": 1, "seed": 1} | options
    return px.Run(px.data.digits(), model or px.models.mlp((16,)), phases, workers=workers, **options)


def trained(*args, **options):
    lines = []
    trainer = px.train(run(*args, **options), listener=lines.append)
    return trainer, lines


def state(trainer):
    return trainer.model.state_dict()


@method("normed", "model", listed=False)
class Normed(Model):
    """Convolutions with BatchNorm and a residual connection."""

    def build(self, shape, num_classes):
        return Residual(num_classes)


class Residual(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.back = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


def test_one_full_step_of_everyone_is_a_gradient_step():
    n = len(px.data.digits().load().train_y)
    local = px.federated.local_training(px.optim.sgd(0.2), batch=n)
    federated, _ = trained(px.federated.fedavg(local, rounds=3), workers=3)
    plain, _ = trained(
        px.Phase(px.training.gradient(n), px.parse("chain(gather(dense()), mean())"), px.optim.sgd(0.2), 3), workers=3
    )
    for name, tensor in state(plain).items():
        torch.testing.assert_close(state(federated)[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_mean_weighs_clients_by_their_examples():
    partition = px.data.dirichlet(0.5, least=10)
    trainer = Trainer(run(px.federated.fedavg(LOCAL, rounds=1), partition=partition))
    start = {name: t.clone() for name, t in state(trainer).items()}
    sizes = torch.tensor([float(len(p)) for p in partition.parts(trainer.data, 4, 1)])
    stack, losses = trainer.compute_rows(0)
    assert stack.weights.tolist() == sizes.tolist() and losses.isfinite().all()
    trainer.run()
    change = (sizes / sizes.sum()) @ stack.rows
    for name, part in trainer.layout.split(change).items():
        torch.testing.assert_close(start[name] - state(trainer)[name], part, rtol=1e-4, atol=1e-6)


def test_a_liar_about_its_examples_is_named():
    scheme = "chain(gather(dense(), gate=gate(max_weight=10.0), forge=malformed('{}')), mean())"
    for how in ("weight", "negative_weight"):
        phase = px.Phase(LOCAL, px.parse(scheme.format(how)), px.optim.sgd(1.0), 2)
        trainer, lines = trained(phase, byzantine=px.adversary.workers((2,)))
        assert all("weight" in line["excluded"]["2"] for line in lines)
        assert trainer.worker_stats.table()[0]["worker"] == 2


def test_the_proximal_term_pulls_towards_the_global_model():
    far, near, nearer = (
        Trainer(run(px.federated.fedprox(LOCAL, 1, mu=mu))).compute_rows(0)[0].rows.norm(dim=1)
        for mu in (0.0, 0.3, 3.0)
    )
    assert (nearer < near).all() and (near < far).all()
    same = Trainer(run(px.federated.fedavg(LOCAL, 1))).compute_rows(0)[0].rows
    assert Trainer(run(px.federated.fedprox(LOCAL, 1, mu=0.0))).compute_rows(0)[0].rows.equal(same)


def test_the_proximal_gradient_is_the_formula():
    n = len(px.data.digits().load().train_y)
    lr, mu = 0.1, 0.5
    two = px.federated.local_training(px.optim.sgd(lr), epochs=2, batch=n, proximal=mu)
    moved = Trainer(run(px.federated.fedavg(two, 1), workers=1)).compute_rows(0)[0].rows[0]
    plain = px.federated.local_training(px.optim.sgd(lr), epochs=2, batch=n)
    other = Trainer(run(px.federated.fedavg(plain, 1), workers=1)).compute_rows(0)[0].rows[0]
    first = (
        Trainer(run(px.federated.fedavg(px.federated.local_training(px.optim.sgd(lr), batch=n), 1), workers=1))
        .compute_rows(0)[0]
        .rows[0]
    )
    # w2 = w1 - lr (g(w1) + mu (w1 - w0)), and the rows are w0 - w
    torch.testing.assert_close(moved, other - lr * mu * first, rtol=1e-4, atol=1e-7)


def test_a_long_gradient_is_cut_and_a_short_one_stays():
    def moved(clip):
        one = px.federated.local_training(px.optim.sgd(1.0), steps=1, batch=10_000, clip=clip)
        return Trainer(run(px.federated.fedavg(one, 1), workers=1)).compute_rows(0)[0].rows[0]

    whole = moved(None)
    norm = float(whole.norm())
    torch.testing.assert_close(moved(2 * norm), whole)
    torch.testing.assert_close(moved(norm / 4), whole / 4, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="clip > 0"):
        px.federated.local_training(clip=0.0)


def test_frozen_parameters_stay_and_unknown_patterns_are_refused():
    local = px.federated.local_training(px.optim.sgd(0.1), frozen=("1.*",))
    trainer = Trainer(run(px.federated.fedavg(local, 1)))
    parts = trainer.layout.split(trainer.compute_rows(0)[0].rows)
    assert not parts["1.weight"].any() and parts["3.weight"].any()
    assert all(p.requires_grad for p in trainer.model.parameters())
    with pytest.raises(ValueError, match=r"frozen='conv\*' names no parameter of this network; they are 1.weight"):
        Trainer(run(px.federated.fedavg(px.federated.local_training(frozen=("conv*",)), 1)))


def test_clients_with_their_own_beginnings_forget_the_global_one():
    first = trained(px.federated.fedavg(OWN, 1))[0]
    model = run(px.federated.fedavg(OWN, 1)).model.build((1, 8, 8), 10)
    trainer = Trainer(run(px.federated.fedavg(OWN, 1)))
    trainer.model.load_state_dict(model.state_dict())
    trainer.run()
    for name, tensor in state(first).items():
        torch.testing.assert_close(state(trainer)[name], tensor, rtol=1e-4, atol=1e-5)


def test_work_leaves_the_model_and_the_random_numbers_as_they_were():
    for phase in (px.federated.fedavg(OWN, 2), px.federated.pfnm(OWN), px.federated.fedma(OWN, layers=2)):
        trainer = Trainer(run(phase))
        before, drawn = {n: t.clone() for n, t in state(trainer).items()}, torch.get_rng_state()
        trainer.compute_rows(0)
        assert all(t.equal(before[n]) for n, t in state(trainer).items()) and torch.get_rng_state().equal(drawn)


def test_no_epochs_change_nothing_and_steps_count():
    assert not Trainer(run(px.federated.fedavg(px.federated.local_training(epochs=0), 1))).compute_rows(0)[0].rows.any()
    whole = (
        Trainer(
            run(px.federated.fedavg(px.federated.local_training(px.optim.sgd(0.1), epochs=3, batch=50), 1), workers=9)
        )
        .compute_rows(0)[0]
        .rows
    )
    each = math.ceil(1437 / 9 / 50)
    counted = px.federated.local_training(px.optim.sgd(0.1), steps=3 * each, batch=50)
    assert Trainer(run(px.federated.fedavg(counted, 1), workers=9)).compute_rows(0)[0].rows.equal(whole)


def test_a_single_example_at_the_end_of_an_epoch_joins_the_batch_before():
    local = px.federated.local_training(px.optim.sgd(0.1), batch=1436)
    _, lines = trained(px.federated.fedavg(local, 2), workers=1, model=Normed())
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_buffers_travel_as_they_become():
    trainer, _ = trained(px.federated.fedavg(LOCAL, 2), model=Normed())
    assert state(trainer)["norm.running_mean"].abs().sum() > 0
    assert state(trainer)["norm.num_batches_tracked"].dtype == torch.int64


def test_drawn_clients_are_the_only_ones_who_work():
    phase = px.federated.fedavg(LOCAL, 6, clients=3)
    trainer, lines = trained(phase, workers=9)
    chosen = [line["clients"] for line in lines]
    assert all(len(set(c)) == 3 and c == sorted(c) for c in chosen) and len({tuple(c) for c in chosen}) > 1
    row = (trainer.layout.d + 2) * 4
    assert all(line["bytes_up"] == 3 * row for line in lines)
    assert all(line["bytes_down"] == 3 * 4 * trainer.layout.d for line in lines)
    assert not any(line["excluded"] for line in lines)
    again, _ = trained(phase, workers=9)
    assert fingerprint(again.model) == fingerprint(trainer.model)


def test_every_client_is_drawn_equally_often():
    counts = torch.zeros(10)
    for index in range(600):
        counts[list(px.federated.uniform(3).sample(index, 10, 5))] += 1
    # 600 draws of 3 in 10: a standard deviation of 11.2
    assert (counts - 180).abs().max() < 5 * 11.2


def test_what_drawn_clients_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"uniform\(9\) needs at least 9 workers, got n=4"):
        Trainer(run(px.federated.fedavg(LOCAL, 1, clients=9)))
    with pytest.raises(ValueError, match="several workers compute the same"):
        vote = px.parse("chain(vote(dense(), r=2), mean())")
        Trainer(run(px.Phase(LOCAL, vote, clients=px.federated.uniform(2))))
    with pytest.raises(ValueError, match="workers that remember something"):
        vote = px.parse("chain(vote(dense(), r=2), mean())")
        Trainer(run(px.Phase(px.federated.local_training(keep=True), vote)))


@pytest.mark.parametrize("rule", ["median()", "krum(f=1)", "trimmed_mean(f=1)"])
def test_robust_rules_and_codecs_stand_behind_and_before_the_wire(rule):
    codec = px.parse("qsgd(bits=4)")
    phase = px.federated.fedavg(LOCAL, 12, rule=px.parse(rule), codec=codec)
    spoiled = px.Phase(LOCAL, px.chain(px.attacks.reverse(100.0), *phase.scheme.stages), phase.optimizer, 12)
    trainer, lines = trained(spoiled, workers=6, byzantine=px.adversary.workers((3,)))
    assert lines[-1]["accuracy"] > 0.8
    assert lines[0]["bytes_up"] < 6 * 4 * trainer.layout.d / 4


@pytest.mark.parametrize(
    "phase",
    [
        px.federated.fedavgm(LOCAL, 8, lr=0.5),
        px.federated.fedadam(LOCAL, 8, lr=0.03),
        px.federated.diloco(8, 8, inner=px.optim.adamw(0.003), batch=32),
        px.federated.fedprox(LOCAL, 8),
        px.federated.pfnm(
            px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), epochs=5, batch=20),
            matcher=px.matching.bbp(average="plain"),
        ),
        px.federated.fedma(px.federated.local_training(px.optim.sgd(0.05, momentum=0.9), epochs=5, batch=20), layers=2),
    ],
    ids=lambda phase: repr(phase.optimizer)[:20] + repr(phase.work)[:20],
)
def test_methods_learn(phase):
    trainer, lines = trained(phase)
    assert lines[-1]["accuracy"] > 0.6
    assert px.parse(repr(trainer.config)) == trainer.config


def test_with_a_kept_optimizer_two_rounds_of_three_steps_are_one_of_six():
    n = len(px.data.digits().load().train_y)

    def after(rounds, steps, keep):
        local = px.federated.local_training(px.optim.adamw(0.01), steps=steps, batch=n, keep=keep)
        return state(trained(px.federated.fedavg(local, rounds), workers=1)[0])

    once, kept, anew = after(1, 6, False), after(2, 3, True), after(2, 3, False)
    for name, tensor in once.items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-3, atol=1e-4)
    assert any((anew[name] - tensor).abs().max() > 1e-2 for name, tensor in once.items())


STATEFUL = {
    "diloco": px.federated.diloco(3, 6, inner=px.optim.adamw(0.003)),
    "fedma": px.federated.fedma(OWN, layers=2, passes=3),
    "fedavg": px.federated.fedavg(OWN, 6, clients=2),
    "codec": px.federated.fedavg(LOCAL, 6, codec=px.parse("error_feedback(top_k(0.1))")),
}


@pytest.mark.parametrize("label", STATEFUL)
@pytest.mark.parametrize("stop_at", [0, 2, 3])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, label, stop_at):
    options = {"checkpoint_every": 2}
    whole, _ = trained(STATEFUL[label], **options)
    assert fingerprint(stopped_and_resumed(run(STATEFUL[label], **options), tmp_path, stop_at).model) == fingerprint(
        whole.model
    )


def test_one_client_alone_is_matched_to_itself():
    trainer, _ = trained(px.federated.fedma(OWN, layers=2), workers=1)
    alone = Trainer(run(px.federated.fedma(OWN, layers=2), workers=1))
    site_rows = alone.compute_rows(0)[0].rows[0]
    assert trainer.layout.d == alone.layout.d
    first = alone.config.phases[0].work.layout(_source(alone), 0).split(site_rows)
    torch.testing.assert_close(state(trainer)["1.weight"], first["1.weight"])


def _source(trainer):
    return PhaseModels(trainer.model_state, 0)


def test_equal_clients_without_retraining_become_that_client():
    local = px.federated.local_training(px.optim.sgd(0.1), epochs=0, batch=20)
    still = px.federated.fedma(local, layers=2, retrain=local, last=None)
    shared = px.Phase(
        px.federated.layerwise(local, 2, local, local),
        px.parse("chain(gather(dense()), matched(bbp(gamma=1e-9, average='plain')), mean())"),
        px.optim.assign_weights(),
        2,
    )
    assert still.work.local.own and not shared.work.local.own
    trainer = Trainer(run(shared, workers=5))
    before = {n: t.clone() for n, t in state(trainer).items()}
    trainer.run()
    for name, tensor in before.items():
        torch.testing.assert_close(state(trainer)[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [px.models.mlp((12, 9)), px.models.vgg9(0.05, 0.0), Normed()], ids=repr)
def test_a_pass_sends_every_tensor_once_and_grows_the_model(model):
    layers = len(Trainer(run(px.federated.fedavg(LOCAL, 1), model=model)).model_state.graph(0).sizes) + 1
    trainer, lines = trained(px.federated.fedma(OWN, layers=layers, passes=2), model=model, workers=3)
    assert [line["accuracy"] is not None if "accuracy" in line else False for line in lines] == (
        [False] * (layers - 1) + [True]
    ) * 2
    assert (
        trainer.model_state.num_parameters
        >= Trainer(run(px.federated.fedavg(LOCAL, 1), model=model)).model_state.num_parameters
    )
    original = Trainer(run(px.federated.fedavg(LOCAL, 1), model=model))
    work, source = trainer.config.phases[0].work, _source(trainer)
    sent = [name for at in range(layers) for name in work.layout(source, at).names if name != "examples"]
    assert sorted(sent) == sorted(original.layout.names)
    assert lines[0]["bytes_down"] == 0 and lines[layers]["bytes_down"] > 0
    # in a later pass the whole model goes down once, and a layer with its places in each round
    assert lines[1]["bytes_down"] < lines[layers]["bytes_down"]


def test_matched_layers_stand_still_while_later_ones_train(monkeypatch: pytest.MonkeyPatch):
    """Algorithm 3: a client trains the layers behind the matched ones only."""
    trained_layers = []
    train = LocalTraining.train

    def watched(self, context, unit, samples, memory, settled=()):
        before = {name: p.detach().clone() for name, p in context.model.named_parameters()}
        out = train(self, context, unit, samples, memory, settled)
        moved = {name.split(".")[0] for name, p in context.model.named_parameters() if not torch.equal(p, before[name])}
        trained_layers.append(moved)
        return out

    monkeypatch.setattr(LocalTraining, "train", watched)
    trained(px.federated.fedma(OWN, layers=3), model=px.models.mlp((12, 9)), workers=2)
    names = sorted({name.split(".")[0] for name in px.models.mlp((12, 9)).build((1, 8, 8), 10).state_dict()})
    assert trained_layers == [set(names)] * 2 + [set(names[1:])] * 2 + [set(names[2:])] * 2


def test_a_client_that_fails_within_a_pass_is_out_until_the_next():
    phase = px.federated.fedma(OWN, layers=2, passes=3)
    _, lines = trained(phase, faults=(px.parse("crash(worker=2, at=2)"),))
    assert [line.get("clients") for line in lines] == [None, None, None, [0, 1, 3], None, [0, 1, 3]]
    assert "2" in lines[2]["excluded"] and lines[-1]["accuracy"] > 0.3


def test_who_failed_in_a_pass_is_back_in_the_next():
    scheme = px.parse("chain(gather(dense(), forge=malformed('missing')), matched(bbp(average='plain')), mean())")
    work = px.federated.fedma(OWN, layers=2, passes=4).work
    _, lines = trained(px.Phase(work, scheme, px.optim.assign_weights(), 8), byzantine=px.adversary.random(1, every=2))
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        (out,) = first["byzantine"]
        assert list(first["excluded"]) == [str(out)] and second["clients"] == [w for w in range(4) if w != out]
    assert len({line["byzantine"][0] for line in lines}) > 1 and lines[-1]["accuracy"] > 0.3


def test_nobody_left_loses_the_round_and_says_so():
    faults = tuple(px.parse(f"crash(worker={w}, at=0)") for w in range(4))
    trainer, lines = trained(px.federated.fedma(OWN, layers=2, passes=1), faults=faults)
    assert (
        "at least 1 rows" in lines[0]["lost"]
        and "no worker is left" in lines[1]["lost"]
        and trainer.worker_stats.lost_rounds == 2
    )


def test_wrong_numbers_of_layers_and_rounds_are_told():
    with pytest.raises(ValueError, match=r"this network has 2 layers to match and average, .* got layers=4"):
        Trainer(run(px.federated.fedma(OWN)))
    with pytest.raises(ValueError, match="a pass over 2 layers takes as many rounds, got rounds=3"):
        phase = px.federated.fedma(OWN, layers=2)
        Trainer(run(px.Phase(phase.work, phase.scheme, phase.optimizer, 3)))
    with pytest.raises(ValueError, match=r"need a matched\(...\) behind the wire"):
        Trainer(
            run(
                px.Phase(
                    px.federated.fedma(OWN, layers=2).work,
                    px.parse("chain(gather(dense()), mean())"),
                    px.optim.assign_weights(),
                    2,
                )
            )
        )
    with pytest.raises(ValueError, match=r"need a matched\(...\) behind the wire"):
        Trainer(run(px.Phase(LOCAL, px.parse("chain(gather(dense()), matched(), mean())"))))


@method("letters", "data", listed=False)
class Letters(px.data.Data):
    """Passages of a few letters."""

    def read(self):
        x = torch.arange(60).reshape(12, 5) % 7
        return px.data.Dataset("letters", x, (x + 1) % 7, x[:3], (x[:3] + 1) % 7, 7, vocabulary=7)

    def location(self):
        return "memory"


def test_a_rule_before_the_rows_are_matched_is_refused():
    phase = px.federated.fedma(OWN, layers=2)
    wire, match, rule = phase.scheme.stages
    with pytest.raises(ValueError, match=r"\[bucketing\(size=2\)\] compares rows in different orders"):
        Trainer(run(px.Phase(phase.work, px.chain(wire, px.aggregators.bucketing(2), match, rule), phase.optimizer, 2)))


def test_layers_of_one_module_cannot_grow_apart():
    lstm = px.models.tied_lstm(width=4, layers=2, dropout=0.0)
    for phase in (px.federated.fedma(OWN, layers=4), px.federated.pfnm(OWN)):
        with pytest.raises(ValueError, match="layers of one module and have to be of one size"):
            Trainer(px.Run(Letters(), lstm, (phase,), workers=2))


def rows_of_a_layer(n=4, neurons=5):
    """Permuted copies of one layer, or of a last layer with examples, as a received stack."""
    rng = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(neurons, 3, generator=rng), torch.randn(neurons, generator=rng)
    layout = Layout(
        ("a.weight", "a.bias", "a.running_mean"),
        (weight.shape, bias.shape, bias.shape),
        1,
        annotations=((Axis(0, 0),), (Axis(0, 0),), (Axis(0, 0),)),
    )
    orders = [torch.randperm(neurons, generator=rng) for _ in range(n)]
    rows = torch.stack(
        [layout.join({"a.weight": weight[o], "a.bias": bias[o], "a.running_mean": bias[o]}) for o in orders]
    )
    return Stack.of(rows, layout), orders, {"a.weight": weight, "a.bias": bias, "a.running_mean": bias}


@pytest.mark.parametrize("rule", ["mean()", "median()", "krum(f=1)"])
def test_permuted_copies_of_a_layer_are_one_layer_behind_any_rule(rule):
    stack, orders, truth = rows_of_a_layer(n=7)
    matcher = px.parse("matched(bbp(gamma=1.0, sigma=0.01, average='plain', log_determinant=True))")
    out, _ = matcher(stack, None, px.Round())
    one, _ = px.parse(rule)(out, None, px.Round())
    parts = out.layout.split(one.rows[0])
    inverse = MatchReply.from_payload(out.replies[0]).places[0]
    for name, tensor in truth.items():
        torch.testing.assert_close(parts[name][inverse], tensor[orders[0]], rtol=1e-5, atol=1e-6)
    assert out.weights.tolist() == [1.0] * 7 and set(out.replies) == set(range(7))


def test_the_posterior_mean_shrinks_as_published():
    stack, _, _ = rows_of_a_layer()
    plain, posterior = (
        px.parse(f"chain(matched(bbp(gamma=1e-9, average='{a}')), mean())")(stack, None, px.Round())[0]
        for a in ("plain", "posterior")
    )
    weights = [x.layout.split(x.rows[0])["a.weight"] for x in (plain, posterior)]
    torch.testing.assert_close(weights[1], weights[0] * 4 / 5, rtol=1e-5, atol=1e-6)
    biases = [x.layout.split(x.rows[0])["a.bias"] for x in (plain, posterior)]
    torch.testing.assert_close(biases[1], (0.1 + 4 * biases[0]) / 5, rtol=1e-5, atol=1e-6)
    means = [x.layout.split(x.rows[0])["a.running_mean"] for x in (plain, posterior)]
    assert means[0].equal(means[1])


def last_layers(examples):
    n, classes = examples.shape
    rng = torch.Generator().manual_seed(3)
    weights, biases = torch.randn(n, classes, 4, generator=rng), torch.randn(n, classes, generator=rng)
    axis = (Axis(0, OUTPUTS),)
    shapes = (weights.shape[1:], biases.shape[1:], biases.shape[1:])
    layout = Layout(("b.weight", "b.bias", "examples"), shapes, 1, annotations=(axis, axis, axis))
    rows = layout.join({"b.weight": weights, "b.bias": biases, "examples": examples})
    return Stack.of(rows, layout), weights, biases


def test_outputs_are_averaged_by_class():
    examples = torch.tensor([[3.0, 0.0, 5.0], [1.0, 0.0, 0.0], [4.0, 0.0, 7.0]])
    stack, weights, biases = last_layers(examples)
    out, _ = px.parse("chain(matched(), mean())")(stack, None, px.Round())
    share = torch.where(examples.sum(0) > 0, examples / examples.sum(0).clamp(min=1), 1 / 3)
    parts = out.layout.split(out.rows[0])
    torch.testing.assert_close(parts["b.weight"], (share[:, :, None] * weights).sum(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts["b.bias"], (share * biases).sum(0), rtol=1e-5, atol=1e-6)
    assert out.layout.names == ("b.weight", "b.bias")


def test_who_claims_absurd_numbers_of_examples_is_out_or_bounded():
    examples = torch.tensor([[5.0, 5.0], [5.0, 5.0], [5.0, 5.0], [1e12, 1e12], [-1.0, 5.0], [50000.0 / 200, 0.0]])
    stack, weights, _ = last_layers(examples)
    out, _ = px.parse("matched()")(stack, None, px.Round())
    named = {note.worker: note.reason for note in out.notes if note.kind == "excluded"}
    assert set(named) == {3, 4} and "negative number of examples" in named[4] and "claimed weight" in named[3]
    one, _ = px.aggregators.mean()(out, None, px.Round())
    share = torch.tensor([5.0, 5.0, 5.0, 100.0]) / 115
    expected = (share[:, None] * weights[[0, 1, 2, 5], 0]).sum(0)
    torch.testing.assert_close(one.layout.split(one.rows[0])["b.weight"][0], expected, rtol=1e-5, atol=1e-5)


def test_neurons_that_few_clients_have_can_be_dropped():
    stack, orders, truth = rows_of_a_layer(n=4)
    rows = stack.rows.clone()
    rows[3] = 50 * torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(9))
    rule = "matched(bbp(gamma=1.0, sigma=0.01, average='plain', log_determinant=True), support={})"
    grown, fitted = (px.parse(rule.format(k))(stack.with_rows(rows), None, px.Round())[0] for k in (1, 2))
    assert grown.layout.shapes[1] == (10,) and fitted.layout.shapes[1] == (5,)
    assert MatchReply.from_payload(fitted.replies[3]).places[0].tolist() == [-1] * 5
    out = fitted.layout.split(px.aggregators.median()(fitted, None, px.Round())[0].rows[0])
    for name, tensor in truth.items():
        torch.testing.assert_close(
            out[name][MatchReply.from_payload(fitted.replies[0]).places[0]], tensor[orders[0]], rtol=1e-5, atol=1e-6
        )
    with pytest.raises(px.TooFewRows, match="at least 5 rows"):
        px.parse("matched(support=5)")(stack, None, px.Round())


def test_a_pass_stands_a_liar_behind_a_codec_with_support_and_a_robust_rule():
    local = px.federated.local_training(px.optim.sgd(0.05, momentum=0.9), epochs=4, batch=20)
    both = []
    for support, rule in ((1, px.aggregators.mean()), (3, px.aggregators.median())):
        phase = px.federated.fedma(
            local, layers=2, passes=2, codec=px.parse("qsgd(bits=8)"), rule=rule, support=support
        )
        lying = px.Phase(
            phase.work, px.chain(px.attacks.constant(-100.0), *phase.scheme.stages), phase.optimizer, phase.rounds
        )
        _, lines = trained(lying, workers=7, byzantine=px.adversary.workers((2, 4)))
        both.append(lines[-1]["accuracy"])
    assert both[1] > 0.8 and both[1] > both[0] + 0.2


def lost_at(*rounds):
    """FedMA of two hidden layers whose rounds at these places have no row."""

    class Lossy(px.LocalCollective):
        def gather(self, payloads, limit_bytes):
            self.count = getattr(self, "count", -1) + 1
            gone = [px.BadPayload("nothing arrived")] * len(payloads)
            return gone if self.count in rounds else super().gather(payloads, limit_bytes)

    lines = []
    made = run(px.federated.fedma(OWN, layers=3, passes=3), model=px.models.mlp((12, 9)), workers=3)
    trainer = px.train(made, Lossy(3), listener=lines.append)
    return trainer, [line["accuracy"] for line in lines if "accuracy" in line]


def test_a_round_that_is_lost_in_a_pass_gives_the_model_of_before_back():
    _, whole = lost_at()
    trainer, lost = lost_at(4)
    assert lost[0] == whole[0] and lost[1] == lost[0] and lost[2] > 0.8
    assert trainer.worker_stats.lost_rounds == 2


def test_a_pass_that_is_lost_is_lost_after_a_resume_too(tmp_path):
    local = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), batch=20, own=True)
    scheme = "chain(gather(dense(), forge=malformed('missing')), matched(bbp(average='plain'), support=4), mean())"
    work = px.federated.fedma(local, layers=2, passes=3).work
    phase = px.Phase(work, px.parse(scheme), px.optim.assign_weights(), 6)
    options = {"byzantine": px.adversary.random(1, every=3), "workers": 4, "checkpoint_every": 1}
    whole, _ = trained(phase, **options)
    assert whole.worker_stats.lost_rounds > 0
    again = stopped_and_resumed(run(phase, **options), tmp_path, 2)
    assert fingerprint(again.model) == fingerprint(whole.model)


def test_clients_begin_the_run_on_their_own_and_not_every_phase():
    once, lines = trained((px.federated.fedavg(OWN, 4), px.federated.fedavg(OWN, 1)))
    assert lines[-1]["accuracy"] > lines[-2]["accuracy"] - 0.05
    behind, lines = trained((px.federated.fedma(OWN, layers=2), px.federated.fedavg(OWN, 2)))
    assert lines[-1]["accuracy"] > lines[1]["accuracy"] - 0.05
    assert behind.model_state.widths and once.worker_stats.lost_rounds == 0


def test_a_pass_behind_a_pass_begins_from_the_grown_network(tmp_path):
    two = (px.federated.fedma(OWN, layers=2), px.federated.fedma(OWN, layers=2))
    whole, _ = trained(two, checkpoint_every=1)
    again = stopped_and_resumed(run(two, checkpoint_every=1), tmp_path, 1)
    assert fingerprint(again.model) == fingerprint(whole.model)
    assert again.model_state.widths == whole.model_state.widths


def test_the_first_phase_that_has_rounds_has_its_own_optimizer():
    local = px.federated.local_training(px.optim.sgd(0.1))
    empty, _ = trained((px.federated.fedavg(local, 0), px.federated.fedadam(local, 2)))
    plain, _ = trained(px.federated.fedadam(local, 2))
    assert fingerprint(empty.model) == fingerprint(plain.model)


def test_what_was_sent_in_a_lost_round_stays_sent():
    class Lossy(px.LocalCollective):
        def gather(self, payloads, limit_bytes):
            return [px.BadPayload("nothing arrived")] * len(payloads)

    trainer = px.train(run(px.federated.fedavg(LOCAL, 1, codec=px.parse("error_feedback(top_k(0.1))"))), Lossy(4))
    assert trainer.worker_stats.lost_rounds == 1 and len(trainer.state.scheme_state["0"]) == 4


def test_a_client_without_its_memory_leaves_a_pass_out():
    from phalanx.training.worker_runtime import WorkerRuntime

    made = run(px.federated.fedma(OWN, layers=2), workers=2)
    trainer = Trainer(made)
    trainer.train_round()
    started = trainer.start_round()
    uploads, _ = WorkerRuntime(made, (0, 1)).run_round(1, started.request.payload())
    assert uploads == {}


def test_absent_attackers_are_no_missed_accusations():
    phase = px.federated.fedavg(LOCAL, 6)
    made = px.Phase(LOCAL, phase.scheme, phase.optimizer, 6, clients=px.federated.with_attackers(3, (0,), every=3))
    trainer = px.train(run(made, workers=6, byzantine=px.adversary.workers((0,))))
    assert trainer.worker_stats.attacks == 2 and trainer.worker_stats.byzantine[0] == 2


def test_each_round_of_a_pass_has_the_epochs_of_its_layer():
    local, retrain, last = (px.federated.local_training(px.optim.sgd(0.1), epochs=e) for e in (5, 3, 2))
    work = px.federated.layerwise(local, 4, retrain, last)
    assert [work.num_epochs(r) for r in range(9)] == [5, 3, 3, 2, 5, 3, 3, 2, 5]
    assert [px.federated.layerwise(local, 2, retrain).num_epochs(r) for r in range(3)] == [5, 3, 5]
    assert [px.federated.layerwise(local, 3).num_epochs(r) for r in range(4)] == [5, 5, 5, 5]


def test_the_layouts_of_a_pass_have_every_tensor_and_every_statistic_once():
    local = px.federated.local_training(px.optim.sgd(0.1), epochs=1)
    trainer = Trainer(run(px.federated.fedavg(LOCAL, 1), model=Normed()))
    layers = len(trainer.model_state.graph(0).sizes) + 1
    work, models = px.federated.layerwise(local, layers), PhaseModels(trainer.model_state, 0)
    whole, parts = Layout.of(models.original()), [work.layout(models, layer) for layer in range(layers)]
    # beside the claimed numbers of examples by class, which go with the last layer
    sent = [name for part in parts for name in part.names if name != "examples"]
    installed = [name for part in parts for name in part.installed if name != "examples"]
    assert sorted(sent) == sorted(whole.names)
    assert whole.num_installed > 0 and sorted(installed) == sorted(whole.installed)
