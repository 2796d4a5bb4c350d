# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import phalanx
from tests.cases import draws, each

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)
seeds = st.integers(0, 5)
partitions = st.sampled_from(
    [
        phalanx.data.iid(),
        phalanx.data.shards(1),
        phalanx.data.shards(3),
        phalanx.data.dirichlet(0.5),
        phalanx.data.dirichlet(100.0),
        phalanx.data.by_owner(),
        phalanx.data.by_owner(least=3, drawn=True),
        phalanx.data.nested(phalanx.data.dirichlet(0.5), pieces=2, each=2),
        phalanx.data.nested(phalanx.data.by_owner(), pieces=1, each=3),
        phalanx.data.nested(phalanx.data.nested(phalanx.data.shards(1), 2, 2), 2, 3),
    ]
)


def data(y: torch.Tensor, owners: torch.Tensor | None = None) -> phalanx.data.Dataset:
    x = torch.zeros(len(y), 1, 1, 1, dtype=torch.uint8)
    return phalanx.data.Dataset("toy", x, y, x[:0], y[:0], 10, (0.0,), (1.0,), owners=owners)


def split(partition, y, units, seed):
    try:
        return partition.split(y, units, seed)
    except ValueError:
        assume(False)


@given(partitions, labels, st.integers(1, 9), seeds)
def test_parts_are_disjoint_and_together_all(partition, y, units, seed):
    parts = split(partition, y, units, seed)
    assert len(parts) == units and all(len(p) >= 1 for p in parts)
    held = torch.cat(parts).tolist()
    assert len(set(held)) == len(held) and set(held) <= set(range(len(y)))
    if partition.exhaustive:
        assert len(held) == len(y)
    again = partition.split(y.clone(), units, seed)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


@given(partitions, labels, st.integers(1, 6), st.integers(1, 40), st.integers(0, 50), seeds)
def test_a_draw_deals_the_batch_as_evenly_as_possible(partition, y, units, batch, index, seed):
    assume(batch >= units and (batch <= len(y) or partition != phalanx.data.iid()))
    parts = split(partition, y, units, seed)
    drawn = partition.draw(data(y, owners=y), units, batch, index, seed)
    assert all(torch.equal(a, b) for a, b in zip(partition.parts(data(y, owners=y), units, seed), parts, strict=True))
    assert [len(d) for d in drawn] == [batch // units + (i < batch % units) for i in range(units)]
    again = partition.draw(data(y, owners=y), units, batch, index, seed)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    if partition != phalanx.data.iid():
        assert all(set(d.tolist()) <= set(p.tolist()) for d, p in zip(drawn, parts, strict=True))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), seeds)
def test_iid_has_every_sample_once_in_each_epoch(n, batch, units, seed):
    assume(units <= batch <= n)
    y = torch.zeros(n, dtype=torch.int64)
    rounds = 3 * n // batch + 1
    walk = torch.cat([torch.cat(phalanx.data.iid().draw(data(y), units, batch, i, seed)) for i in range(rounds)])
    for epoch in range(3):
        assert walk[epoch * n : (epoch + 1) * n].sort().values.tolist() == list(range(n))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30), seeds)
def test_iid_batch_does_not_depend_on_the_number_of_units(n, batch, index, seed):
    assume(batch <= n)
    y = torch.zeros(n, dtype=torch.int64)
    whole = phalanx.data.iid().draw(data(y), 1, batch, index, seed)[0]
    for units in range(2, batch + 1):
        assert torch.equal(torch.cat(phalanx.data.iid().draw(data(y), units, batch, index, seed)), whole)


@pytest.mark.parametrize("partition", [phalanx.data.dirichlet(0.3), phalanx.data.shards(2)])
def test_a_unit_passes_through_its_own_part_in_each_of_its_epochs(partition):
    y = torch.arange(97) % 5
    parts = partition.split(y, 4, 1)
    walks = [partition.draw(data(y), 4, 12, i, 1) for i in range(100)]
    for unit, part in enumerate(parts):
        walk, m = torch.cat([w[unit] for w in walks]), len(part)
        first, second = walk[:m], walk[m : 2 * m]
        assert first.sort().values.tolist() == second.sort().values.tolist() == part.sort().values.tolist()
        assert not torch.equal(first, second)


def test_a_part_smaller_than_the_share_is_repeated():
    y = torch.tensor([0, 0, 1, 1])
    drawn = phalanx.data.shards(1).draw(data(y), 2, 10, 0, 0)
    assert [d.bincount(minlength=4).sort().values.tolist() for d in drawn] == [[0, 0, 2, 3]] * 2


def test_seeds_epochs_and_units_shuffle_differently():
    y = torch.arange(400) % 10
    for partition in (phalanx.data.iid(), phalanx.data.shards(2), phalanx.data.dirichlet(1.0)):
        first, other = (torch.cat(partition.draw(data(y), 4, 40, 0, seed)) for seed in (0, 1))
        assert not torch.equal(first, other)
        a, b = (torch.cat(partition.split(y, 4, seed)) for seed in (0, 1))
        assert not torch.equal(a, b)
    whole = phalanx.data.iid().draw(data(y), 1, 400, 0, 0)[0], phalanx.data.iid().draw(data(y), 1, 400, 1, 0)[0]
    assert not torch.equal(*whole)


def test_writing_into_what_was_drawn_changes_nothing():
    y = torch.arange(100) % 10
    for partition in (phalanx.data.iid(), phalanx.data.shards(2)):
        for call in (lambda p: p.draw(data(y), 4, 40, 0, 0), lambda p: p.split(y, 4, 0)):
            want = [d.clone() for d in call(partition)]
            for d in call(partition):
                d.zero_()
            assert all(torch.equal(a, b) for a, b in zip(call(partition), want, strict=True))


def test_changed_labels_give_changed_parts():
    y = torch.arange(100) % 10
    toy = data(y)
    before = phalanx.data.shards(1).draw(toy, 10, 10, 0, 0)
    y.copy_(y.flip(0) // 2)
    after = phalanx.data.shards(1).draw(toy, 10, 10, 0, 0)
    assert all(len(set(y[part].tolist())) <= 2 for part in phalanx.data.shards(1).split(y, 10, 0))
    assert not torch.equal(torch.cat(before), torch.cat(after))


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 8), seeds)
def test_shards_hold_few_labels_and_equal_sizes(per_unit, units, size, seed):
    y = torch.arange(units * per_unit * size) // size  # as many labels as shards
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    for part in phalanx.data.shards(per_unit).split(y, units, seed):
        assert len(part) == per_unit * size and len(y[part].unique()) == per_unit


def test_alpha_sets_how_uneven_the_classes_are():
    y = torch.arange(6000) % 10

    def purity(alpha: float) -> float:
        parts = phalanx.data.dirichlet(alpha).split(y, 8, 0)
        return sum(float(y[p].bincount(minlength=10).max()) / len(p) for p in parts) / 8

    assert purity(0.1) > 0.35 > purity(1.0) > 0.15 > purity(1000.0) > 0.1


def test_dirichlet_proportions_of_the_first_class():
    # nobody is full before the first class, so its shares are Dirichlet
    y = torch.zeros(400, dtype=torch.int64)
    shares = torch.tensor(
        [[len(p) / 400 for p in phalanx.data.dirichlet(2.0).split(y, 4, seed)] for seed in range(400)]
    )
    want = 0.25 * 0.75 / (4 * 2.0 + 1)
    assert (shares.mean(dim=0) - 0.25).abs().max() < 5 * (want / 400) ** 0.5
    assert abs(float(shares.var(dim=0).mean()) / want - 1) < 0.15


@given(st.integers(2, 12), st.floats(0.05, 5.0), seeds)
@draws(30)
def test_a_full_unit_gets_nothing_of_later_classes(units, alpha, seed):
    y = torch.arange(1200) // 120
    try:
        parts = phalanx.data.dirichlet(alpha).split(y, units, seed)
    except ValueError:
        return
    for part in parts:
        held = y[part].bincount(minlength=10)
        before = held.cumsum(0) - held
        assert not held[before >= 1200 / units].any()


def test_dirichlet_keeps_its_least_or_says_so():
    y = torch.arange(1000) % 10
    for seed in range(5):
        assert min(len(p) for p in phalanx.data.dirichlet(0.5, least=40).split(y, 10, seed)) >= 40
    with pytest.raises(ValueError, match=r"in each of 100 draws; raise alpha, or lower least"):
        phalanx.data.dirichlet(1e-9).split(y, 15, 0)


@given(st.lists(st.integers(-3, 9), min_size=1, max_size=60).map(torch.tensor), st.integers(1, 4), st.booleans(), seeds)
def test_by_owner_gives_each_unit_the_whole_of_one_owner(owners, least, drawn, seed):
    counts = {owner: int((owners == owner).sum()) for owner in owners.tolist()}
    large = [owner for owner, count in counts.items() if count >= least]
    assume(large)
    partition, toy = phalanx.data.by_owner(least, drawn), data(torch.zeros_like(owners), owners)
    parts = partition.parts(toy, len(large), seed)
    names = [owners[part].unique().tolist() for part in parts]
    assert sorted(names) == sorted([owner] for owner in large)
    assert [len(part) for part in parts] == [counts[owner] for (owner,) in names]
    assert drawn or [len(part) for part in parts] == sorted(map(len, parts), reverse=True)
    fewer = partition.parts(toy, 1, seed)
    assert torch.equal(fewer[0], parts[0])


def test_the_seed_draws_the_owners():
    owners = torch.arange(100) // 10
    first = [
        tuple(owners[p[0]].item() for p in phalanx.data.by_owner(drawn=True).split(owners, 5, s)) for s in range(4)
    ]
    assert len(set(first)) > 1
    assert all(owners[p[0]] == u for u, p in enumerate(phalanx.data.by_owner().split(owners, 10, 3)))


def test_more_units_of_a_nested_partition_add_parts():
    y = torch.arange(5000) % 10
    partition = phalanx.data.nested(phalanx.data.dirichlet(0.5, least=10))
    whole = partition.split(y, 25, 7)
    assert sorted(torch.cat(whole).tolist()) == list(range(5000))
    for units in (1, 5, 7, 10, 15, 20):
        some = partition.split(y, units, 7)
        assert len(some) == units and all(torch.equal(a, b) for a, b in zip(some, whole, strict=False))
    pieces = [torch.cat(whole[i : i + 5]) for i in range(0, 25, 5)]
    for piece in pieces:
        # a piece looks like the whole, a part of it does not
        assert len(piece) == 1000 and (y[piece].bincount() - 100).abs().max() < 40
    uneven = [float(y[part].bincount(minlength=10).max()) / len(part) for part in whole]
    assert sum(uneven) / 25 > 0.25
    shares = [[len(part) for part in whole[i : i + 5]] for i in range(0, 25, 5)]
    assert len({tuple(s) for s in shares}) == 5


@pytest.mark.parametrize("y", [torch.zeros(50, dtype=torch.int64), torch.tensor([3] * 25 + [9] * 25)])
def test_classes_that_do_not_occur(y):
    for partition in (phalanx.data.iid(), phalanx.data.dirichlet(0.5), phalanx.data.shards(2)):
        assert sorted(torch.cat(partition.split(y, 5, 0)).tolist()) == list(range(50))


@each(
    ("call", "words"),
    [
        (lambda y: phalanx.data.iid().draw(data(y), 4, 3, 0, 0), "batch of 3 leaves some of 4 units without"),
        (lambda y: phalanx.data.shards().draw(data(y), 2, 0, 0, 0), "batch of 0"),
        (lambda y: phalanx.data.iid().draw(data(y), 0, 3, 0, 0), "at least one unit, got 0"),
        (lambda y: phalanx.data.iid().draw(data(y), 1, 11, 0, 0), "batch of 11 is more than the 10 samples"),
        (lambda y: phalanx.data.iid().draw(data(y[:0]), 1, 1, 0, 0), "more than the 0 samples"),
        (lambda y: phalanx.data.iid().split(y, 11, 0), r"iid\(\) needs 11 samples for 11 units"),
        (lambda y: phalanx.data.iid().split(y, 0, 0), "at least one unit"),
        (lambda y: phalanx.data.shards(3).split(y, 4, 0), "needs 12 samples for 4 units, 3 each, and there are 10"),
        (lambda y: phalanx.data.dirichlet(1.0, least=6).split(y, 2, 0), "needs 12 samples"),
        (lambda y: phalanx.data.dirichlet(1.0).draw(data(y[:0]), 1, 1, 0, 0), "there are 0"),
        (lambda y: phalanx.data.by_owner().draw(data(y), 1, 1, 0, 0), "toy does not say who owns which; choose iid"),
        (lambda y: phalanx.data.nested(phalanx.data.by_owner()).parts(data(y), 1, 0), "toy does not say"),
        (lambda y: phalanx.data.by_owner().split(y, 4, 0), "has 3 owners with 1 samples or more, and 4 units"),
        (lambda y: phalanx.data.by_owner(least=4).split(y, 2, 0), "has 1 owners with 4 samples or more, and 2 units"),
        (lambda y: phalanx.data.by_owner().split(y, 0, 0), "at least one unit, got 0"),
        (
            lambda y: phalanx.data.nested(phalanx.data.iid(), 2, 2).split(y, 5, 0),
            "makes 2 x 2 = 4 parts, and there are 5 units",
        ),
        (lambda y: phalanx.data.nested(phalanx.data.iid(), 2, 2).split(y, 0, 0), "at least one unit, got 0"),
        (lambda y: phalanx.data.nested(phalanx.data.iid(), 2, 6).split(y, 1, 0), r"iid\(\) needs 6 samples"),
    ],
)
def test_impossible_requests(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.arange(10) % 3)


@each(
    "expression",
    [
        "dirichlet(0)",
        "dirichlet(nan)",
        "dirichlet(inf)",
        "dirichlet(1, least=0)",
        "shards(0)",
        "by_owner(least=0)",
        "nested(iid(), pieces=0)",
        "nested(iid(), each=0)",
    ],
)
def test_fields_out_of_range(expression):
    with pytest.raises(ValueError, match=expression.partition("(")[0]):
        phalanx.parse(expression)


def test_index_far_into_a_run():
    y = torch.zeros(7, dtype=torch.int64)
    assert len(phalanx.data.iid().draw(data(y), 2, 5, 10**9, 0)[0]) == 3
