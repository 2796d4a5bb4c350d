# SPDX-License-Identifier: Apache-2.0
from phalanx.matching.bbp import Bbp as bbp
from phalanx.matching.graph import Graph as Graph
from phalanx.matching.identity import Identity as identity
from phalanx.matching.match import match as match
from phalanx.matching.match_models import match_models as match_models
from phalanx.matching.match_stage import Matched as matched
from phalanx.matching.matching import Matcher as Matcher
from phalanx.matching.matching import Matching as Matching
from phalanx.matching.spahm import Spahm as spahm

__all__ = [
    "Graph",
    "Matcher",
    "Matching",
    "bbp",
    "identity",
    "match",
    "match_models",
    "matched",
    "spahm",
]
