"""SIGTERM under load: what was accepted is answered, and what was not may be asked again.

How a client tells: an answer other than 503, or a part of one, says that the request was accepted. A 503 with `Connection: close` says that it was not. A
connection that ends without a byte of an answer says that nothing was done of it only where it had been kept from an earlier request, as every client of
HTTP/1.1 has to expect (RFC 9112, 9.3.1): there the server closes while the request is on its way. A first request that gets nothing back is lost.
"""

import asyncio
import collections
import time

from service import Left, Service, Wire, percentile

CLIENTS = 64


class Load:
    def __init__(self, service):
        self.service, self.counts, self.lost, self.took = service, collections.Counter(), [], []
        self.stopping = None

    async def client(self, number):
        wire, count = Wire(self.service.port, 40), 0
        while True:
            count += 1
            # Hits and misses in turn; a fifth of the clients connect anew for each.
            inputs = [f"known {number}"] if count % 2 else [f"ending {number} {count} {of}" for of in range(8)]
            kept = bool(wire.writer and wire.answered)
            began = time.monotonic()
            try:
                if not wire.writer:
                    await wire.open()
            except Left:
                self.counts["not connected"] += 1
                if self.stopping is None:
                    self.lost.append("not connected before the end")
                return
            try:
                status, headers, _ = await wire.ask("POST", "/embed", {"inputs": inputs})
            except Left as left:
                self.ended(kept, left)
                if self.stopping is not None:
                    return
                continue
            self.counts[status] += 1
            if status == 503 and headers.get("connection") == "close" and self.stopping is not None:
                return
            if status != 200:
                self.lost.append(f"status {status}")
                return
            self.took.append(1000 * (time.monotonic() - began))
            if number % 5 == 0:
                wire.close()

    def ended(self, kept, left):
        if left.begun:
            self.counts["cut"] += 1
            self.lost.append("an answer was cut")
        elif kept:
            self.counts["closed, kept"] += 1
            if self.stopping is None:
                self.lost.append("a kept connection was closed before the end")
        else:
            self.counts["closed, new"] += 1
            self.lost.append(f"a new connection's request got nothing back: {left}")


async def scene(trial):
    report = trial.report
    rounds = 3 if trial.is_short else 20
    counts, took, lasted = collections.Counter(), [], []
    for _ in range(rounds):
        with Service("ending", drain_timeout_seconds=20) as service:
            load = Load(service)
            asking = [asyncio.create_task(load.client(number)) for number in range(CLIENTS)]
            await asyncio.sleep(1.5)
            load.stopping = time.monotonic()
            service.terminate()
            await asyncio.gather(*asking)
            status = await asyncio.to_thread(service.ended)
            lasted.append(time.monotonic() - load.stopping)
            counts += load.counts
            took += load.took
            report.expect(status == 0, f"ending: the service ended with {status}")
            report.expect(not load.lost, f"ending: {len(load.lost)} requests were lost: {load.lost[:3]}")
            report.expect(not service.panics(), f"ending: {service.panics()[:1]}")
    report.expect(counts[200], "ending: nothing was asked")
    report.row("SIGTERM under load", f"{rounds} times, {CLIENTS} clients", requests=sum(counts.values()), failed=counts["cut"] + counts["closed, new"], p50_ms=percentile(took, 50),
               p99_ms=percentile(took, 99), max_ms=max(took, default=0),
               note=f"answered {counts[200]:,}; refused (503, close) {counts[503]}; kept and closed before a byte {counts['closed, kept']}; "
                    f"not connected any more {counts['not connected']}; ended within {max(lasted):.1f} s")
