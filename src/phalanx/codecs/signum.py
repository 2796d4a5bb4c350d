# SPDX-License-Identifier: Apache-2.0
"""The scheme signum: workers and server both send one bit an entry."""

from __future__ import annotations

from phalanx.aggregators.majority import Majority
from phalanx.codecs.sign import Sign
from phalanx.core.codec import Gather
from phalanx.core.registry import register
from phalanx.core.stage import Chain, chain
from phalanx.core.transforms.momentum import Momentum


def signum(beta: float = 0.9) -> Chain:
    """Sends the sign that most workers' momenta have: chain(momentum(beta), gather(sign()), majority()).

    Shapes: (k, d) -> (1, d).
    Args:
        beta: share of earlier rounds in the momentum, in [0, 1); 0 is signSGD with majority vote.
    Source: Bernstein et al., signSGD with Majority Vote is Communication Efficient and Fault Tolerant, 2019,
        arXiv:1810.05291, Algorithm 1. Differs: weight decay is the optimizer's.

    >>> signum(beta=0.5)
    chain(momentum(beta=0.5), gather(sign()), majority())
    """
    return chain(Momentum(beta), Gather(Sign()), Majority())


register("signum", "stage", signum)
