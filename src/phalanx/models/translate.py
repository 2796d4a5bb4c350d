# SPDX-License-Identifier: Apache-2.0
"""Translation by a beam search with a model that scores the next word, and its BLEU score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.core.expression import require
from phalanx.core.optional import optional
from phalanx.data.multi30k import Multi30k
from phalanx.data.shape import END, PADDING, START
from phalanx.data.words import sentence

# B texts, W translations of each (finished or not), V words


class Translates(Protocol):
    """The interface of a model that translates, such as a transformer, factorized or not."""

    training: bool

    def encode(self, source: Tensor) -> Tensor:
        """Encodes a text. Shapes: (B, S) -> (B, S, width)."""
        ...

    def decode(self, target: Tensor, source: Tensor, memory: Tensor) -> Tensor:
        """Decodes a translation so far. Shapes: (B, T), (B, S), (B, S, width) -> (B, T, width)."""
        ...

    def scores(self, x: Tensor) -> Tensor:
        """The score of each word. Shapes: (..., width) -> (..., V)."""
        ...

    def train(self, mode: bool = True) -> object:
        """Sets training or evaluation mode."""
        ...


def translate(
    model: Translates, source: Tensor, width: int = 5, longest: int = 100, alpha: float = 0.7
) -> list[list[int]]:
    """The most likely translations that a beam search finds.

    The score of a translation w_1 .. w_n is log P(w_1 .. w_n | text) / n^alpha, where the end counts as a word. The
    search keeps the `width` most likely beginnings of each length.

    Shapes: (B, S) token ids, padded with 0 -> B lists of ids, without start and end.
    Args:
        model: scores the next word.
        source: the texts.
        width: number of beginnings to keep, >= 1; 1 always takes the most likely word.
        longest: largest number of words in a translation, with its end, >= 1.
        alpha: exponent of the length, >= 0; higher prefers longer translations.
    Raises:
        ValueError: an argument is out of its range.
    Source: Wu et al., Google's Neural Machine Translation System, 2016, arXiv:1609.08144, section 7. Differs: n^alpha
        in place of ((5 + n) / 6)^alpha, as in the dissertation's code; no coverage penalty.
    """
    ok = width >= 1 and longest >= 1 and alpha >= 0
    require(ok, f"a beam search needs width, longest >= 1 and alpha >= 0, got {width}, {longest}, {alpha}")
    was_training = model.training
    model.train(False)
    try:
        return _search(model, source, width, longest, alpha) if len(source) else []
    finally:
        model.train(was_training)


@torch.no_grad()
def _search(model: Translates, source: Tensor, width: int, longest: int, alpha: float) -> list[list[int]]:
    texts, device = len(source), source.device
    memory = model.encode(source).repeat_interleave(width, dim=0)
    source = source.repeat_interleave(width, dim=0)
    words = torch.full((texts * width, 1), START, device=device)
    # all beginnings are equal at first, and only one of them may be continued
    total = torch.full((texts, width), float("-inf"), device=device)
    total[:, 0] = 0.0
    ended = torch.zeros(texts * width, dtype=torch.bool, device=device)
    lengths = torch.ones(texts, width, device=device)
    for place in range(longest):
        score = F.log_softmax(model.scores(model.decode(words, source, memory)[:, -1]).float(), dim=-1)
        score[:, [PADDING, START]] = float("-inf")
        # a finished translation continues with padding, which costs nothing
        score[ended] = float("-inf")
        score[ended, PADDING] = 0.0
        num_words = score.shape[-1]
        total, chosen = (total[..., None] + score.view(texts, width, num_words)).flatten(1).topk(width)
        parent = (chosen // num_words + torch.arange(texts, device=device)[:, None] * width).flatten()
        following = (chosen % num_words).flatten()
        lengths = torch.where(ended[parent], lengths.flatten()[parent], place + 1.0).view(texts, width)
        words = torch.cat([words[parent], following[:, None]], dim=1)
        ended = ended[parent] | (following == END)
        if bool(ended.all()):
            break
    best = (total / lengths**alpha).argmax(dim=1) + torch.arange(texts, device=device) * width
    return [[word for word in row if word not in (PADDING, END)] for row in words[best, 1:].tolist()]


def bleu(written: Sequence[str], wanted: Sequence[str]) -> float:
    """Corpus BLEU in [0, 100] of texts against one reference each, in lower case.

    Args:
        written: the translations.
        wanted: the references.
    Raises:
        ValueError: there are no texts, the numbers of texts and references differ, or sacrebleu is not installed.
    Source: Papineni et al., BLEU, 2002, ACL; by sacrebleu (Post, 2018, arXiv:1804.08771), tokenizer 13a.
    """
    sacrebleu = optional("sacrebleu", "BLEU", "sacrebleu", "translation")
    if len(written) != len(wanted) or not written:
        raise ValueError(f"BLEU needs one reference for each text, got {len(written)} texts, {len(wanted)} references")
    return float(sacrebleu.corpus_bleu(list(written), [list(wanted)], lowercase=True).score)


def translations(model: Translates, data: Multi30k, width: int = 5, batch: int = 100) -> list[str]:
    """The model's English translations of the data set's test texts, in lower case.

    Args:
        width: width of the beam search, >= 1.
        batch: number of texts that are translated together, >= 1.
    """
    words, dataset = data.words(), data.load()
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    device = next((weight.device for weight in weights), torch.device("cpu"))
    written = []
    for start in range(0, len(dataset.test_x), batch):
        x, _ = dataset.test(slice(start, start + batch))
        for ids in translate(model, x[:, 0].to(device), width, longest=data.length):
            written.append(sentence([words[i] for i in ids]))
    return written


def bleu_of(model: Translates, data: Multi30k, width: int = 5) -> float:
    """BLEU in [0, 100] of the model's translations of the data set's test texts; arguments as in `translations`."""
    return bleu(translations(model, data, width), data.sentences(data.test_on, "en"))
