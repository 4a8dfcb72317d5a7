"""Mixed traffic for as long as is wanted: hits, misses, searches, look-ups, invalidations, tags, lives, the configuration read again. Every vector is compared
with what the service itself has said of the text at the start; memory, descriptors and the store have to stand still."""

import asyncio
import collections
import json
import random
import time
from pathlib import Path

from service import MIB, Left, Service, Watch, Wire, packed, percentile

KNOWN = 2000
CAPACITY = 16_384
CLIENTS = 8
# One client asks so often at most: the generator is to leave the processors to the service.
PAUSE_SECONDS = 0.02
TTL_SECONDS = 2
GROUPS = 50
# Of the second half of the run: how much more at its end, by the line through all of it, than is within noise.
GROWTH_BYTES_MAX = 8 * MIB
GROWTH_SHARE_MAX = 0.05

POLICY = '[policies.documents]\nnamespaces = ["docs.*"]\nttl = {ttl}\n'
WORK = [("hit", 40), ("miss", 16), ("batch", 6), ("live", 0.5), ("search", 8), ("lookup", 8), ("npy", 4), ("openai", 4), ("invalidate", 3), ("reload", 0.5), ("stats", 1)]


class Mixed:
    def __init__(self, service, truth):
        self.service, self.truth = service, truth
        self.counts, self.failed, self.took = collections.Counter(), collections.Counter(), []
        self.wrong, self.evicted_hits, self.numbers = [], 0, iter(range(10**9))
        # Text of a group: when it was last invalidated, and when it was last asked for.
        self.invalidated = {}

    def texts(self, chance, count):
        return [chance.randrange(KNOWN) for _ in range(count)]

    def check(self, numbers, vectors):
        for number, vector in zip(numbers, vectors, strict=True):
            if packed(vector) != self.truth[number]:
                self.wrong.append(f"text {number}")

    async def one(self, kind, wire, chance):
        """Asks once, and judges the answer."""
        if kind in ("hit", "batch", "openai"):
            numbers = self.texts(chance, 1 if kind != "batch" else 32)
            group = numbers[0] % GROUPS
            inputs = [text(number) for number in numbers]
            if kind == "openai":
                _, _, body = await self.served(wire, "POST", "/v1/embeddings", {"input": inputs, "model": "tiny-mean", "encoding_format": "float"})
                return self.check(numbers, [item["embedding"] for item in json.loads(body)["data"]])
            _, _, body = await self.served(wire, "POST", "/embed", {"inputs": inputs, "tags": [f"group:{group}"], "namespace": "docs.mixed"})
            return self.check(numbers, json.loads(body))
        if kind == "npy":
            numbers = self.texts(chance, 4)
            _, headers, body = await self.served(wire, "POST", "/embed", {"inputs": [text(number) for number in numbers]}, ["accept: application/octet-stream"])
            size = len(body) // len(numbers)
            if [body[at:at + size] for at in range(0, len(body), size)] != [self.truth[number] for number in numbers]:
                self.wrong.append(f"rows of {numbers}")
            return None
        if kind == "miss":
            _, headers, body = await self.served(wire, "POST", "/embed", {"inputs": [f"new {next(self.numbers)}" for _ in range(chance.choice((1, 1, 8)))]})
            if not all(packed(vector) for vector in json.loads(body)) or "fwd=miss" not in headers["cache-status"]:
                self.wrong.append(f"a text never asked for: {headers['cache-status']}")
            return None
        if kind == "live":
            return await self.live(wire, chance)
        if kind == "search":
            number = chance.randrange(KNOWN)
            _, _, body = await self.served(wire, "POST", "/search", {"inputs": text(number), "k": 3, "exact": True})
            found = json.loads(body)["results"][0]
            if len(found) != 3 or any(one["similarity"] > two["similarity"] for two, one in zip(found, found[1:])):
                self.wrong.append(f"a search found {found}")
            return None
        if kind == "lookup":
            numbers = self.texts(chance, 16)
            _, _, body = await self.served(wire, "POST", "/lookup", {"inputs": [text(number) for number in numbers]})
            if len(json.loads(body)["items"]) != 16:
                self.wrong.append("a look-up of another length")
            return None
        if kind == "invalidate":
            mode = chance.choice(("hard", "soft"))
            await self.served(wire, "POST", "/invalidate", {"tags": [f"group:{chance.randrange(GROUPS)}"], "mode": mode})
            return None
        if kind == "reload":
            (Path(self.service.folder) / "vecmemo.toml").write_text(POLICY.format(ttl=chance.randrange(600, 900)))
            await self.served(wire, "POST", "/admin/reload", {})
            return None
        await self.served(wire, "GET", "/stats")
        return None

    async def live(self, wire, chance):
        """A text with a short life: a hit while it lives, and none after."""
        inputs = f"live {next(self.numbers)}"
        began = time.time()
        await self.served(wire, "POST", "/embed", {"inputs": inputs, "ttl": TTL_SECONDS})
        _, headers, _ = await self.served(wire, "POST", "/embed", {"inputs": inputs, "ttl": TTL_SECONDS})
        if "fwd=miss" in headers["cache-status"] and time.time() - began < TTL_SECONDS - 1:
            self.wrong.append("gone before its time")
        await asyncio.sleep(TTL_SECONDS + 1.1)
        status, _, _ = await wire.ask("POST", "/embed", {"inputs": inputs, "cache": "only"})
        if status != 404:
            self.wrong.append(f"an entry outlived its time: {status}")

    async def served(self, wire, method, path, body=None, headers=()):
        status, got, said = await wire.ask(method, path, body, headers)
        if status != 200:
            raise Left(f"{path}: {status}: {said[:200]!r}")
        return status, got, said

    async def client(self, seed, until):
        chance, wire = random.Random(seed), Wire(self.service.port)
        kinds, weights = zip(*WORK)
        while time.monotonic() < until:
            kind, = chance.choices(kinds, weights)
            began = time.monotonic()
            try:
                await self.one(kind, wire, chance)
            except Left as left:
                self.failed[str(left)[:120]] += 1
            self.counts[kind] += 1
            if kind == "hit":
                self.took.append(1000 * (time.monotonic() - began))
            await asyncio.sleep(PAUSE_SECONDS * 2 * chance.random())
        wire.close()


def text(number):
    return f"known {number} of {number * 7919 % 9973}"


def slope(rows):
    """By how much the line through points rises from the first to the last."""
    count = len(rows)
    if count < 2:
        return 0.0
    mean_time, mean_value = sum(at for at, _ in rows) / count, sum(value for _, value in rows) / count
    spread = sum((at - mean_time) ** 2 for at, _ in rows)
    rise = sum((at - mean_time) * (value - mean_value) for at, value in rows) / spread if spread else 0.0
    return rise * (rows[-1][0] - rows[0][0])


def judge(report, name, rows, panics):
    """What stands still has to: the second half of a watch."""
    half = rows[len(rows) // 2:]
    grown = slope([(at, own) for at, _, own, _ in half])
    mean = sum(own for _, _, own, _ in half) / len(half)
    opened = slope([(at, open_files) for at, _, _, open_files in half])
    allowed = max(GROWTH_BYTES_MAX, GROWTH_SHARE_MAX * mean)
    report.expect(grown <= allowed, f"{name}: own memory has grown by {grown / MIB:.1f} MiB in the second half, {allowed / MIB:.1f} is within noise")
    report.expect(opened < 2, f"{name}: {opened:.1f} descriptors more at the end of the second half")
    report.expect(not panics, f"{name}: {panics[:1]}")
    return grown, opened


async def scene(trial):
    report, seconds = trial.report, trial.mixed_seconds
    service = Service("mixed", sweep_seconds=2)
    service.arguments[service.arguments.index("--capacity-entries") + 1] = str(CAPACITY)
    (Path(service.folder) / "vecmemo.toml").write_text(POLICY.format(ttl=700))
    with service:
        truth = {}
        wire = Wire(service.port)
        for first in range(0, KNOWN, 50):
            numbers = range(first, first + 50)
            _, _, body = await wire.ask("POST", "/embed", {"inputs": [text(number) for number in numbers], "cache": "bypass"})
            truth.update(zip(numbers, map(packed, json.loads(body))))
        wire.close()
        report.expect(len(set(truth.values())) == KNOWN, "mixed: several texts have one vector: comparing shows nothing")
        mixed, every = Mixed(service, truth), max(0.25, seconds / 720)
        # Before the clock runs: what is made at first use (the index, buffers) and a store that is full.
        await fill(service)
        async with Watch(service, every) as watch:
            until = time.monotonic() + seconds
            await asyncio.gather(*(mixed.client(seed, until) for seed in range(CLIENTS)))
        store = service.stats()["store"]
        entries, capacity = store["entries"], store["capacity_entries"]
        name = f"mixed, {seconds / 60:.0f} min" if seconds >= 60 else f"mixed, {seconds:.0f} s"
        grown, opened = judge(report, name, watch.rows, service.panics())
        report.memory = [(at, resident, own) for at, resident, own, _ in watch.rows]
        report.row(name, "all", requests=sum(mixed.counts.values()), failed=sum(mixed.failed.values()), note=", ".join(f"{kind} {count:,}" for kind, count in mixed.counts.most_common()))
        report.row(name, "hits", requests=len(mixed.took), failed=0, p50_ms=percentile(mixed.took, 50), p99_ms=percentile(mixed.took, 99), max_ms=max(mixed.took, default=0))
        report.row(name, "answers that are wrong", requests=sum(mixed.counts.values()), failed=len(mixed.wrong))
        last = watch.rows[-1]
        report.row(name, "second half", note=f"own memory {last[2] / MIB:.0f} MiB at the end, {grown / MIB:+.1f} by its line; resident {last[1] / MIB:.0f} MiB; descriptors {opened:+.1f}; "
                                            f"{entries:,} entries of {capacity:,}")
        report.expect(not mixed.failed, f"{name}: failed: {dict(mixed.failed)}")
        report.expect(not mixed.wrong, f"{name}: wrong: {mixed.wrong[:3]}")
        report.expect(all(mixed.counts[kind] for kind, _ in WORK), f"{name}: nothing of some kinds was asked: {mixed.counts}")
        report.expect(entries <= capacity, f"{name}: {entries} entries, room for {capacity}")


async def fill(service):
    """Until the store has evicted: more is not to be had."""
    wire = Wire(service.port)
    for first in range(0, CAPACITY + 2048, 512):
        await wire.ask("POST", "/embed", {"inputs": [f"filler {number}" for number in range(first, first + 512)]})
    await wire.ask("POST", "/search", {"inputs": "filler", "k": 3})
    wire.close()
