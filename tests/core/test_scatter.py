# SPDX-License-Identifier: Apache-2.0
"""The stage scatter(...): the rows and results of gather(...), with the server's work divided among owners."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import phalanx as px
from phalanx.core.columns import divide
from phalanx.core.layout import Layout
from phalanx.core.payload import BadPayload
from phalanx.core.stack import Stack
from phalanx.core.stage import TooFewRows, check_scheme
from phalanx.core.wire_stage import check_server
from phalanx.core.world import LocalCollective
from tests.cases import each
from tests.examples import examples, honest

# tensors of odd sizes, an empty one, one entry, and installed values
LAYOUT = Layout(
    ("conv", "bias", "empty", "one", "mean"),
    (torch.Size([7, 3, 5, 11]), torch.Size([7]), torch.Size([0]), torch.Size([1]), torch.Size([9])),
    num_installed=1,
)
CODECS = [codec for codec in examples("codec") if codec.scope != "vector"]
RULES = [
    # noise behind the wire is drawn by blocks, and so are other numbers than without them
    replace(rule, noise=0.0) if hasattr(rule, "noise") else rule
    for rule in examples("aggregator")
    if rule.on_columns and rule.assign(15) is None
]
EXACT = ("mean()", "median()", "krum(f=1)")


def stack_of(n: int, seed: int = 0, layout: Layout = LAYOUT) -> Stack:
    rows = 1.0 + torch.randn(n, layout.d, generator=torch.Generator().manual_seed(seed))
    return Stack(rows, layout, tuple((i,) for i in range(n)), 1.0 + torch.arange(n, dtype=torch.float64) % 3)


def run(scheme: Any, stack: Stack, state: Any = None, world: Any = None, **about: Any) -> tuple[Stack, Any]:
    world = world or LocalCollective(len(stack.rows))
    return scheme(stack, state, px.Round(world=world, **about))


def both(codec: Any, rule: Any, **more: Any) -> tuple[Any, Any]:
    dense = px.parse("dense()")
    return px.chain(px.gather(codec, **more), rule), px.chain(px.scatter(codec, dense, **more), rule)


def about_workers(stack: Stack) -> list[Any]:
    kinds = ("excluded", "false_row", "chosen", "outvoted")
    return sorted((n.kind, n.worker, n.reason) for n in stack.notes if n.kind in kinds)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_rows_of_every_codec_are_those_of_gather(codec):
    for rule in map(px.parse, EXACT):
        for n in (1, 2, 7):
            if n < rule.least(1):
                continue
            states = [None, None]
            for index in range(2 if codec.remembers else 1):
                stack = stack_of(n, index)
                results = []
                for i, scheme in enumerate(both(codec, rule)):
                    result, states[i] = run(scheme, stack, states[i], index=index)
                    results.append(result)
                gathered, scattered = results
                assert torch.equal(gathered.rows, scattered.rows), (rule, n)
                assert about_workers(gathered) == about_workers(scattered)
                assert gathered.weights.equal(scattered.weights) and gathered.sources == scattered.sources
                assert scattered.layout == LAYOUT and scattered.columns is None


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_rule_gives_the_result_of_gather(rule):
    rows = honest(rule, n=15)
    spoilt = rows.rows.clone()
    spoilt[3, 7], spoilt[8] = torch.nan, 1e30
    stacks = [stack_of(15), rows, rows.with_rows(spoilt), rows.with_rows(rows.rows[:1].repeat(15, 1))]
    # of equal rows it keeps all or none, as rounding has it
    for stack in stacks[:3] if rule.expression_name == "foolsgold" else stacks:
        outs = []
        for scheme in both(px.parse("dense()"), rule):
            try:
                outs.append(run(scheme, stack, seed=5)[0])
            except TooFewRows as error:
                outs.append(str(error))
        if isinstance(outs[0], str):
            assert outs[0] == outs[1]
            continue
        gathered, scattered = outs
        torch.testing.assert_close(scattered.rows, gathered.rows, rtol=1e-6, atol=1e-6)
        assert about_workers(scattered) == about_workers(gathered)


def test_rules_that_compare_rows_are_among_those_that_run_on_columns():
    assert {r.expression_name for r in RULES} >= {
        *("mean", "median", "trimmed_mean", "majority", "krum", "multi_krum", "bulyan", "nnm", "geometric_median"),
        *("centered_clip", "adaptive_clip", "hierarchy", "split_by_part", "fltrust", "foolsgold", "flame"),
    }


@each("rule", [r for r in examples("aggregator", "matching") if isinstance(r, px.Stage) and not r.on_columns])
def test_rules_of_whole_rows_are_refused_in_a_sentence(rule):
    with pytest.raises(ValueError, match=r"needs whole rows.*write gather\(\.\.\.\)"):
        px.chain(px.scatter(px.parse("dense()")), rule)


@each("n", (1, 2, 3, 5, 8))
def test_every_number_of_owners_and_entries(n):
    for d in (0, 1, 2, 7, 513, 5000):
        layout = Layout.flat(d)
        stack = stack_of(n, d, layout)
        for codec in ("dense()", "qsgd(bits=2)", "top_k(ratio=0.3)", "sign()", "atomo(entries(), budget=1)"):
            gathered, scattered = (run(s, stack)[0] for s in both(px.parse(codec), px.parse("median()")))
            assert torch.equal(gathered.rows, scattered.rows), (d, codec)


def test_shards_are_even_and_spread_over_the_row():
    layout = Layout(("a", "b"), (torch.Size([1_000_000]), torch.Size([300_000])))
    for n, grain in ((4, 512), (8, 1), (16, 512), (64, 512)):
        shards = divide(layout, n, grain)
        sizes = [shard.layout.d for shard in shards]
        assert sum(sizes) == layout.d and max(sizes) <= 1.03 * layout.d / n, (n, grain, sizes)
        # each owner has columns in the first and in the last sixteenth of the row
        for shard in shards:
            assert shard.blocks[0].start < layout.d / 16 and shard.blocks[-1].stop > layout.d * 15 / 16
        assert all(block.offset % grain == 0 for shard in shards for block in shard.blocks)


@each("how", ("short", "long", "dtype", "keys", "missing", "weight", "negative_weight"))
def test_malformed_messages_are_excluded_as_by_gather(how):
    stack, forge = stack_of(7), px.parse(f"malformed(how='{how}')")
    for codec in ("dense()", "qsgd()", "top_k(ratio=0.5)", "sign(scaled=True)", "random_k(ratio=0.5)"):
        gathered, scattered = (
            run(scheme, stack, byzantine=frozenset({2, 5}))[0]
            for scheme in both(px.parse(codec), px.parse("median()"), forge=forge)
        )
        assert torch.equal(gathered.rows, scattered.rows)
        excluded = [{n.worker for n in out.notes if n.kind == "excluded"} for out in (gathered, scattered)]
        assert excluded == [{2, 5}, {2, 5}], (codec, how)


@each("value", (torch.nan, torch.inf, -3e20))
def test_a_row_is_excluded_whole_with_the_reason_of_gather(value):
    stack = stack_of(6)
    rows = stack.rows.clone()
    # in one owner's columns, and in several owners' columns
    rows[1, 3], rows[4, ::7] = value, value
    gathered, scattered = (run(s, stack.with_rows(rows))[0] for s in both(px.parse("dense()"), px.parse("mean()")))
    assert torch.equal(gathered.rows, scattered.rows) and about_workers(gathered) == about_workers(scattered)
    assert {n.worker for n in scattered.notes if n.kind == "false_row"} == {1, 4}


def test_absent_workers_are_erased():
    gathered, scattered = (
        run(scheme, stack_of(7), absent=frozenset({0, 6}))[0]
        for scheme in both(px.parse("qsgd()"), px.parse("krum(f=2)"))
    )
    assert torch.equal(gathered.rows, scattered.rows) and about_workers(gathered) == about_workers(scattered)
    assert gathered.erased == scattered.erased == 2


class Liar(LocalCollective):
    """Owner 2 says that it cannot read what worker 3 has sent, or reads NaN."""

    def __init__(self, n: int, lie: str) -> None:
        super().__init__(n)
        self.lie, self.fetched = lie, list[Any]()

    def all_to_all(self, parts: Any, limit_bytes: int) -> Any:
        arrived = super().all_to_all(parts, limit_bytes)
        if not self.lie:
            return arrived
        part: Any = arrived[2][3]
        nans = {k: torch.full_like(t, torch.nan) if t.is_floating_point() else t for k, t in part.items()}
        arrived[2][3] = BadPayload("nothing arrived") if self.lie == "nothing" else nans
        return arrived

    def fetch(self, payloads: Any, workers: Any, limit_bytes: int) -> Any:
        self.fetched += [*workers]
        return super().fetch(payloads, workers, limit_bytes)


@each("lie", ("nothing", "nan"))
def test_the_word_of_one_owner_excludes_nobody(lie):
    for codec in ("dense()", "qsgd()", "top_k(ratio=0.2)"):
        honest_one, scheme = both(px.parse(codec), px.parse("median()"))
        world = Liar(5, lie)
        result = run(scheme, stack_of(5), world=world)[0]
        assert world.fetched == [3]
        assert torch.equal(result.rows, run(honest_one, stack_of(5))[0].rows) and not about_workers(result)


def test_nobody_is_asked_again_in_a_round_without_complaints():
    world = Liar(2, "")
    run(both(px.parse("dense()"), px.parse("mean()"))[1], stack_of(2), world=world)
    assert world.fetched == []


# --- several owners of each column


def voted(codec: str, rule: str, **more: Any) -> Any:
    return px.chain(px.scatter(px.parse(codec), px.parse("dense()"), r=3, **more), px.parse(rule))


@each("rule", ("mean()", "trimmed_mean(f=1)", "krum(f=1)", "geometric_median()", "chain(clip(norm=2.0), median())"))
def test_three_owners_compute_what_one_does(rule):
    for codec in ("dense()", "qsgd(bits=3)", "error_feedback(top_k(ratio=0.2))", "atomo(entries(), ratio=0.3)"):
        for n in (5, 8):
            one, three = (
                run(s, stack_of(n))[0] for s in (both(px.parse(codec), px.parse(rule))[1], voted(codec, rule))
            )
            assert torch.equal(one.rows, three.rows) and about_workers(one) == about_workers(three)
            assert len(set(one.notes)) > 0 and not [n for n in three.notes if n.kind == "outvoted"]


def test_an_owner_that_lies_about_its_result_is_outvoted_and_named():
    stack, lie = stack_of(7), px.parse("malformed(how='random')")
    expected = run(both(px.parse("qsgd()"), px.parse("median()"))[0], stack)[0].rows
    alone = px.parse("chain(scatter(qsgd(), back=dense(), lie=malformed(how='random')), median())")
    try:
        believed = run(alone, stack, byzantine=frozenset({4}))[0].rows
        assert not torch.equal(believed, expected)
    except TooFewRows:
        raise AssertionError("random bytes are a result that everybody can read") from None
    result = run(voted("qsgd()", "median()", lie=lie), stack, byzantine=frozenset({4}))[0]
    assert torch.equal(result.rows, expected)
    assert {n.worker for n in result.notes if n.kind == "outvoted"} == {4}


@each("how", ("missing", "short", "keys"))
def test_other_lies_about_results_are_outvoted_as_well(how):
    stack, lie = stack_of(6), px.parse(f"malformed(how='{how}')")
    result = run(voted("dense()", "mean()", lie=lie), stack, byzantine=frozenset({0}))[0]
    assert torch.equal(result.rows, run(both(px.parse("dense()"), px.parse("mean()"))[0], stack)[0].rows)
    assert {n.worker for n in result.notes if n.kind == "outvoted"} == {0}


def test_two_liars_among_three_owners_lose_the_round():
    scheme = voted("dense()", "mean()", lie=px.parse("malformed(how='random')"))
    with pytest.raises(TooFewRows, match="own the same columns and report different numbers"):
        run(scheme, stack_of(6), byzantine=frozenset({1, 2}))
    # apart on the ring they own no column together
    result = run(scheme, stack_of(8), byzantine=frozenset({1, 5}))[0]
    assert {n.worker for n in result.notes if n.kind == "outvoted"} == {1, 5}


class Adds(LocalCollective):
    """Worker 2 reports other norms and inner products than it has computed."""

    def all_gather(self, x: Any) -> Any:
        rows = super().all_gather(x).clone()
        if x.dtype == torch.float64 and x.shape[1] > 1:
            rows[2] = -3 * rows[2] + 1
        return rows


@each("rule", ("krum(f=1)", "nnm(f=1)", "geometric_median()", "chain(clip(norm=2.0), mean())", "adaptive_clip()"))
def test_an_owner_that_lies_about_norms_is_outvoted_and_named(rule):
    stack = stack_of(7)
    expected = run(both(px.parse("dense()"), px.parse(rule))[1], stack)[0].rows
    result = run(voted("dense()", rule), stack, world=Adds(7))[0]
    assert torch.equal(result.rows, expected)
    assert {n.worker for n in result.notes if n.kind == "outvoted"} == {2}


class TwoFaced(LocalCollective):
    """Worker 3 sends its second owner another part than the first one."""

    def all_to_all(self, parts: Any, limit_bytes: int) -> Any:
        other = {k: t + 1 if t.is_floating_point() else t for k, t in parts[3][5].items()}
        parts = [[*sent] for sent in parts]
        parts[3][5] = other
        return super().all_to_all(parts, limit_bytes)


def test_a_worker_that_sends_owners_different_parts_makes_no_owner_a_liar():
    stack = stack_of(7)
    result = run(voted("dense()", "median()"), stack, world=TwoFaced(7))[0]
    assert torch.equal(result.rows, run(both(px.parse("dense()"), px.parse("median()"))[0], stack)[0].rows)
    assert not about_workers(result)


def test_an_owner_that_breaks_its_word_about_a_result_is_named_and_the_next_one_is_asked():
    class Breaks(LocalCollective):
        """Worker 1 sends another result than the one whose digest it sent."""

        def gather(self, payloads: Any, limit_bytes: int) -> Any:
            arrived: list[Any] = super().gather(payloads, limit_bytes)
            if not any("weight" in each for each in arrived if isinstance(each, dict)):
                told = arrived[1]
                arrived[1] = {k: t + 1 for k, t in told.items()} if isinstance(told, dict) else told
            return arrived

    stack = stack_of(5)
    result = run(voted("dense()", "mean()"), stack, world=Breaks(5))[0]
    assert torch.equal(result.rows, run(both(px.parse("dense()"), px.parse("mean()"))[0], stack)[0].rows)
    assert {n.worker for n in result.notes if n.kind == "outvoted"} == {1}


def test_owners_of_the_same_columns_keep_the_same_memory():
    scheme = px.parse("chain(scatter(dense(), back=error_feedback(qsgd(bits=2)), r=3), mean())")
    one = px.parse("chain(scatter(dense(), back=error_feedback(qsgd(bits=2))), mean())")
    states: list[Any] = [None, None]
    for index in range(3):
        results = []
        for i, each_scheme in enumerate((scheme, one)):
            result, states[i] = run(each_scheme, stack_of(5, index), states[i], index=index)
            results.append(result.rows)
        assert torch.equal(*results)
    assert all(len(owner) == 3 for owner in states[0]["0"]["back"].values())


def test_too_few_workers_and_even_numbers_of_owners_are_refused():
    with pytest.raises(ValueError, match=r"n >= r workers, got n=2, r=3"):
        check_scheme(voted("dense()", "mean()"), 2)
    with pytest.raises(ValueError, match="odd number r >= 1 of owners for each column, got r=2"):
        px.parse("scatter(dense(), r=2)")


class Silent(LocalCollective):
    """The result of owner 1 does not arrive."""

    def gather(self, payloads: Any, limit_bytes: int) -> Any:
        arrived: list[Any] = super().gather(payloads, limit_bytes)
        if all("weight" not in each for each in arrived):
            arrived[1] = BadPayload("nothing arrived")
        return arrived


def test_a_result_that_does_not_arrive_loses_the_round_and_keeps_memories():
    scheme = px.parse("chain(momentum(), scatter(error_feedback(sign(scaled=True))), mean())")
    with pytest.raises(TooFewRows, match="worker 1 owns columns, and their result did not arrive") as raised:
        run(scheme, stack_of(3), world=Silent(3))
    assert raised.value.state is not None and set(raised.value.state) == {"0", "1"}
    assert set(raised.value.state["1"]) == {"worker:0", "worker:1", "worker:2"}


class LeavesOut(LocalCollective):
    """Nobody reads what worker 2 sends."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.left_out = frozenset({2})

    def gather(self, payloads: Any, limit_bytes: int) -> Any:
        arrived = super().gather(payloads, limit_bytes)
        arrived[2] = BadPayload("left out")
        return arrived


def test_a_worker_that_is_left_out_owns_nothing():
    stack, scheme = stack_of(5), both(px.parse("dense()"), px.parse("centered_clip()"))[1]
    state = run(scheme, stack)[1]
    result, _ = run(scheme, stack, state, world=LeavesOut(5))
    kept = stack.pick([0, 1, 3, 4])
    assert [n.worker for n in result.notes if n.kind == "excluded"] == [2]
    expected = px.parse("centered_clip()")(replace(kept, received=True), None, px.Round())[0]
    assert result.rows.shape == expected.rows.shape and bool(result.rows.isfinite().all())
    mean = run(both(px.parse("dense()"), px.parse("median()"))[1], stack, world=LeavesOut(5))[0]
    assert torch.equal(mean.rows, px.parse("median()")(kept, None, px.Round())[0].rows)


@each("back", ("qsgd(bits=2)", "terngrad(clip=inf)", "random_k(ratio=0.3)", "stochastic_binary()"))
def test_an_unbiased_code_back_is_unbiased(back):
    stack = stack_of(3, 0, px.testing.honest_stack().layout)
    scheme = px.parse(f"chain(scatter(dense(), back={back}), mean())")
    expected = run(px.parse("chain(gather(dense()), mean())"), stack)[0].rows[0]
    count = 600
    draws = torch.stack([run(scheme, stack, seed=seed)[0].rows[0] for seed in range(count)])
    error = (draws.mean(dim=0) - expected).abs()
    # six standard errors, and Bernstein's second term for what is drawn rarely
    allowed = 6 * draws.std(dim=0) / count**0.5 + 12 * (draws.amax(dim=0) - draws.amin(dim=0)) / count + 1e-6
    assert bool((error <= allowed).all()) and float(draws.std(dim=0).max()) > 0.1
    # installed values are sent as they are
    assert torch.equal(draws[7, -3:], expected[-3:])


def test_error_feedback_of_an_owner_sends_later_what_its_code_loses():
    # decoded + residual = result + old residual, at every owner
    scheme = px.parse("chain(scatter(dense(), back=error_feedback(top_k(ratio=0.1))), mean())")
    exact = px.parse("chain(gather(dense()), mean())")
    state, sent, wanted = None, torch.zeros(LAYOUT.stepped), torch.zeros(LAYOUT.stepped)
    for index in range(20):
        stack = stack_of(4, index)
        result, state = run(scheme, stack, state, index=index)
        sent += result.rows[0, : LAYOUT.stepped]
        wanted += run(exact, stack)[0].rows[0, : LAYOUT.stepped]
    assert state is not None
    owners = state["0"]["back"]
    assert sorted(owners) == [f"worker:{i}" for i in range(4)]
    residual = torch.zeros(LAYOUT.stepped)
    shards = divide(LAYOUT, 4, 1)
    for i, shard in enumerate(shards):
        own = shard.directions
        own.put(residual, own.by_tensor.join(owners[f"worker:{i}"][str(i)]["0"]["residual"]))
    torch.testing.assert_close(sent + residual, wanted, rtol=1e-4, atol=1e-4)


@each(
    ("codec", "back"),
    [
        ("dense()", None),
        ("half()", "half()"),
        ("qsgd(bits=4)", "qsgd(bits=8)"),
        ("terngrad()", "qsgd(bits=8)"),
        ("sign()", "terngrad(clip=inf)"),
        ("error_feedback(top_k())", "error_feedback(top_k())"),
    ],
)
def test_the_default_code_of_results(codec, back):
    made = px.parse(f"scatter({codec})")
    assert made.result_codec == (None if back is None else px.parse(back))


def test_the_result_of_a_majority_comes_back_as_it_is():
    for n in (4, 5):
        stack = stack_of(n)
        gathered = run(px.parse("chain(gather(sign()), majority())"), stack)[0]
        scattered = run(px.parse("chain(scatter(sign()), majority())"), stack)[0]
        assert torch.equal(gathered.rows, scattered.rows)


def test_relative_error_of_the_default_code_back_is_small():
    layout = Layout.flat(200_000)
    stack = stack_of(2, 0, layout)
    stack = stack.with_rows(stack.rows - 1)
    exact = run(px.parse("chain(gather(qsgd(bits=4)), mean())"), stack)[0].rows
    rough = run(px.parse("chain(scatter(qsgd(bits=4)), mean())"), stack)[0].rows
    # sqrt(512 / 6) / 255 for entries of one normal distribution, as docs/scaling.md works out
    assert 0.030 < float((rough - exact).norm() / exact.norm()) < 0.040


def test_workers_are_judged_by_whole_rows():
    from phalanx.training.accusation import row_sizes

    stack = stack_of(6)
    rows = stack.rows.clone()
    rows[2] *= 50
    gathering, scattering = both(px.parse("qsgd()"), px.parse("trimmed_mean(f=1)"))
    expected = row_sizes(gathering, 6, run(gathering, stack.with_rows(rows))[0])
    seen = row_sizes(scattering, 6, run(scattering, stack.with_rows(rows))[0])
    assert expected is not None and seen is not None and list(seen) == list(expected)
    torch.testing.assert_close(torch.tensor(list(seen.values())), torch.tensor(list(expected.values())))


def test_refusals_say_what_to_write():
    with pytest.raises(ValueError, match="put a rule behind it, such as chain"):
        check_scheme(px.parse("scatter(dense())"), 1)
    with pytest.raises(ValueError, match=r"a server's job has a server; write gather\(\.\.\.\)"):
        check_server(px.parse("chain(scatter(dense()), mean())"))
    with pytest.raises(ValueError, match="divides the columns among all workers"):
        px.parse("phase(gradient(), chain(scatter(dense()), mean()), clients=uniform(clients=2))").check(3)
    with pytest.raises(ValueError, match="needs whole rows"):
        px.parse("chain(scatter(dense()), group_vote(r=3), mean())")
    with pytest.raises(ValueError, match="crosses the wire exactly once"):
        check_scheme(px.parse("chain(scatter(dense()), gather(dense()), mean())"), 3)
    with pytest.raises(ValueError, match="sum of the rows only"):
        px.parse("phase(gradient(), chain(scatter(dense()), mean()), secure=True)").check(3)
