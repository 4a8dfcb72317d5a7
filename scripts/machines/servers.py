"""Servers of Redis on loopback: one, or a cluster of three masters with a replica each; and the few words of their protocol that are needed."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

SLOTS = 16384


class Refused(Exception):
    """What a server says instead of an answer."""


def until(what, happened, seconds=30, pause=0.005):
    """Polls until something is so. Answers with what that was."""
    deadline = time.monotonic() + seconds
    while True:
        if found := happened():
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(pause)


def free_port():
    """A port that nobody listens on, nor on the one 10,000 above it: a cluster's servers talk there. Below those of outgoing connections."""
    for port in range(10_000 + os.getpid() * 7 % 10_000, 22_000):
        if port in free_port.given:
            continue
        try:
            for tried in (port, port + 10_000):
                with socket.socket() as listener:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind(("127.0.0.1", tried))
        except OSError:
            continue
        free_port.given.add(port)
        return port
    raise OSError("no free port")


free_port.given = set()


class Connection:
    """Asks one server. Answers are bytes, numbers, lists of both, or None."""

    def __init__(self, port, seconds=5):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.reader = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.reader.close()
        self.socket.close()

    def ask(self, *words):
        answer, = self.ask_all([words])
        if isinstance(answer, Refused):
            raise answer
        return answer

    def ask_all(self, commands):
        """Many at once. What was refused is among the answers."""
        self.socket.sendall(b"".join(self.encoded(words) for words in commands))
        return [self.answer() for _ in commands]

    @staticmethod
    def encoded(words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)

    def answer(self):
        line = self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server has closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            return Refused(rest.decode())
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if int(rest) < 0:
            return None
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        return self.reader.read(int(rest) + 2)[:-2]


class Server:
    """One that keeps nothing on disk."""

    def __init__(self, *options):
        self.port, self.options, self.process = free_port(), options, None
        self.folder = tempfile.mkdtemp(prefix="fleet-redis-")

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def start(self):
        command = [os.environ.get("REDIS_SERVER", "redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder,
                   "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", *self.options]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until("a server of Redis answers", lambda: self.says("PING"))

    def ask(self, *words):
        with Connection(self.port) as connection:
            return connection.ask(*words)

    def says(self, *words):
        """The answer as text; empty if there is none."""
        try:
            answer = self.ask(*words)
        except (OSError, Refused):
            return ""
        return answer.decode() if isinstance(answer, bytes) else str(answer)

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Single:
    """One server."""

    def __init__(self, *options):
        self.server = Server(*options)
        self.servers = [self.server]

    @property
    def url(self):
        return self.server.url

    def start(self):
        self.server.start()


class Cluster:
    """Three masters, each with a replica that takes over after a second and a half or so."""

    def __init__(self):
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-replica-validity-factor", "0")
        self.servers = [Server(*options) for _ in range(6)]
        self.masters, self.replicas = self.servers[:3], self.servers[3:]

    @property
    def url(self):
        return "redis-cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self):
        for server in self.servers:
            server.start()
        for at, master in enumerate(self.masters):
            master.ask("CLUSTER", "ADDSLOTSRANGE", at * SLOTS // 3, (at + 1) * SLOTS // 3 - 1)
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        for server in self.servers[1:]:
            server.ask("CLUSTER", "MEET", "127.0.0.1", self.masters[0].port)
        until("all servers of the cluster know each other",
              lambda: all("cluster_known_nodes:6" in server.says("CLUSTER", "INFO") for server in self.servers))
        for replica, master in zip(self.replicas, self.masters):
            name = master.says("CLUSTER", "MYID")
            until("a replica knows its master", lambda: replica.says("CLUSTER", "REPLICATE", name) == "OK")
        until("the cluster is whole", self.is_whole)

    def is_whole(self):
        """Every server is there, and every replica follows."""
        def follows(server):
            said = server.says("INFO", "replication")
            return "role:master" in said or "master_link_status:up" in said
        return all("cluster_state:ok" in server.says("CLUSTER", "INFO") and follows(server) for server in self.servers)

    def master_of(self, name):
        """Whoever keeps this name now."""
        slot = int(self.masters[0].says("CLUSTER", "KEYSLOT", name))
        for first, last, (_, port, *_), *_ in self.masters[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == port)
        raise LookupError(f"nobody keeps slot {slot}")

    def slots_in_use(self, server):
        """Slots of a server's that hold anything."""
        with Connection(server.port) as connection:
            own = connection.ask("CLUSTER", "SLOTS")
            slots = [slot for first, last, (_, port, *_), *_ in own if port == server.port for slot in range(first, last + 1)]
            counts = connection.ask_all([("CLUSTER", "COUNTKEYSINSLOT", slot) for slot in slots])
        return [slot for slot, count in zip(slots, counts) if count]

    def move_slot(self, slot, source, target):
        """Moves a slot with all that it holds. Answers with how many that were."""
        names = [server.says("CLUSTER", "MYID") for server in (source, target)]
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
        moved = 0
        with Connection(source.port) as connection:
            while keys := connection.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
                connection.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", *keys)
                moved += len(keys)
        for server in (target, source, *(other for other in self.masters if other not in (source, target))):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", names[1])
        return moved
