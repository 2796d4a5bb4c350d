# SPDX-License-Identifier: Apache-2.0
from phalanx import aggregators as aggregators
from phalanx import attacks as attacks
from phalanx import backdoors as backdoors
from phalanx import codecs as codecs
from phalanx import coding as coding
from phalanx import data as data
from phalanx import federated as federated
from phalanx import lowrank as lowrank
from phalanx import matching as matching
from phalanx import models as models
from phalanx import training as training
from phalanx.attacks import adversary as adversary
from phalanx.core.aggregator import Aggregator as Aggregator
from phalanx.core.attack import Attack as Attack
from phalanx.core.codec import Codec as Codec
from phalanx.core.codec import Gather as gather
from phalanx.core.codec import PayloadAttack as PayloadAttack
from phalanx.core.codec import Reduce as reduce
from phalanx.core.expression import Expression as Expression
from phalanx.core.expression import method as method
from phalanx.core.gate import Gate as Gate
from phalanx.core.gate import Gate as gate
from phalanx.core.layout import Layout as Layout
from phalanx.core.parser import parse as parse
from phalanx.core.payload import BadPayload as BadPayload
from phalanx.core.payload import Payload as Payload
from phalanx.core.round import Round as Round
from phalanx.core.scatter import Scatter as scatter
from phalanx.core.serialization import from_bytes as decode
from phalanx.core.serialization import to_bytes as encode
from phalanx.core.stack import Note as Note
from phalanx.core.stack import Stack as Stack
from phalanx.core.stage import RowStage as RowStage
from phalanx.core.stage import Stage as Stage
from phalanx.core.stage import TooFewRows as TooFewRows
from phalanx.core.stage import chain as chain
from phalanx.core.surgery import Surgery as Surgery
from phalanx.core.transforms.clip import Clip as clip
from phalanx.core.transforms.momentum import Momentum as momentum
from phalanx.core.transforms.noise import Noise as noise
from phalanx.core.world import Collective as Collective
from phalanx.core.world import LocalCollective as LocalCollective
from phalanx.distributed.process_group import ProcessGroupCollective as ProcessGroupCollective
from phalanx.integrations import ddp as ddp
from phalanx.integrations import flower as flower
from phalanx.integrations import sdc as sdc
from phalanx.integrations.diloco import DiLoCo as DiLoCo
from phalanx.integrations.gradient_exchange import GradientExchange as exchange
from phalanx.lowrank.factorize import factorize as factorize
from phalanx.matching.match_models import match_models as match_models
from phalanx.tools import testing as testing
from phalanx.tools.advisor.explain import explain as explain
from phalanx.training import optim as optim
from phalanx.training.interrupt import Interrupted as Interrupted
from phalanx.training.phase import Phase as Phase
from phalanx.training.phase import Run as Run
from phalanx.training.trainer import train as train

__version__: str
__all__ = [
    "Aggregator",
    "Attack",
    "BadPayload",
    "Codec",
    "Collective",
    "DiLoCo",
    "Expression",
    "Gate",
    "Interrupted",
    "Layout",
    "LocalCollective",
    "Note",
    "Payload",
    "PayloadAttack",
    "Phase",
    "ProcessGroupCollective",
    "Round",
    "RowStage",
    "Run",
    "Stack",
    "Stage",
    "Surgery",
    "TooFewRows",
    "adversary",
    "aggregators",
    "attacks",
    "backdoors",
    "chain",
    "clip",
    "codecs",
    "coding",
    "data",
    "ddp",
    "decode",
    "encode",
    "exchange",
    "explain",
    "factorize",
    "federated",
    "flower",
    "gate",
    "gather",
    "lowrank",
    "match_models",
    "matching",
    "method",
    "models",
    "momentum",
    "noise",
    "optim",
    "parse",
    "reduce",
    "scatter",
    "sdc",
    "testing",
    "train",
    "training",
]
