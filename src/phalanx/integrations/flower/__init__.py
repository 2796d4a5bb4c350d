# SPDX-License-Identifier: Apache-2.0
"""Runs on Flower: a strategy for its ServerApp and a ClientApp for its nodes."""

try:
    import flwr
except ImportError:
    raise ImportError("phalanx.integrations.flower needs Flower; pip install 'phalanx-train[flower]'") from None

from phalanx.distributed.server.membership import Timeouts as Timeouts
from phalanx.integrations.flower.client import client_app as client_app
from phalanx.integrations.flower.coded_arrays import compress as compress
from phalanx.integrations.flower.robust import RobustStrategy as RobustStrategy
from phalanx.integrations.flower.robust import robust as robust
from phalanx.integrations.flower.strategy import FlowerStrategy as FlowerStrategy
from phalanx.integrations.flower.strategy import Outcome as Outcome
from phalanx.integrations.flower.strategy import server_app as server_app
from phalanx.integrations.flower.strategy import strategy as strategy
from phalanx.integrations.flower.transport import FlowerTransport as FlowerTransport
