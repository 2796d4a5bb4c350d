# SPDX-License-Identifier: Apache-2.0
"""WikiText-2: articles for language models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.data.dataset import Data, Dataset
from phalanx.data.files import data_folder, download, missing_data
from phalanx.data.passages import passages
from phalanx.data.words import most_frequent

PLACE = "wikitext-2"
URL = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
# no checksum of the training part is known; its number of words is the publisher's
MD5 = {"valid": "d756d22ab2310e7e60c094bea5c5a8eb", "test": "781c9418ab9414bd09e4aad825aae752"}
COUNTS = {"train": 2_088_628, "valid": 217_646, "test": 245_569}
UNKNOWN, END = "<unk>", "<eos>"


@method("wikitext2", "data")
class Wikitext2(Data):
    """Articles of Wikipedia. The label of every word in a passage is the next word.

    There are 2,088,628 words to train on and 245,569 to test on, including the ends of lines, and 33,278 different
    words. The vocabulary holds the words of the training part, the most frequent first; any other word is the
    publisher's <unk>. The files train.txt, valid.txt and test.txt lie in wikitext-2 of the data folder.

    Shapes: token ids and labels (N, context + length) int64.
    Args:
        train: words to train on, from the beginning; all when None.
        test: words to test on, from the beginning; all when None.
        length: words of a passage that are scored, >= 1.
        context: words before them that a model reads first, >= 0, as it starts each passage with an empty memory.
        vocabulary: largest number of words, >= 2; fewer make a smaller model. All when None.
        part: the part to train on; "valid" is the small validation part.
        also: further words of the vocabulary, however rare they are in the part, such as those of `athens`.
    Source: Merity et al., Pointer Sentinel Mixture Models, 2016, arXiv:1609.07843. Differs: passages come in any order
        and do not continue from the state of the one before; `perplexity` scores a text with a continued state.
    """

    train: int | None = None
    test: int | None = None
    length: int = 35
    context: int = 0
    vocabulary: int | None = None
    part: Literal["train", "valid"] = "train"
    also: tuple[str, ...] = ()

    def validate(self) -> None:
        for field, part in (("train", self.part), ("test", "test")):
            count = getattr(self, field)
            ok = count is None or 2 <= count <= COUNTS[part]
            require(ok, f"wikitext2 has 2 to {COUNTS[part]} {field} words, got {field}={count}")
        ok = self.length >= 1 and self.context >= 0
        require(ok, f"wikitext2 needs length >= 1 and context >= 0, got {self.length} and {self.context}")
        ok = self.vocabulary is None or self.vocabulary >= 2
        require(ok, f"wikitext2 needs vocabulary >= 2 ({UNKNOWN} and a word), got vocabulary={self.vocabulary}")
        ok = all(len(word.split()) == 1 and word != UNKNOWN for word in self.also)
        require(ok, f"wikitext2 needs single words in also, and {UNKNOWN} is none, got also={self.also}")

    def read(self) -> Dataset:
        train, test, words = self._texts()
        train_part, test_part = (passages(ids, self.length, self.context) for ids in (train, test))
        return Dataset.of("wikitext2", train_part, test_part, len(words), vocabulary=len(words), words=words)

    def texts(self) -> tuple[Tensor, Tensor, int]:
        """The training and the test text as token ids, and the size of the vocabulary. Shapes: (T,) each."""
        train, test, words = self._texts()
        return train, test, len(words)

    def _texts(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Both texts, and the word of each id."""
        self._fetch()
        train, test = _words(self.part)[: self.train], _words("test")[: self.test]
        counts = Counter(train)
        kept = most_frequent(counts, counts.keys() - {UNKNOWN}, self._most())
        ids = {word: i for i, word in enumerate(dict.fromkeys((*kept, *self.also)))}
        ids[UNKNOWN] = len(ids)
        train, test = (torch.tensor([ids.get(word, ids[UNKNOWN]) for word in text]) for text in (train, test))
        return train, test, tuple(ids)

    def location(self) -> str:
        if self._absent():
            raise missing_data("wikitext2", _place())
        return str(_place())

    def _most(self) -> int | None:
        return None if self.vocabulary is None else self.vocabulary - 1

    def _absent(self) -> list[str]:
        return [part for part in (self.part, "test") if not (_place() / f"{part}.txt").exists()]

    def _fetch(self) -> None:
        absent = self._absent()
        if absent:
            sources = {f"{part}.txt": (f"{URL}/{part}.txt", MD5.get(part)) for part in absent}
            download("wikitext2", sources, _place(), lambda work: None)


def _place() -> Path:
    return data_folder() / PLACE


def _words(part: str) -> list[str]:
    path = _place() / f"{part}.txt"
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    all_words = [word for line in lines for word in (*line.split(), END)]
    want = COUNTS[part]
    require(
        len(all_words) == want, f"wikitext2: {path} has {len(all_words)} words, and should have {want}; fetch it again"
    )
    return all_words
