# SPDX-License-Identifier: Apache-2.0
"""Seeds the global random number generators for a while, for code that draws from them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded_globally(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Seeds the global generators of torch, numpy and Python, and restores them at the end."""
    import numpy as np

    gpus = list(devices)
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=gpus):
        # torch.manual_seed would also queue a call for every GPU that is not in use yet
        torch.default_generator.manual_seed(seed)
        for device in gpus:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
