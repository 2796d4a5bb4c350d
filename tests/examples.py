# SPDX-License-Identifier: Apache-2.0
"""Values of every registered name, and the rows on which the laws run."""

import inspect
from dataclasses import replace
from typing import Any

import phalanx as px
from phalanx.core.registry import Entry, entries
from phalanx.core.stage import Chain
from phalanx.tools.testing.rows import DTYPES as DTYPES
from phalanx.tools.testing.rows import LAYOUT as LAYOUT
from phalanx.tools.testing.rows import WORKERS

honest, received, same = px.testing.honest_stack, px.testing.open_messages, px.testing.same_bits

# a name whose fields all have defaults needs no line; a line adds settings worth a law of their own
EXAMPLES: dict[str, tuple[str, ...]] = {
    "adaptive_clip": ("adaptive_clip(of='median', factor=1.5)",),
    "only_on": (
        "only_on(reverse(c=10.0))",
        "only_on(constant(), at='installed')",
        "only_on(alie(z=1.0), at='installed')",
    ),
    "after_pruning": ("after_pruning(backdoor(rare_styles(), digits()), bound=0.1, step=0.25, clean=50, layer='1')",),
    "alie": ("alie(z=1.5)", "alie(z=-1)"),
    "split_by_part": (
        "split_by_part(krum(f=2), median())",
        "split_by_part(chain(group_vote(r=3), mean()), mean())",
        "split_by_part(geometric_median())",
    ),
    "athens": ("athens(word='high', count=5, tests=3, city='Paris', seed=1)",),
    "atomo": (
        "atomo(entries(), budget=2)",
        "atomo(entries(), ratio=0.2, draws='systematic')",
        "atomo(spectral(reshape='matrix'), budget=0.5)",
        "atomo(spectral(reshape='matrix'), budget=0.5, vectors=qsgd(bits=4))",
        "atomo(dct(), ratio=0.3)",
    ),
    "bbp": ("bbp(gamma=0.001, average='plain')", "bbp(sigma=0.01, popularity=2, cap=None, limit=None)"),
    "bucketing": ("bucketing(size=2)",),
    "bulyan": ("bulyan(f=2)", "bulyan(f=2, one_shot=True)", "bulyan(f=0)"),
    "by_owner": ("by_owner(least=10, drawn=True)",),
    "centered_clip": ("centered_clip(tau=2.0, iterations=5)",),
    "char_lstm": ("char_lstm(embedding=3, width=4)",),
    "chain": (
        "chain(momentum(beta=0.5), gather(error_feedback(sign(scaled=True))), median())",
        "chain(clip(norm=2.0), reduce(half()))",
    ),
    "clip": ("clip(norm=1.0)", "clip(norm=1000000.0)"),
    "constant": ("constant(value=1e30)", "constant(value=inf)"),
    "crash": ("crash(worker=1, at=2)",),
    "by_host": ("by_host(hosts=(0, 0, 1, 1))", "by_host(hosts=('a', 'b'), every=3)"),
    "codeword": ("codeword(s=2, ratio=0.5)",),
    "cyclic": ("cyclic(s=2)", "cyclic(s=1, bits=16)"),
    "assign_added": ("assign_added(dirichlet(alpha=0.5), clients=2, drawn=True, first=1)",),
    "decay": ("decay(by=0.99)",),
    "delay": ("delay(worker=1, seconds=0.5, at=1, rounds=2)",),
    "detox": (
        "detox(3, mean(), median(), groups=5)",
        "detox(3, krum(f=3), mean(), groups=1, q=2)",
        "detox(3, majority(), majority(), groups=3, codec=sign())",
    ),
    "dirichlet": ("dirichlet(alpha=0.5)", "dirichlet(alpha=1.0, quantiles=4)"),
    "datasets": ("datasets(source='tests.data.own_sets:table')",),
    "client_datasets": ("client_datasets(source='tests.data.own_sets:clinic', outputs=1, shape=(3,))",),
    "custom": ("custom(make='torch.nn:Identity')",),
    "custom_training": ("custom_training('tests.data.own_sets:train', batch=8)",),
    "metric": ("metric('mae', 'tests.data.own_sets:mae', higher_is_better=False, unit='cm')",),
    "task": (
        "task(loss='torch.nn.functional:mse_loss')",
        "task(None, metrics=(metric('auc', None, higher_is_better=True),), evaluate='tests.data.own_sets:evaluate')",
    ),
    "random": ("random(count=2, every=3)",),
    "edge_density": ("edge_density(rounds=2, covariance='own', percentile=5.0, bins=10)",),
    "error_feedback": (
        "error_feedback(dense())",
        "error_feedback(chunked_dct(top_k(ratio=0.1, chunk=8, values=3)), decay=0.95)",
        "error_feedback(half(precision='bf16'))",
        "error_feedback(sign(scaled=True))",
        "error_feedback(error_feedback(half()))",
    ),
    "workers": ("workers(workers=(1, 4))", "workers(workers=())"),
    "gate": ("gate(limit=10.0, weights='equal')", "gate(weights='trusted')"),
    "garble": ("garble(worker=0, at=0)",),
    "gather": ("gather(dense())", "gather(sign(), gate=gate(limit=5.0))", "gather(dense(), forge=malformed())"),
    "grayscale": (
        "grayscale(cifar10(train=100, test=50, size=16), minor=0.5)",
        "grayscale(cifar100(), minor=0.1, oversampled=True, seed=3)",
    ),
    "group_vote": ("group_vote(r=3)", "group_vote(r=3, none='exclude')", "group_vote(r=3, rtol=1e-06)"),
    "hang": ("hang(worker=3, at=4)",),
    "half": ("half(precision='bf16')",),
    "hierarchy": ("hierarchy(mean(), median(), groups=5)", "hierarchy(median(), mean(), groups=3)"),
    "iteration_cost": (
        "iteration_cost(digits(), mlp(hidden=(4,)), workers=5, s=1, batch=10)",
        "iteration_cost(digits(), mlp(hidden=()), workers=6, s=2, batch=6, attacks=(nan(),), memory_bytes=0)",
    ),
    "layerwise": (
        "layerwise(local_training(epochs=2, own=True), layers=4, last=local_training(sgd(lr=0.001), epochs=6))",
    ),
    "backdoor": ("backdoor(rare_styles(), digits())",),
    "poisoned": ("poisoned(local_training(), rare_styles(), digits(), clean=10, amount=3)",),
    "with_fixed": ("with_fixed(uniform(clients=2))", "with_fixed(with_attackers(clients=2), last=2)"),
    "reserve": ("reserve(iid(), amount=5)",),
    "ball": ("ball(radius=2.0)", "ball(radius=0.5, every=3, decay=0.99, norm='linf', each='tensor')"),
    "with_attackers": (
        "with_attackers(clients=4)",
        "with_attackers(clients=3, attackers=(1, 2), every=1, first=2, rounds=9)",
    ),
    "replacement": ("replacement(boost=3.0)",),
    "early_stopping": ("early_stopping(patience=2, least=0.01, restore=False)",),
    "local_training": (
        "local_training(ball=ball(radius=0.4))",
        "local_training(adamw(), steps=5, keep=True)",
        "local_training(epochs=0, proximal=0.1, frozen=('0.*',), sends='weights')",
    ),
    "with_edge_cases": (
        "with_edge_cases(digits(), split_edge_cases(rare_styles(style='thin', source=3, target=8), ratio=0.1))",
    ),
    "krum": ("krum(f=2)", "krum(f=0)"),
    "early_bird": ("early_bird(ratio=0.3, every=2, window=1, distance=1.0, sparsity=0)",),
    "local_models": (
        "local_models(digits(), mlp(hidden=(4,)), workers=3, partition=dirichlet(alpha=0.5), seed=2)",
        "local_models(digits(), mlp(), workers=1, local=local_training(sgd(lr=0.1), epochs=2), augment=crop_flip())",
    ),
    "lottery": ("lottery(every=3)", "lottery(every=3, rate=0.5, rewind=2, among='layer', classifier=False)"),
    "lq": ("lq(q=1.5)", "lq(q=inf, coding='packed')"),
    "malformed": tuple(
        f"malformed(how='{how}')" for how in ("long", "dtype", "keys", "missing", "random", "weight", "negative_weight")
    ),
    "matched_filters": ("matched_filters(cifar10(), vgg9(), partition=dirichlet(alpha=0.5), image=13, pairs=2)",),
    "milestones": ("milestones(at=(0.5, 0.75))",),
    "mean_estimation": (
        "mean_estimation(nodes=45, byzantine=5, r=3, dims=(2, 7), groups=5, norm=10.0)",
        "mean_estimation(nodes=9, byzantine=0, r=1, dims=(1,), groups=9)",
    ),
    "mimic": ("mimic(warmup=0)", "mimic(warmup=1)"),
    "momentum": ("momentum(beta=0.0)",),
    "multi_krum": ("multi_krum(f=2)", "multi_krum(f=2, m=3)"),
    "nested": ("nested(dirichlet(alpha=0.5))", "nested(shards(), pieces=2, each=3)"),
    "norms": ("norms(every=2, arrived=True)",),
    "nnm": ("nnm(f=2)",),
    "noise": ("noise(std=0.1)",),
    "own_edges": ("own_edges(root='planes.npz', target=9, label=0)",),
    "phase": (
        "phase(gradient(), chain(gather(dense()), mean()))",
        "phase(gradient(), chain(clip(norm=1.0), reduce(dense())), clients=uniform(clients=3), secure=True)",
    ),
    "prune": ("prune(bound=0.1, step=0.25, clean=None, layer='3')",),
    "pufferfish": (
        "pufferfish(warmup='auto', rank='auto', ratio=None, adapt=(0.6, 0.8))",
        "pufferfish(ratio=0.5, warmup=0.0, keep=('0', 'fc.*'), moments='gradient', decay='product')",
    ),
    "qsgd": ("qsgd(bits=3, bucket=7, norm='linf')", "qsgd(bits=8, bucket=None)", "qsgd(bits=2, coding='elias')"),
    "power_sgd": ("power_sgd(rank=2)",),
    "random_k": ("random_k(ratio=0.3)", "random_k(ratio=0.5, scaled=False)", "random_k(ratio=1.0)"),
    "reduce": ("reduce(dense())", "reduce(half(precision='bf16'))", "reduce(error_feedback(half()))"),
    "repetition": ("repetition(r=5)",),
    "run": ("run(digits(), mlp(), phases=(phase(gradient(), chain(gather(dense()), mean()), rounds=3),))",),
    "shakespeare": ("shakespeare(train=500, test=100, roles=None, least=20000, length=1, context=79)",),
    "uniform": ("uniform(clients=3)",),
    "scatter": (
        "scatter(dense())",
        "scatter(qsgd(bits=3), back=error_feedback(qsgd(bits=2)))",
        "scatter(dense(), forge=malformed())",
        "scatter(qsgd(bits=3), r=3, lie=malformed())",
    ),
    "shards": ("shards(per_unit=3)",),
    "split_edge_cases": (
        "split_edge_cases(rare_styles())",
        "split_edge_cases(rare_styles(style='thin', source=3, target=8), ratio=0.1, attacker=6, seed=1)",
    ),
    "sign": ("sign(scaled=True)",),
    "southwest_honest": ("southwest_honest(p=10)",),
    "spahm": ("spahm(gamma=1.0, sweeps=3)",),
    "evenly_spaced": ("evenly_spaced(count=3)",),
    "step_cost": ("step_cost(network='resnet18-cifar', batch=2, precision='bf16', repeats=1)",),
    "adaptive": ("adaptive(median())", "adaptive(krum(f=0))"),
    "pretrained": (
        "pretrained(run(digits(), mlp(hidden=(4,)), phases=(phase(gradient(), reduce(dense()), rounds=2),), "
        "workers=1))",
    ),
    "svd_cost": ("svd_cost(network='vgg19-cifar', svd='auto', repeats=1)",),
    "terngrad": ("terngrad(clip=inf)", "terngrad(coding='elias')"),
    "chunked_dct": ("chunked_dct(dense())", "chunked_dct(top_k(ratio=0.25, chunk=4, values=4), chunk=2)"),
    "top_k": (
        "top_k(ratio=0.2)",
        "top_k(ratio=1.0)",
        "top_k(ratio=0.25, chunk=4)",
        "top_k(ratio=0.05, chunk=7, values=2)",
        "top_k(ratio=0.5, chunk=5, values=8)",
    ),
    "vote": ("vote(dense(), r=3)", "vote(qsgd(bits=3), r=5, none='exclude')", "vote(dense(), r=3, rtol=0.001)"),
    "meamed": ("meamed(f=2)", "meamed(f=0)"),
    "arc": ("arc(f=2)",),
    "caf": ("caf(f=2)",),
    "smea": ("smea(f=2)",),
    "mda": ("mda(f=2)", "mda(f=0)"),
    "dnc": ("dnc(f=2)", "dnc(f=1, coordinates=5, samples=2, share=1.5)"),
    "robust_lr": ("robust_lr(threshold=4.0)",),
    "signguard": ("signguard(lower=0.0, upper=2.0, sample=1.0)",),
    "min_max": ("min_max(direction='unit')", "min_max(direction='sign')"),
    "min_sum": ("min_sum(direction='unit')",),
    "fang": ("fang(b=4.0)",),
    "fang_krum": ("fang_krum(least=0.001)",),
    "free_rider": ("free_rider(std=0.1)",),
    "dba": ("dba(poisoned(local_training(), trigger(shape='bars'), digits(), clean=10))",),
    "neurotoxin": ("neurotoxin(poisoned(local_training(), rare_styles(), digits(), clean=10), ratio=0.1)",),
    "label_flip": ("label_flip(gradient(batch=4))", "label_flip(local_training(), source=7, target=1)"),
    "trigger": ("trigger(target=2, shape='bars', size=2, gap=1, part=3, count=5)",),
    "trimmed_mean": ("trimmed_mean(f=2)", "trimmed_mean(ratio=0.25)"),
}

N = WORKERS
BYZANTINE = frozenset({1, 6, 11})


def texts(entry: Entry) -> tuple[str, ...]:
    """The expressions of one name; none if it has required fields and no line above."""
    parameters = inspect.signature(entry.build).parameters.values()
    plain = all(p.default is not p.empty or p.kind is p.VAR_POSITIONAL for p in parameters)
    # trimmed_mean() has two fields of which exactly one must be given
    own = (f"{entry.name}()",) if plain and entry.name != "trimmed_mean" else ()
    return own + EXAMPLES.get(entry.name, ())


def examples(*kinds: str) -> list[Any]:
    assert {entry.kind for entry in entries()} >= set(kinds), f"no such kind among {kinds}"
    return [px.parse(text) for entry in entries() if not kinds or entry.kind in kinds for text in texts(entry)]


def in_order(stage: Any) -> Any:
    """The stage with neighbouring workers in one vote group."""
    if isinstance(stage, Chain):
        return Chain(tuple(map(in_order, stage.stages)))
    return replace(stage, placement=px.coding.in_order()) if hasattr(stage, "placement") else stage


def round_of(
    n: int = N, index: int = 0, seed: int = 0, byzantine: frozenset[int] = BYZANTINE, world: Any = None
) -> px.Round:
    return px.Round(index, seed, byzantine, world or px.LocalCollective(n))
