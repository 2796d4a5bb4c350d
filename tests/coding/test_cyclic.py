# SPDX-License-Identifier: Apache-2.0
"""The exact code: the faultless bits and exactly the liars named, whoever lies and whatever they know."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.coding import field_kernels
from phalanx.coding.code import TooManyFaults
from phalanx.coding.cyclic import CLAIMS, MARGIN, ROW, SCALES, _projections, scales_of
from phalanx.coding.reed_solomon import P, Unexplained, factors, locate, supports, weights
from phalanx.core.payload import payload_bytes
from tests.cases import draws, each
from tests.coding.lies import KINDS, decode, encode, lie, names, places, unit_stack, units_of
from tests.examples import round_of

CASES = [(15, 3), (45, 5), (45, 22), (61, 5)]


# the mathematics


@each(("n", "s"), [(n, s) for n in (1, 2, 5, 8, 15, 46) for s in range((n - 1) // 2 + 1)])
def test_every_unit_has_2s_plus_1_workers_and_their_rows_are_values_of_one_polynomial(n, s):
    table, units = factors(n, s).astype(object) % P, supports(n, s)
    assert all(len(u) == 2 * s + 1 for u in units)
    assert all((table[i] != 0).nonzero()[0].tolist() == list(units[i]) for i in range(n))
    # of every unit: degree below k = n - 2s, and the leading coefficient 1
    k = n - 2 * s
    for start in range(n - k + 1):
        some = tuple(range(start, start + k))
        assert all(sum(w * table[i, j] for i, w in zip(some, weights(some), strict=True)) % P == 1 for j in range(n))


@each(("n", "s"), [(5, 1), (6, 2), (7, 3), (8, 2), (9, 4)])
def test_every_set_of_false_and_missing_rows_within_the_tolerance_is_found(n, s):
    rng = np.random.default_rng(n)
    table, k = factors(n, s).astype(object), n - 2 * s
    values = (table @ rng.integers(0, P, (n, 3)).astype(object)) % P
    for e in range(2 * s + 1):
        for gone in itertools.islice(itertools.combinations(range(n), e), 20):
            here = [i for i in range(n) if i not in gone]
            for count in range((2 * s - e) // 2 + 1):
                for false in itertools.islice(itertools.combinations(here, count), 20):
                    sent = values.copy()
                    for i in false:
                        # in some projections only
                        sent[i, rng.integers(0, 3) :] += int(rng.integers(1, P))
                    assert locate((sent % P)[here].tolist(), here, k) == false


def test_more_false_rows_than_the_distance_allows_are_unexplained():
    n, s = 45, 5
    values = (factors(n, s).astype(object) @ np.arange(n * 3).reshape(n, 3).astype(object)) % P
    for count in (s + 1, s + 2, 2 * s, n):
        sent = values.copy()
        sent[:count] += np.random.default_rng(count).integers(1, P, (count, 3)).astype(object)
        with pytest.raises(Unexplained):
            locate((sent % P).tolist(), range(n), n - 2 * s)


@each("d", [0, 1, 1023, 1024, 1025, 70_001])
def test_the_compiled_loops_compute_in_the_field(d):
    rng, n = np.random.default_rng(d), 7
    rows = rng.integers(0, 1 << 32, (n, d), dtype=np.uint64).astype(np.uint32)
    field = (rows & P).astype(object)
    table = torch.from_numpy(rows.view(np.int32))
    ones = _projections(torch.eye(min(d, 1100), dtype=torch.int32), b"key") if 0 < d <= 1100 else None
    found = np.array(_projections(table, b"key"), dtype=object)
    if ones is not None:
        assert ((field[:, : len(ones)] @ np.array(ones, dtype=object)) % P == found).all() or d > len(ones)
    # the highest bit counts in neither loop: a row that is true in one is true in the other
    bare = np.array(_projections(torch.from_numpy((rows & P).view(np.int32)), b"key"), dtype=object)
    assert (found == bare).all() and (found < P).all()
    out, picks = np.zeros(d, np.int32), np.array([6, 0, 3, 3])
    shares = rng.integers(0, P, 4).astype(np.uint32)
    field_kernels.combine(rows.reshape(-1), d, picks, shares, out)
    assert ((out.astype(object) - shares.astype(object) @ field[picks]) % P == 0).all()
    assert np.abs(out.astype(np.int64)).max(initial=0) <= P // 2
    digits = rng.integers(-(1 << 23), 1 << 23, (n, d)).astype(np.int32)
    combination = rng.integers(-(P // 2), P // 2, 3).astype(np.int32)
    field_kernels.encode(digits, np.array([1, 4, 5]), combination, out)
    assert (out == (combination.astype(object) @ digits[[1, 4, 5]].astype(object)) % P).all()


def test_projections_do_not_depend_on_threads():
    table = torch.randint(0, P, (5, 300_000), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    whole = _projections(table, b"x")
    torch.set_num_threads(2)
    try:
        assert _projections(table, b"x") == whole != _projections(table, b"y")
    finally:
        torch.set_num_threads(1)


# the sum


@each("dtype", [torch.float16, torch.float32, torch.float64])
@each(("n", "s", "bits"), [(9, 2, 23), (9, 0, 26), (45, 5, 23), (127, 3, 23), (9, 4, 12)])
def test_the_mean_is_that_of_the_fixed_point_units_to_the_bit(n, s, bits, dtype):
    code, units = px.coding.cyclic(s=s, bits=bits), units_of(n, 40, dtype)
    stack = unit_stack(units, s)
    announced = scales_of(units, stack.layout)
    out = decode(code, encode(code, stack, n, announced), n, stack, announced)
    unit = 2.0 ** (int(announced[SCALES][0]) - bits)
    whole = (units.double() / unit).round()
    assert out.rows[0].equal((whole.sum(dim=0) * unit / n).to(dtype)) and not names(out)
    assert out.sources == (tuple(range(n)),) and out.erased == 0
    # near the plain mean, by half a step an entry
    assert float((out.rows[0].double() - units.double().mean(dim=0)).abs().max()) <= unit / 2 + torch.finfo(dtype).eps


@each(("n", "s"), [(5, 2), *CASES])
def test_the_faultless_bits_come_out_and_exactly_the_liars_are_named(n, s):
    code, units = px.coding.cyclic(s=s), units_of(n, 64)
    stack, announced = unit_stack(units, s), scales_of(units, px.Layout.flat(64))
    payloads = encode(code, stack, n, announced)
    truth = decode(code, payloads, n, stack, announced).rows
    for trial, kind in enumerate(KINDS):
        for where in ("adjacent", "spread", "random"):
            missing = (0, 1, s, 2 * s)[trial % 4]
            order = places(n, missing + (2 * s - missing) // 2, where, trial)
            gone, false = order[:missing], order[missing:]
            sent = lie(kind, payloads, false, s, trial)
            for worker in gone:
                sent[worker] = None
            out = decode(code, sent, n, stack, announced)
            assert out.rows.equal(truth), (kind, where, false, gone)
            assert names(out) == set(false), (kind, where)
            assert names(out, "excluded") == set(gone)


def test_lies_that_look_like_lies_of_others_name_nobody_else():
    """Against a real-valued code five adjacent liars moved the mean by 5.1 norms and had five honest workers named."""
    n, s = 45, 5
    units = units_of(n, 200)
    stack = unit_stack(units, s)
    honest = px.coding.cyclic(s=s)
    truth = decode(honest, encode(honest, stack, n), n, stack).rows
    for ratio in (1e-9, 0.1, 1.0):
        code = px.coding.cyclic(s=s, forge=px.attacks.codeword(s=s, ratio=ratio))
        for false in (range(s), range(s, 2 * s), range(0, 2 * s, 2), [44, 0, 1, 2, 3], [7]):
            sent = encode(code, stack, n, byzantine=false)
            assert all(not sent[i][ROW].equal(encode(honest, stack, n)[i][ROW]) for i in list(false)[:1])
            out = decode(code, sent, n, stack)
            assert out.rows.equal(truth) and names(out) == set(false)
        # one liar more has s honest workers named: the smallest explanation is another one, which nothing can tell
        out = decode(code, encode(code, stack, n, byzantine=range(s + 1)), n, stack)
        assert names(out) == set(range(s + 1, 2 * s + 1)) and not out.rows.equal(truth)
    with pytest.raises(TooManyFaults, match=f"more than {s} of n={n} rows are false"):
        decode(honest, lie("random", encode(honest, stack, n), range(s + 1), s, 0), n, stack)


def test_the_highest_bit_of_an_entry_hides_no_lie():
    n, s = 9, 2
    code, units = px.coding.cyclic(s=s), units_of(n, 64)
    stack = unit_stack(units, s)
    payloads = encode(code, stack, n)
    truth = decode(code, payloads, n, stack).rows
    for shift in (1 << 31, P):
        row = (payloads[3][ROW].numpy().view(np.uint32).astype(np.uint64) + shift).astype(np.uint32)
        sent = [*payloads]
        sent[3] = {**payloads[3], ROW: torch.from_numpy(row.view(np.int32))}
        assert decode(code, sent, n, stack).rows.equal(truth)


@each("missing", [11, 12, 44])
def test_too_many_missing_rows_are_a_sentence(missing):
    code, units = px.coding.cyclic(s=5), units_of(45, 8)
    stack = unit_stack(units, 5)
    payloads = [None] * missing + encode(code, stack, 45)[missing:]
    with pytest.raises(TooManyFaults, match=f"{missing} of n=45 rows are missing") as caught:
        decode(code, payloads, 45, stack)
    assert sum(note.kind == "excluded" for note in caught.value.notes) == missing


# hostile shapes


@given(
    st.integers(0, 40),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
    st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 1e3]),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from(KINDS),
)
@draws(60)
def test_hostile_shapes_and_sizes(d, dtype, size, seed, known, kind):
    n, s = 9, 2
    code, units = px.coding.cyclic(s=s), (units_of(n, d, seed=seed) * size).to(dtype)
    stack, announced = unit_stack(units, s), scales_of(units, px.Layout.flat(d)) if known else {}
    payloads = encode(code, stack, n, announced)
    truth = decode(code, payloads, n, stack, announced).rows
    false = places(n, seed % (s + 1), "random", seed)
    out = decode(code, lie(kind, payloads, false, s, seed), n, stack, announced)
    assert out.rows.equal(truth) and truth.dtype == dtype and truth.shape == (1, d)
    assert names(out) <= set(false) and (not d or names(out) == set(false))
    step = 2.0**-40 + float(units.double().abs().max() if d else 0) * (2.0**-20 + torch.finfo(dtype).eps)
    assert float((truth.double() - units.double().mean(dim=0)).abs().max() if d else 0) <= step


@each("value", [float("nan"), float("inf"), -float("inf")])
def test_a_unit_that_is_not_finite_spoils_its_tensor_as_in_a_plain_mean(value):
    n, s = 9, 2
    layout = px.Layout(("a", "b", "c"), (torch.Size([3]), torch.Size([0]), torch.Size([5])))
    units = units_of(n, 8)
    units[4, 5] = value
    stack = unit_stack(units, s, layout=layout)
    code = px.coding.cyclic(s=s)
    sent = lie("random", encode(code, stack, n), [1, 7], s, 0)
    out = decode(code, sent, n, stack)
    assert out.rows[0, :3].isfinite().all() and out.rows[0, 3:].isnan().all() and names(out) == {1, 7}
    # nobody alone can say so of a unit
    clean = encode(code, unit_stack(units_of(n, 8), s, layout=layout), n)
    clean[1] = {**clean[1], CLAIMS: torch.full_like(clean[1][CLAIMS], 65535)}
    out = decode(code, clean, n, stack)
    assert out.rows.isfinite().all() and names(out) == {1}


@each("how", ["short", "long", "dtype", "keys", "missing", "random", "weight"])
def test_malformed_payloads_are_named(how):
    n, s = 9, 2
    code = px.coding.cyclic(s=s, forge=px.attacks.malformed(how))
    stack = unit_stack(units_of(n, 64), s)
    truth = decode(code, encode(code, stack, n), n, stack).rows
    out = decode(code, encode(code, stack, n, byzantine=(2, 3)), n, stack)
    assert out.rows.equal(truth) and names(out, "outvoted", "excluded") == {2, 3}


# the scale


def rounds(units_by_round, s, liars=lambda payloads: payloads):
    """The announced scales and the cut entries, round by round."""
    code, announced = px.coding.cyclic(s=s), {}
    for units in units_by_round:
        n = len(units)
        stack = unit_stack(units, s)
        payloads = encode(code, stack, n, announced)
        out = decode(code, liars(payloads), n, stack, announced)
        cut = sum(note.value for note in out.notes if note.kind == "saturated")
        announced = out.announcement
        yield int(announced[SCALES][0]), cut, payload_bytes(payloads[0]), out.rows[0]


def test_the_scale_follows_the_tensors():
    base = units_of(9, 50)
    base /= base.abs().max()
    sizes = [0.75, 0.75, 2.0**-20, 2.0**-20, 2.0**9 * 0.75, 2.0**9 * 0.75, 0.75]
    seen = list(rounds([base * size for size in sizes], 2))
    scales = [scale for scale, *_ in seen]
    # half of the way down in a round
    assert scales[:4] == [MARGIN, MARGIN, MARGIN - 10, MARGIN - 15]
    assert scales[4:] == [9 + MARGIN, 9 + MARGIN, 4 + MARGIN]
    # one jump beyond the scale is cut, counted and followed; the first round needs no scale
    assert [cut > 0 for _, cut, *_ in seen] == [i == 4 for i in range(7)]
    assert [size for _, _, size, _ in seen] == [3 * 200 + 40] + 6 * [200 + 40]
    for size, before, (_, cut, _, row) in zip(sizes, [-17, *scales], seen, strict=False):
        if not cut:
            torch.testing.assert_close(row, (base * size).mean(dim=0), rtol=1e-6, atol=2.0 ** (before - 23))


def test_no_worker_moves_the_scale():
    def liars(payloads):
        # true rows, false words on the sizes of the units
        sent = [*payloads]
        for worker in (3, 4):
            sent[worker] = {**sent[worker], CLAIMS: sent[worker][CLAIMS] + (7 << 16) + 60}
        return sent

    given_units = [units_of(9, 50, seed=i) for i in range(3)]
    honest, attacked = list(rounds(given_units, 2)), list(rounds(given_units, 2, liars))
    for (scale, cut, _, row), (other_scale, other_cut, _, other_row) in zip(honest, attacked, strict=True):
        assert (scale, cut) == (other_scale, other_cut) and row.equal(other_row)
    code, stack = px.coding.cyclic(s=2), unit_stack(given_units[0], 2)
    assert names(decode(code, liars(encode(code, stack, 9)), 9, stack)) == {3, 4}


@each("word", [32_000, 32_766, 32_767, -(1 << 40), 1 << 60])
def test_a_lone_impossible_word_is_a_lie_and_sets_no_scale(word):
    units = units_of(5, 8)
    code, stack = px.coding.cyclic(s=1), unit_stack(units, 1)
    payloads = encode(code, stack, 5)
    # two honest workers are missing, so that one unit has a single holder
    payloads[0] = payloads[1] = None
    payloads[4] = {**payloads[4], CLAIMS: torch.full_like(payloads[4][CLAIMS], word + (1 << 15))}
    with pytest.raises(TooManyFaults, match="nothing fits"):
        decode(code, payloads, 5, stack)


def test_a_word_out_of_range_is_outvoted_and_rounds_without_a_spare_row_say_so():
    units = units_of(5, 8)
    code, stack = px.coding.cyclic(s=1), unit_stack(units, 1)
    payloads = encode(code, stack, 5)
    lying = [*payloads[:4], {**payloads[4], CLAIMS: torch.full_like(payloads[4][CLAIMS], 1 << 16)}]
    faultless, out = decode(code, payloads, 5, stack), decode(code, lying, 5, stack)
    assert names(out) == {4} and out.rows.equal(faultless.rows)
    assert out.announcement[SCALES].equal(faultless.announcement[SCALES])
    for missing, unprotected in ((0, False), (1, True), (2, True)):
        out = decode(code, [*[None] * missing, *payloads[missing:]], 5, stack)
        assert ("unprotected" in {note.kind for note in out.notes}) is unprotected and out.rows.equal(faultless.rows)


def test_an_announcement_out_of_range_counts_as_none():
    code, stack = px.coding.cyclic(s=1), unit_stack(units_of(5, 8), 1)
    for scale in (32_002, 32_767, -32_768):
        sent = code.encode(stack, 5, {SCALES: torch.tensor([scale], dtype=torch.int16)})
        assert sent[0][ROW].shape == encode(code, stack, 5)[0][ROW].shape


def test_a_tensor_of_zeros_waits_for_its_scale():
    units = units_of(9, 8)
    units[:, 3:] = 0
    layout = px.Layout(("a", "b"), (torch.Size([3]), torch.Size([5])))
    code, stack = px.coding.cyclic(s=1), unit_stack(units, 1, layout=layout)
    out = decode(code, encode(code, stack, 9), 9, stack)
    a, b = out.announcement[SCALES].tolist()
    assert a == b and not out.rows[0, 3:].any()
    nothing = unit_stack(torch.zeros(9, 8), 1)
    assert decode(code, encode(code, nothing, 9), 9, nothing).announcement[SCALES].tolist() == [0]


# what is refused


@each(
    ("text", "n", "words"),
    [
        ("cyclic(s=2)", 4, "cyclic needs n > 2s workers, got n=4, s=2"),
        (
            "cyclic(s=1)",
            128,
            r"adds up at most 127 workers, as n 2\^bits stays below half of 2\^31 - 1, got n=128; take bits=22",
        ),
        ("cyclic(s=1, bits=28)", 9, "at most 3 workers.* take bits=26"),
        ("chain(gather(dense()), cyclic(s=2))", 9, r"keep one of them, such as chain\(cyclic\(s=2\)\)"),
        ("chain(gather(half()), cyclic(s=2), mean())", 9, r"such as chain\(cyclic\(s=2\), mean\(\)\)"),
        ("chain(momentum(0.9), cyclic(s=2))", 9, "put momentum behind the wire"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(text, n, words):
    from phalanx.core.stage import check_scheme

    with pytest.raises(ValueError, match=words):
        check_scheme(px.parse(text), n)


@each(
    "text", ["cyclic(s=-1)", "cyclic(s=1, bits=7)", "cyclic(s=1, bits=29)", "codeword(s=0)", "codeword(s=1, ratio=0.0)"]
)
def test_numbers_out_of_range(text):
    with pytest.raises(ValueError, match="needs"):
        px.parse(text)


def test_plain_rows_are_units():
    units = units_of(9, 20)
    found = px.parse("chain(cyclic(s=2))").aggregate(units)
    torch.testing.assert_close(found, units.mean(dim=0))


def test_rows_that_are_no_units_are_refused():
    with pytest.raises(ValueError, match=r"a row for each of the 5 units of worker 0, got 0; see `exchange.hold`"):
        px.coding.cyclic(s=2)(px.Stack.of(torch.ones(9, 4)), None, round_of(9))


# runs

RUN = (
    "run(digits(), mlp(hidden=(16,)), phases=(phase(gradient(batch={batch}), {scheme}, "
    "sgd(lr=0.1, momentum=0.5), rounds=12),), workers=9, byzantine={byzantine}, seed=3)"
)


def trained(scheme, byzantine="none()", batch=90):
    trainer = px.train(px.parse(RUN.format(scheme=scheme, byzantine=byzantine, batch=batch)))
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]), trainer.summary()


@pytest.mark.parametrize("batch", [90, 95])
def test_training_ends_with_the_same_bits_whoever_lies(batch):
    plain, _ = trained("chain(gather(dense()), mean())", batch=batch)
    weights, free = trained("chain(cyclic(s=2))", batch=batch)
    # 12 rounds with momentum, each rounded to 2^-21 of the largest entry
    assert float((weights - plain).norm() / plain.norm()) < 1e-6 and free["accusation_precision"] is None
    for attack in ("reverse()", "constant(-100)", "nan()", "alie()", "mimic()"):
        _, summary = trained(f"chain({attack}, cyclic(s=2))", "random(2, every=1)", batch)
        assert summary["weights_sha256"] == free["weights_sha256"] and summary["lost_rounds"] == 0, attack
        assert summary["accusation_recall"] == 1.0 and summary["accusation_precision"] == 1.0
    _, summary = trained("chain(cyclic(s=2, forge=codeword(s=2)))", "random(2, every=1)", batch)
    assert summary["weights_sha256"] == free["weights_sha256"] and summary["accusation_precision"] == 1.0


def test_training_skips_what_the_code_cannot_repair():
    _, summary = trained("chain(gaussian(), cyclic(s=1))", "workers((0, 1))")
    assert summary["lost_rounds"] == 12


def test_units_are_clipped_one_by_one():
    scheme = "chain(reverse(), clip(0.5), cyclic(s=2), momentum(0.9))"
    (_, free), (_, summary) = trained(scheme), trained(scheme, "random(2, every=1)")
    assert free["lost_rounds"] == 0 and summary["weights_sha256"] == free["weights_sha256"]


def test_observers_see_a_row_a_worker():
    text = RUN.format(scheme="chain(cyclic(s=2))", byzantine="random(2)", batch=90)
    lines = []
    run = replace(px.parse(text), observers=(px.training.norms(),))
    px.train(run, listener=lines.append)
    assert all(set(line["observed"]["norms()"]) == set(map(str, range(9))) for line in lines)
