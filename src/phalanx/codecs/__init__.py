# SPDX-License-Identifier: Apache-2.0
"""Codecs, one in each file; a codec turns a row into a payload and back."""

from phalanx.core.namespace import attach

attach(__name__)
