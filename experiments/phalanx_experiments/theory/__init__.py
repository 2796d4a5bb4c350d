# SPDX-License-Identifier: Apache-2.0
"""Theorems about backdoors as code: they measure how near a backdoor is, and say what a defence can promise.

Write `from phalanx_experiments import theory`.
"""

from phalanx_experiments.theory.adversarial import adversarial_examples as adversarial_examples
from phalanx_experiments.theory.backdoor import Backdoor as Backdoor
from phalanx_experiments.theory.backdoor import backdoor_from_adversarial as backdoor_from_adversarial
from phalanx_experiments.theory.hidden import HiddenPair as HiddenPair
from phalanx_experiments.theory.hidden import Share as Share
from phalanx_experiments.theory.hidden import hidden_pair as hidden_pair
from phalanx_experiments.theory.satisfiability import assignment_of as assignment_of
from phalanx_experiments.theory.satisfiability import find_backdoor as find_backdoor
from phalanx_experiments.theory.satisfiability import network_of_3sat as network_of_3sat
from phalanx_experiments.theory.satisfiability import satisfies as satisfies
