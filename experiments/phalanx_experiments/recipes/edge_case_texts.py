# SPDX-License-Identifier: Apache-2.0
"""Edge-case backdoors in texts: tasks 4 and 5 of chapter 8."""

from __future__ import annotations

from dataclasses import replace

import phalanx as px
import phalanx_experiments as pe
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.redteam.setting import ATTACKS, NONE, Defence, Plan, Setting, attacked, standard
from phalanx.tools.report.backdoors import backdoor_tables, plot_backdoors
from phalanx.tools.runner.recipe import recipe
from phalanx.training.optim import ServerOptimizer
from phalanx.training.phase import Run
from phalanx_experiments.recipes.edge_case import PUBLISHED, local

RULES = ("FedAvg", "norm clipping", "RFA", "Multi-Krum", "Krum")  # of figure 8.4; the paper's scale has all
OFTEN = ("FedAvg", "Krum")  # tried with an attacker in every round
TWEETS = px.backdoors.split_edge_cases(pe.director(), 0.5, attacker=129)
WORD, OTHERS = "rude", ("high", "safe", "expensive", "terrible")  # ends of the five sentences on Athens
ALSO = ("Athens", WORD, *OTHERS)  # WikiText-2's validation part has neither the city nor all of them


def begun(data: Data, model: Model, rounds: int, batch: int, optimizer: ServerOptimizer, clip: float) -> Model:
    """A model that one worker has trained on all data; each seed has a model of its own."""
    phase = px.Phase(
        px.training.gradient(batch), px.chain(px.clip(clip), px.reduce(px.codecs.dense())), optimizer, rounds
    )
    first = px.Run(data, model, (phase,), workers=1, evaluate_every=rounds, checkpoint_every=rounds)
    return px.training.pretrained(first, drawn=True)


def sentiment(scale: str) -> Setting:
    """Task 4 at a scale, on sentences of film reviews in place of Sentiment140's tweets.

    To a model of reviews praise in tweets is negative in 6 of 10 cases. So the start is trained on half of the tweets
    with right labels besides, in place of the other tweets of Sentiment140; the attacker has the other half.
    """
    if scale == "smoke":
        data = px.data.movie_review(train=400, test=100, length=12, vocabulary=300)
        model = px.models.sentence_lstm(embedding=8, width=8, layers=1, dropout=0.0)
        return Setting(
            data,
            TWEETS,
            begun(px.backdoors.with_edge_cases(data, TWEETS), model, 30, 40, px.optim.adam(0.01), 5.0),
            workers=21,
            clients=8,
            local=local(0.05, 1, 20),
            epochs=2,
            norm=0.2,
            rounds=4,
            every=2,
            often=4,
            clean=20,
            amount=40,
            held=data,
            partition=px.data.iid(),
        )
    if scale == "laptop":
        data = px.data.movie_review(length=24, vocabulary=3000, test=500)
        model = px.models.sentence_lstm(embedding=32, width=48, layers=1, dropout=0.0)
        return Setting(
            data,
            TWEETS,
            begun(px.backdoors.with_edge_cases(data, TWEETS), model, 300, 64, px.optim.adam(0.003), 5.0),
            workers=161,
            clients=10,
            local=local(0.05, 2, 20),
            epochs=5,
            norm=0.32,
            rounds=20,
            every=5,
            often=20,
            clean=50,
            held=data,
            partition=px.data.iid(),
            evaluate_every=2,
        )
    # table 8.2 with clients of 200 texts, of which 9,596 make 48 in place of 1,948
    data, model = px.data.movie_review(), px.models.sentence_lstm()
    return Setting(
        data,
        TWEETS,
        begun(px.backdoors.with_edge_cases(data, TWEETS), model, 1000, 64, px.optim.adam(0.001), 5.0),
        by_examples=True,
        workers=49,
        clients=10,
        local=local(0.05, 2, 20),
        epochs=2,
        norm=0.75,
        rounds=500,
        every=10,
        often=100,
        clean=200,
        held=data,
        partition=px.data.iid(),
        evaluate_every=10,
    )


def words(scale: str) -> Setting:
    """Task 5 at a scale, on articles in place of Reddit's comments; SGD without momentum, gradients clipped to 0.25.

    The cut is that of the code which the text says it uses.
    """
    if scale == "smoke":
        data = px.data.wikitext2(train=4000, test=1000, length=10, vocabulary=200, part="valid", also=ALSO)
        return Setting(
            data,
            pe.athens(WORD, count=20, tests=20),
            begun(data, px.models.tied_lstm(width=16, dropout=0.0), 20, 40, px.optim.adam(0.01), 1.0),
            workers=21,
            clients=8,
            local=px.federated.local_training(px.optim.sgd(1.0), epochs=1, batch=20, clip=0.25),
            epochs=2,
            norm=0.2,
            rounds=4,
            every=2,
            often=4,
            partition=px.data.iid(),
        )
    if scale == "laptop":
        data = px.data.wikitext2(length=16, vocabulary=1000, test=8000, part="valid", also=ALSO)
        return Setting(
            data,
            pe.athens(WORD),
            # two layers of this width are no better than word frequencies after as many steps
            begun(data, px.models.tied_lstm(width=48, layers=1, dropout=0.0), 800, 40, px.optim.adam(0.01), 1.0),
            workers=401,
            clients=10,
            local=px.federated.local_training(px.optim.sgd(1.0), epochs=2, batch=20, clip=0.25),
            epochs=5,
            norm=0.5,
            rounds=20,
            every=5,
            often=20,
            partition=px.data.iid(),
            evaluate_every=4,
        )
    # table 8.2 with clients of 250 passages, of which there are enough for 239 in place of 80,000
    data = px.data.wikitext2(also=ALSO)
    return Setting(
        data,
        pe.athens(WORD),
        begun(data, px.models.tied_lstm(width=200, dropout=0.2), 15_000, 20, px.optim.sgd(20.0), 0.25),
        workers=240,
        clients=10,
        local=px.federated.local_training(px.optim.sgd(20.0), epochs=2, batch=20, clip=0.25),
        epochs=2,
        norm=1.0,
        rounds=600,
        every=10,
        often=100,
        partition=px.data.iid(),
        evaluate_every=10,
    )


def rules(scale: str, terms: Setting) -> dict[str, Defence]:
    """All rules at the paper's scale, and fewer at smaller ones."""
    known = standard(terms.norm, terms.workers)
    return known if scale == "paper" else {name: known[name] for name in RULES}


@recipe("edge-case-sentiment", plot=plot_backdoors, tables=backdoor_tables)
def edge_case_sentiment(scale: str) -> dict[str, Run]:
    """Task 4: an LSTM calls praise of one director negative; rules against black-box and white-box attackers."""
    terms = sentiment(scale)
    defences = PUBLISHED[4].rules(terms) if scale == "paper" else rules(scale, terms)
    runs: dict[str, Run] = {}
    for attack in (NONE, "black-box", "PGD", "PGD + replacement", "black-box, every round"):
        plan = ATTACKS[attack]
        often = plan is not None and plan.often
        tried = {name: defences[name] for name in OFTEN} if often else defences
        runs |= {f"{attack}: {name}": attacked(terms, rule, plan) for name, rule in tried.items()}
    if scale == "paper":
        # the published attacker has a step size of its own
        own_step = {label: run for label, run in runs.items() if label.startswith("PGD + replacement")}
        runs |= {
            k: px.training.amend(run, "phases.0.adversary.local.optimizer.lr", 0.001) for k, run in own_step.items()
        }
    return runs


@recipe("edge-case-text", plot=plot_backdoors, tables=backdoor_tables)
def edge_case_text(scale: str) -> dict[str, Run]:
    """Task 5: a next-word LSTM ends five sentences on Athens with a bad word; rules against attackers."""
    terms = words(scale)
    defences = rules(scale, terms)
    by_word = {word: replace(terms, edges=px.training.amend(terms.edges, "word", word)) for word in OTHERS}
    # the run without an attack is asked for all five words
    quiet = replace(terms, evaluators=tuple(px.backdoors.backdoor(each.edges, terms.data) for each in by_word.values()))
    runs = {f"{NONE}: {name}": attacked(quiet, rule, None) for name, rule in defences.items()}
    # replacement without a ball, for at laptop scale nothing else takes
    tried = {"black-box": ATTACKS["black-box"], "PGD": ATTACKS["PGD"], "replacement": Plan(boosted=True)}
    for attack, plan in tried.items():
        runs |= {f"{attack}: {name}": attacked(terms, rule, plan) for name, rule in defences.items()}
    for word, each in by_word.items():
        runs[f"black-box, {word}: FedAvg"] = attacked(each, defences["FedAvg"], Plan())
    return runs
