"""Bad requests in great number, made of good ones by changes that a seed decides: none may be a 5xx or leave anything behind."""

import asyncio
import collections
import json
import random

from service import MIB, Left, Prober, Service, Wire, quiet

SEED = 20_261_122
CLIENTS = 8
GROWTH_BYTES_MAX = 24 * MIB

KEY = "0123456789abcdef" * 4
GOOD = [
    ("POST", "/embed", {"inputs": ["a", "b"], "truncate": True, "truncation_direction": "left", "normalize": True, "tags": ["t"], "ttl": 60,
                        "payload": {"a": [1]}, "pinned": False, "cache": "use", "namespace": "n"}),
    ("POST", "/embed?details=true", {"inputs": "a", "parameters": {"normalize": False}, "reuse": {"min_similarity": 0.98}}),
    ("POST", "/", {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}}),
    ("POST", "/v1/embeddings", {"input": ["a", "b"], "model": "tiny-mean", "encoding_format": "base64", "dimensions": None, "user": "u"}),
    ("POST", "/tokenize", {"inputs": ["a b"], "add_special_tokens": True}),
    ("POST", "/lookup", {"inputs": ["a"], "namespace": "n"}),
    ("POST", "/lookup", {"keys": [KEY]}),
    ("POST", "/search", {"inputs": ["a"], "k": 3, "min_similarity": 0.1, "exact": True, "namespace": "n", "tags": ["t"]}),
    ("POST", "/search", {"vectors": [[0.5, -0.5]], "k": 3}),
    ("POST", "/invalidate", {"tags": ["t"], "mode": "soft", "dry_run": True}),
    ("POST", "/invalidate", {"older_than": 60, "tag_glob": "t*", "reason": "r"}),
    ("POST", "/events", {"type": "document.updated", "subject": "7", "data": {"a": "b"}}),
    ("POST", "/admin/migrations", {"from": "tiny-mean", "to": "other"}),
    ("PUT", "/admin/aliases/tiny-mean", {"model": "tiny-mean"}),
    ("PUT", "/admin/cache", {"enabled": True}),
    ("GET", f"/entries/{KEY}", None),
    ("DELETE", f"/entries/{KEY}", None),
    ("GET", f"/similar?key={KEY}&k=3", None),
    ("GET", "/v1/models", None),
    ("GET", "/stats", None),
    ("GET", "/metrics", None),
]
VALUES = [None, True, -1, 0, 1e308, 2**64, 2**63, "", "\u0000", "\ud83d\ude00" * 50, "x" * 5000, [], [[]], {}, {"a": {}}, [None], [1, "a"], float("1e-300"), "*" * 300,
          ["t"] * 300, {"inputs": "a"}, [0.0] * 64, [[0.0] * 64], KEY, ["zz"], -0.0]
HEADERS = ["content-type: text/plain", "content-type: application/octet-stream", "content-type: ", "accept: application/x-npy;dtype=f64", "accept: text/html", "accept: */*;q=0",
           "x-request-timeout: -1", "x-request-timeout: nan", "x-priority: now", "x-request-id: " + "y" * 300, "expect: 200-ok",
           "content-encoding: gzip", "transfer-encoding: identity", "accept: application/octet-stream", "x-priority: warm-up", "authorization: Bearer x"]


def changed(chance):
    """One request: method, path, body in bytes or none, headers."""
    method, path, body = chance.choice(GOOD)
    body = json.loads(json.dumps(body))
    headers = ["content-type: application/json"]
    for _ in range(chance.choice((1, 1, 2, 3))):
        kind = chance.randrange(8)
        if kind == 0:
            method = chance.choice(("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BREW"))
        elif kind == 1:
            path = chance.choice((path + "/", path + "?model=%FF", path + "?details=maybe", path.upper(), "/" + "x" * 3000, path + "?" + "a=b&" * 200, "//", "/%2e%2e/etc", "/entries/zz",
                                  "/similar?key=zz", "/similar?k=-1", path.replace(KEY, KEY[:-1]), "/v1/nothing"))
        elif kind == 2:
            headers.append(chance.choice(HEADERS))
        elif isinstance(body, dict) and body:
            place, name = body, chance.choice(list(body))
            while isinstance(place[name], dict) and place[name] and chance.randrange(2):
                place = place[name]
                name = chance.choice(list(place))
            if kind in (3, 4):
                place[name] = chance.choice(VALUES)
            elif kind == 5:
                place[chance.choice((name + "s", "", "x" * 200, name.upper()))] = place.pop(name)
            elif kind == 6:
                del place[name]
            else:
                place["extra"] = chance.choice(VALUES)
    data = None if body is None else json.dumps(body).encode()
    if data and chance.randrange(3) == 0:
        data = broken(data, chance)
    return method, path, data, headers


def broken(data, chance):
    """Cut, doubled, or with some bytes that are others."""
    kind = chance.randrange(4)
    if kind == 0:
        return data[:chance.randrange(len(data))]
    if kind == 1:
        return data + data
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 4))):
        at = chance.randrange(len(data))
        if kind == 2:
            data[at] = chance.randrange(256)
        else:
            data[at:at] = chance.choice((b"{", b"[", b"\"", b"\\u0000", b"\xff\xfe", b"9" * 400, b"\\ud800", b"/*"))
    return bytes(data)


class Asker(Wire):
    """With the headers as they are given: there may be several of a kind."""

    async def asked(self, method, path, data, headers):
        if not self.writer:
            await self.open()
        lines = [f"{method} {path} HTTP/1.1", "host: x", *headers, *([] if data is None else [f"content-length: {len(data)}"])]
        try:
            self.writer.write("\r\n".join([*lines, "", ""]).encode() + (data or b""))
            answer = await asyncio.wait_for(self.read_of(method), self.seconds)
        except (Left, OSError, asyncio.TimeoutError):
            self.close()
            raise
        if answer[1].get("connection") == "close":
            self.close()
        return answer

    async def read_of(self, method):
        if method != "HEAD":
            return await self.read()
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.close()
        return int(head.split(b" ")[1]), {}, b""


def judge(report, counts, problems, panics):
    bad = {status: count for status, count in counts.items() if status >= 500}
    report.expect(not bad, f"bad: answered {bad}: {problems[:3]}")
    report.expect(not panics, f"bad: {panics[:1]}")
    refused = sum(count for status, count in counts.items() if 400 <= status < 500)
    report.expect(refused >= sum(counts.values()) / 2, f"bad: {refused} of {sum(counts.values())} were refused: they are not bad")
    report.expect(not [one for one in problems if isinstance(one, str)], f"bad: no answer: {[one for one in problems if isinstance(one, str)][:3]}")


async def scene(trial):
    report, count = trial.report, 5000 if trial.is_short else 100_000
    with Service("bad", search_enabled="true") as service, Prober(service.port) as prober:
        # What the first requests of their kind make once: the index, threads, buffers.
        await send(service, SEED + 1, 2000)
        quiet(service, others=1)
        await asyncio.sleep(1)
        before, files = service.own_bytes(), service.descriptors()
        prober.figures()
        counts, problems = await send(service, SEED, count)
        hits = prober.figures()
        quiet(service, others=1)
        await asyncio.sleep(1)
        after, files_after = service.own_bytes(), service.descriptors()
        judge(report, counts, problems, service.panics())
        said = ", ".join(f"{status}: {count:,}" for status, count in sorted(counts.items()))
        report.row("bad requests", f"seed {SEED}", requests=sum(counts.values()), failed=sum(number for status, number in counts.items() if status >= 500), note=said)
        report.row("bad requests", "hits beside them", requests=hits["asked"], failed=hits["failed"], p50_ms=hits["p50_ms"], p99_ms=hits["p99_ms"], max_ms=hits["max_ms"])
        report.row("bad requests", "memory", note=f"{before / MIB:.1f} MiB before, {after / MIB:.1f} after; {files} descriptors before, {files_after} after")
        report.expect(after - before <= GROWTH_BYTES_MAX, f"bad: own memory {before / MIB:.1f} MiB before, {after / MIB:.1f} after")
        report.expect(files_after <= files, f"bad: {files} descriptors before, {files_after} after")
        # Some of what is sent invalidates, and is done.
        report.expect(not hits["failed"], f"bad: hits failed: {hits['why']}")


async def send(service, seed, count):
    counts, problems = collections.Counter(), []

    async def client(number):
        chance, wire = random.Random(seed * 1000 + number), Asker(service.port)
        for _ in range(count // CLIENTS):
            request = changed(chance)
            try:
                status, _, body = await wire.asked(*request)
            except (Left, OSError, asyncio.TimeoutError) as problem:
                problems.append(f"{problem!r} to {str(request)[:200]}")
                continue
            counts[status] += 1
            if status >= 500:
                problems.append((status, request, body[:200]))
        wire.close()

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return counts, problems
