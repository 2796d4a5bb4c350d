# SPDX-License-Identifier: Apache-2.0
"""Runs on Flower: a strategy for its ServerApp and a ClientApp for its nodes."""

try:
    import flwr
except ImportError:
    raise ImportError("phalanx.flower needs Flower; pip install 'phalanx-train[flower]'") from None

from phalanx.flower.client import client_app as client_app
from phalanx.flower.strategy import FlowerStrategy as FlowerStrategy
from phalanx.flower.strategy import Outcome as Outcome
from phalanx.flower.strategy import server_app as server_app
from phalanx.flower.strategy import strategy as strategy
from phalanx.flower.world import FlowerWorld as FlowerWorld
from phalanx.worlds.seats import Patience as Patience
