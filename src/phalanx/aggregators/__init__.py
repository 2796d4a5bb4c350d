# SPDX-License-Identifier: Apache-2.0
"""Rules at the server, one a file."""

from phalanx.core.namespace import attach

__all__ = attach(__name__)  # noqa: PLE0605
