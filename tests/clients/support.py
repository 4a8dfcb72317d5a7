"""What every client test shares: the server under test, its counters, the fixture texts and their golden vectors.

The server is `vecmemo serve`, started once a session on a free port with an empty data folder:

- VECMEMO_BIN: the binary (target/debug/vecmemo); VECMEMO_MODEL: the model (all-MiniLM-L6-v2, read from models/).
- VECMEMO_URL: a server that runs already, instead; then nothing is started or stopped, and its data folder is not read.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = os.environ.get("VECMEMO_MODEL", "all-MiniLM-L6-v2")
READY_WITHIN_S = 120
STOPPED_WITHIN_S = 30

# The one place that knows metric names.
ITEMS_BY_STATUS = "vecmemo_items_total"


class Server:
    """A running vecmemo."""

    def __init__(self, url, process=None, data_dir=None, key=None):
        self.url = url.rstrip("/")
        self.key = key
        self.process = process
        self.data_dir = data_dir

    def metrics(self):
        """The text of /metrics."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/metrics", headers=headers), timeout=10) as answer:
            return answer.read().decode()

    def items(self, status):
        """How many texts were answered so far with this provenance, by /metrics."""
        found = re.findall(rf'^{ITEMS_BY_STATUS}{{[^}}]*status="{status}"[^}}]*}} ([0-9.e+]+)', self.metrics(), re.MULTILINE)
        assert found, f"no {ITEMS_BY_STATUS}{{status={status!r}}} in /metrics"
        return sum(map(float, found))

    def computed(self):
        """How many texts the model was run for so far."""
        return self.items("computed")

    def ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


def binary():
    """The program under test."""
    return str(Path(os.environ.get("VECMEMO_BIN", ROOT / "target/debug/vecmemo")).resolve())


def start(data_dir, log, key=None, keys_file=None):
    """Starts the server on a free port and waits until it would answer. `key`: a single one for everything, `keys_file`: others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary(), "serve", "--listen", f"127.0.0.1:{port}", "--data-dir", str(data_dir), "--model", MODEL]
    settings = {"VECMEMO_API_KEY": key, "VECMEMO_KEYS_FILE": keys_file and str(keys_file)}
    environment = {**os.environ, **{name: value for name, value in settings.items() if value}}
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
    server = Server(f"http://127.0.0.1:{port}", process, data_dir, key)
    until = time.monotonic() + READY_WITHIN_S
    while not server.ready():
        assert process.poll() is None, f"{' '.join(command)} ended with {process.returncode} before it was ready"
        assert time.monotonic() < until, f"not ready within {READY_WITHIN_S} s"
        time.sleep(0.05)
    return server


def new_key(tenant, scopes):
    """A key of a tenant: the table for the server's file, and the key itself."""
    command = [binary(), "keys", "new", "--id", f"{tenant}-{scopes[0]}", "--tenant", tenant, "--scope", ",".join(scopes)]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    return made.stdout, made.stderr.strip().splitlines()[-1]


def stop(server):
    """Asks the server to end, as an orchestrator does, and gives its exit code."""
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise


class Texts:
    """The fixture texts and the vectors that sentence-transformers gives them."""

    def __init__(self):
        with open(ROOT / "tests/data/texts.jsonl", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        self.ids = [row["id"] for row in rows]
        self.texts = [row["text"] * row.get("repeat", 1) for row in rows]
        self.tokens = [row["tokens"] for row in rows]
        self.raw = numpy.load(ROOT / "tests/data/golden/all-MiniLM-L6-v2.npy")
        self.unit = self.raw / numpy.linalg.norm(self.raw, axis=1, keepdims=True)
        self.real = [index for index, name in enumerate(self.ids) if not name.startswith("edge-")]

    def share(self, client, count=20):
        """`count` real texts of a client's own, long and short: (texts, their golden unit vectors)."""
        indexes = self.real[CLIENTS.index(client):: len(CLIENTS)][:count]
        assert len(indexes) == count
        return [self.texts[index] for index in indexes], self.unit[indexes]


# Each takes texts of its own, so that the first run of each has to compute.
CLIENTS = ["openai", "openai-async", "huggingface_hub", "huggingface_hub-async", "langchain", "llama-index", "llama-index-async", "haystack-texts",
           "haystack-documents", "litellm", "raw-formats", "raw-order", "raw-cache", "store-file"]


def cosines(vectors, golden):
    """Row by row, whatever the vectors' norms."""
    vectors = numpy.asarray(vectors, dtype=numpy.float64)
    assert vectors.shape == golden.shape, (vectors.shape, golden.shape)
    return (vectors * golden).sum(axis=1) / numpy.linalg.norm(vectors, axis=1) / numpy.linalg.norm(golden, axis=1)


def embeds_right_then_from_cache(server, share, embed):
    """Runs a client twice over its texts: right vectors, then the same ones with nothing computed."""
    texts, golden = share
    before = server.computed()
    first = numpy.asarray(embed(texts))
    computed = server.computed() - before
    assert 0 < computed <= len(texts) or os.environ.get("VECMEMO_URL"), f"{computed} computed for {len(texts)} new texts"
    assert cosines(first, golden).min() >= 0.9999
    between = server.computed()
    second = numpy.asarray(embed(texts))
    assert server.computed() == between, "the second run computed something"
    assert numpy.array_equal(first, second)
    return first
