# SPDX-License-Identifier: Apache-2.0
"""Attacks on rows and payloads, who misbehaves, and failures that are injected."""

from phalanx.core.namespace import attach

__all__ = attach(__name__)  # noqa: PLE0605
