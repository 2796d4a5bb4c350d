# SPDX-License-Identifier: Apache-2.0
from phalanx.aggregators.adaptive_clip import AdaptiveClip as adaptive_clip
from phalanx.aggregators.bucketing import Bucketing as bucketing
from phalanx.aggregators.bulyan import Bulyan as bulyan
from phalanx.aggregators.centered_clip import CenteredClip as centered_clip
from phalanx.aggregators.flame import Flame as flame
from phalanx.aggregators.fltrust import Fltrust as fltrust
from phalanx.aggregators.foolsgold import Foolsgold as foolsgold
from phalanx.aggregators.geometric_median import GeometricMedian as geometric_median
from phalanx.aggregators.hierarchy import Hierarchy as hierarchy
from phalanx.aggregators.krum import Krum as krum
from phalanx.aggregators.majority import Majority as majority
from phalanx.aggregators.mean import Mean as mean
from phalanx.aggregators.median import Median as median
from phalanx.aggregators.multi_krum import MultiKrum as multi_krum
from phalanx.aggregators.nnm import Nnm as nnm
from phalanx.aggregators.split_by_part import SplitByPart as split_by_part
from phalanx.aggregators.trimmed_mean import TrimmedMean as trimmed_mean

__all__ = [
    "adaptive_clip",
    "bucketing",
    "bulyan",
    "centered_clip",
    "flame",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "hierarchy",
    "krum",
    "majority",
    "mean",
    "median",
    "multi_krum",
    "nnm",
    "split_by_part",
    "trimmed_mean",
]
