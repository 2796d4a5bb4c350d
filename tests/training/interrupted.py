# SPDX-License-Identifier: Apache-2.0
"""Runs that are stopped and go on."""

import os
import signal

import pytest

import phalanx as px


def stopped_and_resumed(run, folder, stop_at):
    """The trainer of a run that was asked to stop in a round and went on from its folder."""

    def listener(line):
        if line["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(px.Interrupted):
        px.train(run, folder=px.training.RunFolder(folder), listener=listener)
    return px.train(run, folder=px.training.RunFolder(folder))
