# SPDX-License-Identifier: Apache-2.0
"""A run in Flower's simulation: its expression, and the folder of its results."""

import sys

from flwr.simulation import run_simulation

import phalanx as px
from phalanx.flower import client_app, server_app

if __name__ == "__main__":
    text, folder = sys.argv[1:]
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server_app(text, folder=folder), client_app(text), px.parse(text).workers, backend_config=resources)
