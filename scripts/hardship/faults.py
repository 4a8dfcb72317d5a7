"""What a machine does to a service: its model's files vanish, its clock jumps, its disk is full or turns read-only. Hits and misses go on meanwhile.

A panic in the engine cannot be had from outside: `an_engine_that_fails_or_panics_fails_its_batch_and_nothing_else` in tests/it/cache.rs has it.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from service import TINY, Left, Service, Wire, packed, percentile, until

KNOWN = 200
CLIENTS = 6
OTHER = TINY.parent / "tiny-cls"
LIBRARIES = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1")


class Traffic:
    """Hits and misses with known vectors, from now until it is left."""

    def __init__(self, service, truth):
        self.service, self.truth, self.took, self.failed, self.wrong, self.stopped = service, truth, [], [], 0, False

    async def __aenter__(self):
        self.tasks = [asyncio.create_task(self.client(seed)) for seed in range(CLIENTS)]
        return self

    async def __aexit__(self, *_):
        self.stopped = True
        await asyncio.gather(*self.tasks)

    async def client(self, seed):
        chance, wire = random.Random(seed), Wire(self.service.port)
        while not self.stopped:
            number, is_new = chance.randrange(KNOWN), chance.randrange(2)
            # A miss that has a known vector: it is computed, and not stored.
            body = {"inputs": [text(number)], "cache": "bypass" if is_new and chance.randrange(2) else "use"}
            if is_new and body["cache"] == "use":
                body["inputs"].append(f"new {seed} {chance.getrandbits(60):x}")
            began = time.monotonic()
            try:
                status, _, said = await wire.ask("POST", "/embed", body)
                if status != 200:
                    self.failed.append(f"{status}: {said[:150]!r}")
                elif packed(json.loads(said)[0]) != self.truth[number]:
                    self.wrong += 1
            except Left as left:
                self.failed.append(str(left))
            self.took.append(1000 * (time.monotonic() - began))
            await asyncio.sleep(0.01)
        wire.close()

    def told(self, report, what, note=""):
        report.row("fault", what, requests=len(self.took), failed=len(self.failed), p50_ms=percentile(self.took, 50), p99_ms=percentile(self.took, 99),
                   max_ms=max(self.took, default=0), note=note)
        report.expect(self.took and not self.failed, f"{what}: {len(self.failed)} requests of {len(self.took)} failed: {self.failed[:2]}")
        report.expect(not self.wrong, f"{what}: {self.wrong} vectors were wrong")
        report.expect(not self.service.panics(), f"{what}: {self.service.panics()[:1]}")


def text(number):
    return f"fault {number} of {number * 7919 % 9973}"


def learn(service):
    return [packed(vector) for vector in service.post("/embed", {"inputs": [text(number) for number in range(KNOWN)]})]


async def scene(trial):
    seconds = 3 if trial.is_short else 20
    await model_gone(trial.report, seconds)
    await idle_model_gone(trial.report)
    await clock(trial.report)
    await disk_full(trial.report, seconds)
    await read_only(trial.report, seconds)


async def model_gone(report, seconds):
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny-mean"
        shutil.copytree(TINY, model)
        with Service("model-gone", model=model) as service:
            async with Traffic(service, learn(service)) as traffic:
                await asyncio.sleep(seconds / 2)
                shutil.rmtree(model)
                await asyncio.sleep(seconds)
            traffic.told(report, "the model's files deleted while it serves", "what is loaded goes on")


async def idle_model_gone(report):
    """A model that is loaded at need: without its files a miss is an error that says so, a hit is a hit; with them all is well again."""
    what = "an idle model's files away when it is needed"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny-cls"
        shutil.copytree(OTHER, model)
        service = Service("idle-gone")
        at = service.arguments.index("--model")
        del service.arguments[at:at + 2]
        (Path(service.folder) / "vecmemo.toml").write_text(
            f'[[model]]\nname = "mean"\nsource = "{TINY}"\n[[model]]\nname = "cls"\nsource = "{model}"\nidle_seconds = 1\n')
        with service:
            def loaded():
                return b'vecmemo_model_loaded{model="cls"} 1' in service.ask("GET", "/metrics")[1]

            known = service.post("/embed", {"inputs": "a text", "model": "cls"})
            until("the weights are dropped", lambda: not loaded())
            model.rename(Path(folder) / "away")
            hit = service.post("/embed", {"inputs": "a text", "model": "cls"})
            missed = [service.ask("POST", "/embed", {"inputs": f"new {number}", "model": "cls"}) for number in range(5)]
            other = service.ask("POST", "/embed", {"inputs": "new", "model": "mean"})[0]
            (Path(folder) / "away").rename(model)
            back = [service.ask("POST", "/embed", {"inputs": f"new {number}", "model": "cls"})[0] for number in range(5)]
            statuses = sorted({status for status, _ in missed})
            report.row("fault", what, requests=12, failed=0 if hit == known else 1, note=f"hit: as before; misses: {statuses}; the other model: {other}; files back: {sorted(set(back))}")
            report.expect(hit == known, f"{what}: a hit has changed")
            report.expect(statuses == [424], f"{what}: misses were answered {missed[:1]}")
            report.expect(other == 200 and set(back) == {200}, f"{what}: the other model {other}, after its files are back {back}")
            report.expect(not service.panics(), f"{what}: {service.panics()[:1]}")


async def clock(report):
    """The wall clock set while it serves: entries live by it, everything else by the one that only goes on."""
    what = "the clock set while it serves"
    library = next((path for path in LIBRARIES if os.path.exists(path)), None)
    if not library:
        report.row("fault", what, note="left out: no libfaketime here")
        return
    service = Service("clock", sweep_seconds=1)
    offset = Path(service.folder) / "offset"
    offset.write_text("+0\n")
    service.settings |= {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    with service:
        truth = learn(service)

        def store(name, **more):
            service.post("/embed", {"inputs": name, **more})

        def cached(*names):
            return service.cached(list(names))

        async def jump(seconds):
            offset.write_text(f"{seconds:+d}\n")
            # The sweep has seen it.
            await asyncio.sleep(2.5)

        async with Traffic(service, truth) as traffic:
            store("for ever")
            store("an hour", ttl=3600)
            store("a minute", ttl=60)
            seen = [("now", cached("for ever", "an hour", "a minute"), [True, True, True])]
            await jump(600)
            seen.append(("+10 min", cached("for ever", "an hour", "a minute"), [True, True, False]))
            await jump(7200)
            seen.append(("+2 h", cached("for ever", "an hour", "a minute"), [True, False, False]))
            store("made later", ttl=3600)
            await jump(-7200)
            store("made before", ttl=60)
            # What was made in what is now the future is there, and lives no longer than was said.
            seen.append(("-2 h", cached("for ever", "made later", "made before"), [True, True, True]))
            await jump(-365 * 86_400)
            seen.append(("a year back", cached("for ever", "made before"), [True, True]))
            await jump(0)
            seen.append(("as it was", cached("for ever", "an hour", "made before"), [True, False, False]))
        wrong = [(when, is_there, expected) for when, is_there, expected in seen if is_there != expected]
        traffic.told(report, what, "; ".join(f"{when} {'right' if is_there == expected else 'WRONG'}" for when, is_there, expected in seen))
        report.expect(not wrong, f"{what}: {wrong}")


async def disk_full(report, seconds):
    """Played by a limit on the size of files, which any user may set."""
    what = "a full disk"
    service = Service("disk-full", wrapped=["bash", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""], capacity_entries=1 << 18)
    with service:
        truth = learn(service)

        def limit(said):
            subprocess.run(["prlimit", "--pid", str(service.id), f"--fsize={said}"], check=True)

        async with Traffic(service, truth) as traffic:
            await asyncio.sleep(seconds / 2)
            limit("4096:unlimited")
            wire = Wire(service.port)
            for batch in range(20):
                await wire.ask("POST", "/embed", {"inputs": [f"full {batch} {number}" for number in range(100)]})
            await asyncio.sleep(seconds)
            ready = service.ask("GET", "/ready")
            limit("unlimited:unlimited")
            await asyncio.sleep(0.5)
            service.post("/embed", {"inputs": "there is room"})
            after = service.cached(["there is room"])
            wire.close()
        traffic.told(report, what, f"/ready meanwhile: {ready[0]}, store: {json.loads(ready[1]).get('store', '?')[:60]}; stored again afterwards")
        report.expect(b'"store":"ok"' not in ready[1].replace(b" ", b""), f"{what}: /ready says nothing of it: {ready[1][:200]!r}")
        report.expect(after == [True], f"{what}: nothing is stored when there is room again")


async def read_only(report, seconds):
    what = "a file system that turns read-only"
    with tempfile.TemporaryDirectory() as folder:
        image, mount = f"{folder}/image", f"{folder}/mount"
        os.mkdir(mount)
        made = [["truncate", "-s", "96M", image], ["mkfs.ext4", "-q", "-F", "-m", "0", image], ["mount", "-o", "loop", image, mount]]
        if os.geteuid() or any(subprocess.run(command, stderr=subprocess.DEVNULL).returncode for command in made):
            report.row("fault", what, note="left out: no ext4 can be mounted here (root and a loop device are needed)")
            return
        try:
            service = Service("read-only")
            service.arguments[service.arguments.index("--data-dir") + 1] = f"{mount}/data"
            with service:
                async with Traffic(service, learn(service)) as traffic:
                    await asyncio.sleep(seconds / 2)
                    subprocess.run(["mount", "-o", "remount,abort", mount], check=True)
                    await asyncio.sleep(seconds)
                    ready = service.ask("GET", "/ready")
                traffic.told(report, what, f"/ready: {ready[0]}, store: {json.loads(ready[1]).get('store', '?')[:60]}")
                report.expect(b'"store":"ok"' not in ready[1].replace(b" ", b""), f"{what}: /ready says nothing of it: {ready[1][:200]!r}")
        finally:
            with contextlib.suppress(OSError):
                subprocess.run(["umount", "-l", mount], check=False)
