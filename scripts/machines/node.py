"""Machines of the fleet: processes of vecmemo with folders of their own."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from servers import until

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "tests/data/models/tiny-mean"


def program():
    """The program that is tried."""
    built = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/vecmemo"
    return str(Path(os.environ.get("VECMEMO_BIN", built)).resolve())


class Node:
    """One machine. Without a URL it has no tier."""

    def __init__(self, name, url=None, model=TINY, **settings):
        self.name, self.process, self.port = name, None, None
        self.folder = tempfile.mkdtemp(prefix=f"fleet-{name}-")
        self.arguments = ["serve", "--listen", "127.0.0.1:0", "--data-dir", "data", "--capacity-entries", "131072", "--model", str(model),
                          "--models-dir", str(ROOT / "models")]
        # What is measured at the start and decided by that may differ between two machines that are equal: not here.
        self.settings = {"VECMEMO_PRECISION": "f32", **({"VECMEMO_REMOTE_URL": url} if url else {}), **settings}

    def command(self):
        return [program(), *self.arguments]

    def start(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VECMEMO_")}
        log = Path(self.folder) / "log"
        with log.open("a") as out:
            begin = out.tell()
            self.process = subprocess.Popen(self.command(), cwd=self.folder, env={**environment, **self.settings},
                                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=out)

        def port():
            said = log.read_text()[begin:]
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} does not start: {said.strip()[-2000:]}")
            return re.search(r"curl -s http://127\.0\.0\.1:(\d+)/embed", said)

        self.port = int(until(f"{self.name} is ready", port, 120)[1])

    def ask(self, method, path, body=None):
        """The status and the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, path, body):
        status, answer = self.ask("POST", path, body)
        if status != 200:
            raise RuntimeError(f"{self.name}: {path}: {status}: {answer[:500]!r}")
        return json.loads(answer)

    def items(self, texts, **more):
        """Each text's item, with where its vector came from."""
        return self.post("/embed?details=true", {"inputs": texts, **more})["items"]

    def cached(self, texts):
        return [item["cached"] for item in self.post("/lookup", {"inputs": texts})["items"]]

    def keys(self, texts):
        return [bytes.fromhex(item["key"]) for item in self.post("/lookup", {"inputs": texts})["items"]]

    def tier(self):
        """How the tier stands, as `/stats` says."""
        return json.loads(self.ask("GET", "/stats")[1])["remote"]

    def is_settled(self):
        """Served by the tier, with nothing left to tell."""
        try:
            tier = self.tier()
        except (OSError, http.client.HTTPException):
            return False
        return tier["ready"] and tier["notices_pending"] == 0

    def has_written(self):
        return self.tier()["queue"] == 0

    def kill(self):
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def end(self):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
