# SPDX-License-Identifier: Apache-2.0
"""Pang and Lee's sentence polarity data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.data.dataset import Data, Dataset, check_count
from phalanx.data.files import data_folder, download, extract, missing_data
from phalanx.data.shape import PADDING, UNKNOWN

ARCHIVE = "rt-polaritydata.tar.gz"
URL = f"https://www.cs.cornell.edu/people/pabo/movie-review-data/{ARCHIVE}"
MD5 = "50c1c2c047b4225e148e97aa7708c34e"
PLACES = ("rt-polarity", "rt-polaritydata")  # names of the folder; the second is the publisher's
FILES = ("rt-polarity.neg", "rt-polarity.pos")  # by label
SENTENCES, TEST = 5331, 533  # all sentences of a label, and those in the test part

_STRANGE = re.compile(r"[^a-z0-9(),!?'`]")
_CLITIC = re.compile(r"n't|'(?:s|ve|re|d|ll)")
_MARK = re.compile(r"[(),!?]")


@method("movie_review", "data")
class MovieReview(Data):
    """Sentences of reviews for (1) or against (0) a film, 9,596 to train on and 1,066 to test on, in a fixed split.

    Both parts have as many sentences of one label as of the other. Token id 0 is padding, after the sentence; 1 is a
    word that is not in the vocabulary. The vocabulary holds the words of the training part, the most frequent first.
    The two files lie in rt-polarity or rt-polaritydata of the data folder.

    Shapes: token ids (N, length) int64, labels (N,) int64.
    Args:
        train: training sentences, equally many of both labels, or one more of label 0; all when None.
        test: test sentences, likewise; all when None.
        length: tokens of a sentence, >= 1; longer sentences are cut. The longest one has 56.
        vocabulary: largest number of token ids, >= 3; fewer make a smaller model. All words when None.
    Source: Pang and Lee, Seeing stars, 2005, arXiv:cs/0506075 (sentence polarity dataset v1.0), in the tokens of Kim,
        2014, arXiv:1408.5882. Differs: one split 9:1 where Kim has ten-fold cross-validation.
    """

    train: int | None = None
    test: int | None = None
    length: int = 56
    vocabulary: int | None = None

    def validate(self) -> None:
        check_count("movie_review", "train", self.train, 2 * (SENTENCES - TEST), "sentences")
        check_count("movie_review", "test", self.test, 2 * TEST, "sentences")
        require(self.length >= 1, f"movie_review needs length >= 1 token, got length={self.length}")
        ok = self.vocabulary is None or self.vocabulary >= 3
        require(ok, f"movie_review needs vocabulary >= 3 (padding, unknown, a word), got vocabulary={self.vocabulary}")

    def read(self) -> Dataset:
        place = _place()
        if place is None:
            place = data_folder() / PLACES[-1]
            names = [f"{PLACES[-1]}/{name}" for name in FILES]
            download("movie_review", {ARCHIVE: (URL, MD5)}, place, lambda work: extract(work / ARCHIVE, names, work))
        texts = [_sentences(place / name) for name in FILES]
        order = [
            torch.randperm(SENTENCES, generator=make_generator("movie_review", label)).tolist() for label in (0, 1)
        ]
        # the two labels alternate, so that any number of first sentences is balanced
        turns = [tokens(texts[label][order[label][i]]) for i in range(SENTENCES) for label in (0, 1)]
        train, test = turns[2 * TEST :][: self.train], turns[: 2 * TEST][: self.test]
        ids = _ids(train, self.vocabulary)
        train_part, test_part = (
            (encode(part, ids, self.length), torch.arange(len(part)) % 2) for part in (train, test)
        )
        words = ("<pad>", "<unk>", *ids)
        return Dataset.of("movie_review", train_part, test_part, 2, vocabulary=len(words), words=words)

    def location(self) -> str:
        place = _place()
        if place is None:
            raise missing_data("movie_review", data_folder() / PLACES[0])
        return str(place)


def tokens(sentence: str) -> list[str]:
    """The words of a sentence in lower case; punctuation marks and endings such as n't are words of their own.

    >>> tokens("It's good, isn't it?")
    ['it', "'s", 'good', ',', 'is', "n't", 'it', '?']
    """
    plain = _STRANGE.sub(" ", sentence.lower())
    return _MARK.sub(r" \g<0> ", _CLITIC.sub(r" \g<0>", plain)).split()


def _sentences(path: Path) -> list[str]:
    # not splitlines, which also splits at characters within the sentences
    lines = path.read_text(encoding="latin-1").removesuffix("\n").split("\n")
    num_lines = len(lines)
    require(
        num_lines == SENTENCES,
        f"movie_review: {path} has {num_lines} lines, and should have {SENTENCES}; fetch it again",
    )
    return lines


def _ids(train: list[list[str]], vocabulary: int | None) -> dict[str, int]:
    counts = Counter(word for sentence in train for word in sentence)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    kept = words if vocabulary is None else words[: vocabulary - 2]
    return {word: 2 + i for i, word in enumerate(kept)}


def encode(sentences: list[list[str]], ids: Mapping[str, int], length: int) -> Tensor:
    """Sentences as token ids, cut at `length` and padded at the end. Shapes: N lists of words -> (N, length)."""
    x = torch.full((len(sentences), length), PADDING)
    for row, sentence in zip(x, sentences, strict=True):
        words = sentence[:length]
        row[: len(words)] = torch.tensor([ids.get(word, UNKNOWN) for word in words], dtype=torch.int64)
    return x


def _place() -> Path | None:
    for place in (data_folder() / name for name in PLACES):
        if all((place / name).exists() for name in FILES):
            return place
    return None
