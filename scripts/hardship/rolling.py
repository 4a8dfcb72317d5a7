"""Two nodes behind HAProxy, as deploy/haproxy has it but for TLS, restarted one after the other under load."""

import asyncio
import collections
import re
import subprocess
import tempfile
import time
from pathlib import Path

from service import ROOT, Left, Service, Wire, free_port, percentile, until

CLIENTS = 24
PAUSE_SECONDS = 0.01


def configuration(port, nodes):
    """The deployed one, with our addresses and without certificates."""
    text = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    changes = [
        (r"^    bind :80\n", f"    bind 127.0.0.1:{port}\n"),
        (r"^    bind :443 .*\n", ""),
        (r"^    http-request redirect scheme https.*\n", ""),
        (r"^    bind 127\.0\.0\.1:8405\n", f"    bind 127.0.0.1:{free_port()}\n"),
        *((rf"^(    server vecmemo-{at}) .*\n", rf"\1 127.0.0.1:{node}\n") for at, node in enumerate(nodes, 1)),
    ]
    for pattern, replaced in changes:
        text, count = re.subn(pattern, replaced, text, flags=re.MULTILINE)
        if count != 1:
            raise LookupError(f"deploy/haproxy/haproxy.cfg has {count} of {pattern}")
    return text


def is_asked(node):
    said = re.search(rb'vecmemo_http_requests_total\{route="/embed",status="2xx"\} (\d+)', node.ask("GET", "/metrics")[1])
    return said and int(said[1]) > 20


class Load:
    def __init__(self, port):
        self.port, self.stopped, self.counts, self.problems, self.took = port, False, collections.Counter(), [], []

    async def client(self, number):
        wire, count = Wire(self.port, 40), 0
        while not self.stopped:
            count += 1
            inputs = [f"known {number} {count % 10}"] if count % 4 else [f"rolling {number} {count} {of}" for of in range(4)]
            began = time.monotonic()
            try:
                status, _, body = await wire.ask("POST", "/embed", {"inputs": inputs})
            except Left as left:
                self.counts["left"] += 1
                self.problems.append(f"{left} on a connection with {wire.answered} answers")
                continue
            self.counts[status] += 1
            if status != 200:
                self.problems.append(f"{status}: {body[:100]!r}")
            self.took.append(1000 * (time.monotonic() - began))
            await asyncio.sleep(PAUSE_SECONDS)
        wire.close()


async def scene(trial):
    report, rounds = trial.report, 1 if trial.is_short else 5
    nodes = [Service(f"rolling-{at}", listen=f"127.0.0.1:{free_port()}") for at in (1, 2)]
    proxy = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            for node in nodes:
                # The same port after a restart.
                address = node.settings.pop("VECMEMO_LISTEN")
                node.arguments[node.arguments.index("--listen") + 1] = address
                node.start()
            port = free_port()
            (Path(folder) / "haproxy.cfg").write_text(configuration(port, [node.port for node in nodes]))
            with (Path(folder) / "log").open("w") as log:
                proxy = subprocess.Popen(["haproxy", "-f", f"{folder}/haproxy.cfg"], stdout=log, stderr=log)
            wire = Wire(port, 5)
            for _ in range(50):
                try:
                    if (await wire.ask("POST", "/embed", {"inputs": "known"}))[0] == 200:
                        break
                except Left:
                    pass
                await asyncio.sleep(0.1)
            wire.close()
            load, restarts = Load(port), []
            asking = [asyncio.create_task(load.client(number)) for number in range(CLIENTS)]
            await asyncio.sleep(2)
            for _ in range(rounds):
                for node in nodes:
                    began = time.monotonic()
                    node.terminate()
                    status = await asyncio.to_thread(node.ended)
                    report.expect(status == 0, f"rolling: {node.name} ended with {status}")
                    await asyncio.to_thread(node.start)
                    restarts.append(time.monotonic() - began)
                    # As deploying does: the next one goes once this one is asked again.
                    await asyncio.to_thread(until, "the proxy asks it again", lambda: is_asked(node), 30, 0.1)
            await asyncio.sleep(1)
            load.stopped = True
            await asyncio.gather(*asking)
            failed = len(load.problems)
            report.row("rolling restart behind HAProxy", f"{len(restarts)} restarts, {CLIENTS} clients", requests=sum(load.counts.values()), failed=failed,
                       p50_ms=percentile(load.took, 50), p99_ms=percentile(load.took, 99), max_ms=max(load.took, default=0), note=f"a restart takes at most {max(restarts):.1f} s")
            report.expect(load.counts[200] and not failed, f"rolling: {failed} requests failed: {load.problems[:3]}")
            for node in nodes:
                report.expect(not node.panics(), f"rolling: {node.panics()[:1]}")
        finally:
            if proxy:
                proxy.kill()
                proxy.wait()
            for node in nodes:
                node.end()
