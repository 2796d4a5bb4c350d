# SPDX-License-Identifier: Apache-2.0
"""The number of threads changes no bit of what codecs send and rules compute."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import phalanx as px
from phalanx.core.layout import Layout
from phalanx.core.round import make_generator
from phalanx.core.stack import Stack
from tests.examples import examples

# large enough for several threads in every kernel
LAYOUT = Layout(("a", "b", "c"), (torch.Size((400, 300)), torch.Size((49_000,)), torch.Size((1_000,))))
ROW = torch.randn(LAYOUT.d, generator=torch.Generator().manual_seed(0))


def same(a, b):
    return a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("codec", examples("codec"), ids=repr)
def test_a_payload_is_the_same_with_any_number_of_threads(codec):
    seen = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        payload, _ = codec.encode(ROW.clone(), LAYOUT, {}, partial(make_generator, "threads", 1))
        seen.append([*payload.values(), codec.decode(payload, LAYOUT)])
    for other in seen[1:]:
        assert all(map(same, seen[0], other))


@pytest.mark.parametrize("rule", [r for r in examples("aggregator") if "repetition" not in repr(r)], ids=repr)
def test_a_result_is_the_same_with_any_number_of_threads(rule):
    rows = torch.randn(15, LAYOUT.d, generator=torch.Generator().manual_seed(1))
    seen = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        stack = replace(Stack.of(rows.clone(), LAYOUT), received=True)
        seen.append(rule(stack, None, px.Round(world=px.LocalCollective(15)))[0].rows)
    assert all(same(seen[0], other) for other in seen[1:])
