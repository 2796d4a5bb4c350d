# SPDX-License-Identifier: Apache-2.0
"""What all tests share: tiers, the number of random draws, and a fresh state of the process for each test."""

import os
import random
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from phalanx.core import registry

ROOT = Path(__file__).parent

# modules and tests that are made for an optional package; the documentation shows commands of both distributions
_NEEDS = {"src/phalanx/integrations/flower": "flwr", "tests/docs": "phalanx_experiments"}
collect_ignore = [path for path, package in _NEEDS.items() if not find_spec(package)]

# draws of a property; no deadline, as a first call compiles kernels
shared = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=8, derandomize=True, **shared)
settings.register_profile("default", max_examples=30, derandomize=True, **shared)
settings.register_profile("thorough", max_examples=50, derandomize=True, **shared)
# outside CI: new draws in every run
settings.register_profile("soak", max_examples=1000, print_blob=True, **shared)
settings.load_profile(os.environ.get("PHALANX_TEST_PROFILE", "default"))

# a shell that starts a job in the background leaves the signal ignored, and tests send it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist compute with one thread each, as there is one for each core."""
    if config.getoption("numprocesses", None):
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")


@pytest.fixture(autouse=True)
def fresh_process_state() -> Iterator[None]:
    """Each test starts from the same random state and leaves no setting of the process behind."""
    threads, dtype, folder = torch.get_num_threads(), torch.get_default_dtype(), os.getcwd()
    environment, names = dict(os.environ), dict(registry._entries)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    # the call alone imports compilers
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)
    os.chdir(folder)
    environment["PYTEST_CURRENT_TEST"] = os.environ.get("PYTEST_CURRENT_TEST", "")
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)
    # names of the library stay, as their modules are not imported again
    for key in registry._entries.keys() - names.keys():
        if not registry._entries[key].build.__module__.startswith("phalanx"):
            del registry._entries[key]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks tests of the documentation, and leaves out those that need data which is not here."""
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "docs"):
            item.add_marker("docs")
    if os.environ.get("PHALANX_DATA"):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("data")])
    items[:] = [item for item in items if not item.get_closest_marker("data")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says whether real data was there."""
    folder = os.environ.get("PHALANX_DATA")
    terminalreporter.write_line(
        f"real data: {folder}" if folder else "real data: none; tests marked `data` are left out (set PHALANX_DATA)"
    )
