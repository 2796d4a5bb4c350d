# SPDX-License-Identifier: Apache-2.0
"""A round of a server and nine workers over gRPC with mutual TLS, beside bare sockets without TLS, in turns.

    python benchmarks/server.py --rate 1gbit --json out.json    # needs root and iproute2
    python benchmarks/server.py                                 # loopback

In a round the server sends a model to every worker, and every worker sends a row of the same size once it has the
model. Every process is on a host of its own with such a link. Over sockets a thread for each worker reads into memory
that is there; nothing is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from phalanx.core.packing import pack
from phalanx.core.payload import BadPayload
from phalanx.distributed.round_request import RoundRequest
from phalanx.distributed.server.identity import Keys, make_keys
from phalanx.distributed.server.membership import Timeouts
from phalanx.distributed.server.messages import Kind, Message
from phalanx.distributed.server.transport import NUMBERS, GrpcTransport
from phalanx.distributed.server.worker_connection import WorkerConnection
from phalanx.training.run_folder import about
from record import keep
from slow_network.hosts import Hosts

_LENGTH = struct.Struct("<Q")
_MIB = 1 << 20


def peak_bytes() -> int:
    """The most memory that this process has had since it was last set back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def forget_peak() -> int:
    """Sets the peak back to the present memory, which it returns."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def receive(connection: socket.socket, buffer: memoryview) -> None:
    """Fills a buffer."""
    filled = 0
    while filled < len(buffer):
        got = connection.recv_into(buffer[filled:])
        if not got:
            raise ConnectionError("the other end has gone")
        filled += got


def worker(folder: Path, process: int) -> None:
    """One worker: answers every model with a row, over whichever connection it came."""
    address = (folder / "address").read_text().split()
    host, ports = address[0], [int(port) for port in address[1:3]]
    size = int(address[3])
    row = torch.randn(size, generator=torch.Generator().manual_seed(process))
    bare = socket.create_connection((host, ports[0]))
    bare.sendall(_LENGTH.pack(process))

    def answer() -> None:
        model, payload = bytearray(4 * size), memoryview(row.numpy()).cast("B")  # type: ignore[arg-type]
        try:
            while True:
                receive(bare, memoryview(model))
                bare.sendall(payload)
        except OSError:
            return

    threading.Thread(target=answer, daemon=True).start()
    keys = Keys.read(folder / "keys", f"worker-{process}") if (folder / "keys").exists() else None
    secret = "" if keys else (folder / f"secret-{process}").read_text()
    connection = WorkerConnection(host, ports[1], process, secret, keys)
    numbers = torch.zeros(1, 2, dtype=torch.float64)
    while (incoming := connection.receive()) is not None and incoming.kind != Kind.END:
        if incoming.kind == Kind.ORDER:
            body = pack({NUMBERS: numbers, f"{process}/values": row})
            connection.send(Message(Kind.REPORT, incoming.round, body))
    # the thread of the socket still waits
    os._exit(0)


def serve(folder: Path, host: str, workers: int, size: int, rounds: int) -> None:
    """The server: writes the seconds of each round."""
    keys = Keys.read(folder / "keys", "server") if (folder / "keys").exists() else None
    slow = Timeouts(join_s=120, first_s=300, least_s=300)
    transport = GrpcTransport(workers, workers, slow, host=host, keys=keys)
    for process, secret in enumerate(transport.secrets):
        (folder / f"secret-{process}").write_text(secret)
    listener = socket.create_server((host, 0), backlog=workers)
    text = f"{host} {listener.getsockname()[1]} {transport.membership.port} {size}"
    (folder / "address.part").write_text(text)
    (folder / "address.part").rename(folder / "address")
    bare: dict[int, socket.socket] = {}
    while len(bare) < workers:
        connection, _ = listener.accept()
        head = bytearray(_LENGTH.size)
        receive(connection, memoryview(head))
        bare[_LENGTH.unpack(head)[0]] = connection
    transport.membership.join()
    model = torch.randn(size)
    table = torch.empty(workers, size)
    table.zero_()

    def exchange(process: int) -> None:
        bare[process].sendall(memoryview(model.numpy()).cast("B"))  # type: ignore[arg-type]
        receive(bare[process], memoryview(table[process].numpy()).cast("B"))  # type: ignore[arg-type]

    def by_sockets() -> None:
        threads = [threading.Thread(target=exchange, args=(process,)) for process in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def by_grpc(index: int) -> list[Any]:
        transport.start_round(RoundRequest(index, tuple(range(workers)), {"w": model}, {}, None, {}), "run", {})
        transport.receive_reports(2)
        return transport.gather([], 1 << 40)

    seconds: dict[str, list[float]] = {"sockets": [], "grpc": []}
    cpu: dict[str, list[float]] = {"sockets": [], "grpc": []}
    memory = 0
    for index in range(rounds + 1):
        for kind in seconds:
            began, before, at = time.monotonic(), time.process_time(), forget_peak()
            if kind == "sockets":
                by_sockets()
            else:
                found = by_grpc(index)
                wrong = [payload for payload in found if isinstance(payload, BadPayload)]
                if wrong or any(not torch.equal(p["values"], row) for p, row in zip(found, table, strict=True)):
                    raise SystemExit(f"the rows are not those of the sockets: {wrong}")
                del found
                memory = max(memory, peak_bytes() - at)
            # the first round makes the memory
            if index:
                seconds[kind].append(time.monotonic() - began)
                cpu[kind].append(time.process_time() - before)
    transport.close()
    keep(folder / "result", {"seconds": seconds, "server_cpu_s": cpu, "grpc_memory_bytes": memory})


def measure(rate: str | None, workers: int, size: int, rounds: int) -> dict[str, Any]:
    """Seconds of rounds over sockets and over gRPC."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--rounds", str(rounds), "--workers", str(workers), "--mib", str(size)]
        quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
        if rate is None:
            processes = [subprocess.Popen([*command, "--serve", name, "--host", "127.0.0.1"], env=quiet)]
            _wait(folder / "address", processes[0])
            processes += [
                subprocess.Popen([*command, "--worker", name, "--process", str(process)], env=quiet)
                for process in range(workers)
            ]
            _end(processes)
        else:
            make_keys(folder / "keys", workers)
            with Hosts(workers + 1, rate) as hosts:
                processes = [hosts.start(0, [*command, "--serve", name, "--host", hosts.address(0)], env=quiet)]
                _wait(folder / "address", processes[0])
                processes += [
                    hosts.start(process + 1, [*command, "--worker", name, "--process", str(process)], env=quiet)
                    for process in range(workers)
                ]
                _end(processes)
        return json.loads((folder / "result").read_text())


def _wait(file: Path, process: subprocess.Popen[Any]) -> None:
    while not file.exists():
        if process.poll() is not None:
            raise SystemExit("the server ended early")
        time.sleep(0.05)


def _end(processes: list[subprocess.Popen[Any]]) -> None:
    try:
        code = processes[0].wait(timeout=500)
    finally:
        for process in processes[1:]:
            process.kill()
            process.wait()
    if code:
        raise SystemExit(f"the server ended with {code}")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", help="of every link, each way, such as 1gbit; loopback if left out")
    parser.add_argument("--workers", type=int, default=9)
    parser.add_argument("--mib", type=int, default=43, help="of a row (default 43, which is 45 MB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    for hidden in ("--serve", "--worker"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = args.mib * _MIB // 4
    if args.serve:
        serve(args.serve, args.host, args.workers, size, args.rounds)
    elif args.worker:
        worker(args.worker, args.process)
    else:
        result = measure(args.rate, args.workers, args.mib, args.rounds)
        ms = {kind: 1e3 * statistics.median(times) for kind, times in result["seconds"].items()}
        result |= {"rate": args.rate or "loopback", "workers": args.workers, "row_bytes": 4 * size}
        result["speed_ratio"] = ms["sockets"] / ms["grpc"]
        table = Table(
            title=f"{args.workers} rows of {4 * size / 1e6:.0f} MB, {result['rate']}, a model out and rows in"
        )
        for column in ("transport", "ms a round", "speed", "server's CPU ms"):
            table.add_column(column)
        for kind, shown in (("sockets", "bare sockets"), ("grpc", "gRPC, mutual TLS" if args.rate else "gRPC")):
            cpu_ms = 1e3 * statistics.median(result["server_cpu_s"][kind])
            table.add_row(shown, f"{ms[kind]:.0f}", f"{ms['sockets'] / ms[kind]:.2f}", f"{cpu_ms:.0f}")
        Console().print(table)
        Console().print(f"memory of a round over gRPC: {result['grpc_memory_bytes'] / (4 * size):.1f} rows")
        keep(args.json, result | {"setting": about()})


if __name__ == "__main__":
    main()
