# SPDX-License-Identifier: Apache-2.0
"""Rules behind matching: they see like beside like, and f liars do not speak for those who lack a neuron or a class."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core.stack import Stack
from phalanx.matching.match_stage import MatchReply, class_shares, weighted_middle
from phalanx.matching.neuron_axes import OUTPUTS, Axis

F = 3
EXACT = (
    "bbp(gamma=1.0, sigma=0.01, average='plain', log_determinant=True)"  # finds neurons that are alike, whoever lies
)


def layers(n: int, neurons: int, seed: int, lacking: bool = False) -> tuple[Stack, list[torch.Tensor], torch.Tensor]:
    """Rows of one noisy layer, each in an order of its own; which neuron stands where; the layer of each client.

    Args:
        lacking: the odd clients have neurons of their own in the place of the last two.
    """
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randn(neurons, 6, generator=rng)
    own = truth + 0.02 * torch.randn(n, neurons, 6, generator=rng)
    if lacking:
        own[1::2, -2:] = 5 * torch.randn(len(own[1::2]), 2, 6, generator=rng)
    orders = [torch.randperm(neurons, generator=rng) for _ in range(n)]
    axes = ((Axis(0, 0),), (Axis(0, 0),))
    layout = px.Layout(("a.weight", "a.bias"), (torch.Size([neurons, 5]), torch.Size([neurons])), annotations=axes)
    rows = [layout.join({"a.weight": w[o, :5], "a.bias": w[o, 5]}) for w, o in zip(own, orders, strict=True)]
    return Stack.of(torch.stack(rows), layout), orders, own


def merged(stack: Stack, stages: str) -> tuple[Stack, dict[str, torch.Tensor]]:
    out, _ = px.parse(stages)(stack, None, px.Round())
    return out, out.layout.split(out.rows)


RULES = ("mean()", "median()", "trimmed_mean(f=2)", "krum(f=2)", "geometric_median()", "nnm(f=2)")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("middle", ["mean", "median"])
def test_a_rule_behind_matching_is_the_rule_on_networks_put_in_order_by_hand(rule: str, middle: str) -> None:
    stack, orders, own = layers(9, 5, seed=1)
    out, parts = merged(stack, f"chain(matched({EXACT}, middle='{middle}'), {rule})")
    expected, _ = px.parse(rule)(Stack.of(own.flatten(1)), None, px.Round())
    here = torch.cat([parts["a.weight"], parts["a.bias"][:, :, None]], dim=2)
    # where the first client's neurons stand, in the order of the truth
    places = MatchReply.from_payload(out.replies[0]).places[0][orders[0].argsort()]
    torch.testing.assert_close(here[:, places].flatten(1), expected.rows, rtol=1e-4, atol=1e-5)


def weighted_median(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The median of each column in which every row stands as often as its whole weight says."""
    ordered = rows.repeat_interleave(weights.long(), dim=0).sort(dim=0).values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


@given(n=st.integers(1, 7), d=st.integers(1, 5), seed=st.integers(0, 999), zero=st.booleans())
def test_the_middle_is_the_weighted_median_and_stays_it_with_itself_added(
    n: int, d: int, seed: int, zero: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randint(-3, 4, (n, d), generator=rng).float()
    weights = torch.randint(0 if zero else 1, 4, (n,), generator=rng).float()
    middle, whole = weighted_middle(list(rows), [w.expand(d) for w in weights], "median")
    assert whole.equal(weights.sum().expand(d))
    expected = weighted_median(rows, weights) if weights.any() else torch.zeros(d)
    torch.testing.assert_close(middle, expected)
    again, _ = weighted_middle([*rows, middle], [w.expand(d) for w in (*weights, weights.new_tensor(2.0))], "median")
    assert again.equal(middle)
    mean, _ = weighted_middle(list(rows), [w.expand(d) for w in weights], "mean")
    torch.testing.assert_close(mean, (weights[:, None] * rows).sum(0) / weights.sum().clamp(min=1e-30))


def lying(stack: Stack, own: torch.Tensor, orders: list[torch.Tensor], shift: float) -> Stack:
    """Clients 0, 1 .. F-1 have the true neurons near enough to be matched, and lie about their biases."""
    layout, rows = stack.layout, stack.rows.clone()
    for j in range(F):
        bias = own[j, :, 5][orders[j]] + shift
        rows[j] = layout.join({"a.weight": own[j, :, :5][orders[j]], "a.bias": bias})
    return stack.with_rows(rows)


@pytest.mark.parametrize("shift", [0.3, -0.3])
def test_liars_do_not_speak_for_those_who_lack_a_neuron(shift: float) -> None:
    """Half of the clients lack two neurons: a mean in their place carries the lie into the median of all."""
    stack, orders, own = layers(16, 6, seed=2, lacking=True)
    liars = lying(stack, own, orders, shift)
    shared = [j for j in range(F, 16) if j % 2 == 0]
    low, high = own[shared, -1].amin(dim=0), own[shared, -1].amax(dim=0)
    inside = {}
    for middle in ("mean", "median"):
        for support in (F + 1, 2 * F + 1):
            out, _ = merged(liars, f"matched({EXACT}, support={support}, middle='{middle}')")
            place = int(MatchReply.from_payload(out.replies[4]).places[0][int(orders[4].argsort()[-1])])
            assert place >= 0
            (one,) = px.aggregators.median()(out, None, px.Round())[0].rows
            parts = out.layout.split(one)
            found = torch.cat([parts["a.weight"][place], parts["a.bias"][place, None]])
            inside[middle, support] = bool(((low <= found) & (found <= high)).all())
    assert inside["median", 2 * F + 1] and not inside["mean", 2 * F + 1]


@given(seed=st.integers(0, 99), scale=st.sampled_from([0.5, 3.0, 1e6]), kind=st.sampled_from(["own", "one", "far"]))
def test_with_twice_f_and_one_supporters_every_row_stays_within_what_honest_clients_have(
    seed: int, scale: float, kind: str
) -> None:
    """Whatever liars send: what stands in for a missing neuron lies between honest values, and so does the median."""
    stack, _, _ = layers(2 * F + 4, 4, seed, lacking=True)
    rng = torch.Generator().manual_seed(seed)
    rows, d = stack.rows.clone(), stack.layout.d
    noise = torch.randn(F, d, generator=rng)
    rows[:F] = {"own": rows[:F] + scale * noise, "one": (scale * noise[:1]).expand(F, d), "far": scale * noise}[kind]
    matched = f"matched(bbp(gamma=1.0, average='plain'), support={2 * F + 1}, middle='median')"
    out, parts = merged(stack.with_rows(rows), matched)
    honest = range(F, len(rows))
    size = out.layout.shapes[1][0]
    one = out.layout.split(px.aggregators.median()(out, None, px.Round())[0].rows[0])
    counts = torch.zeros(size, dtype=torch.int64)
    for reply in out.replies.values():
        places = MatchReply.from_payload(reply).places[0]
        counts[places[places >= 0]] += 1
    for neuron in (counts >= 2 * F + 1).nonzero().flatten().tolist():
        have = [j for j in honest if bool((MatchReply.from_payload(out.replies[j]).places[0] == neuron).any())]
        for name in ("a.weight", "a.bias"):
            low, high = parts[name][have, neuron].amin(dim=0), parts[name][have, neuron].amax(dim=0)
            for row in (parts[name][list(honest), neuron], one[name][neuron][None]):
                assert bool(((low <= row) & (row <= high)).all())


def outputs(claims: torch.Tensor, weights: torch.Tensor) -> Stack:
    axis = (Axis(0, OUTPUTS),)
    layout = px.Layout(("b.weight", "examples"), (weights.shape[1:], claims.shape[1:]), 1, annotations=(axis, axis))
    return Stack.of(layout.join({"b.weight": weights, "examples": claims}), layout)


@given(seed=st.integers(0, 999), support=st.integers(1, 5))
def test_around_any_middle_the_mean_of_outputs_is_the_mean_by_class(seed: int, support: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    claims = torch.randint(1, 9, (5, 3), generator=rng).float()
    weights = torch.randn(5, 3, 2, generator=rng)
    counted = claims.clamp(max=claims.sort(dim=0, descending=True).values[support - 1])
    expected = (counted[:, :, None] * weights).sum(0) / counted.sum(0)[:, None]
    for middle in ("mean", "median"):
        _, parts = merged(outputs(claims, weights), f"chain(matched(support={support}, middle='{middle}'), mean())")
        torch.testing.assert_close(parts["b.weight"][0], expected, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 999), most=st.sampled_from([1.0, 10.0, 900.0]))
def test_claims_of_liars_do_not_give_them_a_class(seed: int, most: float) -> None:
    """f liars with all examples they can claim in one class, and one weight in common."""
    rng = torch.Generator().manual_seed(seed)
    n = 4 * F + 1
    claims = torch.randint(0, 20, (n, 4), generator=rng).float() + 1
    claims[:F] = torch.tensor([most * 40, 0.0, 0.0, 0.0])
    weights = torch.randn(n, 4, 2, generator=rng)
    weights[:F] = 100.0
    stack = outputs(claims, weights)
    low, high = weights[F:, 0].amin(dim=0), weights[F:, 0].amax(dim=0)

    def found(stages: str) -> torch.Tensor:
        return merged(stack, f"chain({stages}, median())")[1]["b.weight"][0, 0]

    guarded = found(f"matched(support={2 * F + 1}, middle='median')")
    # a row is a step of n p from the middle, and p is at most 1 / (F + 1)
    reach = n / (F + 1) * (high - low)
    assert bool(((low - reach <= guarded) & (guarded <= high + reach)).all())
    if most == 10.0:
        assert bool((found("matched()") > high + reach).any())


def test_the_posterior_of_a_matcher_is_around_the_middle() -> None:
    stack, _, own = layers(7, 4, seed=4)
    liars = replace(stack, rows=torch.cat([stack.rows[:1] + 1000.0, stack.rows[1:]]))
    rule = "chain(matched(bbp(gamma=1e-9, average='posterior'), support=3, middle='median'), median())"
    _, parts = merged(liars, rule)
    assert float(parts["a.weight"].abs().max()) < 2 * float(own.abs().max())


def test_shares_of_a_class_are_its_claimed_examples_over_their_sum() -> None:
    claims = torch.tensor([[6.0, 0.0, 1.0], [2.0, 0.0, 9.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.75, 1 / 3, 0.1], [0.25, 1 / 3, 0.9], [0.0, 1 / 3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(class_shares(claims, 1), expected)
    # the second largest claim bounds all: 2, 0 and 1
    bounded = torch.tensor([[0.5, 1 / 3, 0.5], [0.5, 1 / 3, 0.5], [0.0, 1 / 3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(class_shares(claims, 2), bounded)
