# SPDX-License-Identifier: Apache-2.0
"""What every registered value promises; a new method is tested here by being registered."""

import pytest

import phalanx as px
from phalanx.core.registry import entries
from tests.cases import each
from tests.examples import examples, texts

METHOD_LAWS = tuple(px.testing.laws("method"))


def test_every_name_has_an_example():
    assert [e.name for e in entries() if not texts(e)] == []


@each("entry", entries)
def test_every_name_has_a_summary(entry):
    assert entry.summary.endswith((".", ":")) and len(entry.summary) <= 120


@pytest.mark.parametrize("entry", entries(), ids=lambda e: e.name)
def test_a_registered_name_makes_values(entry):
    for text in texts(entry):
        px.testing.check_method(px.parse(text), METHOD_LAWS)


def kind_of(method):
    if isinstance(method, px.RowStage):
        return "row_stage"
    kinds = {"aggregator": px.Aggregator, "attack": px.Attack, "payload_attack": px.PayloadAttack}
    return next((kind for kind, cls in kinds.items() if isinstance(method, cls)), "stage")


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (method, law)
        for method in examples()
        if isinstance(method, px.Stage | px.PayloadAttack)
        for law in px.testing.laws(kind_of(method))
        if law not in METHOD_LAWS
    ],
    ids=lambda x: x if isinstance(x, str) else repr(x),
)
def test_law(method, law):
    px.testing.check_method(method, [law])
