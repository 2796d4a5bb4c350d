# SPDX-License-Identifier: Apache-2.0
"""Rules at the server, one a file."""

from phalanx.core.namespace import attach

attach(__name__)
