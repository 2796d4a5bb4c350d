# SPDX-License-Identifier: Apache-2.0
"""Texts whose every token has a label: words, passages, pairs, and the two data sets of them."""

import gzip
import hashlib
import sys
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx
from phalanx.data.dataset import Dataset
from phalanx.data.files import MissingData
from phalanx.data.passages import columns, parts, passages
from phalanx.data.shape import END, PADDING, START, UNKNOWN, UNSCORED
from phalanx.data.words import sentence, words
from phalanx.models.translate import bleu, bleu_of
from tests.cases import each

# the modules, whose names their public functions have
multi30k = import_module("phalanx.data.multi30k")
wikitext2 = import_module("phalanx.data.wikitext2")


@given(st.text(st.sampled_from("aZß1 .,'\u2019-n't\"(é\u00a0")) | st.text(), st.sampled_from(["de", "en"]))
def test_words_keep_every_letter(text, language):
    found = words(text, language)
    assert "".join(found) == "".join(text.lower().split())
    assert all(word and not word.isspace() for word in found)


@each(
    ("text", "found"),
    [
        ("He's at the men's room, isn't he?", "he 's at the men 's room , is n't he ?"),
        ("They can\u2019t; I\u2019ve 3.5kg!", "they ca n\u2019t ; i \u2019ve 3.5kg !"),
        ("well-known -- (and 1,000 more)...", "well - known - - ( and 1,000 more ) ..."),
        ("can't n't 's", "ca n't n't ' s"),
    ],
)
def test_english_words(text, found):
    assert " ".join(words(text, "en")) == found


def test_german_words_keep_their_hyphens():
    assert words('Der "VW-Bus" geht\'s 2.', "de") == ["der", '"', "vw-bus", '"', "geht's", "2", "."]


@each(
    "text",
    [
        "a boy's t-shirt doesn't fit.",
        "two men (one in red) run, jump, and swim!",
        'a sign says "stop" in red; it is $ 5.',
        "they'll say they've 100% of it?",
        "",
    ],
)
def test_sentences_come_back(text):
    assert sentence(words(text, "en")) == text.replace("$ ", "$")


@given(st.integers(0, 40), st.integers(1, 6), st.integers(0, 5))
def test_passages_score_every_word_once(count, length, context):
    text = torch.arange(count)
    if count < context + length + 1:
        with pytest.raises(ValueError, match=f"a text of {count} words"):
            passages(text, length, context)
        return
    x, y = passages(text, length, context)
    assert x.shape == y.shape == (len(x), context + length)
    assert (y[:, :context] == UNSCORED).all() and torch.equal(y[:, context:], x[:, context:] + 1)
    scored = y[:, context:].flatten()
    assert torch.equal(scored, torch.arange(context + 1, context + 1 + len(scored)))
    assert 0 <= count - (context + 1) - len(scored) < length


@given(st.integers(1, 5), st.integers(0, 40), st.integers(1, 9))
def test_columns_and_parts(count, size, length):
    text = torch.arange(size)
    if size < 2 * count:
        with pytest.raises(ValueError, match=f"each of {count} columns"):
            columns(text, count)
        return
    side = columns(text, count)
    assert torch.equal(side.flatten(), text[: size // count * count])
    pieces = list(parts(side, length))
    assert torch.equal(torch.cat([x for x, _ in pieces], dim=1), side[:, :-1])
    assert all(torch.equal(y, x + 1) and 1 <= x.shape[1] <= length for x, y in pieces)


def text_set(x, y, vocabulary=9):
    return Dataset("toy", x, y, x, y, vocabulary, vocabulary=vocabulary)


def test_what_an_example_is():
    ids = torch.ones(4, 6, dtype=torch.int64)
    assert text_set(ids, ids[:, 0]).shape == phalanx.data.Tokens(6, 9)
    assert text_set(ids, ids).shape == phalanx.data.Passage(6, 9)
    assert text_set(torch.stack([ids, ids], dim=1), ids).shape == phalanx.data.Pairs(6, 9)


@each(
    ("x", "y", "match"),
    [
        ((4, 6), (4, 5), r"labels are \(N,\), or \(N, L\) for texts of L tokens, got \(4, 5\) for \(4, 6\)"),
        ((4, 6), (4, 6, 2), r"got \(4, 6, 2\)"),
        ((4, 2, 6), (4,), r"pairs of texts need train labels \(N, L\)"),
        ((4, 3, 6), (4, 6), r"\(N, L\) or \(N, 2, L\) of int64, got \(4, 3, 6\)"),
    ],
)
def test_labels_that_do_not_fit_the_texts(x, y, match):
    with pytest.raises(ValueError, match=match):
        text_set(torch.ones(x, dtype=torch.int64), torch.ones(y, dtype=torch.int64))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4))
def test_a_batch_of_pairs_is_as_long_as_its_longest_text(lengths):
    x = torch.zeros(len(lengths), 2, 5, dtype=torch.int64)
    for row, sizes in zip(x, lengths, strict=True):
        for text, size in zip(row, sizes, strict=True):
            text[:size] = 7
    y = torch.arange(5).expand(len(lengths), 5)
    got_x, got_y = text_set(x, y).train(slice(None))
    longest = max(1, *(size for sizes in lengths for size in sizes))
    assert torch.equal(got_x, x[..., :longest]) and torch.equal(got_y, y[:, :longest])


def write(folder, texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


WIKI = {"train.txt": " \n a b a <unk> \n b a c\n", "valid.txt": " b \n", "test.txt": " a z \n d <unk> a b \n"}


@pytest.fixture
def wiki(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    monkeypatch.setattr(wikitext2, "COUNTS", {"train": 10, "valid": 2, "test": 8})
    write(tmp_path / "wikitext-2", WIKI)
    return tmp_path / "wikitext-2"


def test_wikitext2_from_files(wiki):
    train, test, count = phalanx.data.wikitext2().texts()
    # <eos> a b c by frequency, then <unk>, which stands for d and z too
    assert count == 5
    assert train.tolist() == [0, 1, 2, 1, 4, 0, 2, 1, 3, 0]
    assert test.tolist() == [1, 4, 0, 4, 4, 1, 2, 0]
    d = phalanx.data.wikitext2(length=3, context=1).read()
    assert d.shape == phalanx.data.Passage(4, 5) and d.num_classes == 5
    assert d.train_x.tolist() == [[0, 1, 2, 1], [1, 4, 0, 2]] and d.train_y.tolist() == [
        [-100, 2, 1, 4],
        [-100, 0, 2, 1],
    ]
    less = phalanx.data.wikitext2(train=5, vocabulary=3).texts()
    assert less[2] == 3 and less[0].tolist() == [1, 0, 2, 0, 2]


def test_words_that_the_vocabulary_has_besides(wiki):
    data = phalanx.data.wikitext2(vocabulary=3, also=("z", "a", "new"), length=2)
    train, test, count = data.texts()
    assert count == 5 and data.read().words == ("<eos>", "a", "z", "new", "<unk>")
    assert train.tolist() == [0, 1, 4, 1, 4, 0, 4, 1, 4, 0] and test.tolist() == [1, 2, 0, 4, 4, 1, 4, 0]
    for also in (("two words",), ("",), ("<unk>",)):
        with pytest.raises(ValueError, match="single words in also"):
            phalanx.data.wikitext2(also=also)


def test_wikitext2_trains_on_the_validation_part(wiki):
    (wiki / "train.txt").unlink()
    assert phalanx.data.wikitext2(part="valid").location() == str(wiki)
    assert phalanx.data.wikitext2(part="valid").texts()[0].tolist() == [1, 0]
    with pytest.raises(MissingData):
        phalanx.data.wikitext2().location()
    (wiki / "valid.txt").write_text("b b\n")
    with pytest.raises(ValueError, match="has 3 words, and should have 2"):
        phalanx.data.wikitext2(part="valid").read()


def test_wikitext2_by_download(served, wiki, monkeypatch):
    source, url = served
    write(source, WIKI)
    monkeypatch.setattr(wikitext2, "URL", url.rstrip("/"))
    monkeypatch.setattr(wikitext2, "MD5", {"test": hashlib.md5(WIKI["test.txt"].encode()).hexdigest()})
    for name in ("train.txt", "test.txt"):
        (wiki / name).unlink()
    assert phalanx.data.wikitext2(length=3).read().train_x.shape == (3, 3)
    (wiki / "test.txt").unlink()
    (source / "test.txt").write_text("something else\n")
    with pytest.raises(MissingData, match="hash"):
        phalanx.data.wikitext2().read()


CAPTIONS = {
    "train.de": "Ein Hund rennt.\nEin Hund, ein Ball.\nEin Mann\n",
    "train.en": "A dog runs.\nA dog, a ball.\nA man\n",
    "val.de": "Ein Hund\n",
    "val.en": "A dog\n",
    "test_2016_flickr.de": "Ein Mann rennt sehr weit weg.\nEin Ball.\n",
    "test_2016_flickr.en": "A man runs very far away.\nA ball.\n",
}


@pytest.fixture
def captions(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    monkeypatch.setattr(multi30k, "COUNTS", {"train": 3, "val": 1, "test_2016_flickr": 2, "test_2017_flickr": 1})
    write(tmp_path / "multi30k", CAPTIONS)
    return tmp_path / "multi30k"


def test_multi30k_from_files(captions):
    data = phalanx.data.multi30k(least=2, length=7)
    # '.' twice in both languages; runs, ball and man once in each
    assert data.words() == ["<pad>", "<unk>", "<s>", "</s>", ".", "a", "ein", "dog", "hund"]
    d = data.read()
    assert d.shape == phalanx.data.Pairs(7, 9) and d.num_classes == 9
    assert d.train_x[0].tolist() == [[2, 6, 8, 1, 4, 3, 0], [2, 5, 7, 1, 4, 0, 0]]
    assert d.train_y[0].tolist() == [5, 7, 1, 4, 3, -100, -100]
    # 7 words are cut to 5 between start and end
    assert d.test_x[0].tolist() == [[2, 6, 1, 1, 1, 1, 3], [2, 5, 1, 1, 1, 1, 0]]
    assert d.test_y[0].tolist() == [5, 1, 1, 1, 1, 3, -100]
    x, y = d.train(torch.tensor([2]))
    assert x.shape == (1, 2, 4) and y.tolist() == [[5, 1, 3, -100]]
    assert (START, END, PADDING, UNKNOWN) == (2, 3, 0, 1)


def test_multi30k_parts_and_sizes(captions):
    assert phalanx.data.multi30k(least=2, vocabulary=6).words()[4:] == [".", "a"]
    assert phalanx.data.multi30k(train=2).sentences("train", "en") == ["A dog runs.", "A dog, a ball."]
    assert phalanx.data.multi30k(test_on="val").read().test_x.shape == (1, 2, 50)
    (captions / "val.en").unlink()
    assert phalanx.data.multi30k().location() == str(captions)
    with pytest.raises(MissingData):
        phalanx.data.multi30k(test_on="val").location()
    (captions / "train.de").write_text("Ein Hund\n")
    with pytest.raises(ValueError, match="has 1 lines, and should have 3"):
        phalanx.data.multi30k().read()


def test_multi30k_by_download(served, captions, monkeypatch):
    source, url = served
    for name, text in CAPTIONS.items():
        (source / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        (captions / name).unlink()
    monkeypatch.setattr(multi30k, "URL", url.rstrip("/"))
    monkeypatch.setattr(multi30k, "MD5", {n: hashlib.md5(t.encode()).hexdigest() for n, t in CAPTIONS.items()})
    assert phalanx.data.multi30k().read().train_x.shape == (3, 2, 50)
    assert {p.name for p in captions.iterdir()} == {n for n in CAPTIONS if not n.startswith("val")}
    (source / "val.de.gz").write_bytes(gzip.compress(b"another text"))
    with pytest.raises(MissingData, match=r"val.de has md5"):
        phalanx.data.multi30k(test_on="val").read()
    assert not (captions / "val.de").exists()


@each(
    "expression",
    [
        "wikitext2(train=1)",
        "wikitext2(test=245570)",
        "wikitext2(part='valid', train=217647)",
        "wikitext2(length=0)",
        "wikitext2(context=-1)",
        "wikitext2(vocabulary=1)",
        "multi30k(train=0)",
        "multi30k(train=29001)",
        "multi30k(test_on='val', test=1015)",
        "multi30k(length=2)",
        "multi30k(least=0)",
        "multi30k(vocabulary=4)",
    ],
)
def test_fields_out_of_range(expression):
    with pytest.raises(ValueError, match=expression.partition("(")[0]):
        phalanx.parse(expression)


@pytest.mark.data
def test_multi30k_as_published():
    data = phalanx.data.multi30k()
    d = data.load()
    # spaCy's words give 9,521, and ours eight more
    assert len(phalanx.data.multi30k(vocabulary=None).words()) == 9_529 and d.num_classes == 9_521
    assert d.train_x.shape == (29_000, 2, 50) and d.test_x.shape == (1_000, 2, 50)
    # nothing is cut
    assert int((d.train_x[:, 0] == END).sum()) == 29_000 and int((d.train_y == END).sum()) == 29_000
    english = data.sentences("train", "en")
    back = sum(sentence(words(text, "en")) == text.lower().strip() for text in english)
    assert back / len(english) > 0.997


@pytest.mark.data
def test_wikitext2_as_published():
    train, test, count = phalanx.data.wikitext2(part="valid").texts()
    assert (len(train), len(test), count) == (217_646, 245_569, 13_777)
    d = phalanx.data.wikitext2(part="valid").load()
    assert d.shape == phalanx.data.Passage(35, 13_777) and len(d.train_x) == 217_645 // 35


class Parrot(torch.nn.Module):
    """Knows each translation by heart."""

    def __init__(self, data):
        super().__init__()
        self.words, self.known = data.num_classes, {}
        for x, y in zip(*data.test(slice(None)), strict=True):
            self.known[tuple(w for w in x[0].tolist() if w)] = [int(w) for w in y if w >= 0]

    def encode(self, source):
        return source[..., None]

    def decode(self, target, source, memory):
        at = target.shape[1] - 1
        said = [self.known[tuple(w for w in row if w)] for row in source.tolist()]
        return torch.tensor([[said[i][min(at, len(said[i]) - 1)]] for i in range(len(said))])

    def scores(self, x):
        return 50.0 * torch.nn.functional.one_hot(x, self.words)


def test_bleu_of_a_model(captions, monkeypatch):
    (captions / "test_2016_flickr.en").write_text("A dog runs, a dog runs.\nA dog, a ball.\n")
    data = phalanx.data.multi30k(least=1)
    assert bleu_of(Parrot(data.load()), data, width=2) == pytest.approx(100)
    assert bleu(["a dog runs far away"], ["A Dog runs far away"]) == pytest.approx(100)
    assert 0 < bleu(["a dog runs far away", "x"], ["a dog runs far off", "y"]) < 80
    for written, wanted in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="one reference for each text"):
            bleu(written, wanted)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"phalanx-train\[translation\]"):
        bleu(["a"], ["a"])
