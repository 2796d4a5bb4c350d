# SPDX-License-Identifier: Apache-2.0
from phalanx.attacks.adaptive import Adaptive as adaptive
from phalanx.attacks.alie import Alie as alie
from phalanx.attacks.codeword import Codeword as codeword
from phalanx.attacks.constant import Constant as constant
from phalanx.attacks.fang import Fang as fang
from phalanx.attacks.fang import FangKrum as fang_krum
from phalanx.attacks.faults import Crash as crash
from phalanx.attacks.faults import Delay as delay
from phalanx.attacks.faults import Garble as garble
from phalanx.attacks.faults import Hang as hang
from phalanx.attacks.free_rider import FreeRider as free_rider
from phalanx.attacks.gaussian import Gaussian as gaussian
from phalanx.attacks.ipm import Ipm as ipm
from phalanx.attacks.malformed import Malformed as malformed
from phalanx.attacks.mimic import Mimic as mimic
from phalanx.attacks.min_max import MinMax as min_max
from phalanx.attacks.min_sum import MinSum as min_sum
from phalanx.attacks.nan import Nan as nan
from phalanx.attacks.only_on import OnlyOn as only_on
from phalanx.attacks.replacement import Replacement as replacement
from phalanx.attacks.reverse import Reverse as reverse

__all__ = [
    "adaptive",
    "alie",
    "codeword",
    "constant",
    "crash",
    "delay",
    "fang",
    "fang_krum",
    "free_rider",
    "garble",
    "gaussian",
    "hang",
    "ipm",
    "malformed",
    "mimic",
    "min_max",
    "min_sum",
    "nan",
    "only_on",
    "replacement",
    "reverse",
]
