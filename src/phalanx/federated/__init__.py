# SPDX-License-Identifier: Apache-2.0
"""Federated learning: local training, client samplers, FedAvg and its kin, FedMA."""

from phalanx.core.namespace import attach

__all__ = attach(__name__)  # noqa: PLE0605
