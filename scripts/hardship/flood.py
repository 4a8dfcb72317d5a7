"""Misses on very many connections, as a process: each asks again as soon as it is answered or refused. Ends after some seconds, then some of those who were
refused last do as they were told and ask once more after so long. Prints what became of all."""

import asyncio
import collections
import json
import os
import random
import sys
import time

from service import Left, Wire, percentile

# A refused client that does not do as it is told.
DEFIANT_PAUSE_SECONDS = 0.2
# Of those who were refused last so many obey.
OBEDIENT = 100


class Flood:
    def __init__(self, port, connections, texts, seconds, seed):
        self.port, self.connections, self.texts, self.seconds, self.seed = port, connections, texts, seconds, seed
        self.counts, self.problems, self.retry_after, self.refused_ms = collections.Counter(), [], [], []
        self.refused = []

    def body(self, chance):
        return {"inputs": [f"flood {chance.getrandbits(64):x} {number}" for number in range(self.texts)]}

    def told(self, headers):
        """How long a refused client is to wait, in seconds; a problem if it is not said."""
        said = headers.get("retry-after", "")
        if not said.isdigit() or not 1 <= int(said) <= 60:
            self.problems.append(f"429 with retry-after {said!r}")
            return 1
        self.retry_after.append(int(said))
        return int(said)

    async def one(self, number, until):
        chance, wire = random.Random(self.seed * 100_003 + number), Wire(self.port, 120)
        await asyncio.sleep(chance.random())
        body, last = self.body(chance), None
        while time.monotonic() < until:
            began = time.monotonic()
            last = None
            try:
                status, headers, _ = await wire.ask("POST", "/embed", body)
            except Left as left:
                self.counts["left"] += 1
                self.problems.append(str(left))
                await asyncio.sleep(DEFIANT_PAUSE_SECONDS)
                continue
            self.counts[status] += 1
            if status == 429:
                self.refused_ms.append(1000 * (time.monotonic() - began))
                last = (time.monotonic() + self.told(headers), wire, body)
                await asyncio.sleep(DEFIANT_PAUSE_SECONDS)
            elif status == 200:
                body = self.body(chance)
            else:
                self.problems.append(f"status {status}")
        if last:
            self.refused.append(last)

    async def obey(self, due, wire, body):
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        try:
            status, _, _ = await wire.ask("POST", "/embed", body)
        except Left as left:
            status = str(left)
        self.counts["obeyed"] += 1
        self.counts["obeyed and served"] += status == 200

    async def run(self):
        until = time.monotonic() + self.seconds
        await asyncio.gather(*(self.one(number, until) for number in range(self.connections)))
        print(json.dumps({"ended": True}), flush=True)
        random.Random(self.seed).shuffle(self.refused)
        await asyncio.gather(*(self.obey(*one) for one in self.refused[:OBEDIENT]))
        print(json.dumps({
            "served": self.counts[200], "refused": self.counts[429], "problems": len(self.problems), "why": sorted(set(self.problems))[:3],
            "obeyed": self.counts["obeyed"], "obeyed_served": self.counts["obeyed and served"], "refused_p99_ms": percentile(self.refused_ms, 99),
            "retry_after_max": max(self.retry_after, default=0),
        }), flush=True)


if __name__ == "__main__":
    # Others' requests come from other machines: this one's processors are for the service first.
    os.nice(10)
    asyncio.run(Flood(*map(int, sys.argv[1:])).run())
