"""A light client, as a process: hits at a fixed rate on one connection, by plain blocking calls. Each is timed from when it was due, so that one that is late
makes those behind it late too. A line on standard input: the figures since the last one, as a line on standard output."""

import contextlib
import json
import os
import select
import socket
import sys
import time

TEXTS = 16
SECONDS_MAX = 60


def request(text):
    body = json.dumps({"inputs": text}).encode()
    return b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


class Connection:
    def __init__(self, port):
        self.port, self.socket = port, None

    def ask(self, request):
        """The whole answer."""
        if not self.socket:
            self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS_MAX)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.socket.sendall(request)
            said = b""
            while (head := said.find(b"\r\n\r\n")) < 0:
                said += self.more()
            length = int(said[:head].split(b"content-length: ")[1].split(b"\r\n")[0])
            while len(said) < head + 4 + length:
                said += self.more()
        except (OSError, IndexError, ValueError):
            self.close()
            raise
        if b"connection: close" in said[:head]:
            self.close()
        return said

    def more(self):
        piece = self.socket.recv(65536)
        if not piece:
            raise ConnectionError("closed")
        return piece

    def close(self):
        if self.socket:
            self.socket.close()
        self.socket = None


def is_hit(said):
    return said.startswith(b"HTTP/1.1 200") and b"cache-status: vecmemo; hit" in said


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def be_elsewhere():
    """It stands for another machine: on this one's processors it goes before all others, where it may, so that what it waits for is the service."""
    with contextlib.suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def main(port, rate):
    be_elsewhere()
    connection, took, failed = Connection(port), [], []
    requests = [request(f"probe {number}") for number in range(TEXTS)]
    known = {}
    for one in requests:
        connection.ask(one)
        known[one] = connection.ask(one).partition(b"\r\n\r\n")[2]
    print("ready", flush=True)
    due, count, missed = time.monotonic(), 0, 0
    while True:
        due = max(due + 1 / rate, time.monotonic() - 1)
        left = due - time.monotonic()
        if select.select([sys.stdin], [], [], max(0.0, left))[0]:
            if not sys.stdin.readline():
                return
            print(json.dumps({"asked": len(took) + len(failed), "missed": missed, "failed": len(failed), "why": failed[:3], "p50_ms": percentile(took, 50),
                              "p99_ms": percentile(took, 99), "max_ms": max(took, default=0.0)}), flush=True)
            took, failed, missed, due = [], [], 0, time.monotonic()
            continue
        one, count = requests[count % TEXTS], count + 1
        try:
            said = connection.ask(one)
            if not said.startswith(b"HTTP/1.1 200"):
                failed.append(said[:200].decode("latin-1"))
            elif said.partition(b"\r\n\r\n")[2] != known[one]:
                failed.append("another vector than before")
            elif is_hit(said):
                took.append(1000 * (time.monotonic() - due))
            else:
                # Somebody has invalidated it.
                missed += 1
        except (OSError, IndexError, ValueError) as problem:
            failed.append(repr(problem))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
