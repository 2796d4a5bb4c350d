# SPDX-License-Identifier: Apache-2.0
"""What every registered codec promises; a new one is tested here by being registered."""

import pytest

import phalanx as px
from tests.examples import examples

LAWS = [law for law in px.testing.laws("codec") if law not in px.testing.laws("method")]


@pytest.mark.parametrize("codec", examples("codec"), ids=repr)
@pytest.mark.parametrize("law", LAWS)
def test_law(codec, law):
    px.testing.check_codec(codec, [law])
