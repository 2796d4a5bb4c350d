# SPDX-License-Identifier: Apache-2.0
"""Poisoned data, edge cases, and how backdoors are measured and pruned."""

from phalanx.core.namespace import attach

attach(__name__)
