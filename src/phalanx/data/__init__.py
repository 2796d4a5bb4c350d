# SPDX-License-Identifier: Apache-2.0
"""Data sets, partitions and augmentations."""

from phalanx.core.namespace import attach

__all__ = attach(__name__)  # noqa: PLE0605
