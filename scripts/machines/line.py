"""A line to a server, of which what comes back can be delayed, cut, garbled or swallowed. A process of its own, told on its standard input what to do."""

import asyncio
import json
import os
import random
import subprocess
import sys

# Of so many pieces that come back one is spoilt.
ONE_IN = 12
# A longer piece has a record in it.
RECORD_BYTES = 80


class Line:
    """The process, for who uses it."""

    def __init__(self, port):
        self.process = subprocess.Popen([sys.executable, __file__, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def set(self, mode, ms=0):
        """`pass`, `delay`, `cut`, `garble` or `swallow` from now on. Answers with how many pieces were spoilt so far."""
        self.process.stdin.write(json.dumps({"mode": mode, "ms": ms}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self):
        self.process.kill()
        self.process.wait()


class Spoiler:
    """What a line does with what comes back."""

    def __init__(self, port):
        self.port, self.mode, self.delay, self.spoilt = port, "pass", 0.0, 0
        self.chance = random.Random(7)

    async def serve(self, reader, writer):
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.close()
            return
        there = asyncio.create_task(self.there(reader, to_server))
        await self.back(from_server, writer)
        there.cancel()
        to_server.close()
        writer.close()

    async def there(self, reader, writer):
        try:
            while data := await reader.read(65536):
                if self.mode != "swallow":
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        writer.close()

    async def back(self, reader, writer):
        loop, waiting = asyncio.get_running_loop(), asyncio.Queue()
        sender = asyncio.create_task(self.send(waiting, writer))
        try:
            while data := await reader.read(65536):
                mode = self.mode
                is_spoilt = mode == "swallow" or (mode in ("cut", "garble") and self.chance.randrange(ONE_IN) == 0)
                self.spoilt += is_spoilt
                if is_spoilt and mode == "swallow":
                    continue
                if is_spoilt and mode == "garble":
                    data = self.garbled(data)
                if is_spoilt and mode == "cut":
                    data = data[:len(data) // 2]
                await waiting.put((loop.time() + (self.delay if mode == "delay" else 0), data))
                if is_spoilt and mode == "cut":
                    break
        except OSError:
            pass
        await waiting.put(None)
        await sender

    def garbled(self, data):
        """All of it noise, or the middle of a piece that has a record in it."""
        first, last = (len(data) // 3, 2 * len(data) // 3) if len(data) > RECORD_BYTES and self.chance.randrange(2) else (0, len(data))
        return data[:first] + self.chance.randbytes(last - first) + data[last:]

    @staticmethod
    async def send(waiting, writer):
        loop = asyncio.get_running_loop()
        try:
            while item := await waiting.get():
                due, data = item
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                writer.write(data)
                await writer.drain()
        except OSError:
            pass


async def main(port):
    spoiler = Spoiler(port)
    server = await asyncio.start_server(spoiler.serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    while line := await told.readline():
        wanted = json.loads(line)
        spoiler.delay, spoiler.mode = wanted["ms"] / 1000, wanted["mode"]
        print(spoiler.spoilt, flush=True)
    # Nobody is there any more.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
