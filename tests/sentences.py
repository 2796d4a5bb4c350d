# SPDX-License-Identifier: Apache-2.0
"""What the tables of wrong inputs and their sentences have in common."""

import re

RUN = (
    "run(digits(), mlp(hidden=()), phases=(phase(gradient(batch=30), chain(gather(dense()), mean()), sgd(0.1), "
    "rounds=3),), workers=3)"
)


def fits(said: str, wanted: str) -> bool:
    """Whether a sentence is the wanted one; $ stands for a path or for what other packages say."""
    return re.fullmatch(".+".join(map(re.escape, wanted.split("$"))), said, re.DOTALL) is not None


def with_scheme(scheme: str) -> str:
    """RUN with another scheme."""
    return RUN.replace("chain(gather(dense()), mean())", scheme)
