# SPDX-License-Identifier: Apache-2.0
"""Aggregation rules of the server, one in each file."""

from phalanx.core.namespace import attach

attach(__name__)
