# SPDX-License-Identifier: Apache-2.0
"""The laws that every method keeps, as functions to run on a method of one's own.

>>> import phalanx as px
>>> px.testing.check_codec(px.codecs.half(), only=["wire", "bytes"])
"""

from phalanx.tools.testing.check import check_aggregator as check_aggregator
from phalanx.tools.testing.check import check_attack as check_attack
from phalanx.tools.testing.check import check_codec as check_codec
from phalanx.tools.testing.check import check_method as check_method
from phalanx.tools.testing.check import check_stage as check_stage
from phalanx.tools.testing.check import laws as laws
from phalanx.tools.testing.compare import LawBroken as LawBroken
from phalanx.tools.testing.compare import same_bits as same_bits
from phalanx.tools.testing.rows import honest_stack as honest_stack
from phalanx.tools.testing.rows import hostile_stacks as hostile_stacks
from phalanx.tools.testing.rows import open_messages as open_messages
