# SPDX-License-Identifier: Apache-2.0
"""What every registered value promises; a new method is tested here by being registered."""

import dataclasses
import typing
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

import phalanx as px
from phalanx.core.registry import entries
from phalanx.core.stack import Stack
from tests.cases import each
from tests.examples import (
    BYZANTINE,
    DTYPES,
    LAYOUT,
    N,
    bits,
    copied,
    examples,
    honest,
    leaves,
    round_of,
    same,
    texts,
)

ALL = examples()
AGGREGATORS = examples("aggregator")
ATTACKS = examples("attack")
ROW_STAGES = [s for s in examples("transform") if isinstance(s, px.RowStage)]
STAGES = [x for x in ALL if isinstance(x, px.Stage)]
# noise and gaussian draw anew for each piece of a row: their pieces are equal in distribution only
SPLITTABLE = [s for s in STAGES if s.scope != "vector" and s.expression_name not in ("noise", "gaussian")]


def called(stage, stack: Stack, state=None, **kwargs):
    received = stack if not isinstance(stage, px.Aggregator) else replace(stack, received=True)
    return stage(received, state, round_of(len(stack.rows), **kwargs))


def test_every_name_has_an_example():
    assert [e.name for e in entries() if not texts(e)] == []


@each("entry", entries)
def test_every_name_has_a_summary(entry):
    assert entry.summary.endswith((".", ":")) and len(entry.summary) <= 120


@pytest.mark.parametrize("entry", entries(), ids=lambda e: e.name)
def test_a_registered_name_makes_values(entry):
    for text in texts(entry):
        x = px.parse(text)
        check_repr_round_trip(x)
        check_frozen(x)
        check_unknown_fields_and_wrong_types_are_value_errors(x)


def check_repr_round_trip(x):
    again = px.parse(repr(x))
    assert again == x and hash(again) == hash(x) and repr(again) == repr(x)


def check_frozen(x):
    for name in [f.name for f in dataclasses.fields(x)] or ["anything"]:
        with pytest.raises(FrozenInstanceError):
            setattr(x, name, getattr(x, name, 1))


def check_unknown_fields_and_wrong_types_are_value_errors(x):
    with pytest.raises(ValueError, match="no_such_field"):
        px.parse(f"{x.expression_name}(no_such_field=1)")
    hints = typing.get_type_hints(type(x))
    for field in dataclasses.fields(x):
        if hints[field.name] is not typing.Any:
            with pytest.raises(ValueError, match=field.name):
                replace(x, **{field.name: object()})


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_a_stage_leaves_its_input_and_its_state_alone(stage):
    stack = honest(stage)
    rows, weights = stack.rows.clone(), stack.weights.clone()
    _, state = called(stage, stack)
    kept = copied(state)
    called(stage, honest(stage, seed=1), state, index=1)
    assert bits(stack.rows).equal(bits(rows)) and stack.weights.equal(weights)
    assert same(state, kept)
    # safetensors refuses tensors that share memory
    places = [t.untyped_storage().data_ptr() for t in leaves(state) if t.numel()]
    assert len(set(places)) == len(places)
    # the caller reuses its buffers
    stack.rows.fill_(7.0)
    stack.weights.fill_(7.0)
    assert same(state, kept)


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_a_stage_depends_on_its_arguments_only(stage):
    first, state = called(stage, honest(stage), seed=3)
    torch.manual_seed(12345)
    again, state_again = called(stage, honest(stage), seed=3)
    assert bits(first.rows).equal(bits(again.rows)) and first.sources == again.sources
    assert same(state, state_again)


@pytest.mark.parametrize("stage", STAGES, ids=repr)
@each("dtype", DTYPES)
def test_shape_dtype_and_device_come_out_as_they_went_in(stage, dtype):
    out, _ = called(stage, honest(stage, dtype=dtype))
    assert out.rows.dtype == dtype and out.rows.device.type == "cpu"
    erased = sum(note.kind == "excluded" for note in out.notes)
    assert out.rows.shape == (len(out.sources), LAYOUT.d)
    assert len(out.rows) == stage.rows_out(N) or erased
    assert {w for source in out.sources for w in source} <= set(range(N))


@pytest.mark.parametrize("stage", SPLITTABLE, ids=repr)
def test_scope_tells_the_truth(stage):
    layout = px.Layout(LAYOUT.names[:-1], LAYOUT.shapes[:-1])
    stack = honest(stage)
    stack = replace(stack, rows=stack.rows[:, : layout.d], layout=layout)
    whole, _ = called(stage, stack)
    pieces = []
    for name, part in layout.split(stack.rows).items():
        columns = [part.flatten(1)]
        if stage.scope == "coordinate":
            columns = list(columns[0].split(3, dim=1))
        for i, piece in enumerate(columns):
            shape = part.shape[1:] if stage.scope == "tensor" else torch.Size([piece.shape[1]])
            small = px.Layout((f"{name}.{i}",), (shape,))
            pieces.append(called(stage, replace(stack, rows=piece, layout=small))[0].rows)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole.rows, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("stage", ROW_STAGES, ids=repr)
def test_row_stages_act_row_by_row(stage):
    together = apart = None
    for index in range(3):
        stack = honest(seed=index)
        out, together = called(stage, stack, together, index=index)
        rows, states = [], {}
        for i in range(N):
            one, state = stage(stack.pick([i]), apart, round_of(index=index))
            rows.append(one.rows)
            states.update({k: v for k, v in state.items() if k.endswith(f":{i}")})
        apart = states
        assert torch.cat(rows).equal(out.rows) and same(apart, together)
        # values that are installed pass untouched
        assert out.rows[:, -3:].equal(stack.rows[:, -3:])


@pytest.mark.parametrize("stage", [s for s in ROW_STAGES if s in SPLITTABLE], ids=repr)
def test_memories_serve_every_cut_of_the_model(stage):
    """DDP rebuilds its buckets after the first step: other pieces, in another order."""
    layout = LAYOUT.head
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    together = apart = None
    for index, cut in enumerate([[layout.names], [layout.names[2:], layout.names[:2]], [[n] for n in layout.names]]):
        stack = honest(seed=index)
        stack = replace(stack, rows=stack.rows[:, : layout.d], layout=layout)
        whole, together = called(stage, stack, together, index=index)
        pieces = {}
        for names in cut:
            small = px.Layout(tuple(names), tuple(shapes[n] for n in names))
            part = replace(stack, rows=small.join(layout.split(stack.rows)), layout=small)
            out, apart = called(stage, part, apart, index=index)
            pieces.update(small.split(out.rows))
        torch.testing.assert_close(layout.join(pieces), whole.rows)
    assert same(apart, together)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
@each("received", [False, True])
def test_attacks_leave_honest_rows_alone(attack, received):
    state = None
    for index in range(2):
        stack = replace(honest(seed=index), received=received)
        out, state = attack(stack, state, round_of(index=index))
        good = [i for i in range(N) if i not in BYZANTINE]
        assert bits(out.rows[good]).equal(bits(stack.rows[good]))
        # whole rows, the installed entries too, unless it says that it leaves a part
        for i in BYZANTINE:
            assert out.rows[i, :-3].equal(stack.rows[i, :-3]) == (attack.part == "installed")
            assert out.rows[i, -3:].equal(stack.rows[i, -3:]) == (attack.part == "directions")
        assert out.ids == stack.ids and out.weights.equal(stack.weights) and not out.gated


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_attacks_without_attackers_change_nothing(attack):
    stack = honest()
    out, _ = attack(stack, None, round_of(byzantine=frozenset()))
    assert out.rows is stack.rows


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_attacks_in_parts_are_the_attack_on_the_whole(attack):
    """A process that plays some of the workers, or none of the Byzantine ones, does its part of the same attack."""
    whole = parts = None
    for index in range(3):
        stack = honest(seed=index)

        class Part(px.LocalCollective):
            def all_gather(self, x):
                rows, weights = stack.rows, stack.weights.reshape(-1, 1)  # noqa: B023
                return rows if x.shape[1] == rows.shape[1] else weights

        out, whole = attack(stack, whole, round_of(index=index))
        states = []
        for mine in ([0, 2, 3], [1, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13, 14]):
            part, state = attack(stack.pick(mine), parts, round_of(index=index, world=Part(N)))
            assert bits(part.rows).equal(bits(out.rows[mine]))
            states.append(state)
        assert all(same(state, whole) for state in states)
        parts = whole


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_attacks_on_merged_rows_take_those_that_are_byzantine_throughout(attack):
    stack = honest()
    groups = [(0, 1), (6, 11), (2, 3, 4), (5,)]
    merged = replace(stack.merged(stack.rows[:4], groups), received=True)
    out, _ = attack(merged, None, round_of())
    assert bits(out.rows[[0, 2, 3]]).equal(bits(merged.rows[[0, 2, 3]]))
    assert not out.rows[1].equal(merged.rows[1]) and out.sources == merged.sources


@pytest.mark.parametrize("rule", AGGREGATORS, ids=repr)
def test_row_order_does_not_matter(rule):
    stack = honest(rule)
    out, _ = called(rule, stack)
    for seed in range(3):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed)).tolist()
        other, _ = called(rule, stack.pick(order))
        assert sorted(other.sources) == sorted(out.sources)
        place = [other.sources.index(source) for source in out.sources]
        torch.testing.assert_close(other.rows[place], out.rows, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.weights[place], out.weights)


@pytest.mark.parametrize("rule", AGGREGATORS, ids=repr)
def test_too_few_rows_are_an_error_that_states_the_requirement(rule):
    for n in range(N + 1):
        try:
            rows_out = rule.rows_out(n)
        except px.TooFewRows as error:
            assert "needs" in str(error) and f"n={n}" in str(error)
            with pytest.raises(ValueError, match=f"n={n}"):
                called(rule, honest(n=n))
        else:
            assert n > 0 and len(called(rule, honest(rule, n))[0].rows) == rows_out


def judged(rule):
    """The rule with what makes one row of its rows, and the f that it stands among N."""
    ending = px.parse("mean()") if rule.assign(N) is not None else px.parse("median()")
    return (rule if rule.rows_out(N) == 1 else px.chain(rule, ending)), rule.tolerates(N)


def corruptions(rows, f):
    """What f colluding workers may send instead of their rows."""
    mean, spread = rows.mean(dim=0), rows.std(dim=0)
    yield "huge", 1e15 * torch.ones_like(rows[:f])
    yield "reversed", -100 * rows[:f]
    yield "constant", torch.full_like(rows[:f], -100.0)
    yield "turned", (-mean).expand(f, -1)
    yield "one lie", (mean + 3 * spread).expand(f, -1)
    yield "a far lie", (mean + 30 * spread).expand(f, -1)
    yield "zero", torch.zeros_like(rows[:f])
    yield "scattered", 1e4 * torch.randn(rows[:f].shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rule", [r for r in AGGREGATORS if r.tolerates(N) > 0], ids=repr)
def test_robust_rules_stay_near_the_honest_rows(rule):
    whole, f = judged(rule)
    stack = replace(honest(rule), weights=torch.ones(N, dtype=torch.float64))
    # one in each group of workers with equal work, so that no group is lost
    bad = sorted({(2 + 4 * i) % N for i in range(f)} if rule.assign(N) is None else {2 + 3 * i for i in range(f)})
    good = [i for i in range(N) if i not in bad]
    mean = stack.rows[good].mean(dim=0)
    spread = (stack.rows[good] - mean).norm(dim=1).max()
    for name, lies in corruptions(stack.rows, len(bad)):
        rows = stack.rows.clone()
        rows[bad] = lies
        for claim in (1.0, 900.0):
            weights = stack.weights.clone()
            weights[bad] = claim
            out, _ = called(whole, replace(stack, rows=rows, weights=weights, received=True))
            # the factor of the geometric median, Pillutla et al. 2019, Lemma 1
            assert (out.rows[0] - mean).norm() <= 2 * (N - f) / (N - 2 * f) * spread, (name, claim)


HOSTILE = (
    "chain(nan(), gather(dense()))",
    "chain(constant(value=inf), gather(dense()))",
    "chain(constant(value=-1e30), gather(dense()))",
    *(
        f"gather(dense(), forge=malformed('{how}'))"
        for how in ("short", "long", "dtype", "keys", "missing", "weight", "negative_weight", "random")
    ),
)


@pytest.mark.parametrize("rule", AGGREGATORS, ids=repr)
@each("hostile", HOSTILE)
@each("dtype", [torch.float16, torch.float32])
def test_hostile_rows_are_named_and_change_nothing_else(rule, hostile, dtype):
    whole, f = judged(rule)
    for count in {1, max(f, 1)}:
        byzantine = frozenset({(2 + 4 * i) % N for i in range(count)} if rule.assign(N) is None else {2})
        stack = honest(rule, dtype=dtype)
        out, _ = called(px.chain(px.parse(hostile), whole), stack, byzantine=byzantine)
        named = {note.worker for note in out.notes if note.kind == "excluded"}
        assert out.rows.isfinite().all()
        assert named == byzantine or ("random" in hostile and named <= byzantine)
        if named == byzantine:
            good = [i for i in range(N) if i not in byzantine]
            mean = stack.rows[good].mean(dim=0)
            spread = (stack.rows[good] - mean).norm(dim=1).max()
            assert (out.rows[0] - mean).norm() <= 2 * spread


@pytest.mark.parametrize("rule", AGGREGATORS, ids=repr)
def test_the_plain_call_is_the_stage(rule):
    if rule.rows_out(N) != 1:
        with pytest.raises(ValueError, match="rows"):
            rule.aggregate(honest(rule).rows)
        return
    # the caller of a plain rule knows the weights
    stack = px.gate(weights="trusted").admit(replace(honest(rule), received=True))
    out, _ = called(rule, replace(stack, layout=px.Layout.flat(LAYOUT.d)), byzantine=frozenset())
    row = rule.aggregate(stack.rows, weights=stack.weights)
    assert row.shape == (LAYOUT.d,) and row.equal(out.rows[0])
