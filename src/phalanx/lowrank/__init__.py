# SPDX-License-Identifier: Apache-2.0
"""Low-rank networks and pruned ones."""

from phalanx.core.namespace import attach

__all__ = attach(__name__)  # noqa: PLE0605
