# SPDX-License-Identifier: Apache-2.0
"""One end of a transfer: `receive PORT` prints bytes and seconds as JSON; `send ADDRESS PORT BYTES`."""

import json
import socket
import sys
import time

PIECE = 1 << 20
PATIENCE_S = 60.0


def receive(port: int) -> None:
    with socket.create_server(("", port)) as server:
        server.settimeout(PATIENCE_S)
        print("ready", flush=True)
        link, _ = server.accept()
        link.settimeout(PATIENCE_S)
        buffer, total, first, last = bytearray(PIECE), 0, 0, 0.0
        began = 0.0
        while count := link.recv_into(buffer):
            last = time.perf_counter()
            if not total:
                first, began = count, last
            total += count
    # the clock starts with the first piece, so that piece does not count
    print(json.dumps({"bytes": total, "timed_bytes": total - first, "seconds": last - began}), flush=True)


def send(address: str, port: int, size: int) -> None:
    with socket.create_connection((address, port), timeout=PATIENCE_S) as link:
        piece = bytes(PIECE)
        while size:
            count = min(size, PIECE)
            link.sendall(memoryview(piece)[:count])
            size -= count


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
