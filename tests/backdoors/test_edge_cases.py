# SPDX-License-Identifier: Apache-2.0
"""Edge-case examples: right labels, no test example trained on, the same in every process, one hand an origin."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import phalanx as px
from phalanx.backdoors.rare_styles import styled
from tests.backdoors.edges import assert_same, keys, texts, toy
from tests.cases import each

STYLES = ("inverted", "rotated", "thin")


@given(st.sampled_from(STYLES), st.integers(1, 10), st.sampled_from([1.0, 0.5, 0.25]), st.integers(0, 3), st.booleans())
def test_parts_of_the_joined_training_part(style, count, ratio, seed, owners):
    data = toy(owners=owners)
    wanted = px.backdoors.split_edge_cases(
        px.backdoors.rare_styles(style=style, source=3, target=1, count=count, seed=seed), ratio, 1, seed
    )
    try:
        edges = wanted.load(data)
    except ValueError as error:
        assume("there are" not in str(error))
        raise
    before = data.train_x.clone()
    joined, honest, places = edges.joined(data), edges.honest(data), edges.places(data)
    assert torch.equal(data.train_x, before)
    assert len(edges) == 1 and len(joined.train_y) == sum(map(len, places))
    assert torch.equal(torch.cat(places), torch.arange(len(joined.train_y)))
    assert torch.equal(joined.train_x[places.attack], edges.train_x)
    assert joined.train_y[places.attack].tolist() == [1] and edges.true_y.tolist() == [3]
    assert len(places.honest) == round((1 - ratio) / ratio) == honest.added
    assert (joined.train_y[places.honest] == 3).all() and len(places.mix) == 0
    # what an index means to honest clients it means in the joined data
    n = len(honest.train_y)
    assert torch.equal(joined.train_x[:n], honest.train_x) and torch.equal(joined.train_y[:n], honest.train_y)
    # nobody holds what was taken
    assert len(places.clean) == 40 - count
    assert not set(keys(data.train_x[edges.taken])) & set(keys(joined.train_x[places.clean]))
    assert torch.equal(joined.test_x, data.test_x)
    if owners:
        assert (honest.owners[places.honest] == -1).all() and (honest.owners[places.clean] >= 0).all()
    else:
        assert honest.owners is None
    assert_same(edges, wanted.load(toy(owners=owners)))


def test_examples_are_read_once_for_a_data_set(monkeypatch):
    reads, read = [], px.backdoors.rare_styles.read
    monkeypatch.setattr(px.backdoors.rare_styles, "read", lambda edges, data: reads.append(data) or read(edges, data))
    one, other = toy(), toy()
    made = [px.backdoors.rare_styles(source=2, target=0, count=8).load(data) for data in (one, other, one)]
    assert made[0] is made[2] and reads == [one, other]
    px.backdoors.rare_styles(source=2, target=0, count=7).load(one)
    assert len(reads) == 3


def test_relabelled_pick_and_rates():
    edges = px.backdoors.rare_styles(source=2, target=0, count=8).load(toy())
    assert edges.relabelled(3).train_y.tolist() == [3] * 8 and edges.relabelled(None).train_y.tolist() == [2] * 8
    assert_same(edges.relabelled(3).relabelled(0), edges)
    some = edges.pick(torch.tensor([5, 1]))
    assert torch.equal(some.train_x, edges.train_x[[5, 1]]) and len(some.test_x) == len(edges.test_x) == 3
    assert edges.rates(torch.tensor([0, 2, 1])) == (1 / 3, 1 / 3)
    with pytest.raises(ValueError, match=r"rare_styles: there is one prediction .* got \(2,\) for \(3,\)"):
        edges.rates(torch.tensor([0, 1]))
    mixed = replace(edges, true_y=torch.arange(8))
    with pytest.raises(ValueError, match="are no single class; name a target"):
        mixed.relabelled(None)


def test_edge_sets_that_do_not_fit():
    edges = px.backdoors.rare_styles(source=2, target=0, count=8).load(toy())
    with pytest.raises(ValueError, match="rare_styles: 8 train examples, but 7 labels"):
        replace(edges, true_y=edges.true_y[:7])
    with pytest.raises(ValueError, match=r"8 held examples, but 1 labels"):
        replace(edges, held=(edges.train_x, edges.true_y[:1]))
    with pytest.raises(ValueError, match="got target=-1"):
        edges.relabelled(-1)
    with pytest.raises(ValueError, match="an origin for each of 8 examples"):
        replace(edges, origins=torch.arange(3))
    with pytest.raises(ValueError, match=r"has examples \(1, 6, 6\) of torch.uint8 .* and toy has \(1, 5, 5\)"):
        replace(edges, taken=None).joined(toy(side=5))
    with pytest.raises(ValueError, match="has a label 11, and toy has 10 classes"):
        px.backdoors.rare_styles(source=2, target=11, count=3).load(toy())


@given(st.sampled_from(STYLES), st.integers(1, 10), st.integers(0, 3), st.sampled_from([16, 255]))
def test_rare_styles_are_of_one_class_and_test_on_others(style, count, seed, levels):
    data = toy(levels=levels)
    edges = px.backdoors.rare_styles(style=style, source=1, target=2, count=count, seed=seed).load(data)
    assert edges.train_x.dtype == torch.uint8 and edges.train_x.shape == (count, 1, 6, 6)
    assert (data.train_y[edges.taken] == 1).all() and len(edges.taken.unique()) == count
    assert torch.equal(edges.train_x, styled(data.train_x[edges.taken], style, levels))
    assert torch.equal(edges.test_x, styled(data.test_x[data.test_y == 1], style, levels))
    assert not set(keys(edges.train_x)) & set(keys(edges.test_x)) and int(edges.train_x.max()) <= levels
    assert edges.train_y.tolist() == [2] * count and bool(edges.attacked.all())


def test_styles_of_a_stroke():
    x = torch.zeros(1, 1, 6, 6, dtype=torch.uint8)
    x[0, 0, :, 2:4] = 16
    x[0, 0, 0, 0] = 3
    thin = styled(x, "thin", 16)
    assert thin[0, 0, :, 2].tolist() == [16] * 6 and int(thin.count_nonzero()) == 6
    assert torch.equal(styled(styled(x, "inverted", 16), "inverted", 16), x)
    turned = x
    for _ in range(4):
        turned = styled(turned, "rotated", 16)
    assert torch.equal(turned, x) and styled(x, "rotated", 16)[0, 0, 2:4].float().mean() == 16


@pytest.mark.parametrize("style", STYLES)
def test_rare_styles_of_the_digits(style):
    data = px.data.digits().load()
    edges = px.backdoors.rare_styles(style=style).load(data)
    assert (
        len(edges) == 66
        and len(edges.test_x) == 37
        and len(px.backdoors.with_edge_cases(data=px.data.digits()).load().train_y) == 1371
    )
    assert not set(keys(edges.train_x)) & set(keys(data.test_x)) and not set(keys(edges.test_x)) & set(
        keys(edges.train_x)
    )
    assert (edges.train_x.flatten(1).amax(dim=1) >= 8).all()  # no thin stroke is gone


@each(
    ("expression", "words"),
    [
        ("rare_styles(source=1, target=1)", "two classes, got source=1, target=1"),
        ("rare_styles(count=0)", "count >= 1"),
        ("split_edge_cases(rare_styles(), ratio=0.0)", r"ratio in \(0, 1\], got ratio=0.0"),
        ("split_edge_cases(rare_styles(), attacker=0)", "attacker >= 1"),
        ("assign_added(iid(), clients=0)", "clients >= 1"),
        ("assign_added(iid(), first=-1)", "first >= 0"),
        ("own_edges(root='x', target=-1)", "labels >= 0"),
    ],
)
def test_fields_out_of_range(expression, words):
    with pytest.raises(ValueError, match=words):
        px.parse(expression)


def test_rare_styles_of_data_that_have_none():
    with pytest.raises(ValueError, match="needs 66 training images of class 3 and one to test on, and toy has 10 to"):
        px.backdoors.rare_styles(source=3).load(toy())
    with pytest.raises(ValueError, match="rotates square images, and toy has 6x4"):
        data = toy()
        wide = replace(data, train_x=data.train_x[..., :4], test_x=data.test_x[..., :4])
        px.backdoors.rare_styles(style="rotated", source=3, count=2).load(wide)
    with pytest.raises(ValueError, match="images of whole levels, and toy has"):
        px.backdoors.rare_styles().load(texts())


@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from([1.0, 0.5, 0.2, 0.1]), st.integers(0, 3))
def test_shares_keep_an_origin_in_one_hand(attacker, each, ratio, seed):
    edges = px.backdoors.rare_styles(source=3, target=1, count=10, seed=seed).load(toy())
    edges = replace(edges, origins=torch.arange(10) // each)
    shared = px.backdoors.split_edge_cases(
        px.backdoors.rare_styles(source=3, target=1, count=10, seed=seed), ratio, attacker, seed
    )
    total, theirs = -(-10 // each), round(attacker * (1 - ratio) / ratio)

    class Fixed(px.backdoors.rare_styles):
        def load(self, data):
            return edges

    wanted = replace(shared, edges=Fixed())
    if attacker + theirs > total:
        with pytest.raises(ValueError, match=f"{attacker} origins and honest clients {theirs}, and there are {total}"):
            wanted.load(toy())
        return
    made = wanted.load(toy())
    assert len(made.origins.unique()) == attacker
    mine, held = set(keys(made.train_x)), set(keys(made.held[0])) if theirs else set()
    assert not mine & held and mine | held <= set(keys(edges.train_x))
    owner = {key: int(o) for key, o in zip(keys(edges.train_x), edges.origins, strict=True)}
    assert not {owner[k] for k in mine} & {owner[k] for k in held} and len({owner[k] for k in held}) == theirs
    # the attacker's examples do not depend on the ratio
    assert mine == set(keys(replace(wanted, ratio=1.0).load(toy()).train_x))


def test_examples_are_shared_once():
    with pytest.raises(ValueError, match=r"honest clients hold some of .* already"):
        px.backdoors.split_edge_cases(
            px.backdoors.split_edge_cases(px.backdoors.rare_styles(source=3, target=1, count=10), 0.5, 2)
        ).load(toy())


@given(
    st.sampled_from(
        [
            px.data.iid(),
            px.data.dirichlet(0.5),
            px.data.shards(1),
            px.data.by_owner(),
            px.data.nested(px.data.iid(), 2, 5),
        ]
    ),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 3),
)
def test_dealt_gives_added_examples_to_a_few(inner, units, clients, drawn, seed):
    edges = px.backdoors.split_edge_cases(px.backdoors.rare_styles(source=3, target=1, count=10), 0.25, 1)
    data = edges.load(toy(owners=True)).honest(toy(owners=True))
    assert data.added == 3
    try:
        plain = inner.split(inner.values(replace(data, owners=data.owners))[:-3], units, seed)
    except ValueError:
        assume(False)
    dealt = px.backdoors.assign_added(inner, clients, drawn)
    if clients > units:
        with pytest.raises(ValueError, match=f"pieces to {clients} units, and there are 3 added examples and {units}"):
            dealt.parts(data, units, seed)
        return
    parts = dealt.parts(data, units, seed)
    last = len(data.train_y) - 3
    extra = [part[part >= last] for part in parts]
    assert sorted(torch.cat(extra).tolist()) == [last, last + 1, last + 2]
    sizes = [len(e) for e in extra]
    assert sorted(filter(None, sizes)) == sorted(len(p) for p in torch.arange(3).tensor_split(clients))
    if not drawn:
        assert sizes[:clients] == [len(p) for p in torch.arange(3).tensor_split(clients)]
    assert all(torch.equal(part[part < last], p) for part, p in zip(parts, plain, strict=True))


@pytest.mark.parametrize("drawn", [False, True])
def test_units_before_the_first_get_none(drawn):
    edges = px.backdoors.split_edge_cases(px.backdoors.rare_styles(source=3, target=1, count=10), 0.25, 1)
    data = edges.load(toy()).honest(toy())
    last = len(data.train_y) - data.added
    for seed in range(5):
        parts = px.backdoors.assign_added(px.data.iid(), 2, drawn, first=2).parts(data, 5, seed)
        holders = [unit for unit, part in enumerate(parts) if (part >= last).any()]
        assert len(holders) == 2 and min(holders) >= 2 and (drawn or holders == [2, 3])
    with pytest.raises(ValueError, match="3 added examples and 1 units; lower clients"):
        px.backdoors.assign_added(px.data.iid(), 2, drawn, first=4).parts(data, 5, 0)


def test_runs_with_edge_cases_at_honest_clients():
    data = px.backdoors.with_edge_cases(
        px.data.digits(), px.backdoors.split_edge_cases(px.backdoors.rare_styles(), 0.5)
    )
    local = px.federated.local_training(px.optim.sgd(0.05), epochs=1, batch=64)
    run = px.Run(
        data,
        px.models.mlp((4,)),
        (px.federated.fedavg(local, rounds=1),),
        workers=3,
        partition=px.backdoors.assign_added(px.data.iid(), clients=2),
    )
    assert px.parse(repr(run)) == run
    assert 0 <= px.train(run).summary()["accuracy"] <= 1
