# SPDX-License-Identifier: Apache-2.0
"""Redundancy: repetition and cyclic codes, votes, DETOX."""

from phalanx.core.namespace import attach

__all__ = attach(__name__)  # noqa: PLE0605
