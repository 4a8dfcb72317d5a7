"""Clients that are slow, gone, greedy or wrong. Of each it is said beforehand how it is to end and within what time; hits go on meanwhile."""

import asyncio
import json
import socket
import struct
import time
from dataclasses import dataclass

from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from service import MIB, Left, Prober, Service, Watch, Wire, quiet

# Short, so that what is bounded is seen to be.
HEADER, BODY, IDLE, WRITE = 2, 2, 3, 2
SETTINGS = {"header_timeout_seconds": HEADER, "body_timeout_seconds": BODY, "idle_timeout_seconds": IDLE, "write_timeout_seconds": WRITE,
            "body_bytes_max": 16 * MIB, "request_memory_bytes_max": 64 * MIB, "answer_memory_bytes_max": 64 * MIB, "max_client_batch_size": 8192}
# What the machine may take on top of what is promised.
SLACK = 4
# A hit beside any of this. A body of 24 MiB is parsed in one go, on one of two threads.
HIT_P99_MS_MAX = 300
GROWTH_BYTES_MAX = 400 * MIB
MAGIC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
POST = "POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@dataclass
class Case:
    """`ends` are the endings that are right, `seconds` how long it may take until then, `at_once` how many do the same together."""

    name: str
    act: object
    ends: tuple
    seconds: float
    at_once: int = 1


class Plain:
    """A connection that says what it likes."""

    def __init__(self, port, receive_bytes=None):
        self.port, self.receive_bytes = port, receive_bytes

    async def __aenter__(self):
        end = socket.socket()
        if self.receive_bytes:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_bytes)
        end.setblocking(False)
        await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", self.port))
        self.reader, self.writer = await asyncio.open_connection(sock=end, limit=self.receive_bytes or 1 << 20)
        return self

    async def __aexit__(self, *_):
        self.writer.close()

    def say(self, text):
        self.writer.write(text if isinstance(text, bytes) else text.encode())

    async def ending(self):
        """What comes until the other side closes: the status, or how it closed."""
        said = b""
        try:
            while piece := await self.reader.read(65536):
                said = said + piece if len(said) < 1 << 20 else said
        except ConnectionError:
            return said.split(b" ")[1].decode() if said.startswith(b"HTTP/1.1 ") else "reset"
        return said.split(b" ")[1].decode() if said.startswith(b"HTTP/1.1 ") else "closed"

    async def drops(self, text, every=0.3):
        """One byte after the other until the other side has enough."""
        ending = asyncio.create_task(self.ending())
        for byte in text.encode():
            if ending.done():
                break
            try:
                self.writer.write(bytes([byte]))
            except OSError:
                break
            await asyncio.wait([ending], timeout=every)
        return await ending


def said_of(body):
    return POST + f"content-length: {len(body)}\r\n\r\n"


async def headers_by_drops(port):
    async with Plain(port) as line:
        return await line.drops(POST + "x-filler: " + "y" * 1000)


async def body_by_drops(port):
    async with Plain(port) as line:
        line.say(POST + f"content-length: {12 * MIB}\r\n\r\n")
        return await line.drops("{" + " " * 10_000)


async def body_by_chunks(port):
    async with Plain(port) as line:
        line.say(POST + "transfer-encoding: chunked\r\n\r\n")
        return await line.drops("1\r\n{\r\n" * 1000)


async def answer_unread(port):
    """Four answers of 5 MB, of which some KB are taken and then nothing."""
    async with Plain(port, 4096) as line:
        body = json.dumps({"inputs": [f"unread {number % 4}" for number in range(8192)]}).encode()
        line.say((said_of(body).replace("/embed", "/embed?details=true").encode() + body) * 4)
        await asyncio.sleep(0.1)
        # asyncio reads ahead no more than its limit; the system's buffer is small. The other side notices.
        while True:
            await asyncio.sleep(0.2)
            try:
                line.writer.write(b" ")
                await line.writer.drain()
            except ConnectionError:
                return "closed"
            if line.writer.transport.is_closing():
                return "closed"


async def half_open(port):
    """The client shuts its side and says nothing more."""
    async with Plain(port) as line:
        line.say(POST)
        line.writer.write_eof()
        return await line.ending()


async def silent(port):
    async with Plain(port) as line:
        return await line.ending()


async def vanished(port):
    """A request, and a reset instead of reading its answer."""
    async with Plain(port) as line:
        body = json.dumps({"inputs": f"vanished {time.monotonic_ns()}"}).encode()
        line.say(said_of(body).encode() + body)
        await line.writer.drain()
        line.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "gone"


async def whole(port, body, **more):
    wire = Wire(port, 60)
    try:
        status, _, _ = await wire.ask("POST", "/embed", body, **more)
        return str(status)
    except Left as left:
        return str(left)
    finally:
        wire.close()


async def huge(port):
    return await whole(port, b'{"inputs": "' + b"x" * (24 * MIB) + b'"}')


async def nested(port):
    return await whole(port, b'{"inputs": ' + b"[" * (8 * MIB) + b"}")


async def nested_payload(port):
    return await whole(port, b'{"inputs": "a", "payload": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}")


async def million_keys(port):
    return await whole(port, b'{"inputs": "a", ' + b",".join(b'"k%d": 1' % number for number in range(1_000_000)) + b"}")


async def million_texts(port):
    return await whole(port, b'{"inputs": [' + b",".join([b'"a"'] * 1_000_000) + b"]}")


async def length_short(port):
    """Less is announced than comes: the rest is no request."""
    async with Plain(port) as line:
        line.say(POST + 'content-length: 5\r\n\r\n{"inputs": "a"}')
        return await line.ending()


async def length_long(port):
    async with Plain(port) as line:
        line.say(POST + 'content-length: 500\r\n\r\n{"inputs": "a"}')
        return await line.ending()


async def length_twice(port):
    async with Plain(port) as line:
        line.say(POST + 'content-length: 15\r\ncontent-length: 16\r\n\r\n{"inputs": "a"}')
        return await line.ending()


async def length_and_chunks(port):
    async with Plain(port) as line:
        line.say(POST + "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        return await line.ending()


async def chunk_huge(port):
    async with Plain(port) as line:
        line.say(POST + "transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n")
        return await line.ending()


async def pipelined(port):
    """A thousand requests at once on one connection: all are answered, in order."""
    async with Plain(port) as line:
        count = 1000
        one = "GET /health HTTP/1.1\r\nhost: x\r\n"
        line.say((one + "\r\n") * (count - 1) + one + "connection: close\r\n\r\n")
        said = b""
        while piece := await line.reader.read(1 << 20):
            said += piece
        return f"{said.count(b'HTTP/1.1 200')} answered"


async def not_http(port):
    async with Plain(port) as line:
        line.say(bytes(range(256)) * 100)
        return await line.ending()


class Two:
    """A connection of HTTP/2 by hand: a library would not let us."""

    def __init__(self, line):
        self.line, self.encoder, self.frames, self.goaway = line, Encoder(), {}, None

    def begin(self, **settings):
        names = {"window": SettingsFrame.INITIAL_WINDOW_SIZE}
        self.line.say(MAGIC + SettingsFrame(0, settings={names[name]: value for name, value in settings.items()}).serialize())

    def headers(self, path="/health", method="GET", more=()):
        return self.encoder.encode([(":method", method), (":scheme", "http"), (":authority", "x"), (":path", path), *more])

    def request(self, stream, ends=True, **more):
        return HeadersFrame(stream, self.headers(**more), flags=["END_HEADERS", *(["END_STREAM"] if ends else [])]).serialize()

    async def until_closed(self, pongs=True):
        """Reads until the other side closes. `goaway` is the code it gave, if any."""
        try:
            while True:
                head = await self.line.reader.readexactly(9)
                frame, length = Frame.parse_frame_header(memoryview(head))
                body = await self.line.reader.readexactly(length)
                frame.parse_body(memoryview(body))
                name = type(frame).__name__
                self.frames[name] = self.frames.get(name, 0) + 1
                if name == "GoAwayFrame":
                    self.goaway = frame.error_code
                if pongs and name == "PingFrame" and "ACK" not in frame.flags:
                    self.line.say(PingFrame(0, frame.opaque_data, flags=["ACK"]).serialize())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        return "closed" if self.goaway in (None, 0) else f"goaway {self.goaway}"


async def two(port, act, **settings):
    async with Plain(port) as line:
        connection = Two(line)
        connection.begin(**settings)
        acting = asyncio.create_task(act(connection))
        ending = await connection.until_closed()
        acting.cancel()
        return ending


async def said_in_pieces(connection, pieces):
    try:
        for piece in pieces:
            connection.line.say(piece)
            await connection.line.writer.drain()
    except ConnectionError:
        pass


async def rapid_reset(port):
    async def act(connection):
        streams = range(1, 200_001, 2)
        await said_in_pieces(connection, (connection.request(stream) + RstStreamFrame(stream, error_code=8).serialize() for stream in streams))
    return await two(port, act)


async def settings_flood(port):
    """A hundred thousand settings, each of which is to be acknowledged; then nothing more."""
    async def act(connection):
        await said_in_pieces(connection, (SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65_535}).serialize() * 100 for _ in range(1000)))
        connection.line.writer.write_eof()
    return await two(port, act)


async def ping_flood(port):
    async def act(connection):
        await said_in_pieces(connection, (PingFrame(0, b"12345678").serialize() * 100 for _ in range(1000)))
        connection.line.writer.write_eof()
    return await two(port, act)


async def many_streams(port):
    """A thousand bodies that never come, where 128 are allowed at once."""
    async def act(connection):
        await said_in_pieces(connection, (connection.request(stream, ends=False, path="/embed", method="POST") for stream in range(1, 2001, 2)))
        await asyncio.sleep(BODY + 1)
        connection.line.writer.write_eof()
    return await two(port, act)


async def continuation_flood(port):
    async def act(connection):
        block = connection.headers()
        pieces = [HeadersFrame(1, block, flags=["END_STREAM"]).serialize()]
        pieces += [ContinuationFrame(1, connection.encoder.encode([(f"x-{number}", "y" * 4000)], huffman=False)).serialize() for number in range(20_000)]
        await said_in_pieces(connection, pieces)
    return await two(port, act)


async def headers_too_large(port):
    """Refused as one request, or with the connection."""
    async with Plain(port) as line:
        connection = Two(line)
        connection.begin()
        block = connection.headers(more=[(f"x-{number}", "y" * 1000) for number in range(200)])
        pieces = [block[at:at + 16_000] for at in range(0, len(block), 16_000)]
        line.say(HeadersFrame(1, pieces[0], flags=["END_STREAM"]).serialize())
        for at, piece in enumerate(pieces[1:], 2):
            line.say(ContinuationFrame(1, piece, flags=["END_HEADERS"] if at == len(pieces) else []).serialize())
        ending = asyncio.create_task(connection.until_closed())
        await asyncio.wait([ending], timeout=1)
        refused = connection.frames.get("HeadersFrame", 0) + connection.frames.get("RstStreamFrame", 0)
        if not ending.done() and refused:
            ending.cancel()
            return "refused"
        return await ending


async def window_shut(port):
    """Answers that are asked for and never taken, by a client that seems alive."""
    async def act(connection):
        await said_in_pieces(connection, (connection.request(stream, path="/openapi.json") for stream in range(1, 200, 2)))
        while True:
            await asyncio.sleep(IDLE / 6)
            await said_in_pieces(connection, [PingFrame(0, b"12345678").serialize()])
    return await two(port, act, window=0)


async def data_by_drops(port):
    """A body of HTTP/2 by drops: its request is answered 408 or reset, whatever the connection then does."""
    async def act(connection):
        connection.line.say(connection.request(1, ends=False, path="/embed", method="POST"))
        try:
            for _ in range(50):
                connection.line.say(DataFrame(1, b" ").serialize())
                await asyncio.sleep(0.2)
                if connection.frames.get("HeadersFrame"):
                    connection.line.writer.write_eof()
                    return
        except (ConnectionError, RuntimeError):
            pass
    return await two(port, act)


CASES = [
    Case("headers by drops", headers_by_drops, ("closed", "408", "reset"), HEADER + IDLE, 100),
    Case("bodies of 12 MiB by drops", body_by_drops, ("408",), 2 * BODY, 8),
    Case("chunks by drops", body_by_chunks, ("408",), 3 * BODY, 8),
    Case("answers of 5 MB never read", answer_unread, ("closed",), 2 * WRITE + 1, 6),
    Case("half-open: headers, then shut", half_open, ("closed", "400", "reset"), 1, 50),
    Case("half-open: nothing said", silent, ("closed",), IDLE, 100),
    Case("reset instead of reading", vanished, ("gone",), 1, 200),
    Case("24 MiB in one text, 16 allowed", huge, ("413",), 10),
    Case("8 million brackets", nested, ("400", "422"), 10),
    Case("a payload 100,000 deep", nested_payload, ("400", "422"), 10),
    Case("a million keys", million_keys, ("422", "400"), 10),
    Case("a million texts", million_texts, ("422",), 10),
    Case("content-length too short", length_short, ("400",), IDLE),
    Case("content-length too long", length_long, ("408",), BODY),
    Case("two content-lengths", length_twice, ("400",), 1),
    Case("content-length and chunks", length_and_chunks, ("400",), IDLE),
    Case("a chunk of 2^72 bytes", chunk_huge, ("400",), 1),
    Case("1,000 requests pipelined", pipelined, ("1000 answered",), 5),
    Case("no HTTP at all", not_http, ("400", "closed", "reset"), 1),
    Case("HTTP/2: 100,000 streams reset at once", rapid_reset, ("goaway 11", "closed"), 10),
    Case("HTTP/2: 100,000 settings", settings_flood, ("closed", "goaway 11"), 15),
    Case("HTTP/2: 100,000 pings", ping_flood, ("closed", "goaway 11"), 15),
    Case("HTTP/2: 1,000 streams whose bodies never come", many_streams, ("closed", "goaway 11", "goaway 1", "goaway 7"), BODY + 3),
    Case("HTTP/2: 80 MB of CONTINUATION", continuation_flood, ("closed", "goaway 11", "goaway 1", "goaway 2"), 10),
    Case("HTTP/2: headers of 200 KB", headers_too_large, ("refused", "closed", "goaway 11", "goaway 1"), 2),
    Case("HTTP/2: answers, and no window for them", window_shut, ("closed",), 2 * WRITE + 1, 10),
    Case("HTTP/2: a body by drops", data_by_drops, ("closed",), 4 * BODY, 10),
]


async def tried(report, service, prober, case):
    prober.figures()
    began = time.monotonic()
    allowed = case.seconds + SLACK
    acting = [asyncio.wait_for(case.act(service.port), allowed + 10) for _ in range(case.at_once)]
    endings = await asyncio.gather(*acting, return_exceptions=True)
    took = time.monotonic() - began
    # Some hits at least, also beside what is over at once.
    await asyncio.sleep(max(0.0, 0.4 - took))
    hits = prober.figures()
    endings = [ending if isinstance(ending, str) else repr(ending) for ending in endings]
    wrong = [ending for ending in endings if ending not in case.ends]
    report.row("hostile", case.name, requests=case.at_once, failed=len(wrong), p99_ms=hits["p99_ms"], max_ms=hits["max_ms"],
               note=f"{', '.join(sorted(set(endings)))} after {took:.1f} s")
    judge(report, case, wrong, took, allowed, hits)


def judge(report, case, wrong, took, allowed, hits):
    report.expect(not wrong, f"{case.name}: ended with {sorted(set(wrong))[:3]}, not with {case.ends}")
    report.expect(took <= allowed, f"{case.name}: over after {took:.1f} s, {allowed:.1f} are allowed")
    report.expect(not hits["failed"], f"{case.name}: {hits['failed']} hits failed: {hits['why']}")
    report.expect(hits["p99_ms"] <= HIT_P99_MS_MAX, f"{case.name}: hits take {hits['p99_ms']:.0f} ms (p99)")


async def scene(trial):
    report = trial.report
    with Service("hostile", **SETTINGS) as service:
        # What the unread answers are of.
        wire = Wire(service.port)
        await wire.ask("POST", "/embed", {"inputs": [f"unread {number}" for number in range(4)]})
        wire.close()
        with Prober(service.port) as prober:
            before, files = service.own_bytes(), service.descriptors()
            async with Watch(service) as watch:
                for case in CASES:
                    await tried(report, service, prober, case)
            highest = watch.highest()
        quiet(service)
        after = service.own_bytes()
        report.row("hostile", "memory", note=f"{before / MIB:.0f} MiB before, at most {highest / MIB:.0f}, {after / MIB:.0f} after; "
                                            f"{files} descriptors before, {service.descriptors()} after")
        report.expect(highest - before <= GROWTH_BYTES_MAX, f"hostile: {highest / MIB:.0f} MiB at most, {before / MIB:.0f} before")
        report.expect(service.descriptors() <= files, f"hostile: {service.descriptors()} descriptors after, {files} before")
        report.expect(not service.panics(), f"hostile: {service.panics()[:1]}")
