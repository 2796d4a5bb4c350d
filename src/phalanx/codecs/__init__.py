# SPDX-License-Identifier: Apache-2.0
"""Codecs, one a file: one row to one payload and back."""

from phalanx.core.namespace import attach

__all__ = attach(__name__)  # noqa: PLE0605
