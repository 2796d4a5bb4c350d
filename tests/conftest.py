# SPDX-License-Identifier: Apache-2.0
import http.server
import os
import threading
from functools import partial

import pytest
from hypothesis import settings

# scripts that tests start in processes of their own
collect_ignore_glob = ["job_*.py", "*/job_*.py"]

# a first call compiles kernels
settings.register_profile("phalanx", deadline=None)
settings.load_profile("phalanx")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, and the address under which its files are to be had."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    source = tmp_path / "served"
    source.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(source))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield source, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("PHALANX_DATA"):
        return
    out = [item for item in items if item.get_closest_marker("data")]
    items[:] = [item for item in items if not item.get_closest_marker("data")]
    config.hook.pytest_deselected(items=out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    where = os.environ.get("PHALANX_DATA")
    terminalreporter.write_line(
        f"real data: {where}" if where else "real data: none; tests marked `data` are left out (set PHALANX_DATA)"
    )
