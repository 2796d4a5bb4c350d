# SPDX-License-Identifier: Apache-2.0
"""The federated methods by name, each a phase of the parts it is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from phalanx.aggregators.mean import Mean
from phalanx.codecs.dense import Dense
from phalanx.core.aggregator import Aggregator
from phalanx.core.codec import Codec, Gather, Reduce
from phalanx.core.gate import Gate
from phalanx.core.stage import Stage, chain
from phalanx.federated.layerwise import Layerwise
from phalanx.federated.local_training import LocalTraining
from phalanx.matching.bbp import Bbp
from phalanx.matching.match_stage import Matched, Middle
from phalanx.matching.matching import Matcher
from phalanx.training.client_sampler import AllClients, Uniform
from phalanx.training.client_work import ClientWork
from phalanx.training.optim import Adam, AdamW, AssignWeights, ServerOptimizer, Sgd
from phalanx.training.phase import Phase, amend

_SIZES = Gate(max_weight=10.0)  # honest clients differ in size; nobody counts for more than ten median ones


def fedavg(
    local: ClientWork | None = None,
    rounds: int = 10,
    *,
    clients: int | None = None,
    codec: Codec | None = None,
    rule: Stage | None = None,
    optimizer: ServerOptimizer | None = None,
    secure: bool = False,
) -> Phase:
    """Federated averaging: clients train, and the global model moves by the mean of their changes.

    Args:
        local: what a client does, such as `local_training()` or `custom_training(train)`; one epoch of SGD by default.
        clients: drawn for each round; None takes all.
        codec: of what a client sends; `dense()` by default.
        rule: behind the wire, such as `krum(f=2)`; the mean by default, weighted by examples, at most ten median
            weights each.
        optimizer: what is done with the result; a plain step by default.
        secure: the server sees the sum of the rows only; then clients' numbers of examples are believed, and a rule
            acts on the mean.
    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017,
        arXiv:1602.05629, Algorithm 1. Differs: nobody counts for more than ten median clients.
    """
    behind = () if rule is None else (rule,)
    if secure:
        scheme = chain(Reduce(codec or Dense()), *behind)
    else:
        scheme = chain(Gather(codec or Dense(), _SIZES), *(behind or (Mean(),)))
    everyone = AllClients() if clients is None else Uniform(clients)
    return Phase(local or LocalTraining(), scheme, optimizer or Sgd(lr=1.0), rounds, clients=everyone, secure=secure)


def fedprox(local: LocalTraining | None = None, rounds: int = 10, *, mu: float = 0.001, **options) -> Phase:
    """FedAvg whose clients are pulled towards the global model by mu/2 ||w - w_round||^2; options as `fedavg`.

    Source: Li et al., Federated Optimization in Heterogeneous Networks, 2018, arXiv:1812.06127, Algorithm 2; mu = 0.001
        is the dissertation's (section 5.2).
    """
    return fedavg(replace(local or LocalTraining(), proximal=mu), rounds, **options)


def fedavgm(
    local: ClientWork | None = None, rounds: int = 10, *, lr: float = 1.0, momentum: float = 0.9, **options
) -> Phase:
    """FedAvg with momentum at the server; options as `fedavg`.

    Source: Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification,
        2019, arXiv:1909.06335, section 4.
    """
    return fedavg(local, rounds, optimizer=Sgd(lr=lr, momentum=momentum), **options)


def fedadam(local: ClientWork | None = None, rounds: int = 10, *, lr: float = 0.001, **options) -> Phase:
    """FedAvg with Adam at the server; options as `fedavg`.

    Source: Reddi et al., Adaptive Federated Optimization, 2020, arXiv:2003.00295, Algorithm 2. Differs: Adam's bias
        correction and its epsilon of 1e-8 as in PyTorch, beta2 = 0.999 in place of 0.99.
    """
    return fedavg(local, rounds, optimizer=Adam(lr=lr), **options)


def diloco(
    steps: int = 50,
    rounds: int = 10,
    *,
    inner: ServerOptimizer | None = None,
    batch: int = 32,
    lr: float = 0.7,
    momentum: float = 0.9,
    **options,
) -> Phase:
    """Many local steps with an optimizer that each worker keeps, then a Nesterov step; options as `fedavg`.

    Args:
        steps: H, local steps between two exchanges.
        inner: the workers' optimizer; AdamW by default.
        lr: of the outer step.
    Source: Douillard et al., DiLoCo: Distributed Low-Communication Training of Language Models, 2023,
        arXiv:2311.08105, Algorithm 1.
    """
    local = LocalTraining(inner or AdamW(), steps=steps, batch=batch, keep=True)
    return fedavg(local, rounds, optimizer=Sgd(lr=lr, momentum=momentum, nesterov=True), **options)


def pfnm(
    local: LocalTraining | None = None,
    *,
    matcher: Matcher | None = None,
    outgoing: bool = False,
    codec: Codec | None = None,
    rule: Aggregator | None = None,
) -> Phase:
    """One round: clients train networks of their own, whose neurons are matched and averaged all at once.

    Args:
        local: what a client does, each from an initialization of its own.
        matcher: who is who; `bbp()` in its published setting by default.
        outgoing: compares the outgoing weights of the last hidden layer as much as the incoming ones.
        rule: over the matched networks; the mean by default.
    Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, 2019, arXiv:1905.12022.
        Differs: any network that can be traced; layers are matched from the inputs on.
    """
    local = replace(local or LocalTraining(), own=True, sends="weights")
    scheme = chain(Gather(codec or Dense(), _SIZES), Matched(matcher or Bbp(), outgoing), rule or Mean())
    return Phase(local, scheme, AssignWeights(), rounds=1)


def fedma(
    local: LocalTraining | None = None,
    layers: int = 4,
    passes: int = 1,
    *,
    retrain: LocalTraining | None = None,
    last: LocalTraining | Literal["published"] | None = "published",
    matcher: Matcher | None = None,
    support: int = 1,
    middle: Middle = "mean",
    clients: int | None = None,
    codec: Codec | None = None,
    rule: Aggregator | None = None,
) -> Phase:
    """Federated matched averaging: a round for each layer, and with more passes FedMA with communication.

    Args:
        local: how a client trains its whole network, from an initialization of its own.
        layers: of the network that have weights: 4 of LeNet, 9 of VGG-9, 3 of an embedding, an LSTM and a decoder.
        passes: >= 1.
        retrain: how it trains the layers behind a matched one; as local by default, without weight decay.
        last: how it trains the last layer; "published" is a tenth of the learning rate, three times the epochs and a
            weight decay of 1e-4; None is as retrain.
        matcher: who is who; bbp(average="plain") by default.
        support: clients that have to have a neuron for it to stay; above f it keeps what f liars have alone out.
        middle: what stands in for a neuron at clients that lack it; with f liars a robust rule needs "median", and
            support=2 * f + 1.
        clients: drawn for each pass; None takes all.
        rule: over the matched layers; the mean by default.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, Algorithm 1 and table 3;
        the dissertation's Algorithm 3 and section 5.4.1.
    """
    local = replace(local or LocalTraining(), own=True)
    plain = retrain or replace(local, own=False, optimizer=amend(local.optimizer, "weight_decay", 0.0))
    if last == "published":
        slow = amend(amend(plain.optimizer, "weight_decay", 1e-4), "lr", plain.optimizer.lr / 10)
        steps = None if plain.steps is None else 3 * plain.steps
        last = replace(plain, optimizer=slow, epochs=3 * plain.epochs, steps=steps)
    rule_of = matcher or Bbp(average="plain")
    matched = Matched(rule_of, support=support, middle=middle)
    scheme = chain(Gather(codec or Dense(), Gate(weights="equal")), matched, rule or Mean())
    everyone = AllClients() if clients is None else Uniform(clients)
    return Phase(Layerwise(local, layers, plain, last), scheme, AssignWeights(), layers * passes, clients=everyone)
