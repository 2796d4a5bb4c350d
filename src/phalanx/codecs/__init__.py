# SPDX-License-Identifier: Apache-2.0
"""Codecs, one a file: one row to one payload and back."""

from phalanx.core.namespace import attach

attach(__name__)
