# SPDX-License-Identifier: Apache-2.0
"""What can be proved about backdoors, as code: for measuring how near they are, and for defending against them.

Not imported with `import phalanx`; write `from phalanx import theory`.
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
