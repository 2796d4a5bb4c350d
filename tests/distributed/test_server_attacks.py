# SPDX-License-Identifier: Apache-2.0
"""What strangers and hostile workers send to a server: none of it stops the others, or costs much memory."""

import contextlib
import json
import re
import socket
import struct
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from phalanx.core.packing import pack
from phalanx.core.payload import BadPayload, expect
from phalanx.core.trees import to_payload
from phalanx.distributed.launcher import Launcher
from phalanx.distributed.round_request import RoundRequest
from phalanx.distributed.server import identity, stream
from phalanx.distributed.server.membership import Timeouts
from phalanx.distributed.server.messages import (
    ANSWERS,
    FRAME_BYTES,
    HEADER_BYTES,
    METHOD,
    SERVICE,
    Assembly,
    Collected,
    Kind,
    Message,
    message,
)
from phalanx.distributed.server.transport import NUMBERS, GrpcTransport
from phalanx.distributed.server.worker_connection import WorkerConnection

TIMEOUTS = Timeouts(join_s=5, first_s=2, least_s=0.3)
MEGABYTE = 1 << 20


@pytest.fixture
def server():
    made = GrpcTransport(4, 4, TIMEOUTS)
    yield made
    made.close()


def connect(server, process, secret=None, **about):
    secret = server.secrets[process] if secret is None else secret
    return WorkerConnection("127.0.0.1", server.membership.port, process, secret, wait_s=5)


class Raw:
    """A client that sends frames of its own."""

    def __init__(self, server, frames, port=None):
        alone = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port or server.membership.port}", alone)
        self.more = threading.Event()
        call = self.channel.stream_stream(f"/{SERVICE}/{METHOD}")
        self.call = call(self._frames(frames))

    def _frames(self, frames):
        yield from frames
        self.more.wait(20)

    def code(self):
        """How the server ended the stream."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def close(self):
        self.more.set()
        self.channel.close()


def hello(raw: bytes = b"", **about):
    body = raw or json.dumps(about).encode()
    return list(Message(Kind.HELLO, 0, torch.frombuffer(bytearray(body), dtype=torch.uint8)).frames())


def start(server, index=0, size=10):
    request = RoundRequest(index, tuple(range(4)), {"weight": torch.zeros(size)}, {}, None, {})
    server.start_round(request, "run", {})


def report(workers, index, value=1.0, size: int = 10, more=None):
    payload = {NUMBERS: torch.zeros(len(workers), 2, dtype=torch.float64)}
    payload |= {f"{worker}/values": torch.full((size,), value) for worker in workers}
    return Message(Kind.REPORT, index, pack({**payload, **(more or {})}))


def join(server, processes=(0, 1, 2, 3)):
    lines = [connect(server, process) for process in processes]
    until = time.monotonic() + 5
    while sum(member.line is not None for member in server.membership.all) < len(lines):
        assert server.membership.next(until) is not None
    return lines


def rows(server, limit=10**9):
    return [p if isinstance(p, BadPayload) else p["values"][0].item() for p in server.gather([], limit)]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([b"GET / HTTP/1.1"], "no message"),
        ([b""], "no message"),
        ([struct.pack("<4sBqQ", b"PHXS", 0, 0, 10**15)], "no hello"),
        ([struct.pack("<4sBqQ", b"PHXS", 3, 0, 0)], "no hello"),
        ([struct.pack("<4sBqQ", b"PHXS", 77, 0, 4)], "no message"),
        (hello(process=0, secret="guess"), "another identity"),
        (hello(process=0, secret=None), "another identity"),
        (hello(process=0), "secret"),
        (hello(process=0.0, secret="x"), "no such process"),
        (hello(process=True, secret="x"), "no such process"),
        (hello(process=-1, secret="x"), "no such process"),
        (hello(process=4, secret="x"), "no such process"),
        (hello(process="0", secret="x"), "no such process"),
        (hello(process=[[[[0]]]], secret="x"), "no such process|no object"),
        (hello(raw=b"[" * 4000), "no object"),
        (hello(raw=b'{"process":' * 300), "no object"),
        (hello(raw=b"\xff\xfe"), "decode"),
        (hello(raw=b"7"), "."),
        (hello(raw=b"1" * 4001), "."),
    ],
)
def test_a_stranger_is_turned_away_and_told_why(server, frames, words):
    raw = Raw(server, frames)
    code, details = raw.code()
    raw.close()
    assert code == grpc.StatusCode.UNAUTHENTICATED and re.search(words, str(details)), details
    assert all(member.line is None for member in server.membership.all)
    # and a worker still gets in
    connection = connect(server, 1)
    member, event = server.membership.next(time.monotonic() + 5)
    assert member.workers == (1,) and event is None
    connection.close()


def test_a_stranger_that_says_nothing_is_gone_in_seconds(server, monkeypatch):
    monkeypatch.setattr(stream, "HELLO_S", 0.5)
    dripping = [Raw(server, []) for _ in range(8)]
    # a frame of the hello now and then does not lengthen its time
    assert {raw.code()[0] for raw in dripping} <= {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    for raw in dripping:
        raw.close()
    join(server)


def test_connections_that_drip_bytes_keep_no_worker_out(server):
    links = []
    for _ in range(300):
        link = socket.socket()
        link.settimeout(0.2)
        with contextlib.suppress(OSError):
            link.connect(("127.0.0.1", server.membership.port))
            link.send(b"P")
        links.append(link)
    began = time.monotonic()
    while True:
        try:
            connections = join(server)
            break
        except ConnectionError:
            assert time.monotonic() - began < 20
    assert time.monotonic() - began < 20
    start(server)
    for process, connection in enumerate(connections):
        connection.send(report((process,), 0, float(process)))
    assert bool(server.receive_reports(2).isfinite().all()) and rows(server) == [0.0, 1.0, 2.0, 3.0]
    for link in links:
        link.close()


def test_nobody_takes_the_place_of_another(server):
    victim = connect(server, 2)
    assert server.membership.next(time.monotonic() + 5)[0].workers == (2,)
    thief = Raw(server, hello(process=2, secret=server.secrets[1]))
    assert thief.code()[0] == grpc.StatusCode.UNAUTHENTICATED
    thief.close()
    assert server.membership.of(2).line is not None
    # who has the key connects anew: the connection of before is a dead one
    again = connect(server, 2)
    member, event = server.membership.next(time.monotonic() + 5)
    assert member.workers == (2,) and event is None and member.line is not None
    for connection in (victim, again):
        connection.close()


def test_one_report_counts_once_and_shrinks_no_deadline(server):
    lines = join(server)
    start(server)
    for _ in range(3):
        lines[0].send(report((0,), 0, 9.0))
    time.sleep(0.3)
    for process in (1, 2, 3):
        lines[process].send(report((process,), 0, float(process)))
    server.receive_reports(2)
    found = rows(server)
    # the first report was asked for; the second one ended the stream
    assert found == [9.0, 1.0, 2.0, 3.0]
    for _ in range(20):
        if server.membership.of(0).line is None:
            break
        server.membership.next(time.monotonic() + 0.2)
    assert server.membership.of(0).line is None and "nobody asked for" in server.membership.of(0).gone


def test_what_nobody_asked_for_ends_its_sender_s_stream_only(server):
    lines = join(server)
    for kind, index in ((Kind.HELD, 0), (Kind.MEMORY, 0), (Kind.REPORT, 7), (Kind.HELLO, 0)):
        start(server, index=1)
        lines[3].send(Message(kind, index, torch.zeros(3, dtype=torch.uint8)))
        for process in (0, 1, 2):
            lines[process].send(report((process,), 1, float(process)))
        server.receive_reports(2)
        *good, bad = rows(server)
        assert good == [0.0, 1.0, 2.0] and isinstance(bad, BadPayload), kind
        lines[3].close()
        lines[3] = connect(server, 3)
        until = time.monotonic() + 5
        while server.membership.of(3).line is None:
            assert server.membership.next(until) is not None


def test_a_flood_costs_no_memory_and_no_time(server):
    lines = join(server)
    start(server)
    flood = Message(Kind.REPORT, 5, torch.zeros(64 * MEGABYTE, dtype=torch.uint8))
    tracemalloc.start()
    began = time.monotonic()
    for _ in range(50):
        lines[0].send(flood)
    for process in (1, 2, 3):
        lines[process].send(report((process,), 0, float(process)))
    server.receive_reports(2)
    assert time.monotonic() - began < 2 + TIMEOUTS.first_s
    assert rows(server)[1:] == [1.0, 2.0, 3.0]
    # the sender's own frames are in this process, too
    assert tracemalloc.get_traced_memory()[1] < 40 * MEGABYTE
    tracemalloc.stop()
    assert server.membership.received_bytes < 10 * MEGABYTE


def test_a_message_that_is_too_long_is_not_waited_for(server):
    lines = join(server)
    start(server)
    lines[0].send(Message(Kind.REPORT, 0, torch.zeros(8 * MEGABYTE, dtype=torch.uint8)))
    for process in (1, 2, 3):
        lines[process].send(report((process,), 0))
    server.receive_reports(2)
    assert isinstance(rows(server)[0], BadPayload) and "allowed" in server.membership.of(0).gone


NESTED = torch.frombuffer(bytearray(b'{"a":' * 100_000), dtype=torch.uint8)


@pytest.mark.parametrize(
    "body",
    [
        torch.zeros(0, dtype=torch.uint8),
        torch.randint(256, (1000,), dtype=torch.uint8),
        pack({NUMBERS: torch.zeros(1, 2), "0/values": torch.zeros(3), "/": torch.zeros(1), "x/" * 400: torch.zeros(1)}),
        pack({NUMBERS: torch.full((1, 2), float("nan"))}),
        pack({NUMBERS: torch.zeros(7, 7)}),
        pack(to_payload({"structure": "x"})),
        NESTED,
    ],
)
@pytest.mark.parametrize("kind", [Kind.REPORT, Kind.HELD, Kind.MEMORY])
def test_a_hostile_body_is_an_erasure(server, kind, body):
    lines = join(server)
    start(server)
    if kind == Kind.REPORT:
        lines[0].send(Message(kind, 0, body))
        for process in (1, 2, 3):
            lines[process].send(report((process,), 0, float(process)))
        server.receive_reports(2)
        assert len(rows_or_bad(server)) == 4
        return
    for process in range(4):
        lines[process].send(report((process,), 0, float(process)))
    server.receive_reports(2)
    if kind == Kind.HELD:
        answers = {}
        asking = threading.Thread(target=lambda: answers.update(found=server.fetch([], [0, 1], 10**6)))
        asking.start()
        time.sleep(0.1)
        lines[0].send(Message(kind, 0, body))
        lines[1].send(Message(kind, 0, pack({"1/values": torch.ones(3)})))
        asking.join(10)
        bad, good = answers["found"]
        assert good["values"].tolist() == [1.0] * 3
        assert isinstance(bad, BadPayload) or set(bad) <= {"values"}
        return
    memories = {}
    asking = threading.Thread(target=lambda: memories.update(found=server.collect_memories()))
    asking.start()
    time.sleep(0.1)
    lines[0].send(Message(kind, 0, body))
    for process in (1, 2, 3):
        lines[process].send(Message(kind, 0, pack(to_payload({}))))
    asking.join(10)
    assert isinstance(memories["found"], list)


def rows_or_bad(server):
    return server.gather([], 10**6)


def test_a_worker_cannot_speak_for_another(server):
    lines = join(server)
    start(server)
    lines[0].send(report((0, 1), 0, 5.0, more={NUMBERS: torch.zeros(1, 2, dtype=torch.float64)}))
    for process in (1, 2, 3):
        lines[process].send(report((process,), 0, 1.0))
    server.receive_reports(2)
    assert rows(server) == [5.0, 1.0, 1.0, 1.0]


def test_a_peer_that_does_not_read_holds_up_nobody(server):
    deaf = Raw(server, hello(process=0, secret=server.secrets[0]))
    lines = join(server, (1, 2, 3))
    until = time.monotonic() + 5
    while server.membership.of(0).line is None:
        assert server.membership.next(until) is not None
    began = time.monotonic()
    for index in range(12):
        start(server, index, size=2 * MEGABYTE)
        for process, connection in zip((1, 2, 3), lines, strict=True):
            connection.send(report((process,), index))
        server.receive_reports(2)
    # it is waited for once, and then more and more rarely
    assert time.monotonic() - began < 12
    assert "no answer within" in server.membership.of(0).gone
    # of the orders only the one under way and the newest are kept
    line = server.membership.of(0).line
    assert line is not None and len(line._out) <= 2
    deaf.close()


def test_an_exception_while_a_message_is_handled_ends_one_stream(server, monkeypatch):
    lines = join(server)
    start(server)
    real = GrpcTransport._unpacked

    def broken(process, kind, round, content):
        if process == 2:
            raise RuntimeError("a bug")
        return real(server, server.membership.all[process], kind, round, content)

    server.membership._streams._arrived = broken
    for process in range(4):
        lines[process].send(report((process,), 0, float(process)))
    server.receive_reports(2)
    found = rows(server)
    assert isinstance(found[2], BadPayload) and [found[i] for i in (0, 1, 3)] == [0.0, 1.0, 3.0]


def test_the_deadline_is_looked_at_before_what_waits(server):
    lines = join(server)
    start(server)
    for process in range(3):
        lines[process].send(report((process,), 0))
    server.receive_reports(2)

    def busy():
        for index in range(1, 400):
            lines[3].send(Message(Kind.REPORT, index, torch.zeros(1, dtype=torch.uint8)))

    threading.Thread(target=busy).start()
    began = time.monotonic()
    start(server, 1)
    for process in range(3):
        lines[process].send(report((process,), 1))
    server.receive_reports(2)
    assert time.monotonic() - began < TIMEOUTS.first_s + 1


@pytest.mark.parametrize("size", [1, 20])
def test_rows_of_real_size_arrive_whole(server, size):
    lines, d = join(server), size * MEGABYTE // 4
    start(server, size=d)
    for process, connection in enumerate(lines):
        connection.send(report((process,), 0, float(process), size=d))
    assert bool(server.receive_reports(2).isfinite().all())
    found = server.gather([], 10**9)
    assert [float(p["values"].sum()) for p in found] == [d * float(process) for process in range(4)]
    # the workers got the model in pieces
    first, second = (lines[0].receive() for _ in range(2))
    assert first is not None and second is not None and (first.kind, second.kind) == (Kind.SETUP, Kind.ORDER)


def test_keys_prove_who_is_who(tmp_path):
    identity.make_keys(tmp_path / "keys", 2)
    identity.make_keys(tmp_path / "foreign", 2)
    own = {name: identity.Keys.read(tmp_path / "keys", name) for name in ("server", "worker-0", "worker-1")}
    server = GrpcTransport(2, 2, TIMEOUTS, keys=own["server"])
    port = server.membership.port
    for keys, process in ((own["worker-1"], 0), (own["server"], 0)):
        connection = WorkerConnection("127.0.0.1", port, process, keys=keys, wait_s=5)
        assert connection.receive() is None and "another identity" in connection.why_ended
    for keys in (None, identity.Keys.read(tmp_path / "foreign", "worker-0")):
        with pytest.raises(ConnectionError, match="nobody answers"):
            WorkerConnection("127.0.0.1", port, 0, server.secrets[0], keys=keys, wait_s=1.5)
    good = WorkerConnection("127.0.0.1", port, 0, keys=own["worker-0"], wait_s=5)
    arrived = server.membership.next(time.monotonic() + 5)
    assert arrived is not None and arrived[0].workers == (0,)
    good.close()
    server.close()


def test_key_files_are_private_and_never_overwritten(tmp_path):
    files = identity.make_keys(tmp_path / "keys", 1)
    assert {file.name for file in files} == {
        "authority.pem",
        "server.pem",
        "server.key",
        "worker-0.pem",
        "worker-0.key",
    }
    assert all(file.stat().st_mode & 0o077 == 0 for file in files if file.suffix == ".key")
    with pytest.raises(ValueError, match="is not empty"):
        identity.make_keys(tmp_path / "keys", 1)
    with pytest.raises(ValueError, match="one worker process or more, got 0"):
        identity.make_keys(tmp_path / "other", 0)
    (tmp_path / "keys" / "server.key").chmod(0o644)
    with pytest.raises(ValueError, match=r"others can read .*chmod 600"):
        identity.Keys.read(tmp_path / "keys", "server")
    with pytest.raises(ValueError, match=r"worker-7\.pem is missing"):
        identity.Keys.read(tmp_path / "keys", "worker-7")


def test_only_loopback_goes_without_keys(monkeypatch):
    assert identity.is_loopback("localhost") and identity.is_loopback("127.0.0.1") and identity.is_loopback("::1")
    assert not identity.is_loopback("10.1.2.3") and not identity.is_loopback("0.0.0.0")
    with pytest.raises(ValueError, match="no host is called"):
        identity.is_loopback("no.such.host.invalid")
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "10.1.2.3", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"beyond this machine.*phalanx keys FOLDER --workers 3"):
        Launcher(lambda: None)


def test_frames_are_put_together_and_nothing_else():
    body = torch.randint(256, (3 * FRAME_BYTES + 5,), dtype=torch.uint8)
    assembly = Assembly(lambda kind, round, length: Collected(length))
    frames = list(Message(Kind.REPORT, -3, body).frames())
    assert [len(frame) for frame in frames] == [HEADER_BYTES, *[FRAME_BYTES] * 3, 5]
    *none, whole = [assembly.add(frame) for frame in frames]
    assert none == [None] * 4 and whole is not None
    kind, round, content = whole
    assert (kind, round) == (Kind.REPORT, -3) and torch.equal(content.body, body)
    for wrong in ([frames[0], b""], [frames[0], b"x" * (len(body) + 1)], [frames[0][:-1]], [frames[0] + b"x"]):
        assembly = Assembly(lambda kind, round, length: Collected(length))
        with pytest.raises(BadPayload):
            for frame in wrong:
                assembly.add(frame)
    unwanted: Assembly[Collected] = Assembly(lambda kind, round, length: None)
    assert [unwanted.add(frame) for frame in frames] == [None] * 5 and unwanted._sink is None


def test_launcher_store_holds_no_secret(monkeypatch):
    made: Any = torch.distributed
    store = made.TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False)
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    launcher = Launcher(lambda: None)
    transport = launcher.open(4, Timeouts(join_s=0.1))
    address = store.get("phalanx/0/run/0").decode()
    assert json.loads(address)["port"] == transport.membership.port
    folder = Path(json.loads(address)["folder"])
    for process, secret in enumerate(transport.secrets):
        assert len(secret) == 64 and secret not in address
        file = folder / f"worker-{process}"
        assert file.read_text() == secret and file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    transport.close()
    launcher.end()
    assert not folder.exists()


def test_a_hostile_reason_is_cut():
    error = BadPayload("x" * 10_000)
    assert len(str(error)) == 300
    with pytest.raises(BadPayload) as caught:
        expect({"y" * 900 + str(i): torch.zeros(1) for i in range(50)}, values=(torch.float32, (1,)))
    assert len(str(caught.value)) <= 300
    with pytest.raises(ValueError, match="the wire has no place"):
        pack({"n" * 1001: torch.zeros(1)})


def test_a_busy_worker_keeps_the_newest_model_only(server):
    (line,) = join(server, (0,))
    for index in range(30):
        start(server, index, size=MEGABYTE)
        # each has left the server before the next one is sent
        until = time.monotonic() + 5
        while server.membership.of(0).line._out and time.monotonic() < until:
            time.sleep(0.005)
    seen = [line.receive()]
    while seen[-1].kind != Kind.ORDER or seen[-1].round != 29:
        seen.append(line.receive())
    # one may arrive between two looks on a busy machine; of thirty most are never seen
    assert seen[0].kind == Kind.SETUP and len(seen) <= 10
    line.close()


def test_who_connects_anew_is_not_asked_for_what_it_never_had(server):
    lines = join(server, (0, 1))
    start(server)
    for process in (0, 1):
        lines[process].send(report((process,), 0, more={}))
    server.receive_reports(2)
    again = connect(server, 0)
    until = time.monotonic() + 5
    while server.membership.of(0).knows_run:
        assert server.membership.next(until) is not None
    began = time.monotonic()
    (found,) = server.fetch([], [0], 10**9)
    assert isinstance(found, BadPayload) and time.monotonic() - began < TIMEOUTS.least_s / 2
    assert server.membership.of(0).missed == 0
    for line in (*lines, again):
        line.close()


@pytest.mark.parametrize(
    ("processes", "kind", "length"),
    [(3, Kind.REPORT, 18 * MEGABYTE), (2, Kind.HELD, 18 * MEGABYTE), (2, Kind.TESTED, 2 * MEGABYTE)],
)
def test_each_kind_of_answer_has_its_own_length(processes, kind, length):
    # 17 MiB for each payload with a model of 1 MiB; of three processes only the last one has two workers
    server = GrpcTransport(4, processes, TIMEOUTS)
    lines = join(server, range(processes))
    start(server, 0, MEGABYTE // 4)
    member = server.membership.all[0]
    question = next(question for question, answer in ANSWERS.items() if answer == kind)
    if question != Kind.ORDER:
        member.line.send(message(question, 0))
    lines[0].send(Message(kind, 0, torch.zeros(length, dtype=torch.uint8)))
    until = time.monotonic() + 10
    while member.line is not None:
        assert server.membership.next(until) is not None
    assert "allowed" in member.gone
    server.close()
