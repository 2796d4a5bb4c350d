"""Flower's own processes on this machine."""

import pytest

from tests.worlds.flower_processes import Flower

pytest.importorskip("flwr")
pytestmark = pytest.mark.processes

APP = """
[project]
name = "mirror"
version = "0.1.0"
description = "sends an array to every client and back"
license = { text = "Apache-2.0" }

[tool.flwr.app]
publisher = "phalanx"

[tool.flwr.app.components]
serverapp = "mirror.app:server"
clientapp = "mirror.app:client"

[tool.flwr.app.config]
text = "nothing"
"""

CODE = """
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@client.query()
def answer(message, context):
    print("client", context.node_config["partition-id"], "answers")
    return Message(message.content, reply_to=message)


@server.main()
def main(grid, context):
    array = Array("uint8", (3,), "bytes", b"abc")
    content = RecordDict({"order": ArrayRecord({"packed": array})})
    replies = grid.send_and_receive([Message(content, node, "query") for node in grid.get_node_ids()], timeout=60)
    print("replies", [reply.content["order"]["packed"].data for reply in replies], context.run_config["text"])
"""


def test_runs_an_app_and_leaves_no_process_behind(tmp_path):
    app = tmp_path / "app"
    (app / "mirror").mkdir(parents=True)
    (app / "pyproject.toml").write_text(APP)
    (app / "mirror" / "__init__.py").write_text("")
    (app / "mirror" / "app.py").write_text(CODE)
    with Flower(tmp_path, nodes=2) as flower:
        outcome = flower.run(app, limit_s=120, text='a "word" = (1, 2)')
        assert outcome.status == "finished:completed", outcome.log
        assert "replies [b'abc', b'abc'] a \"word\" = (1, 2)" in outcome.log
        assert "client 1 answers" in flower.log("node-1")
        processes = list(flower.processes.values())
    assert all(process.poll() is not None for process in processes)
