# SPDX-License-Identifier: Apache-2.0
"""BLEU scores of a model that translates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from phalanx.core.optional import optional
from phalanx.data.multi30k import Multi30k
from phalanx.data.words import sentence
from phalanx.models.translate import Translates, translate


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
