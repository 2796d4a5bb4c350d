# SPDX-License-Identifier: Apache-2.0
"""PUFFERFISH on texts: the language model of tables 4.2 and 4.21, the translator of table 4.3."""

from __future__ import annotations

from dataclasses import dataclass

import phalanx as px
from phalanx.core.surgery import Surgery
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.optim import ServerOptimizer
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import plot_convergence
from phalanx_experiments.figures.lowrank import lowrank_tables
from phalanx_experiments.recipes.single import single


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        batch: texts a round.
        warmup: share of the rounds at full rank.
        keep: layers that stay full.
    """

    data: Data
    model: Model
    batch: int
    optimizer: ServerOptimizer
    rounds: int
    evaluate_every: int
    warmup: float
    keep: tuple[str, ...] = ()
    clip: float = 0.25
    workers: int = 1
    augment: Augment | None = None
    precision: str = "float32"


WORDS = {
    "smoke": Size(
        px.data.wikitext2(train=4000, test=1000, length=10, vocabulary=200, part="valid"),
        px.models.tied_lstm(width=16, dropout=0.0),
        20,
        px.optim.sgd(1.0),
        6,
        3,
        0.5,
    ),
    # the validation part is what the publisher's mirror of small files has; passages of 35 words, as published
    "laptop": Size(
        px.data.wikitext2(vocabulary=8000, test=60_000, context=0, part="valid"),
        px.models.tied_lstm(width=200, dropout=0.2),
        20,
        px.optim.adam(0.002, schedule=px.optim.cosine(warmup=50)),
        1500,
        300,
        0.25,
    ),
    # table 4.12 and section 4.5.8: 40 epochs of some 2,980 rounds, 10 of them at full rank
    "paper": Size(
        px.data.wikitext2(context=35),
        px.models.tied_lstm(),
        20,
        px.optim.sgd(20.0, schedule=px.optim.milestones(at=(0.25, 0.5, 0.75), by=0.5)),
        40 * 2980,
        2980,
        0.25,
    ),
}
PAIRS = {
    "smoke": Size(
        px.data.multi30k(train=300, test=20, length=12, vocabulary=300, beam=2),
        px.models.transformer(width=16, hidden=32, heads=2, layers=2, dropout=0.0),
        30,
        px.optim.adam(0.003),
        6,
        3,
        0.5,
        keep=("encoder.0.*", "decoder.0.*"),
    ),
    "laptop": Size(
        px.data.multi30k(test=200, length=20, vocabulary=4000, beam=4),
        px.models.transformer(width=128, hidden=512, heads=4, layers=2, dropout=0.1),
        64,
        px.optim.adam(0.002, beta2=0.98, schedule=px.optim.cosine(warmup=200)),
        1200,
        300,
        0.25,
        keep=("encoder.0.*", "decoder.0.*"),
    ),
    # section 4.5.8: 400 epochs of 114 rounds, 10 of them at full rank
    "paper": Size(
        px.data.multi30k(beam=5),
        px.models.transformer(scaled="scores"),
        256,
        px.optim.adam(0.001, beta2=0.98),
        400 * 114,
        10 * 114,
        10 / 400,
        keep=("encoder.0.*", "decoder.0.*"),
    ),
}


def variants(size: Size) -> dict[str, Surgery | None]:
    """Full rank, low rank behind a warm-up, and the two ways of beginning low-rank."""

    def low(warmup: float, start: str = "spectrum") -> Surgery:
        return px.lowrank.pufferfish(warmup=warmup, keep=size.keep, start=start)  # type: ignore[arg-type]

    return {
        "full": None,
        "low rank, warm-up": low(size.warmup),
        "low rank from scratch": low(0.0),
        "low rank from scratch, drawn factors": low(0.0, "drawn"),
    }


def configured(size: Size, surgery: Surgery | None) -> Run:
    """One run."""
    phase = px.Phase(
        work=px.training.gradient(batch=size.batch),
        scheme=px.chain(px.clip(size.clip), px.reduce(px.codecs.dense())),
        optimizer=size.optimizer,
        rounds=size.rounds,
        surgery=surgery,
    )
    return single(size, size.model, phase)


@recipe("pufferfish-lstm", plot=plot_convergence, tables=lowrank_tables)
def pufferfish_lstm(scale: str) -> dict[str, Run]:
    """Tables 4.2 and 4.21: a two-layer LSTM language model on WikiText-2, full and low-rank."""
    size = WORDS[scale]
    return {label: configured(size, surgery) for label, surgery in variants(size).items()}


@recipe("pufferfish-transformer", plot=plot_convergence, tables=lowrank_tables)
def pufferfish_transformer(scale: str) -> dict[str, Run]:
    """Table 4.3: a Transformer that translates German captions, full and low-rank, with BLEU."""
    size = PAIRS[scale]
    return {label: configured(size, surgery) for label, surgery in variants(size).items()}
