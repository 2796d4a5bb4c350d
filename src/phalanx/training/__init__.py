# SPDX-License-Identifier: Apache-2.0
"""Runs, phases and the training loop."""

from phalanx.core.namespace import attach

__all__ = attach(__name__)  # noqa: PLE0605
