# SPDX-License-Identifier: Apache-2.0
"""Matching the neurons of networks that were trained apart."""

from phalanx.core.namespace import attach

attach(__name__)
