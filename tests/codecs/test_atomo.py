"""Theorems of chapter 3: the probabilities, unbiasedness, second moments, and what travels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

import phalanx as px
from phalanx.codecs.atomo import elias_fano
from phalanx.core.payload import BadPayload, payload_bytes
from tests.cases import draws, each

DRAWS = 2000
Z = 6.0  # standard errors


def stream(seed):
    return lambda: torch.Generator().manual_seed(seed)


def second_moment(weights, p):
    kept = p > 0
    return float((weights.double()[kept] ** 2 / p[kept]).sum())


def by_solver(weights, budget):
    """The least of sum w^2 / p under the constraints, by a general method that knows no water-filling."""
    w = weights.double().abs().numpy()
    found = minimize(
        lambda p: (w**2 / p).sum(),
        x0=[budget / len(w)] * len(w),
        jac=lambda p: -(w**2) / p**2,
        bounds=[(1e-9, 1.0)] * len(w),
        constraints={"type": "eq", "fun": lambda p: p.sum() - budget, "jac": lambda p: p * 0 + 1},
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-14},
    )
    assert found.success, found.message
    return float(found.fun)


def by_algorithm_1(weights, budget):
    """The text's loop, literally."""
    order = weights.double().abs().argsort(descending=True).tolist()
    lam = [float(weights[i].abs()) for i in order]
    p, s, i = [0.0] * len(lam), budget, 0
    while i < len(lam):
        if lam[i] * s <= math.fsum(lam[i:]):
            for k in range(i, len(lam)):
                p[k] = lam[k] * s / math.fsum(lam[i:])
            break
        p[i], s, i = 1.0, s - 1, i + 1
    out = torch.zeros(len(lam), dtype=torch.float64)
    out[order] = torch.tensor(p, dtype=torch.float64)
    return out


class TestProbabilities:
    @each("seed", range(12))
    def test_least_variance_by_a_numerical_solver(self, seed):
        g = stream(seed)()
        n = 3 + seed
        # exponents spread the weights: balanced for even seeds, a few that dominate for odd ones
        weights = torch.randn(n, generator=g, dtype=torch.float64) * 10 ** (
            (seed % 2) * 1.2 * torch.randn(n, generator=g, dtype=torch.float64)
        )
        weights = weights / weights.abs().max()
        budget = 0.5 + (n - 1) * float(torch.rand(1, generator=g))
        p = px.codecs.atomo_probabilities(weights, budget)
        mine, best = second_moment(weights, p), by_solver(weights, budget)
        assert mine <= best * (1 + 1e-6) and mine >= best * (1 - 1e-4)

    @given(st.lists(st.floats(0.01, 100), min_size=2, max_size=20), st.floats(0.1, 1), st.integers(0, 2**32 - 1))
    def test_no_feasible_change_lowers_the_variance(self, values, share, seed):
        weights = torch.tensor(values, dtype=torch.float64)
        p = px.codecs.atomo_probabilities(weights, share * len(values))
        for scale in (1e-3, 0.1, 1.0):
            step = scale * torch.randn(len(p), generator=stream(seed)(), dtype=torch.float64)
            other = (p + step - step.mean()).clamp(1e-6, 1.0)
            # back to the budget by taking from all alike
            other = other * min(1.0, float(p.sum() / other.sum()))
            assert second_moment(weights, other) >= second_moment(weights, p) * (1 - 1e-9)

    @given(
        st.lists(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-30, -1e-38, 1e30, 3e38, 1e-45, 65504.0, 6e-8]),
            max_size=40,
        ),
        st.floats(1e-3, 50),
        st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    )
    def test_they_add_up_to_the_budget_or_the_support(self, values, budget, dtype):
        weights = torch.tensor(values, dtype=torch.float64).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        weights = weights.to(dtype)
        p = px.codecs.atomo_probabilities(weights, budget)
        nonzeros = int((weights != 0).sum())
        assert p.shape == weights.shape and p.dtype == torch.float64
        assert ((p > 0) == (weights != 0)).all() and (p <= 1).all()
        assert float(p.sum()) == pytest.approx(min(budget, nonzeros), rel=1e-9)
        if budget >= nonzeros:
            assert (p[weights != 0] == 1).all()
        # equal weights, equal chances; larger ones, larger ones
        order = weights.double().abs().argsort()
        assert (p[order].diff() >= 0).all() if len(p) else True

    @given(st.lists(st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-150), min_size=1), st.floats(0.01, 1))
    def test_they_are_those_of_the_text(self, values, share):
        weights = torch.tensor(values, dtype=torch.float64)
        nonzeros = int((weights != 0).sum())
        if nonzeros:
            budget = share * nonzeros
            torch.testing.assert_close(
                px.codecs.atomo_probabilities(weights, budget), by_algorithm_1(weights, budget), rtol=1e-9, atol=1e-12
            )

    def test_sizes_that_shrink_geometrically(self):
        """Every pass finds one more that is kept for certain: the passes end and the sort takes over."""
        weights = 4.0 ** -torch.arange(200, dtype=torch.float64)
        for budget in (1.0, 12.5, 13.0, 40.7, 150.0, 199.5):
            p = px.codecs.atomo_probabilities(weights, budget)
            assert float(p.sum()) == pytest.approx(budget)
            torch.testing.assert_close(p, by_algorithm_1(weights, budget))

    def test_tables_come_out_as_tables(self):
        weights = torch.randn(3, 4)
        assert px.codecs.atomo_probabilities(weights, 2).equal(
            px.codecs.atomo_probabilities(weights.flatten(), 2).reshape(3, 4)
        )

    @pytest.mark.parametrize("budget", [0, -1.0, float("nan")])
    def test_a_budget_of_nothing_is_an_error(self, budget):
        with pytest.raises(ValueError, match="budget > 0"):
            px.codecs.atomo_probabilities(torch.ones(3), budget)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_weights_must_be_numbers(self, value):
        with pytest.raises(ValueError, match="finite"):
            px.codecs.atomo_probabilities(torch.tensor([1.0, value]), 1)


SHAPES = [(), (1,), (7,), (8,), (5, 3), (3, 8), (4, 3, 1, 1), (3, 5, 3, 3), (2, 4, 3), (0,), (3, 0, 2), (2, 3, 2, 1, 2)]
EVERY = ["entries()", "spectral()", "spectral('matrix')", "spectral('square')", "fourier()", "dct()"]


@each("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("text", EVERY)
@each("shape", SHAPES)
def test_all_atoms_add_up_to_the_tensor(shape, text, dtype):
    atoms = px.parse(text)
    x = torch.randn(shape, generator=stream(0)(), dtype=dtype)
    lam, known = atoms.analyse(x)
    kept = (lam != 0).nonzero().flatten()
    assert len(lam) <= atoms.most(x.shape)
    for p in (torch.ones(len(lam), dtype=torch.float64), px.codecs.atomo_probabilities(lam, max(1, len(lam)) / 3)):
        parts = atoms.write(known, lam, p, kept)
        ones = int((p[kept] >= 1).sum())
        forms = atoms.forms(x.shape, dtype, ones, len(kept) - ones)
        assert {k: (t.dtype, tuple(t.shape)) for k, t in parts.items()} == forms
        back = atoms.read(parts, x.shape, dtype, ones, len(kept) - ones)
        assert back.shape == x.shape and back.dtype == dtype
        if ones == len(kept):
            torch.testing.assert_close(back, x)
    # the atoms have norm one and are orthogonal
    assert float((lam.double() ** 2).sum()) == pytest.approx(float((x.double() ** 2).sum()), rel=1e-5)


@each("spread", [1.0, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("reshape", ["paper", "matrix", "square"])
def test_spectral_atoms_lose_nothing_of_matrices_that_are_nearly_singular(reshape, spread):
    g = stream(1)()
    x = torch.randn(60, 4, 3, 3, generator=g) * torch.logspace(0, -math.log10(spread), 36).reshape(4, 3, 3)
    for scale in (1e-30, 1.0, 1e30):
        atoms, scaled = px.codecs.spectral(reshape), x * scale
        lam, known = atoms.analyse(scaled)
        p = torch.ones(len(lam), dtype=torch.float64)
        parts = atoms.write(known, lam, p, (lam != 0).nonzero().flatten())
        back = atoms.read(parts, x.shape, x.dtype, int((lam != 0).sum()), 0)
        assert float((back - scaled).div(scale).norm() / x.norm()) < 2e-6


def test_matrices_of_low_rank_have_few_atoms():
    g = stream(2)()
    x = torch.randn(50, 2, generator=g) @ torch.randn(2, 30, generator=g)
    lam, _ = px.codecs.spectral().analyse(x)
    assert int((lam > 1e-5 * lam.max()).sum()) == 2
    assert int((px.codecs.spectral().analyse(torch.zeros(50, 30))[0] != 0).sum()) == 0


INPUTS = {
    "gaussian": torch.randn(6, 5, generator=stream(3)()),
    "sparse": torch.randn(6, 5, generator=stream(4)()) * (torch.arange(30).reshape(6, 5) % 7 == 0),
    "one-hot": 3.0 * (torch.arange(30).reshape(6, 5) == 11),
    "tiny": 1e-30 * torch.randn(6, 5, generator=stream(5)()),
    "huge": 1e15 * torch.randn(6, 5, generator=stream(6)()),
    "zero": torch.zeros(6, 5),
    "one large": torch.randn(6, 5, generator=stream(7)()) + 50.0 * (torch.arange(30).reshape(6, 5) == 4),
}
CODECS = [
    "atomo(entries(), budget=4)",
    "atomo(entries(), ratio=0.2, draws='systematic')",
    "atomo(spectral(), budget=1)",
    "atomo(spectral('matrix'), budget=1.5, draws='systematic')",
    "atomo(fourier(), budget=5)",
    "atomo(dct(), budget=5)",
    "atomo(spectral(), budget=1.5, vectors=atomo(entries(), ratio=0.5))",
    "atomo(spectral('matrix'), budget=1.5, vectors=qsgd(bits=1))",
]


def draws_of(text, x, count=DRAWS):
    codec, layout = px.parse(text), px.Layout(("x",), (x.shape,), dtype=x.dtype)
    out = []
    for seed in range(count):
        payload, _ = codec.encode(x.reshape(-1), layout, {}, stream(seed))
        out.append((codec.decode(payload, layout), payload))
    return torch.stack([row for row, _ in out]).double(), [payload for _, payload in out]


@pytest.mark.parametrize(
    ("text", "name"),
    [(CODECS[0], name) for name in ("sparse", "one-hot", "tiny", "huge", "zero")]
    + [(CODECS[2], name) for name in ("gaussian", "one-hot", "tiny", "huge")]
    + [(text, "gaussian") for text in CODECS[3:] if "vectors=atomo" not in text]
    + [(CODECS[1], "one large")],
)
def test_unbiased_and_of_the_second_moment_of_the_theorem(text, name):
    x = INPUTS[name]
    rows, payloads = draws_of(text, x)
    exact = x.reshape(-1).double()
    error = (rows.mean(dim=0) - exact).abs()
    assert (error <= Z * rows.std(dim=0) / DRAWS**0.5 + 1e-6 * exact.abs().max()).all()
    if all(int(payload["counts"][0, 0]) == 255 for payload in payloads):
        assert name != "gaussian" and rows[0].float().equal(x.reshape(-1))
        return
    codec = px.parse(text)
    lam = codec.atoms.analyse(x)[0]
    budget = codec.budget or codec.ratio * codec.atoms.most(x.shape)
    p = px.codecs.atomo_probabilities(lam, budget)
    squares = (rows**2).sum(dim=1)
    expected = second_moment(lam, p)
    if codec.vectors is not None:
        expected = moment_of_coded_vectors(codec, x, p)
    # of cut vectors the squares have heavy tails: their own spread says how near the mean must be
    slack = Z * float(squares.std()) / DRAWS**0.5 + 1e-5 * expected
    assert float(squares.mean()) == pytest.approx(expected, abs=slack)
    kept = torch.tensor([float(payload["counts"].sum()) for payload in payloads])
    target = min(budget, int((lam != 0).sum()))
    assert float(kept.mean()) == pytest.approx(target, abs=Z * float(kept.std()) / DRAWS**0.5 + 1e-6)
    if codec.draws == "systematic":
        assert kept.min() >= math.floor(target) and kept.max() <= math.ceil(target)


def moment_of_coded(codec, vector):
    """E|C(vector)|^2 in closed form: of entrywise ATOMO by theorem 3.6, of QSGD by the variance of each rounding."""
    if isinstance(codec, px.codecs.atomo):
        return second_moment(vector, px.codecs.atomo_probabilities(vector, codec.ratio * len(vector)))
    levels, norm = 2**codec.bits - 1, float(vector.double().norm())
    place = vector.double().abs() / norm * levels
    spare = place - place.floor()
    return norm**2 * (1 + float((spare * (1 - spare)).sum()) / levels**2)


def moment_of_coded_vectors(codec, x, p):
    """sum_i 1 / p_i E|C(p_i left_i)|^2 E|C(right_i)|^2, the formula of docs/atomo.md."""
    tall, right = codec.atoms.analyse(x)[1]
    total = 0.0
    for i in (p > 0).nonzero().flatten().tolist():
        v = right[i].to(tall)
        moments = [moment_of_coded(codec.vectors, vector) for vector in (tall @ v, v)]
        total += moments[0] * moments[1] / float(p[i])
    return total


def test_the_balanced_second_moment_is_that_of_table_3_1():
    """At s atoms: entries |X|_{1,1}^2 / s, singular values |X|_*^2 / s, where no probability is one."""
    for seed in range(5):
        x = torch.randn(20, 18, generator=stream(seed)())
        sigma = torch.linalg.svdvals(x.double())
        norms = {"entries()": float(x.double().abs().sum()), "spectral()": float(sigma.sum())}
        largest = {"entries()": float(x.abs().max()), "spectral()": float(sigma.max())}
        for text, norm in norms.items():
            lam = px.parse(text).analyse(x)[0]
            s = 0.9 * norm / largest[text]
            p = px.codecs.atomo_probabilities(lam, s)
            assert float(p.max()) < 1 and second_moment(lam, p) == pytest.approx(norm**2 / s, rel=1e-5)


@pytest.mark.parametrize("kind", ["low rank", "gaussian", "sparse"])
def test_singular_values_win_exactly_under_the_condition_of_theorem_3_8(kind):
    g = stream(8)()
    n, m = 24, 16
    x = {
        "low rank": torch.randn(n, 1, generator=g) @ torch.randn(1, m, generator=g)
        + 0.01 * torch.randn(n, m, generator=g),
        "gaussian": torch.randn(n, m, generator=g),
        "sparse": torch.eye(n, m) * torch.randn(n, 1, generator=g).abs().add(1.0),
    }[kind]
    entries, sigma = x.double().abs(), torch.linalg.svdvals(x.double())
    s = 0.9 * min(float(entries.sum() / entries.max()), (n + m) * float(sigma.sum() / sigma.max()))
    of_entries = second_moment(entries.flatten(), px.codecs.atomo_probabilities(entries.flatten(), s))
    of_sigma = second_moment(sigma, px.codecs.atomo_probabilities(sigma, s / (n + m)))
    condition = (n + m) * float(sigma.sum()) ** 2 <= float(entries.sum()) ** 2
    assert (of_sigma <= of_entries) == condition
    assert condition == (kind == "low rank")


class TestMessages:
    def test_nothing_is_sent_when_nothing_was_drawn(self):
        """The published code draws again, which makes the mean of (1, 1, 1, 1, 1) at budget 1 half as large again."""
        codec, layout = px.parse("atomo(spectral('matrix'), budget=1)"), px.Layout(("x",), (torch.Size([12, 5]),))
        x = torch.linalg.qr(torch.randn(12, 5, generator=stream(0)())).Q.reshape(-1)
        sent = [codec.encode(x, layout, {}, stream(seed))[0] for seed in range(200)]
        nothing = [p for p in sent if not p["left"].numel()]
        assert len(nothing) / 200 == pytest.approx(0.8**5, abs=0.17)
        assert payload_bytes(nothing[0]) == 2 and not codec.decode(nothing[0], layout).any()

    def test_an_atom_of_a_convolution_is_two_vectors(self):
        codec = px.parse("atomo(spectral(), budget=2, draws='systematic')")
        layout = px.Layout(("x",), (torch.Size([16, 8, 3, 3]),))
        payload, _ = codec.encode(torch.randn(layout.d, generator=stream(0)()), layout, {}, stream(1))
        atoms = int(payload["counts"].sum())
        assert atoms == 2 and payload_bytes(payload) == 2 + 4 * atoms * (64 + 18)

    def test_a_small_entry_costs_an_index_and_a_sign(self):
        codec, layout = px.parse("atomo(entries(), ratio=0.01, draws='systematic')"), px.Layout.flat(100_000)
        payload, _ = codec.encode(torch.rand(layout.d, generator=stream(0)()) + 1, layout, {}, stream(1))
        assert payload["counts"].tolist() == [[0, 1000]] and len(payload["values"]) == 1
        # 2 + log2(100) bits for an index, and one for the sign
        assert payload_bytes(payload) <= 1000 * (2 + math.log2(100) + 1) / 8 + 16

    def test_large_entries_arrive_as_they_are(self):
        codec, layout = px.parse("atomo(entries(), budget=6)"), px.Layout.flat(1000)
        row = 1e-3 * torch.randn(1000, generator=stream(0)())
        row[[3, 500, 999]] = torch.tensor([5.0, -7.0, 1.0])
        for seed in range(20):
            payload, _ = codec.encode(row, layout, {}, stream(seed))
            assert codec.decode(payload, layout)[[3, 500, 999]].equal(row[[3, 500, 999]])

    def test_what_is_shorter_as_it_is_travels_as_it_is(self):
        layout = px.Layout(("weight", "bias"), (torch.Size([64, 64]), torch.Size([9])))
        codec, row = px.parse("atomo(spectral(), budget=3)"), torch.randn(64 * 64 + 9, generator=stream(0)())
        payload, _ = codec.encode(row, layout, {}, stream(0))
        assert payload["counts"][1].tolist() == [255, 255]
        assert codec.decode(payload, layout)[-9:].equal(row[-9:])

    def test_small_tensors_travel_as_they_are_on_request(self):
        layout = px.Layout(("weight", "bias"), (torch.Size([40, 40]), torch.Size([39])))
        codec, row = px.parse("atomo(entries(), budget=2, smallest=40)"), torch.randn(1639, generator=stream(0)())
        payload, _ = codec.encode(row, layout, {}, stream(0))
        assert payload["counts"][1].tolist() == [32767, 32767] and payload["counts"][0].sum() < 100
        assert payload["dense"].equal(row[-39:]) and codec.decode(payload, layout)[-39:].equal(row[-39:])

    @pytest.mark.parametrize("text", CODECS)
    def test_damaged_counts_and_parts_are_refused(self, text):
        codec, layout = px.parse(text), px.Layout(("x", "y"), (torch.Size([12, 10]), torch.Size([8, 8])))
        payload, _ = codec.encode(torch.randn(layout.d, generator=stream(0)()), layout, {}, stream(2))
        for counts in ([[0, 0], [0, 0]], [[255, 255], [255, 255]], [[255, 0], [0, 0]], [[200, 200], [0, 1]]):
            with pytest.raises(BadPayload):
                codec.decode({**payload, "counts": torch.tensor(counts, dtype=torch.uint8)}, layout)
        for key in payload:
            with pytest.raises(BadPayload):
                codec.decode({k: v for k, v in payload.items() if k != key}, layout)
        with pytest.raises(BadPayload):
            codec.decode({**payload, "left": torch.zeros(3)}, layout)

    @each(
        "settings",
        ["budget=0", "budget=-1", "ratio=0", "ratio=1.5", "budget=1, ratio=0.1", "", "budget=1, smallest=-1"],
    )
    def test_settings_that_no_run_can_use(self, settings):
        with pytest.raises(ValueError, match="atomo needs"):
            px.parse(f"atomo(entries(), {settings})")

    def test_entries_have_no_vectors(self):
        with pytest.raises(ValueError, match="no vectors"):
            px.parse("atomo(entries(), budget=1, vectors=dense())")

    def test_one_s_own_atoms_need_not_be_orthogonal(self):
        """A frame of three vectors in the plane at 120 degrees: unbiased all the same."""

        class Frame(px.codecs.Dictionary):
            directions = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])

            def most(self, shape):
                return 3 * (shape.numel() // 2)

            def coefficients(self, x):
                return (x.reshape(-1, 2) @ self.directions.to(x).T * (2 / 3)).reshape(-1)

            def combine(self, lam, shape):
                return (lam.reshape(-1, 3) @ self.directions.to(lam)).reshape(shape)

        made = px.method("frame_of_a_test", "atoms", listed=False)(Frame)()
        codec, layout = px.codecs.atomo(made, budget=6), px.Layout.flat(40)
        row = torch.randn(40, generator=stream(0)())
        rows = []
        for seed in range(DRAWS):
            payload, _ = codec.encode(row, layout, {}, stream(seed))
            rows.append(codec.decode(payload, layout))
        rows = torch.stack(rows).double()
        assert ((rows.mean(dim=0) - row).abs() <= Z * rows.std(dim=0) / DRAWS**0.5).all()


class TestEliasFano:
    @given(st.integers(1, 5000), st.data())
    def test_indices_come_back_in_the_promised_number_of_bytes(self, n, data):
        m = data.draw(st.integers(0, min(n, 80)))
        chosen = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=m, max_size=m)))
        indices = torch.tensor(chosen, dtype=torch.int64)
        message = elias_fano.write(indices, n)
        assert len(message) == elias_fano.length(n, m) <= m * (2 + math.log2(n / max(m, 1))) / 8 + 2
        assert elias_fano.read(message, n, m).equal(indices)

    @given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32 - 1))
    @draws(200)
    def test_random_bytes_are_read_or_refused(self, n, m, seed):
        m = min(m, n)
        size = elias_fano.length(n, m)
        message = torch.randint(256, (size,), generator=stream(seed)()).to(torch.uint8)
        try:
            indices = elias_fano.read(message, n, m)
        except BadPayload:
            return
        assert elias_fano.write(indices, n).equal(message)
