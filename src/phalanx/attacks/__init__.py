# SPDX-License-Identifier: Apache-2.0
"""Attacks on rows and payloads, who misbehaves, and failures that are injected."""

from phalanx.core.namespace import attach

attach(__name__)
