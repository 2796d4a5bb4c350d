# SPDX-License-Identifier: Apache-2.0
"""Models factorized at full rank, which must compute what the dense ones do."""

import phalanx as px


def full_rank(model):
    """The model with every layer that can be factorized at its largest rank, also where the factors are larger."""
    plan = px.lowrank.plan(model, classifier=False, embedding=True)
    able = [entry for entry in plan if entry.rank or "no smaller" in entry.reason]
    return px.factorize(model, plan.with_ranks({entry.name: entry.largest_rank for entry in able}))


def close(found, wanted, tolerance=1e-5):
    """Whether two tensors differ by less than a part of the second one's norm, or of a tenth where that cancels out."""
    assert found.shape == wanted.shape
    return float((found - wanted).detach().norm()) <= tolerance * (float(wanted.detach().norm()) + 0.1)
