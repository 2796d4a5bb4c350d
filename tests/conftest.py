# SPDX-License-Identifier: Apache-2.0
import http.server
import threading
from functools import partial

import pytest

# scripts that tests start in processes of their own
collect_ignore_glob = ["job_*.py", "*/job_*.py"]


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
