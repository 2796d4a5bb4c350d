# SPDX-License-Identifier: Apache-2.0
from phalanx.coding.cyclic import Cyclic as cyclic
from phalanx.coding.detox import detox as detox
from phalanx.coding.group_vote import GroupVote as group_vote
from phalanx.coding.placement import ByHost as by_host
from phalanx.coding.placement import InOrder as in_order
from phalanx.coding.placement import RandomOrder as random_order
from phalanx.coding.repetition import Repetition as repetition
from phalanx.coding.vote import Vote as vote

__all__ = [
    "by_host",
    "cyclic",
    "detox",
    "group_vote",
    "in_order",
    "random_order",
    "repetition",
    "vote",
]
