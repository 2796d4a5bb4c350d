# SPDX-License-Identifier: Apache-2.0
"""What the result of a scheme is to the mean of the rows, and the schemes that are worth a try."""

from __future__ import annotations

from phalanx.aggregators.mean import Mean
from phalanx.codecs.error_feedback import ErrorFeedback
from phalanx.coding.code import Code
from phalanx.coding.cyclic import Cyclic
from phalanx.coding.group_vote import GroupVote
from phalanx.coding.vote import Vote
from phalanx.core.codec import Codec, Gather, Reduce
from phalanx.core.scatter import Scatter
from phalanx.core.stage import Chain, Stage
from phalanx.core.transforms.momentum import Momentum
from phalanx.lowrank.power_sgd import PowerSgd

PLAIN = "chain(reduce(dense()))"  # what every other scheme is compared with

DEFAULTS: tuple[str, ...] = (
    PLAIN,
    "chain(reduce(half(precision='bf16')))",
    "chain(gather(qsgd(bits=2, coding='elias')), mean())",
    "chain(gather(qsgd(bits=4)), mean())",
    "chain(gather(qsgd(bits=8)), mean())",
    "chain(gather(terngrad()), mean())",
    "chain(scatter(qsgd(bits=4)), mean())",
    "chain(scatter(terngrad()), mean())",
    "signum()",
    *(f"chain(gather(atomo(spectral(), budget={budget})), mean())" for budget in (1, 2, 3, 4)),
    "chain(gather(atomo(spectral(), budget=4, vectors=qsgd(bits=4))), mean())",
    "chain(gather(error_feedback(top_k(ratio=0.01))), mean())",
    "chain(power_sgd(rank=2))",
)


def quality(scheme: Stage) -> str:
    """How the result estimates the mean of the workers' rows, or of their momenta.

    "unbiased": right on average. "error feedback": biased, and what is lost is sent later. "biased": anything else, by
    its code (rounding, clipping, signs) or by its rule (a median is no mean).
    """
    stages = scheme.stages if isinstance(scheme, Chain) else (scheme,)
    kinds = {_of(stage) for stage in stages}
    return next(word for word in ("biased", "error feedback", "unbiased") if word in {*kinds, "unbiased"})


def _of(stage: Stage) -> str:
    if isinstance(stage, PowerSgd):
        return "error feedback"
    if isinstance(stage, Scatter):
        kinds = [_of_codec(codec) for codec in (stage.codec, stage.result_codec) if codec is not None]
        return next(word for word in ("biased", "error feedback", "unbiased") if word in kinds)
    if isinstance(stage, Gather | Reduce | Vote):
        return _of_codec(stage.codec)
    return "unbiased" if isinstance(stage, Mean | GroupVote | Code | Cyclic | Momentum) else "biased"


def _of_codec(codec: Codec) -> str:
    if isinstance(codec, ErrorFeedback):
        return "error feedback"
    return "unbiased" if codec.unbiased else "biased"
