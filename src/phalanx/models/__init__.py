# SPDX-License-Identifier: Apache-2.0
"""Networks for benchmarks."""

from phalanx.core.namespace import attach

attach(__name__)
