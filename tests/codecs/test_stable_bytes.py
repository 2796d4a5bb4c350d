# SPDX-License-Identifier: Apache-2.0
"""What codecs write for a given row and seed stays the same from version to version: workers of two may meet."""

import hashlib

import pytest
import torch

import phalanx as px

DIGESTS = {
    "dense()": "57ac55bac635b3a1",
    "half()": "b99ed1cdf54a8fcf",
    "half('bf16')": "41f829baa7966a8e",
    "qsgd(bits=4)": "31dea0d23cd47943",
    "qsgd(bits=7, bucket=100000)": "be920c33832ed422",
    "terngrad()": "410d85eb216b219e",
    "terngrad(clip=inf)": "02bcf1a8df5cdb91",
    "sign()": "974895dfadee041d",
    "sign(scaled=True)": "6bd291b24b119e93",
    "stochastic_binary()": "4facd6dbaab2d433",
    "lq(q=1)": "f1cf34946836b32c",
    "lq(q=inf, coding='packed')": "6eec2880cc674dde",
    "random_k(ratio=0.01)": "fe8b61acf52d96e3",
    "top_k(ratio=0.01)": "825705f7d21e5b1f",
}


def row() -> torch.Tensor:
    """A row of whole numbers over 64, so that sums of it are exact in any order, longer than one piece."""
    return ((torch.arange(300_000) * 7919 % 2047) - 1023).float() / 64


@pytest.mark.parametrize("text", DIGESTS)
def test_bytes_of_a_row(text):
    payload = px.encode(px.parse(text), row(), seed=7)
    assert hashlib.sha256(payload).hexdigest()[:16] == DIGESTS[text]
