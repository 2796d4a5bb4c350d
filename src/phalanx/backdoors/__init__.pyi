# SPDX-License-Identifier: Apache-2.0
from phalanx.backdoors.after_pruning import AfterPruning as after_pruning
from phalanx.backdoors.assign_added import AssignAdded as assign_added
from phalanx.backdoors.attack_success import Backdoor as backdoor
from phalanx.backdoors.dba import Dba as dba
from phalanx.backdoors.edges import EdgeCases as EdgeCases
from phalanx.backdoors.edges import EdgeSet as EdgeSet
from phalanx.backdoors.label_flip import LabelFlip as label_flip
from phalanx.backdoors.neurotoxin import Neurotoxin as neurotoxin
from phalanx.backdoors.own_edges import OwnEdges as own_edges
from phalanx.backdoors.poisoned import Poisoned as poisoned
from phalanx.backdoors.prune import Prune as prune
from phalanx.backdoors.rare_styles import RareStyles as rare_styles
from phalanx.backdoors.split_edge_cases import SplitEdgeCases as split_edge_cases
from phalanx.backdoors.trigger import Trigger as trigger
from phalanx.backdoors.with_edge_cases import WithEdgeCases as with_edge_cases

__all__ = [
    "EdgeCases",
    "EdgeSet",
    "after_pruning",
    "assign_added",
    "backdoor",
    "dba",
    "label_flip",
    "neurotoxin",
    "own_edges",
    "poisoned",
    "prune",
    "rare_styles",
    "split_edge_cases",
    "trigger",
    "with_edge_cases",
]
