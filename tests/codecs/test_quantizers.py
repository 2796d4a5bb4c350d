# SPDX-License-Identifier: Apache-2.0
"""Numbers and theorems of the quantizers; what all codecs promise is in test_laws_codecs."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core.payload import BadPayload, payload_bytes
from tests.cases import each

DRAWS = 2000
Z = 6.0
UNBIASED = (
    "qsgd(bits=1)",
    "qsgd(bits=3, bucket=16)",
    "qsgd(bits=4, norm='linf')",
    "qsgd(bits=8, bucket=None)",
    "qsgd(bits=2, coding='elias')",
    "terngrad(clip=inf)",
    "lq(q=1)",
    "lq()",
    "lq(q=3.5)",
    "lq(q=inf)",
    "stochastic_binary()",
    "random_k(ratio=0.3)",
)


def stream(seed):
    return lambda: torch.Generator().manual_seed(seed)


def sent(codec, row, layout=None, seed=0):
    """The payload of a row and what arrives."""
    layout = layout or px.Layout.flat(len(row), row.dtype)
    payload, _ = codec.encode(row, layout, {}, stream(seed))
    return payload, codec.decode(payload, layout)


def inputs():
    """Gaussian, sparse, one-hot, tiny and huge tensors in one row."""
    normal = torch.randn(5, 37, generator=stream(7)())
    sparse = normal[1] * (torch.arange(37) % 6 == 0)
    one_hot = torch.zeros(37)
    one_hot[11] = -2.0
    tensors = {"normal": normal[0], "sparse": sparse, "one hot": one_hot, "tiny": normal[3] * 1e-30}
    tensors["huge"] = normal[4] * 1e15
    layout = px.Layout(tuple(tensors), (torch.Size([37]),) * 5)
    return layout, layout.join(tensors)


@pytest.mark.parametrize("text", UNBIASED)
def test_every_coordinate_is_unbiased(text):
    codec, (layout, row) = px.parse(text), inputs()
    assert codec.unbiased
    draws = torch.stack([sent(codec, row, layout, seed)[1] for seed in range(DRAWS)]).double()
    for name, part in layout.split(draws).items():
        exact = layout.split(row)[name].double()
        scale = exact.abs().max()
        error = (part.mean(dim=0) - exact).abs()
        # Bernstein's second term, for what is drawn too rarely to show a standard error
        rare = Z**2 / 3 * (part.amax(dim=0) - part.amin(dim=0)).max() / DRAWS
        assert (error <= Z * part.std(dim=0) / DRAWS**0.5 + rare + 1e-6 * scale).all(), name
        assert text == "stochastic_binary()" or part[:, exact == 0].eq(0).all()


def test_random_numbers_differ_between_entries_tensors_and_draws():
    layout = px.Layout(("a", "b"), (torch.Size([1000]), torch.Size([1000])))
    codec, row = px.codecs.qsgd(bits=1, bucket=None, norm="linf"), torch.full((2000,), 0.5)
    row[[0, 1000]] = 1.0
    first, second = (sent(codec, row, layout, seed)[1] for seed in range(2))
    for a, b in ((first[1:1000], first[1001:]), (first[1:1000], second[1:1000]), (first[1:999], first[2:1000])):
        assert abs(float((a == b).double().mean()) - 0.5) < Z * 0.5 / 999**0.5


@each("q", [1.0, 2.0, 3.0, math.inf])
def test_theorem_of_lq(q):
    """Second moment ||g||_1 ||g||_q, expected entries ||g||_1 / ||g||_q."""
    row = torch.randn(200, generator=stream(3)())
    one, norm = row.double().norm(1), row.double().norm(q)
    draws = torch.stack([sent(px.codecs.lq(q), row, seed=seed)[1] for seed in range(DRAWS)]).double()
    for measured, expected in ((draws.square().sum(dim=1), one * norm), ((draws != 0).sum(dim=1).double(), one / norm)):
        assert abs(measured.mean() - expected) <= Z * measured.std() / DRAWS**0.5


@pytest.mark.parametrize(
    ("text", "q"),
    [("lq()", 2), ("lq(q=inf)", math.inf), ("qsgd(bits=1, bucket=None)", 2), ("terngrad(clip=inf)", math.inf)],
)
def test_each_outcome_has_its_probability(text, q):
    """Theorem 3.7: 1-bit QSGD is lq(2) and TernGrad lq(inf), entry by entry independent."""
    codec, row = px.parse(text), torch.tensor([0.5, -1.0, 0.25, 0.8])
    p = (row.abs() / row.norm(q)).double()
    outcomes = list(itertools.product((0, 1), repeat=4))
    expected = torch.stack([torch.where(torch.tensor(o) == 1, p, 1 - p).prod() for o in outcomes]) * DRAWS
    counts = torch.zeros(16, dtype=torch.float64)
    for seed in range(DRAWS):
        decoded = sent(codec, row, seed=seed)[1]
        torch.testing.assert_close(decoded, torch.where(decoded == 0, 0.0, row.sign() * row.norm(q)))
        counts[outcomes.index(tuple((decoded != 0).int().tolist()))] += 1
    possible = expected > 0
    assert counts[~possible].sum() == 0
    # chi-square of 15 degrees of freedom: above 50 with probability 1e-5
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 50


def test_theorem_3_7_holds_draw_by_draw():
    layout, row = inputs()
    for one, other in (
        (px.codecs.lq(2), px.codecs.qsgd(bits=1, bucket=None)),
        (px.codecs.lq(math.inf), px.codecs.terngrad(clip=math.inf)),
    ):
        assert sent(one, row, layout)[1].equal(sent(other, row, layout)[1])


@st.composite
def rows(draw):
    """Rows across blocks and buckets: zeros, tiny, huge, no numbers."""
    size = draw(st.sampled_from([0, 1, 2, 7, 8, 9, 63, 511, 512, 513, 1025]))
    seed = draw(st.integers(0, 2**20))
    row = torch.randn(size, generator=stream(seed)())
    row *= torch.rand(size, generator=stream(seed + 1)()) < draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]))
    if size and draw(st.booleans()):
        row[seed % size] = draw(st.sampled_from([1e-45, 1e-38, 3e37, -1.0, math.nan, math.inf]))
    return row


buckets = st.sampled_from([None, 1, 3, 8, 100, 512, 700])


@given(rows(), st.integers(1, 8), buckets, st.sampled_from(["l2", "linf"]))
def test_qsgd_rounds_to_a_neighbour(row, bits, bucket, norm):
    packed, elias = (px.codecs.qsgd(bits, bucket, norm, coding) for coding in ("packed", "elias"))
    payload, decoded = sent(packed, row)
    assert sent(elias, row)[1].equal(decoded) or not row.isfinite().all()
    width = max(1, min(bucket or len(row), len(row)))
    levels = 2**bits - 1
    for i, part in enumerate(row.split(width)):
        got = decoded[i * width : (i + 1) * width]
        if not len(part):
            continue
        scale = part.double().norm(2 if norm == "l2" else math.inf)
        if not part.isfinite().all():
            assert got.isnan().all()
        elif scale < 1e-36:
            assert got.eq(0).all()
        else:
            x, y = (v.double() / scale * levels for v in (part, got))
            assert ((y - y.round()).abs() < 1e-3).all() and ((x - y).abs() < 1.001).all()
            assert (y[part == 0] == 0).all()
    planes = sum(-(-part.numel() * p // 8) for b in row.split(width) for part in b.split(512) for p in parts(bits + 1))
    assert payload_bytes(payload) == planes + 4 * -(-len(row) // width)


def parts(bits):
    return [p for p in (8, 4, 2, 1) if bits & p]


def test_bits_of_an_entry():
    row = torch.randn(100_000, generator=stream(0)())
    for text, limit in (("qsgd()", 5.07), ("qsgd(bits=1)", 2.07), ("terngrad()", 2.001), ("sign()", 1.0)):
        assert 8 * payload_bytes(sent(px.parse(text), row)[0]) / len(row) <= limit
    for text, limit in (("qsgd(bits=2, coding='elias')", 1.1), ("terngrad(coding='elias')", 1.6), ("lq()", 0.05)):
        assert 8 * payload_bytes(sent(px.parse(text), row)[0]) / len(row) <= limit


def test_terngrad_clips_at_sigmas_of_each_tensor():
    layout = px.Layout(("a", "b"), (torch.Size([100]), torch.Size([4])))
    row = torch.cat([torch.ones(100), torch.full((4,), 1e-3)])
    row[0] = 1000.0
    payload, decoded = sent(px.codecs.terngrad(clip=2.0), row, layout)
    sigma = row[:100].square().mean().sqrt()
    torch.testing.assert_close(payload["scales"], torch.tensor([2.0 * sigma, 1e-3]))
    assert decoded[0] == payload["scales"][0]
    # a constant tensor is not clipped to nothing
    assert decoded[100:].equal(row[100:])


def test_the_number_of_threads_changes_nothing():
    layout = px.Layout(("a", "b", "c"), (torch.Size([600_001]), torch.Size([64]), torch.Size([70_000])))
    row = torch.randn(layout.d, generator=stream(0)())
    before = torch.get_num_threads()
    try:
        for text in (
            "qsgd()",
            "qsgd(bucket=None)",
            "terngrad(coding='elias')",
            "stochastic_binary()",
            "top_k()",
            "sign()",
        ):
            codec, outcomes = px.parse(text), []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                outcomes.append(sent(codec, row, layout))
            (one, decoded_one), (many, decoded_many) = outcomes
            assert all(one[key].equal(many[key]) for key in one) and decoded_one.equal(decoded_many)
    finally:
        torch.set_num_threads(before)


def test_a_tensor_gets_the_same_numbers_in_every_bucket_of_ddp():
    layout, row = inputs()
    alone = px.Layout(("sparse",), (torch.Size([37]),))
    whole = layout.split(sent(px.codecs.qsgd(bits=2), row, layout)[1])["sparse"]
    assert sent(px.codecs.qsgd(bits=2), layout.split(row)["sparse"], alone)[1].equal(whole)


def test_stochastic_binary_sends_the_ends_of_each_tensor():
    layout, row = inputs()
    payload, decoded = sent(px.codecs.stochastic_binary(), row, layout)
    assert payload_bytes(payload) == 5 * (5 + 8)
    for name, part in layout.split(row).items():
        assert set(layout.split(decoded)[name].tolist()) <= {part.min().item(), part.max().item()}
    assert sent(px.codecs.stochastic_binary(), torch.full((9,), -3.0))[1].eq(-3).all()
    with pytest.raises(BadPayload, match="above"):
        px.codecs.stochastic_binary().decode({**payload, "ends": payload["ends"].flip(1)}, layout)
    with pytest.raises(BadPayload, match="beyond"):
        px.codecs.stochastic_binary().decode({**payload, "bits": payload["bits"] | 255}, layout)


@given(rows(), st.sampled_from([0.001, 0.01, 0.3, 1.0]))
def test_top_k_keeps_the_largest(row, ratio):
    payload, decoded = sent(px.codecs.top_k(ratio), row)
    k = min(len(row), max(1, round(ratio * len(row))))
    order = sorted(range(len(row)), key=lambda i: (-math.inf if row[i].isnan() else -abs(float(row[i])), i))
    expected = torch.zeros(len(row))
    expected[order[:k]] = row[order[:k]]
    assert decoded.nan_to_num(7e37).equal(expected.nan_to_num(7e37))
    assert payload["values"].numel() == k


@each("values", ["normal", "zeros", "ties", "two values", "float64", "bfloat16", "nan"])
def test_top_k_of_a_long_tensor_is_exact(values):
    row = torch.randn(40_000, generator=stream(5)(), dtype=torch.float64)
    if values == "zeros":
        row *= torch.arange(40_000) % 200 == 0
    elif values == "ties":
        row = (row * 4).round()
    elif values == "two values":
        row = row.sign()
    elif values == "nan":
        row[::1000] = math.nan
    row = row.to({"float64": torch.float64, "bfloat16": torch.bfloat16}.get(values, torch.float32))
    payload, decoded = sent(px.codecs.top_k(0.01), row)
    magnitudes = row.double().abs().nan_to_num(math.inf)
    sent_magnitudes = payload["values"].double().abs().nan_to_num(math.inf)
    assert sent_magnitudes.sort(descending=True).values.equal(magnitudes.topk(400).values)
    kept = decoded != 0
    assert decoded[kept].nan_to_num(9.0).equal(row[kept].nan_to_num(9.0)) and payload["values"].dtype == row.dtype


def test_top_k_sends_short_places():
    row = torch.randn(200_000, generator=stream(5)())
    for ratio in (0.5, 0.1, 0.01, 0.001):
        payload, _ = sent(px.codecs.top_k(ratio), row)
        assert 8 * len(payload["places"]) / len(payload["values"]) <= 2.5 - math.log2(ratio)


def test_random_k_draws_every_subset_alike():
    row, layout = torch.arange(1.0, 6.0), px.Layout.flat(5)
    subsets = list(itertools.combinations(range(5), 2))
    counts = torch.zeros(10)
    for seed in range(DRAWS):
        payload, decoded = sent(px.codecs.random_k(0.4), row, layout, seed)
        assert decoded[decoded != 0].equal(2.5 * row[decoded != 0]) and payload_bytes(payload) == 2 * 4 + 8
        counts[subsets.index(tuple(decoded.nonzero().flatten().tolist()))] += 1
    # chi-square of 9 degrees of freedom: above 40 with probability 1e-5
    assert ((counts - DRAWS / 10) ** 2 / (DRAWS / 10)).sum() < 40
    plain = sent(px.codecs.random_k(0.4, scaled=False), row, layout)[1]
    assert sent(px.codecs.random_k(0.4), row, layout)[1].equal(2.5 * plain)
    assert not px.codecs.random_k(0.4, scaled=False).unbiased


def test_places_refuse_what_they_do_not_write():
    layout = px.Layout(("a", "b"), (torch.Size([10]), torch.Size([10])))
    good, _ = px.codecs.top_k(0.2).encode(torch.arange(20.0), layout, {}, stream(0))
    # four places of the first tensor are more than its share
    other, _ = px.codecs.top_k(0.4).encode(torch.arange(10.0), px.Layout.flat(10), {}, stream(0))
    with pytest.raises(BadPayload):
        px.codecs.top_k(0.2).decode({**good, "places": other["places"]}, layout)
    for places in (good["places"][:-1], torch.cat([good["places"], good["places"] * 0]), good["places"] | 255):
        with pytest.raises(BadPayload, match="no encoder"):
            px.codecs.top_k(0.2).decode({**good, "places": places}, layout)
    payload, _ = px.codecs.random_k(0.2).encode(torch.arange(20.0), layout, {}, stream(0))
    with pytest.raises(BadPayload, match="negative seed"):
        px.codecs.random_k(0.2).decode({**payload, "seed": torch.tensor([-1])}, layout)


@pytest.mark.parametrize("coding", ["packed", "elias"])
def test_levels_refuse_what_they_do_not_write(coding):
    codec, layout = px.codecs.qsgd(bits=2, bucket=5, coding=coding), px.Layout.flat(9)
    good, _ = codec.encode(torch.arange(9.0) - 4, layout, {}, stream(0))
    with pytest.raises(BadPayload, match="negative scale"):
        codec.decode({**good, "scales": -good["scales"]}, layout)
    assert codec.decode({**good, "scales": good["scales"] * math.nan}, layout).isnan().all()
    if coding == "packed":
        # the first bucket of five takes two bytes of 2-bit levels and one of signs, so a bit of the sixth entry is 1
        spoilt = good["levels"].clone()
        spoilt[2] |= 0b10000000
        with pytest.raises(BadPayload, match="no encoder"):
            codec.decode({**good, "levels": spoilt}, layout)
        return
    with pytest.raises(BadPayload, match="follow"):
        codec.decode({**good, "ends": good["ends"] + 1}, layout)
    for stream_ in (good["stream"][:-1], torch.cat([good["stream"], good["stream"][:1] * 0])):
        with pytest.raises(BadPayload, match="no encoder"):
            codec.decode({**good, "stream": stream_, "ends": torch.tensor([len(stream_)])}, layout)


@each(
    "text",
    [
        "qsgd(bits=0)",
        "qsgd(bits=9)",
        "qsgd(bucket=0)",
        "terngrad(clip=0)",
        "lq(q=0.5)",
        "top_k(ratio=0)",
        "random_k(ratio=1.1)",
    ],
)
def test_numbers_without_meaning_are_refused(text):
    with pytest.raises(ValueError, match="needs"):
        px.parse(text)


def test_signum_is_momentum_sign_and_majority():
    scheme = px.codecs.signum(beta=0.5)
    assert (
        scheme
        == px.parse("signum(beta=0.5)")
        == px.chain(px.momentum(0.5), px.gather(px.codecs.sign()), px.aggregators.majority())
    )
    rows = torch.tensor([[1.0, -1.0], [2.0, 3.0], [-1.0, -2.0]])
    world = px.Round(world=px.LocalCollective(3))
    out, state = scheme(px.Stack.of(rows), None, world)
    assert out.rows.tolist() == [[1.0, -1.0]]
    # the momenta remember the first rows
    out, _ = scheme(px.Stack.of(-0.9 * rows), state, world)
    assert out.rows.tolist() == [[1.0, -1.0]]
