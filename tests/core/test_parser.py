# SPDX-License-Identifier: Apache-2.0
"""Expressions: what is read, what is refused, and how the error points at it."""

import math
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core import registry
from phalanx.core.expression import method
from phalanx.core.parser import MAX_CHARACTERS, parse_value
from phalanx.core.registry import entries, lookup
from tests.cases import each


def test_round_trip():
    text = "chain(clip(norm=1.0), alie(), gather(error_feedback(sign(scaled=True))), median())"
    scheme = px.parse(text)
    assert repr(scheme) == text
    assert scheme == px.chain(
        px.clip(1.0),
        px.attacks.alie(),
        px.gather(px.codecs.error_feedback(px.codecs.sign(True))),
        px.aggregators.median(),
    )


@each(
    ("text", "value"),
    [
        ("1", 1),
        ("-1.5", -1.5),
        ("1e30", 1e30),
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("'text'", "text"),
        ("True", True),
        ("None", None),
        ("(1, 2)", (1, 2)),
        ("[1, [2.0, None]]", (1, (2.0, None))),
        ("()", ()),
        ("  \n 3 ", 3),
        ("workers(workers=[1, 2])", px.adversary.workers((1, 2))),
        ("workers(\n    workers=(1,\n        2),\n)", px.adversary.workers((1, 2))),
        ("clip(1)", px.clip(1)),
        ("constant(-3)", px.attacks.constant(-3)),
        ("1/64", 0.015625),
        ("-1/3", -1 / 3),
        ("-(1/3)", -1 / 3),
        ("1/-4", -0.25),
        ("4/2", 2.0),
        ("1/2/2", 0.25),
        ("1/inf", 0.0),
        ("top_k(1/64)", px.codecs.top_k(1 / 64)),
        ("top_k(ratio=1/64)", px.codecs.top_k(1 / 64)),
        ("constant(-1/3)", px.attacks.constant(-1 / 3)),
        ("(1/2, 1/4)", (0.5, 0.25)),
    ],
)
def test_values(text, value):
    read = px.parse(text)
    assert read == value and type(read) is type(value)


@each("text", ["1" + "0" * 400 + "/3", "1" + "0" * 400 + "/2.0", "2.0/1" + "0" * 400])
def test_quotients_of_numbers_that_are_too_large_are_refused(text):
    with pytest.raises(ValueError, match=r"a whole number lies between -2\^63 and 2\^63"):
        px.parse(text)


def test_nan_is_read():
    assert math.isnan(px.parse("nan")) and repr(px.parse("constant(nan)")) == "constant(value=nan)"


@each(
    ("text", "sentence", "at"),
    [
        ("kurm(f=2)", "did you mean krum?", 0),
        ("chain(gather(dense()), medain())", "did you mean median?", 23),
        ("chain(clip(nrom=1.0))", "did you mean norm?", 11),
        ("gather(codec=mean())", "codec must be an object of Codec", 0),
        ("clip()", "missing a required argument: 'norm'", 0),
        ("clip(1, 2)", "too many positional arguments", 0),
        ("clip(1, norm=1)", "multiple values", 0),
        ("clip(norm=1, norm=2)", "is given norm twice", 13),
        ("clip(norm=-1)", "norm > 0", 0),
        ("momentum(beta='x')", "beta must be a number, got 'x'", 0),
        ("half(precision='fp8')", "precision must be 'fp16' or 'bf16'", 0),
        ("sign(scaled=1)", "scaled must be True or False", 0),
        ("krum(f=2.0)", "f must be a whole number", 0),
        ("krum(f=True)", "f must be a whole number", 0),
        ("mean", "called like a function: mean(...)", 0),
        ("unheard_of", "unknown name 'unheard_of'", 0),
        ("mean(", "not an expression", 4),
        ("chain(mean() median())", "not an expression", 6),
        ("chain(*(1, 2))", "no * arguments", 6),
        ("clip(**{})", "no field", 5),
        ("phalanx.aggregators.mean()", "names, literals and calls only", 0),
        ("(lambda: 1)()", "names, literals and calls only", 0),
        ("[x for x in (1,)]", "names, literals and calls only", 0),
        ("1 + 1", "names, literals and calls only", 0),
        ("not True", "names, literals and calls only", 0),
        ("f'{1}'", "names, literals and calls only", 0),
        ("b'1'", "names, literals and calls only", 0),
        ("1j", "names, literals and calls only", 0),
        ("...", "names, literals and calls only", 0),
        ("{'a': 1}", "names, literals and calls only", 0),
        ("-'a'", "only a number can be negative", 0),
        ("-True", "only a number can be negative", 0),
        ("1/0", "a number cannot be divided by 0", 0),
        ("1/0.0", "a number cannot be divided by 0", 0),
        ("top_k(1/0)", "a number cannot be divided by 0", 6),
        ("'a'/2", "only numbers can be divided", 0),
        ("1/'a'", "only numbers can be divided", 0),
        ("True/2", "only numbers can be divided", 0),
        ("1/None", "only numbers can be divided", 0),
        ("1/(1, 2)", "only numbers can be divided", 0),
        ("1/mean()", "only numbers can be divided", 0),
        ("1//2", "names, literals and calls only", 0),
        ("krum(f=4/2)", "f must be a whole number, got 2.0", 0),
        ("top_k(-1/3)", "0 < ratio <= 1", 0),
        ("gather(krum(f=1))", "codec must be an object of Codec, such as", 0),
        ("__import__('os')", "unknown name '__import__'", 0),
        ("chain(clip(1.0), dense())", "a codec goes inside gather", 0),
    ],
)
def test_errors_say_what_is_wrong_and_where(text, sentence, at):
    with pytest.raises(ValueError) as caught:
        px.parse(text)
    message = str(caught.value)
    assert sentence in message
    lines = message.splitlines()
    assert lines[-1].index("^") - 2 == at and lines[-2][2:] == text
    assert f"(character {at + 1})" in message


def test_errors_list_the_choices_that_fit():
    with pytest.raises(ValueError) as caught:
        px.parse("gather(denes())")
    message = str(caught.value)
    assert all(e.name in message for e in entries("codec"))
    assert "krum" not in message


def test_carets_count_characters_and_long_lines_are_cut():
    with pytest.raises(ValueError) as caught:
        px.parse("chain(half('\u00fc\u00fc\u00fc'), kurm())")
    assert str(caught.value).splitlines()[-1].index("^") - 2 == 6
    with pytest.raises(ValueError) as caught:
        px.parse(f"chain({'mean(), ' * 100}kurm(f=1), mean())")
    shown, caret = str(caught.value).splitlines()[-2:]
    assert len(shown) <= 102 and shown[caret.index("^") :].startswith("kurm")


@each(
    "text",
    [
        "-" * 900 + "1",
        "-" * 2000 + "1",
        "-" * 5000 + "1",
        "(" * 150 + ")" * 150,
        "(" * 3000,
        "[" * 80 + "]" * 80,
        "chain(" * 100 + ")" * 100,
        "chain(" * 180 + ")" * 180,
        "error_feedback(" * 90 + "dense()" + ")" * 90,
        "1" * 5000,
        "1" * (MAX_CHARACTERS + 1),
        "\x00",
        "\ud800",
        "",
        "'\\d'",
        "1if 1else 2",
        "1 is 1",
        "1(2)",
        "mean()\n\nmean()",
        "\x0c mean(",
        "\u2028kurm()",
    ],
)
def test_nothing_but_value_errors(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            px.parse(text)
        except ValueError as error:
            assert str(error)


WORDS = ["chain", "mean", "krum", "f", "norm", "clip", "(", ")", "=", ",", "1", "-", "'a'", "None", "[", "]", " ", "é"]


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=12).map("".join)))
def test_any_text_is_read_or_refused(text):
    try:
        px.parse(text)
    except ValueError as error:
        assert str(error)
    parse_or_text(text)


def parse_or_text(text):
    try:
        parse_value(text)
    except ValueError as error:
        assert str(error)


@each(
    ("text", "value"),
    [
        ("3", 3),
        ("bf16", "bf16"),
        ("None", None),
        ("krum(f=3)", px.aggregators.krum(f=3)),
        ("(1, 2)", (1, 2)),
        ("two words", "two words"),
    ],
)
def test_values_of_the_command_line(text, value):
    assert parse_value(text) == value


@pytest.fixture
def twins(monkeypatch):
    """Registers a codec and an adversary that are both called `twin`, for one test."""
    entries()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    codec = method("twin", "codec")(type("TwinCodec", (px.codecs.dense,), {}))
    adversary = method("twin", "adversary")(type("TwinAdversary", (px.adversary.none,), {}))
    return codec, adversary


def test_the_type_of_an_argument_says_which_of_two_kinds_is_meant(twins):
    codec, adversary = twins
    assert type(px.parse("reduce(twin())").codec) is codec
    assert type(px.parse("gather(codec=error_feedback(twin()))").codec.codec) is codec
    assert lookup("twin", px.Codec).build is codec
    assert lookup("twin", px.adversary.none).build is adversary


@each("text", ["twin()", "twin", "(twin(), 1)"])
def test_a_name_of_two_kinds_alone_is_refused_with_the_arguments_that_take_it(twins, text):
    with pytest.raises(ValueError) as caught:
        px.parse(text)
    message = str(caught.value)
    assert "'twin' means different things: a codec and an adversary" in message
    assert "the codec stands in " in message and "chunked_dct(codec=...)" in message
    assert "the adversary stands in run(" in message


def test_a_name_of_two_kinds_is_refused_where_neither_fits(twins):
    with pytest.raises(ValueError) as caught:
        px.parse("adaptive(rule=twin())")
    message = str(caught.value)
    assert "'twin' is the name of a codec and an adversary, which do not fit here" in message
    assert "bucketing" in message and "evenly_spaced" not in message


def test_a_name_of_one_kind_is_looked_up_for_any_type():
    assert lookup("krum", px.Codec).build is px.aggregators.krum
