# SPDX-License-Identifier: Apache-2.0
"""Multi30k: captions to translate from German to English."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import IO, Literal, cast

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.limits import copy_bounded
from phalanx.data.dataset import Data, Dataset, check_count, evenly_spaced
from phalanx.data.files import check_md5, data_folder, download, missing_data
from phalanx.data.shape import END, PADDING, START, UNKNOWN, UNSCORED
from phalanx.data.words import Language, most_frequent, words

PLACE = "multi30k"
URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
COUNTS = {"train": 29_000, "val": 1_014, "test_2016_flickr": 1_000, "test_2017_flickr": 1_000}
MD5 = {
    "train.de": "d3b4bc1671cfb805267f97f16884beba",
    "train.en": "053a34ece7c904dbc8c7361799afbe4c",
    "val.de": "9f139b15d9d11936dea7af2904e57d8c",
    "val.en": "2234730e7925354b766681b029b347ec",
    "test_2016_flickr.de": "cde61d7401b116652ee84099c7858ca3",
    "test_2016_flickr.en": "2022a6c31e2418047a0511333d55ed42",
    "test_2017_flickr.de": "798e7b25ccbaab6767b20f9b4cec6901",
    "test_2017_flickr.en": "956eb7b4f31dd4b8f39b4e74756ebd11",
}
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")  # by token id

Part = Literal["train", "val", "test_2016_flickr", "test_2017_flickr"]


@method("multi30k", "data")
class Multi30k(Data):
    """Captions of photographs in German, to be translated to English: 29,000 pairs to train on and 1,000 to test on.

    Both languages share one vocabulary: the words that occur at least `least` times in the German or in the English
    training part, and four special ids (0 padding, 1 unknown, 2 start, 3 end). The files train.de, train.en and so on
    lie in multi30k of the data folder.

    Shapes: pairs of texts (N, 2, length) int64, labels (N, length) int64.
    Args:
        train: training pairs, taken at equal distances; all when None.
        test: test pairs, taken at equal distances; all when None.
        length: words of a text with its start and end, >= 3; longer texts are cut.
        least: number of times that a word must occur in its language, >= 1.
        vocabulary: largest number of token ids, >= 5; the most frequent words are kept. All words when None.
        test_on: the part to test on.
        beam: width of the beam search for the translations whose BLEU in [0, 100] a run reports at its end; 0 leaves
            BLEU out.
    Source: Elliott et al., Multi30K: Multilingual English-German Image Descriptions, 2016, arXiv:1605.00459, task 1,
        which is the dissertation's "WMT 2016"; its 9,521 ids are those of spaCy's words, least=3. Differs: our own
        rules for words give 9,529, of which the 8 rarest are left out, so that a model has the published size.
    """

    train: int | None = None
    test: int | None = None
    length: int = 50
    least: int = 3
    vocabulary: int | None = 9_521
    test_on: Literal["test_2016_flickr", "test_2017_flickr", "val"] = "test_2016_flickr"
    beam: int = 0

    def validate(self) -> None:
        check_count("multi30k", "train", self.train, COUNTS["train"], "pairs")
        check_count("multi30k", "test", self.test, COUNTS[self.test_on], "pairs")
        require(self.length >= 3, f"multi30k needs length >= 3 (start, a word, end), got length={self.length}")
        require(self.least >= 1, f"multi30k needs least >= 1, got least={self.least}")
        require(self.beam >= 0, f"multi30k needs beam >= 0, got beam={self.beam}")
        ok = self.vocabulary is None or self.vocabulary > len(SPECIAL)
        require(ok, f"multi30k needs vocabulary > {len(SPECIAL)} (its signs), got vocabulary={self.vocabulary}")

    def read(self) -> Dataset:
        ids = {word: i for i, word in enumerate(self.words())}
        train, test = self._pairs("train", ids), self._pairs(self.test_on, ids)
        return Dataset.of("multi30k", train, test, len(ids), vocabulary=len(ids))

    def _pairs(self, part: Part, ids: dict[str, int]) -> tuple[Tensor, Tensor]:
        german, english = (_encode(self.sentences(part, lang), lang, ids, self.length) for lang in ("de", "en"))
        labels = torch.full_like(english, UNSCORED)
        following = english[:, 1:]
        labels[:, :-1] = following.where(following != PADDING, UNSCORED)
        # the translation so far never contains the end
        return torch.stack([german, english.where(english != END, PADDING)], dim=1), labels

    def words(self) -> list[str]:
        """The word of each token id."""
        total, kept = Counter[str](), set[str]()
        for language in ("de", "en"):
            counts = Counter(w for text in self.sentences("train", language) for w in words(text, language))
            total += counts
            kept |= {word for word, count in counts.items() if count >= self.least}
        most = None if self.vocabulary is None else self.vocabulary - len(SPECIAL)
        return [*SPECIAL, *most_frequent(total, kept, most)]

    def sentences(self, part: Part, language: Language) -> list[str]:
        """The published texts of a part in one language, in the order of the data set's examples."""
        self._fetch()
        path, want = _place() / f"{part}.{language}", COUNTS[part]
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        sentence = f"multi30k: {path} has {len(lines)} lines, and should have {want}; fetch it again"
        require(len(lines) == want, sentence)
        keep = evenly_spaced(want, self.train if part == "train" else self.test)
        return lines if isinstance(keep, slice) else [lines[i] for i in keep.tolist()]

    def location(self) -> str:
        if self._absent():
            raise missing_data("multi30k", _place())
        return str(_place())

    def _absent(self) -> list[str]:
        names = [f"{part}.{language}" for part in ("train", self.test_on) for language in ("de", "en")]
        return [name for name in names if not (_place() / name).exists()]

    def _fetch(self) -> None:
        absent = self._absent()
        if absent:
            sources = {f"{n}.gz": (f"{URL}/{n}.gz", None) for n in absent}
            download("multi30k", sources, _place(), _unpack)


def _place() -> Path:
    return data_folder() / PLACE


def _unpack(work: Path) -> None:
    for archive in sorted(work.glob("*.gz")):
        target = archive.with_suffix("")
        with gzip.open(archive) as source, target.open("wb") as copy:
            copy_bounded(cast("IO[bytes]", source), copy, archive.name, archive.stat().st_size)
        check_md5(target, MD5[target.name])
        archive.unlink()


def _encode(texts: list[str], language: Language, ids: dict[str, int], length: int) -> Tensor:
    """Token ids of each text: start, words, end and padding. Shapes: -> (N, length)."""
    x = torch.full((len(texts), length), PADDING)
    for row, text in zip(x, texts, strict=True):
        known = [ids.get(word, UNKNOWN) for word in words(text, language)][: length - 2]
        row[: len(known) + 2] = torch.tensor([START, *known, END])
    return x
