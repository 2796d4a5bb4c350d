# SPDX-License-Identifier: Apache-2.0
from phalanx.attacks.adaptive import Adaptive as adaptive
from phalanx.attacks.alie import Alie as alie
from phalanx.attacks.codeword import Codeword as codeword
from phalanx.attacks.constant import Constant as constant
from phalanx.attacks.faults import Crash as crash
from phalanx.attacks.faults import Delay as delay
from phalanx.attacks.faults import Garble as garble
from phalanx.attacks.faults import Hang as hang
from phalanx.attacks.gaussian import Gaussian as gaussian
from phalanx.attacks.ipm import Ipm as ipm
from phalanx.attacks.malformed import Malformed as malformed
from phalanx.attacks.mimic import Mimic as mimic
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
    "garble",
    "gaussian",
    "hang",
    "ipm",
    "malformed",
    "mimic",
    "nan",
    "only_on",
    "replacement",
    "reverse",
]
