# SPDX-License-Identifier: Apache-2.0
"""Training on many machines when the network is slow or some of the machines cannot be trusted."""

from phalanx.core.namespace import attach

__version__ = "0.2.0.dev0"
attach(__name__, needs={"flower": "flwr"})
