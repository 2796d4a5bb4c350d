# SPDX-License-Identifier: Apache-2.0
from phalanx.lowrank.adapt import adapt as adapt
from phalanx.lowrank.decay import frobenius_decay as frobenius_decay
from phalanx.lowrank.factorize import factorize as factorize
from phalanx.lowrank.macs import Macs as Macs
from phalanx.lowrank.macs import macs as macs
from phalanx.lowrank.merge import merge as merge
from phalanx.lowrank.optimizer_state import transfer_average as transfer_average
from phalanx.lowrank.optimizer_state import transfer_optimizer as transfer_optimizer
from phalanx.lowrank.plan import Plan as Plan
from phalanx.lowrank.planner import plan as plan
from phalanx.lowrank.power_sgd import PowerSgd as power_sgd
from phalanx.lowrank.pretrained import from_pretrained as from_pretrained
from phalanx.lowrank.pretrained import save_pretrained as save_pretrained
from phalanx.lowrank.pruning.early_bird import EarlyBird as early_bird
from phalanx.lowrank.pruning.lottery import Lottery as lottery
from phalanx.lowrank.pufferfish import Pufferfish as pufferfish
from phalanx.lowrank.stable_rank import ranks_converged as ranks_converged
from phalanx.lowrank.stable_rank import stable_ranks as stable_ranks

__all__ = [
    "Macs",
    "Plan",
    "adapt",
    "early_bird",
    "factorize",
    "frobenius_decay",
    "from_pretrained",
    "lottery",
    "macs",
    "merge",
    "plan",
    "power_sgd",
    "pufferfish",
    "ranks_converged",
    "save_pretrained",
    "stable_ranks",
    "transfer_average",
    "transfer_optimizer",
]
