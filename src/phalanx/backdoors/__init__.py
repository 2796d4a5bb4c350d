# SPDX-License-Identifier: Apache-2.0
"""Poisoned data, edge cases, and how backdoors are measured and pruned."""

from phalanx.core.namespace import attach

__all__ = attach(__name__)  # noqa: PLE0605
