# SPDX-License-Identifier: Apache-2.0
"""Low-rank networks and pruned ones."""

from phalanx.core.namespace import attach

attach(__name__)
