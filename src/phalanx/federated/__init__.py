# SPDX-License-Identifier: Apache-2.0
"""Federated learning: local training, client samplers, FedAvg and its kin, FedMA."""

from phalanx.core.namespace import attach

attach(__name__)
