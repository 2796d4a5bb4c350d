# SPDX-License-Identifier: Apache-2.0
"""Data sets, partitions and augmentations."""

from phalanx.core.namespace import attach

attach(__name__)
