# SPDX-License-Identifier: Apache-2.0
"""Runs, phases and the training loop."""

from phalanx.core.namespace import attach

attach(__name__)
