# SPDX-License-Identifier: Apache-2.0
from phalanx.aggregators.adaptive_clip import AdaptiveClip as adaptive_clip
from phalanx.aggregators.arc import Arc as arc
from phalanx.aggregators.bucketing import Bucketing as bucketing
from phalanx.aggregators.bulyan import Bulyan as bulyan
from phalanx.aggregators.caf import Caf as caf
from phalanx.aggregators.centered_clip import CenteredClip as centered_clip
from phalanx.aggregators.dnc import Dnc as dnc
from phalanx.aggregators.flame import Flame as flame
from phalanx.aggregators.fltrust import Fltrust as fltrust
from phalanx.aggregators.foolsgold import Foolsgold as foolsgold
from phalanx.aggregators.geometric_median import GeometricMedian as geometric_median
from phalanx.aggregators.hierarchy import Hierarchy as hierarchy
from phalanx.aggregators.krum import Krum as krum
from phalanx.aggregators.majority import Majority as majority
from phalanx.aggregators.mda import Mda as mda
from phalanx.aggregators.meamed import Meamed as meamed
from phalanx.aggregators.mean import Mean as mean
from phalanx.aggregators.median import Median as median
from phalanx.aggregators.multi_krum import MultiKrum as multi_krum
from phalanx.aggregators.nnm import Nnm as nnm
from phalanx.aggregators.robust_lr import RobustLr as robust_lr
from phalanx.aggregators.signguard import Signguard as signguard
from phalanx.aggregators.smea import Smea as smea
from phalanx.aggregators.split_by_part import SplitByPart as split_by_part
from phalanx.aggregators.trimmed_mean import TrimmedMean as trimmed_mean

__all__ = [
    "adaptive_clip",
    "arc",
    "bucketing",
    "bulyan",
    "caf",
    "centered_clip",
    "dnc",
    "flame",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "hierarchy",
    "krum",
    "majority",
    "mda",
    "meamed",
    "mean",
    "median",
    "multi_krum",
    "nnm",
    "robust_lr",
    "signguard",
    "smea",
    "split_by_part",
    "trimmed_mean",
]
