# SPDX-License-Identifier: Apache-2.0
"""For each law a method that breaks it, and what is said of it."""

import ast
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import phalanx as px
from phalanx.core.coded_rows import Adder, Checked
from phalanx.core.payload import expect
from phalanx.core.registry import register
from phalanx.core.row_memory import load
from phalanx.tools import testing
from phalanx.tools.testing.check import LAWS
from tests.cases import each


class Codec(px.Codec):
    """Sends the row as it is."""

    def encode(self, row, layout, state, rng):
        return {"row": row.clone()}, {}

    def decode(self, payload, layout):
        return expect(payload, row=(layout.dtype, (layout.d,)))[0]


class RowStage(px.RowStage):
    def row(self, row, layout, state, rng):
        return row, {}


class Rule(px.Aggregator):
    """The mean of the rows."""

    def combine(self, stack, f, state, round):
        return stack.one(stack.rows.mean(dim=0)), {}


class Attack(px.Attack):
    def forge(self, stack, view, state, round):
        return -stack.rows, state


class Forgery(px.PayloadAttack):
    def forge(self, payload, rng):
        return {key: -tensor for key, tensor in payload.items()}


KINDS = {
    "codec": Codec,
    "row_stage": RowStage,
    "aggregator": Rule,
    "attack": Attack,
    "payload_attack": Forgery,
    "gather": px.gather,
}


def made(base, fields=(), **members):
    """A value of a new class that replaces members of a base; only this test's registry knows it."""
    annotations = {"__annotations__": dict(fields)} if fields else {}
    return px.method(f"test_{base}", base)(type("Broken", (KINDS[base],), {**members, **annotations}))


# --- all methods


def a_repr_without_its_fields():
    return made("codec", fields={"k": int}, __repr__=lambda self: "test_codec()")(k=1)


def a_field_that_can_be_set():
    @dataclass(unsafe_hash=True, repr=False)
    class Broken(Codec):
        k: int = 1
        expression_name = "test_codec"

    register("test_codec", "codec", Broken)
    return Broken()


def a_field_of_any_type():
    return made("codec", fields={"k": int}, __post_init__=lambda self: None)(k=1)


# --- stages


def rows_changed_in_place():
    def row(self, row, layout, state, rng):
        return row.mul_(2.0), {}

    return made("row_stage", row=row)()


def a_state_changed_in_place():
    def row(self, row, layout, state, rng):
        memory = state.get("row", row.clone())
        return memory.add_(row), {"row": memory}

    return made("row_stage", row=row, remembers=True)()


def a_state_that_is_the_callers_row():
    def combine(self, stack, f, state, round):
        return stack.one(stack.rows[0]), {"row": stack.rows[0]}

    return made("aggregator", combine=combine)()


def memories_that_share_memory():
    return made("row_stage", row=lambda self, row, layout, state, rng: (row, {"row": row}), remembers=True)()


def a_stage_with_global_randomness():
    return made("row_stage", row=lambda self, row, layout, state, rng: (row + torch.rand(()), {}))()


def a_stage_that_counts_its_calls():
    calls = []

    def row(self, row, layout, state, rng):
        calls.append(1)
        return row * len(calls), {}

    return made("row_stage", row=row)()


def an_attack_with_global_randomness():
    return made("attack", forge=lambda self, stack, view, state, round: (torch.randn(stack.rows.shape), state))()


def an_attack_with_randomness_of_numpy():
    return made("attack", forge=lambda self, stack, view, state, round: (stack.rows * np.random.rand(), state))()


def rows_of_another_dtype():
    return made("aggregator", combine=lambda self, stack, f, state, round: (stack.one(stack.rows.double()[0]), {}))()


def a_stage_that_needs_entries():
    return made("row_stage", scope="vector", row=lambda self, row, layout, state, rng: (row / row.abs().max(), {}))()


def a_result_that_overflows():
    def combine(self, stack, f, state, round):
        return stack.one((stack.rows * 1e30).mean(dim=0)), {}

    return made("aggregator", combine=combine)()


def a_rule_that_lies_about_its_scope():
    def combine(self, stack, f, state, round):
        return stack.one((stack.rows / stack.rows.norm(dim=1, keepdim=True)).mean(dim=0)), {}

    return made("aggregator", combine=combine)()


def a_random_stage_that_lies_about_its_scope():
    def row(self, row, layout, state, rng):
        return row + row.norm() * torch.rand(len(row), generator=rng()), {}

    return made("row_stage", row=row)()


def bytes_by_a_formula():
    def receive(self, uploads, sent, round):
        stack = px.gather.receive(self, uploads, sent, round)
        notes = tuple(replace(n, value=n.value // 8) if n.kind == "bytes" else n for n in stack.notes)
        return replace(stack, notes=notes)

    return made("gather", receive=receive)(px.codecs.dense())


def a_stage_that_remembers_whole_rows():
    return made(
        "row_stage",
        row=lambda self, row, layout, state, rng: (row + state.get("row", 0), {"row": row.clone()}),
        remembers=True,
    )()


def a_row_stage_that_mixes_rows():
    return made(
        "row_stage",
        __call__=lambda self, stack, state, round: (stack.with_rows(stack.rows - stack.rows.mean(dim=0)), {}),
    )()


# --- rules


def the_first_row():
    return made("aggregator", combine=lambda self, stack, f, state, round: (stack.one(stack.rows[0]), {}))()


def a_rule_that_needs_five_rows_and_does_not_say_so():
    def combine(self, stack, f, state, round):
        return stack.one(stack.rows.sort(dim=0).values[4]), {}

    return made("aggregator", combine=combine)()


def a_mean_that_claims_to_tolerate():
    return made("aggregator", tolerates=lambda self, n: 2)()


def a_rule_without_a_gate():
    return made("aggregator", __call__=lambda self, stack, state, round: self.combine(stack, 0, state, round))()


def a_rule_that_loses_the_notes():
    def combine(self, stack, f, state, round):
        return replace(stack.one(stack.rows.mean(dim=0)), notes=()), {}

    return made("aggregator", combine=combine)()


def a_rule_that_knows_the_attackers():
    def combine(self, stack, f, state, round):
        good = [i for i, source in enumerate(stack.sources) if not set(source) & round.byzantine]
        return stack.one(stack.rows[good].mean(dim=0)), {}

    return made("aggregator", combine=combine)()


def a_plain_call_that_does_something_else():
    return made("aggregator", aggregate=lambda self, rows, weights=None, seed=0: rows.sum(dim=0))()


# --- attacks


def an_attack_on_an_honest_row():
    def call(self, stack, state, round):
        rows = stack.rows.clone()
        rows[:2] = -rows[:2]
        return (stack.with_rows(rows) if round.byzantine else stack), {}

    return made("attack", __call__=call)()


def an_attack_that_always_copies():
    return made(
        "attack",
        __call__=lambda self, stack, state, round: Attack.__call__(
            self, stack.with_rows(stack.rows.clone()), state, round
        ),
    )()


def an_attack_by_the_attackers_of_this_process():
    return made("attack", forge=lambda self, stack, view, state, round: (-stack.rows.mean(dim=0), state))()


def an_attack_on_single_workers_only():
    def call(self, stack, state, round):
        single = replace(round, byzantine=round.byzantine if all(len(s) == 1 for s in stack.sources) else frozenset())
        return Attack.__call__(self, stack, state, single)

    return made("attack", __call__=call)()


def a_forgery_with_global_randomness():
    return made("payload_attack", forge=lambda self, payload, rng: {k: torch.randn(1) for k in payload})()


def a_forgery_that_changes_the_payload():
    return made("payload_attack", forge=lambda self, payload, rng: {k: t.zero_() for k, t in payload.items()})()


def a_forgery_that_crashes():
    return made("payload_attack", forge=lambda self, payload, rng: {"sign": payload["sign"]})()


# --- codecs


def encoder(encode, **members):
    """A codec that sends a function of the row."""
    return made("codec", encode=lambda self, row, layout, state, rng: ({"row": encode(row)}, {}), **members)()


def decoder(decode, **members):
    return made("codec", decode=lambda self, payload, layout: decode(payload, layout), **members)()


def a_codec_with_global_randomness():
    return encoder(lambda row: row + random.random())


def a_codec_that_changes_the_row():
    return encoder(lambda row: row.mul_(1.5).clone())


def a_codec_of_float32():
    return decoder(lambda payload, layout: payload["row"].float())


def a_codec_that_overflows():
    return encoder(lambda row: row * 4)


def a_codec_that_needs_entries():
    return encoder(lambda row: row / row.abs().max().clamp(min=1.0))


def a_codec_that_smuggles():
    last = []

    def encode(self, row, layout, state, rng):
        last[:] = [row.clone()]
        return {}, {}

    return made("codec", encode=encode, decode=lambda self, payload, layout: last[0])()


def a_codec_that_says_linear():
    return made(
        "codec",
        linear=True,
        encode=lambda self, row, layout, state, rng: ({"row": row.sign() * row.abs().sqrt()}, {}),
        decode=lambda self, payload, layout: payload["row"] * payload["row"].abs(),
    )()


def a_codec_that_cuts_its_code_in_the_wrong_places():
    def split(self, payload, layout, shards):
        rows = payload["row"].split([shard.layout.d for shard in shards])
        return [{"row": row} for row in rows]

    return made("codec", grain=1, split=split)()


class _Sums(Adder):
    """Adds up rows of the codec on trial; a broken one replaces a method."""

    def __init__(self, layout):
        self.layout = layout

    def check(self, payload):
        row = expect(payload, row=(torch.float32, (self.layout.d,)))[0]
        return Checked(float(row.abs().max()) if len(row) else 0.0, row)

    def sum(self, parts, shares, out, start=0):
        out.zero_()
        for row, share in zip(parts, shares, strict=True):
            out += row[start : start + len(out)] * share


def a_codec_that_sends_more_than_a_server_takes():
    return made(
        "codec",
        encode=lambda self, row, layout, state, rng: ({"row": row.clone(), "more": torch.zeros(5 * len(row))}, {}),
        decode=lambda self, payload, layout: payload["row"],
    )()


def a_codec_that_adds_its_rows_in_another_order():
    class Backwards(_Sums):
        def sum(self, parts, shares, out, start=0):
            super().sum(parts[::-1], shares[::-1], out, start)

    return made("codec", adder=lambda self, layout: Backwards(layout))()


def a_codec_that_checks_no_payload():
    class Unchecked(_Sums):
        def check(self, payload):
            return Checked(0.0, payload.get("row"))

    return made("codec", adder=lambda self, layout: Unchecked(layout))()


def a_codec_that_draws_and_does_not_say_so():
    def encode(self, row, layout, state, rng):
        return {"row": row * (torch.rand(row.shape, generator=rng()) < 0.5)}, {}

    return made("codec", encode=encode)()


def a_codec_that_says_unbiased():
    def encode(self, row, layout, state, rng):
        kept = torch.rand(row.shape, generator=rng()) < 0.5
        return {"row": row * kept * 1.5}, {}

    return made("codec", unbiased=True, encode=encode)()


def a_codec_that_decodes_twice_differently():
    calls = []

    def decode(payload, layout):
        calls.append(1)
        return payload["row"] + len(calls)

    return decoder(decode)


def a_codec_that_remembers_whole_rows():
    return made(
        "codec",
        encode=lambda self, row, layout, state, rng: ({"row": row + state.get("row", 0)}, {"row": row.clone()}),
        remembers=True,
    )()


class Small(torch.Tensor):
    def element_size(self):
        return 1


def a_codec_that_reports_too_few_bytes():
    return encoder(lambda row: row.clone().as_subclass(Small))


def a_codec_that_reads_any_dtype():
    return decoder(lambda payload, layout: payload["row"].to(layout.dtype))


def a_codec_that_trusts_its_payload():
    return decoder(lambda payload, layout: payload["row"].reshape(layout.d))


def a_codec_with_a_checksum():
    def encode(self, row, layout, state, rng):
        return {"row": row.clone(), "sum": row.double().sum().reshape(1)}, {}

    def decode(self, payload, layout):
        row, total = expect(payload, row=(layout.dtype, (layout.d,)), sum=(torch.float64, (1,)))
        assert row.double().sum() == total, "the sum is wrong"
        return row

    return made("codec", encode=encode, decode=decode)()


def a_codec_with_places():
    def encode(self, row, layout, state, rng):
        return {"row": row.clone(), "places": torch.arange(len(row))}, {}

    def decode(self, payload, layout):
        row, places = expect(payload, row=(layout.dtype, (layout.d,)), places=(torch.int64, (layout.d,)))
        return row[places]

    return made("codec", encode=encode, decode=decode)()


def a_codec_that_remembers_nan():
    def encode(self, row, layout, state, rng):
        row = (row.float() + 0.5 * load(state, layout, torch.zeros_like(row))).to(row.dtype)
        return {"row": row}, {name: part.clone() for name, part in layout.split(row).items()}

    return made("codec", encode=encode, remembers=True)()


# law, words of the sentence, methods
BROKEN = [
    ("method", "repr", "missing a required argument: 'k'", a_repr_without_its_fields),
    ("method", "frozen", "saw none", a_field_that_can_be_set),
    ("method", "fields", "names 'k', saw none", a_field_of_any_type),
    ("stage", "input and state", "the rows before and after differ", rows_changed_in_place),
    ("stage", "input and state", "the state before and after differ", a_state_changed_in_place),
    ("stage", "input and state", "after the caller writes to its rows", a_state_that_is_the_callers_row),
    ("stage", "input and state", "expected 15 tensors of their own", memories_that_share_memory),
    ("stage", "arguments only", "the rows of two equal calls differ", a_stage_with_global_randomness),
    ("stage", "arguments only", "the rows of two equal calls differ", a_stage_that_counts_its_calls),
    ("stage", "arguments only", "the rows of two equal calls differ", an_attack_with_global_randomness),
    ("stage", "arguments only", "the rows of two equal calls differ", an_attack_with_randomness_of_numpy),
    ("stage", "shape and dtype", "saw (torch.float64, 'cpu', 24)", rows_of_another_dtype),
    ("stage", "hostile rows", "float16 rows with one of nan", a_rule_without_a_gate),
    ("stage", "hostile rows", "rows of 0 entries", a_stage_that_needs_entries),
    ("stage", "hostile rows", "expected finite entries in the result", a_result_that_overflows),
    ("stage", "scope", "the rows of the whole and of its pieces differ", a_rule_that_lies_about_its_scope),
    ("stage", "scope", "expected equal means", a_random_stage_that_lies_about_its_scope),
    ("stage", "bytes", "the bytes handed over and noted differ (expected and seen) 0: 104 and 13", bytes_by_a_formula),
    ("row_stage", "memory by name", "it raises RuntimeError", a_stage_that_remembers_whole_rows),
    ("row_stage", "row by row", "the rows together and one by one differ", a_row_stage_that_mixes_rows),
    ("aggregator", "row order", "rows in the order [", the_first_row),
    ("aggregator", "too few rows", "IndexError", a_rule_that_needs_five_rows_and_does_not_say_so),
    ("aggregator", "tolerance", "huge rows of the workers [2, 6]", a_mean_that_claims_to_tolerate),
    ("aggregator", "excluded rows", "expected that [2] are excluded, saw []", a_rule_that_loses_the_notes),
    ("aggregator", "attackers unknown", "with and without", a_rule_that_knows_the_attackers),
    ("aggregator", "plain call", "the results differ", a_plain_call_that_does_something_else),
    ("attack", "honest rows", "the honest rows differ", an_attack_on_an_honest_row),
    ("attack", "no attackers", "saw others", an_attack_that_always_copies),
    ("attack", "in parts", "round 0, workers [1, 4, 5, 6]", an_attack_by_the_attackers_of_this_process),
    ("attack", "merged rows", "saw the same", an_attack_on_single_workers_only),
    ("payload_attack", "arguments only", "two equal forgeries differ", a_forgery_with_global_randomness),
    ("payload_attack", "arguments only", "the payload before and after", a_forgery_that_changes_the_payload),
    ("payload_attack", "server", "it raises KeyError", a_forgery_that_crashes),
    ("codec", "arguments only", "the payloads of two equal calls differ", a_codec_with_global_randomness),
    ("codec", "shape and dtype", "the row before and after", a_codec_that_changes_the_row),
    ("codec", "shape and dtype", "saw (torch.float32, torch.Size([21]))", a_codec_of_float32),
    ("codec", "shape and dtype", "expected finite entries", a_codec_that_overflows),
    ("codec", "empty and strided rows", "a row of 0 entries", a_codec_that_needs_entries),
    ("codec", "wire", "the decoded rows differ", a_codec_that_smuggles),
    ("codec", "length", "bytes at most, saw", a_codec_that_sends_more_than_a_server_takes),
    ("codec", "decoding into the sum", "the mean differ", a_codec_that_adds_its_rows_in_another_order),
    ("codec", "checks", "BadPayload", a_codec_that_checks_no_payload),
    ("codec", "shards", "the decoded row and its parts differ", a_codec_that_cuts_its_code_in_the_wrong_places),
    ("codec", "keeps", "the payloads of two workers differ", a_codec_that_draws_and_does_not_say_so),
    ("codec", "linear", "the gathered and the reduced mean differ", a_codec_that_says_linear),
    ("codec", "unbiased", "the mean of 2000 draws", a_codec_that_says_unbiased),
    ("codec", "error feedback", "what was there and the sum differ", a_codec_that_decodes_twice_differently),
    ("codec", "memory by name", "it raises RuntimeError", a_codec_that_remembers_whole_rows),
    ("codec", "bytes", "differ (expected and seen) 0: 104 and 41", a_codec_that_reports_too_few_bytes),
    ("codec", "malformed payloads", "malformed('dtype')", a_codec_that_reads_any_dtype),
    ("codec", "hostile payloads", "it raises KeyError", a_codec_that_trusts_its_payload),
    ("codec", "damaged messages", "it raises AssertionError: the sum is wrong", a_codec_with_a_checksum),
    ("codec", "random payloads", "it raises IndexError", a_codec_with_places),
    ("codec", "bad rounds", "expected finite entries in the memory", a_codec_that_remembers_nan),
]


@pytest.mark.parametrize(("kind", "law", "words", "make"), BROKEN, ids=lambda x: getattr(x, "__name__", None))
def test_a_broken_method_is_caught_with_a_sentence_that_names_the_law(kind, law, words, make):
    method = make()
    with pytest.raises(px.testing.LawBroken) as caught:
        px.testing.check_method(method, [law])
    sentence = str(caught.value)
    assert f"breaks the law {law!r} ({px.testing.laws(kind)[law]})" in sentence and words in sentence
    assert "15 workers, seed 0" in sentence and "\n" not in sentence
    with pytest.raises(px.testing.LawBroken):
        px.testing.check_method(method)


def test_every_law_has_a_method_that_breaks_it():
    assert {(law.kind, law.name) for law in LAWS} == {(kind, law) for kind, law, _, _ in BROKEN}


@each("base", ["codec", "row_stage", "aggregator", "attack", "payload_attack"])
def test_the_methods_that_are_not_broken_keep_all_laws(base):
    method = made(base)()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for workers, seed in ((12, 0), (15, 1), (20, 2)):
        px.testing.check_method(method, workers=workers, seed=seed)
    assert torch.get_rng_state().equal(before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


@each("text", ["krum(f=2)", "clip(norm=1.0)", "top_k(ratio=0.2)", "alie(z=1.5)", "group_vote(r=3)"])
def test_other_rows_and_more_workers(text):
    px.testing.check_method(px.parse(text), workers=18, seed=7)


def test_the_functions_by_kind_take_methods_of_their_kind():
    px.testing.check_codec(px.codecs.dense(), ["repr"])
    px.testing.check_stage(px.clip(norm=1.0), ["repr"])
    px.testing.check_aggregator(px.aggregators.median(), ["repr"])
    px.testing.check_attack(px.attacks.alie(), ["repr"])
    px.testing.check_attack(px.attacks.malformed(), ["repr"])
    px.testing.check_method(px.optim.sgd(lr=0.1))
    with pytest.raises(ValueError, match="values of Codec, got median"):
        px.testing.check_codec(px.aggregators.median())
    with pytest.raises(ValueError, match="values of Attack or PayloadAttack"):
        px.testing.check_attack(px.codecs.dense())


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(ValueError, match="laws hold for methods"):
        px.testing.check_method(px.codecs.dense)
    with pytest.raises(ValueError, match=r"no law of Median is 'linear'; choose from \['repr'"):
        px.testing.check_method(px.aggregators.median(), ["linear"])
    with pytest.raises(ValueError, match="workers >= 12, got workers=3"):
        px.testing.check_method(px.aggregators.median(), workers=3)
    with pytest.raises(ValueError, match="no kind 'rule' has laws; choose from method, stage"):
        px.testing.laws("rule")


def test_a_kind_has_the_laws_of_those_that_it_belongs_to():
    method, stage, rule = (px.testing.laws(kind) for kind in ("method", "stage", "aggregator"))
    assert set(method) < set(stage) < set(rule) and set(method) < set(px.testing.laws("codec"))
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in rule.values())


def test_the_laws_need_no_packages_of_a_developer():
    for file in Path(testing.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {module.partition(".")[0] for module in modules} & {"pytest", "hypothesis", "tests"}
