# SPDX-License-Identifier: Apache-2.0
"""A run in Flower's simulation: its expression, and the folder of its results."""

import sys

from flwr.simulation import run_simulation

import phalanx as px
from phalanx.integrations.flower import Timeouts, client_app, server_app

if __name__ == "__main__":
    text, folder = sys.argv[1:]
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    # Ray's processes come last on a machine with other work
    timeouts = Timeouts(join_s=600, first_s=600, least_s=300)
    server = server_app(text, folder=folder, timeouts=timeouts)
    run_simulation(server, client_app(text), px.parse(text).workers, backend_config=resources)
