# SPDX-License-Identifier: Apache-2.0
"""Training on many machines when the network is slow or some of the machines cannot be trusted."""

from phalanx.aggregator import Aggregator as Aggregator
from phalanx.aggregators.mean import Mean as mean
from phalanx.attack import Attack as Attack
from phalanx.attack import Drawn as drawn
from phalanx.attack import Fixed as fixed
from phalanx.attack import Nobody as nobody
from phalanx.attack import Spread as spread
from phalanx.attack import Threat as Threat
from phalanx.attacks.reverse import Reverse as reverse
from phalanx.codec import Codec as Codec
from phalanx.codec import Gather as gather
from phalanx.codec import PayloadAttack as PayloadAttack
from phalanx.codec import Reduce as reduce
from phalanx.codecs.dense import Dense as dense
from phalanx.expression import Expression as Expression
from phalanx.expression import method as method
from phalanx.gate import Gate as gate
from phalanx.layout import Layout as Layout
from phalanx.local.clip import Clip as clip
from phalanx.parser import parse as parse
from phalanx.round import Round as Round
from phalanx.stack import Note as Note
from phalanx.stack import Stack as Stack
from phalanx.stage import RowStage as RowStage
from phalanx.stage import Stage as Stage
from phalanx.stage import TooFewRows as TooFewRows
from phalanx.stage import chain as chain
from phalanx.world import BadPayload as BadPayload
from phalanx.world import LocalWorld as LocalWorld
from phalanx.world import Payload as Payload
from phalanx.world import World as World

__version__ = "0.1.0"
