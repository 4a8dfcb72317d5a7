"""Hits while more is missed than the model can compute."""

import asyncio
import json
import sys
from pathlib import Path

from service import MIB, Prober, Service, Watch, quiet

TIMES_MAX = 3
# Of a hit that takes less than this nobody can tell what it waited for on processors that others use too. The short form is run beside whatever
# else there is, and finds only what stops hits altogether; the long form is for a machine that does nothing else.
P99_MS_FLOOR = {"short": 1000.0, "long": 2.0}
CONNECTIONS = 1100
TEXTS = 32
SETTINGS = {"request_memory_bytes_max": 64 * MIB, "body_bytes_max": 16 * MIB, "answer_memory_bytes_max": 64 * MIB,
            "waiting_memory_bytes_max": 64 * MIB, "queue_texts_max": 16384}
# Threads that others wait for while they work; all that compute stand back for them.
URGENT = ("vecmemo-http", "vecmemo-writer", "store-")
URGENT_SECONDS_MAX = 1
# What a connection may buffer, and a text that waits: ids, ticket, place, what is stored with it.
CONNECTION_BYTES, QUEUED_BYTES = 64 << 10, 4 << 10


def bound(before):
    """The most of its own memory that the service may have with these settings."""
    memories = sum(SETTINGS[name] for name in ("request_memory_bytes_max", "answer_memory_bytes_max", "waiting_memory_bytes_max"))
    return before + memories + CONNECTIONS * CONNECTION_BYTES + SETTINGS["queue_texts_max"] * QUEUED_BYTES


async def flooded(port, seconds):
    """Two processes' worth of misses. Yields once while they run at full, and once they are through."""
    command = [sys.executable, str(Path(__file__).with_name("flood.py")), str(port), str(CONNECTIONS // 2), str(TEXTS), str(seconds)]
    floods = [await asyncio.create_subprocess_exec(*command, str(seed), stdout=asyncio.subprocess.PIPE) for seed in (1, 2)]
    return floods


async def scene(trial):
    report, seconds = trial.report, 20 if trial.is_short else 60
    with Service("shed", **SETTINGS, search_enabled="false") as service, Prober(service.port) as prober:
        prober.figures()
        await asyncio.sleep(seconds / 2)
        alone = prober.figures()
        before = service.own_bytes()
        async with Watch(service) as watch:
            floods = await flooded(service.port, seconds)
            # All have connected and asked once.
            await asyncio.sleep(4)
            prober.figures()
            depths = []
            for _ in range(seconds - 6):
                await asyncio.sleep(1)
                lanes = service.stats()["queue"]["lanes"] if len(depths) % 4 == 0 else None
                if lanes:
                    depths.append(max(lane["texts"] / lane["texts_max"] for lane in lanes))
            busy = prober.figures()
            said = []
            for flood in floods:
                await flood.stdout.readline()
            for flood in floods:
                said.append(json.loads(await flood.stdout.readline()))
                await flood.wait()
            obeying = prober.figures()
        pushing = [(thread, seconds) for thread, niceness, seconds in service.threads()
                   if niceness < 10 and seconds > URGENT_SECONDS_MAX and not thread.startswith(URGENT)]
        total = {word: sum(one[word] for one in said) for word in ("served", "refused", "problems", "obeyed", "obeyed_served")}
        why = [problem for one in said for problem in one["why"]]
        quiet(service, others=1)
        after, highest = service.own_bytes(), watch.highest()
        allowed = max(P99_MS_FLOOR["short" if trial.is_short else "long"], TIMES_MAX * alone["p99_ms"])
        name = "misses shed"
        report.row(name, "hits alone", requests=alone["asked"], failed=alone["failed"], p50_ms=alone["p50_ms"], p99_ms=alone["p99_ms"], max_ms=alone["max_ms"])
        report.row(name, f"hits beside {CONNECTIONS:,} connections that miss", requests=busy["asked"], failed=busy["failed"], p50_ms=busy["p50_ms"],
                   p99_ms=busy["p99_ms"], max_ms=busy["max_ms"], note=f"{busy['p99_ms'] / alone['p99_ms']:.1f} times the p99 alone")
        report.row(name, "misses", requests=total["served"] + total["refused"], failed=total["problems"], p99_ms=max(one["refused_p99_ms"] for one in said),
                   note=f"{total['refused']:,} refused (their p99), retry-after at most {max(one['retry_after_max'] for one in said)} s; "
                        f"queue at most {max(depths, default=0):.0%} of its lane")
        report.row(name, "obeyed Retry-After", requests=total["obeyed"], failed=total["obeyed"] - total["obeyed_served"])
        report.row(name, "memory", note=f"{before / MIB:.0f} MiB before, at most {highest / MIB:.0f}, {after / MIB:.0f} after; bound {bound(before) / MIB:.0f}")
        report.expect(not alone["failed"] and not busy["failed"] and not obeying["failed"], f"{name}: hits failed: {alone['why'] + busy['why'] + obeying['why']}")
        report.expect(not alone["missed"] and not busy["missed"], f"{name}: {busy['missed']} of what had been cached was computed")
        report.expect(busy["p99_ms"] <= allowed, f"{name}: hits take {busy['p99_ms']:.1f} ms (p99), {allowed:.1f} are allowed")
        report.expect(total["refused"] > CONNECTIONS and total["served"], f"{name}: {total['refused']} refused, {total['served']} served: not what is to be shown")
        report.expect(not total["problems"], f"{name}: {total['problems']} misses ended in another way: {why}")
        report.expect(total["obeyed"] and total["obeyed"] == total["obeyed_served"],
                      f"{name}: {total['obeyed_served']} of {total['obeyed']} who obeyed Retry-After were served")
        report.expect(highest <= bound(before), f"{name}: {highest / MIB:.0f} MiB, bound {bound(before) / MIB:.0f}")
        report.expect(not pushing, f"{name}: these compute with the urgency of those that answer hits: {pushing}")
        report.expect(not service.panics(), f"{name}: {service.panics()[:1]}")
