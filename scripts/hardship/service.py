"""A server that is tried: a machine of the fleet's kind, watched from outside, and a client that says how a request ended."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "machines"))

from load import packed, percentile  # noqa: E402, F401
from node import ROOT, TINY, Node, program  # noqa: E402, F401
from servers import free_port, until  # noqa: E402, F401

MIB = 1 << 20
# Words of a log that no fault of ours may bring.
PANIC = re.compile(r"panicked|stack backtrace|RUST_BACKTRACE|SIGABRT", re.IGNORECASE)


class Service(Node):
    """A machine without a tier, with settings of its own. `wrapped` is a command that ends in the program."""

    def __init__(self, name, model=TINY, wrapped=(), arguments=(), **settings):
        super().__init__(name, model=model, **{"VECMEMO_LOG": "warn", **{f"VECMEMO_{word.upper()}": str(value) for word, value in settings.items()}})
        self.arguments += arguments
        self.wrapped = list(wrapped)

    def command(self):
        return [*self.wrapped, *super().command()]

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.end()

    @property
    def id(self):
        """Of the program itself, also where another began it."""
        return self.process.pid

    def status(self, field):
        """A figure of /proc/…/status, in its own unit."""
        said = Path(f"/proc/{self.id}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+)", said, re.MULTILINE)[1])

    def resident_bytes(self):
        return self.status("VmRSS") * 1024

    def own_bytes(self):
        """What is resident and not of a file: the map of the store is the system's to take back."""
        return self.status("RssAnon") * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.id}/fd"))

    def threads(self):
        """Of each thread its name, its niceness, and the seconds of a processor it has had."""
        for stat in Path(f"/proc/{self.id}/task").glob("*/stat"):
            with contextlib.suppress(FileNotFoundError):
                before, _, after = stat.read_text().rpartition(")")
                fields = after.split()
                yield before.partition("(")[2], int(fields[16]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log(self):
        return (Path(self.folder) / "log").read_text(errors="replace")

    def panics(self):
        return [line for line in self.log().splitlines() if PANIC.search(line)]

    def stats(self):
        return json.loads(self.ask("GET", "/stats")[1])

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def ended(self, seconds=60):
        """The exit status once it has ended."""
        status = self.process.wait(seconds)
        self.process = None
        return status


class Left(Exception):
    """A connection that ended instead of an answer. `asked` says that a request had been sent whole and may have been accepted, `begun` that its answer had begun."""

    def __init__(self, why, begun=False):
        super().__init__(why)
        self.begun = begun


class Wire:
    """A connection of HTTP/1.1 that is kept."""

    def __init__(self, port, seconds=60.0):
        self.port, self.seconds, self.reader, self.writer = port, seconds, None, None
        # Requests answered on this connection: one that was kept may be closed before its next request comes.
        self.answered = 0

    async def open(self):
        try:
            self.reader, self.writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26), self.seconds)
        except (OSError, asyncio.TimeoutError) as problem:
            raise Left(f"not connected: {problem!r}") from problem
        self.answered = 0

    def close(self):
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None

    async def ask(self, method, path, body=None, headers=()):
        """Status, headers and body. The connection is made if there is none."""
        if not self.writer:
            await self.open()
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: x", *headers]
        if body is not None:
            lines += ["content-type: application/json", f"content-length: {len(data)}"]
        try:
            self.writer.write("\r\n".join([*lines, "", ""]).encode() + data)
            answer = await asyncio.wait_for(self.read(), self.seconds)
        except Left:
            self.close()
            raise
        except (OSError, asyncio.TimeoutError) as problem:
            self.close()
            raise Left(repr(problem)) from problem
        self.answered += 1
        if answer[1].get("connection") == "close":
            self.close()
        return answer

    async def read(self):
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as problem:
            raise Left("closed before an answer", bool(problem.partial)) from problem
        first, *rest = head.decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        try:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        except (asyncio.IncompleteReadError, ValueError) as problem:
            raise Left("closed within an answer", True) from problem
        return int(first.split(" ")[1]), headers, body


class Prober:
    """Hits at a fixed rate, by a process of its own. Told to stop, it says how long they took."""

    def __init__(self, port, rate=100):
        self.process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("prober.py")), str(port), str(rate)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # Its texts are cached now.
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("the prober finds nothing to ask")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def figures(self):
        """Of all since the last time: how many were asked, how many failed, and milliseconds."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Watch:
    """Figures of a service as time goes by, read in the background."""

    def __init__(self, service, every=0.25):
        self.service, self.every, self.rows = service, every, []

    async def __aenter__(self):
        self.began = time.monotonic()
        self.task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        self.read()

    def read(self):
        with contextlib.suppress(OSError):
            self.rows.append((time.monotonic() - self.began, self.service.resident_bytes(), self.service.own_bytes(), self.service.descriptors()))

    async def run(self):
        while True:
            self.read()
            await asyncio.sleep(self.every)

    def highest(self):
        return max(own for _, _, own, _ in self.rows)


def quiet(service, others=0, seconds=30):
    """Waits until a service has nothing left to do, and no connection but the one that asks and some others."""
    def idle():
        said = service.stats()
        return said["http"]["connections"] <= 1 + others and said["queue"]["texts"] == 0 and said["http"]["requests_in_flight"] <= 1
    until("nothing is left to do", idle, seconds, 0.05)
