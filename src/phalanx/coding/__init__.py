# SPDX-License-Identifier: Apache-2.0
"""Redundancy: repetition and cyclic codes, votes, DETOX."""

from phalanx.core.namespace import attach

attach(__name__)
