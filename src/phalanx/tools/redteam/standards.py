# SPDX-License-Identifier: Apache-2.0
"""The verdicts, and which requirements of security standards each is evidence for."""

from __future__ import annotations

from dataclasses import dataclass

BROKEN, UNKNOWN, UNFAIR, COSTLY, SURVIVES = "broken", "not known", "unfair", "costly", "survives"
NOT_ATTACKED = "not attacked"
WORDS = (BROKEN, UNKNOWN, UNFAIR, COSTLY, SURVIVES, NOT_ATTACKED)  # the worst first


@dataclass(frozen=True)
class Requirement:
    """A requirement of a standard.

    Args:
        standard: AISVS (OWASP, version 1.0), ATLAS (MITRE) or AI RMF (NIST, version 1.0).
        key: its number there.
        words: what it is about, in words of our own.
    """

    standard: str
    key: str
    words: str

    def __str__(self) -> str:
        return f"{self.standard} {self.key}"


POISONING = Requirement("AISVS", "C1.4", "poisoned training data are detected, and training withstands them")
ADAPTIVE = Requirement("AISVS", "C11.2", "robustness is measured with attacks, adaptive ones among them")
POISON_DATA = Requirement("ATLAS", "AML.T0020", "technique: an attacker poisons training data")
BACKDOOR = Requirement("ATLAS", "AML.T0018", "technique: an attacker plants a backdoor in the model")
SECURITY = Requirement("AI RMF", "MEASURE 2.7", "security and resilience are evaluated")
VALID = Requirement("AI RMF", "MEASURE 2.5", "the system is shown to be valid and reliable")
FAIR = Requirement("AI RMF", "MEASURE 2.11", "fairness and bias are evaluated")

REQUIREMENTS = (POISONING, ADAPTIVE, POISON_DATA, BACKDOOR, SECURITY, VALID, FAIR)

_OF_ATTACKS = (POISONING, ADAPTIVE, POISON_DATA, BACKDOOR, SECURITY)
_BY_VERDICT = {
    BROKEN: _OF_ATTACKS,
    SURVIVES: _OF_ATTACKS,
    UNKNOWN: _OF_ATTACKS,
    COSTLY: (VALID,),
    UNFAIR: (FAIR,),
    NOT_ATTACKED: (),
}


def requirements(word: str) -> tuple[Requirement, ...]:
    """The requirements that a verdict is evidence for or against.

    Args:
        word: a verdict, one of `verdict.WORDS`.
    """
    return _BY_VERDICT[word]
