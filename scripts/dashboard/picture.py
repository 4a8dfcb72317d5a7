"""Shows the dashboard: two machines of a fleet under load, a Prometheus that watches them, its answers to the dashboard's own queries, and those drawn."""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "machines"))

from node import ROOT, Node  # noqa: E402
from servers import Single, free_port, until  # noqa: E402

SCRAPED_SECONDS = 2
# Few enough that some have to leave.
ENTRIES = 4096
# What Grafana makes of its variables: some scrapes, an hour, and all there is.
VARIABLES = {"$__rate_interval": f"{15 * SCRAPED_SECONDS}s", "$__range": "1h", "$job": ".*", "$instance": ".*"}


class Prometheus:
    def __init__(self, folder, nodes):
        self.port, self.folder = free_port(), folder
        machines = [{"targets": [f"127.0.0.1:{node.port}"], "labels": {"instance": f"machine-{node.name}"}} for node in nodes]
        settings = {"global": {"scrape_interval": f"{SCRAPED_SECONDS}s"}, "scrape_configs": [{"job_name": "vecmemo", "static_configs": machines}]}
        (folder / "prometheus.yml").write_text(json.dumps(settings))

    def __enter__(self):
        command = ["prometheus", f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/tsdb", f"--web.listen-address=127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(self.folder / "prometheus.log").open("w"))
        until("Prometheus answers", self.is_ready, 30)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def is_ready(self):
        with contextlib.suppress(OSError):
            return self.get("/-/ready", {})

    def get(self, path, query):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
            return answer.read()

    def series(self, expression, since, until_, step):
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        answer = json.loads(self.get("/api/v1/query_range", {"query": expression, "start": since, "end": until_, "step": step}))
        return answer["data"]["result"]


def traffic(nodes, ended, seed, problems):
    """What a pipeline asks: mostly what was asked before, some of it new, searches, now and then an invalidation."""
    chance = random.Random(seed)
    texts = [f"Paragraph {number}" for number in range(4000)]
    began = time.monotonic()
    while not ended.wait(chance.uniform(0.005, 0.03)):
        node, minute = chance.choice(nodes), (time.monotonic() - began) / 60
        known = texts[: 400 + int(900 * minute)]
        what = chance.random()
        try:
            if what < 0.75:
                body = {"inputs": chance.choices(known, k=chance.choice([1, 8, 16])), "tags": [f"document:{chance.randrange(40)}"]}
                node.post("/embed", body | ({"reuse": {"min_similarity": 0.95, "max_violation": 0.05}} if what < 0.1 else {}))
            elif what < 0.9:
                node.post("/search", {"inputs": [chance.choice(known)], "k": 10})
            elif what < 0.97:
                node.post("/lookup", {"inputs": chance.choices(known, k=16)})
            elif what < 0.99:
                node.post("/embed", {"inputs": [f"Only once: {chance.getrandbits(64)}" for _ in range(64)]})
            else:
                node.post("/invalidate", {"tags": [f"document:{chance.randrange(40)}"]})
        except (OSError, RuntimeError) as problem:
            problems.append(str(problem))


def answers(prometheus, dashboard, since, end):
    step = max(SCRAPED_SECONDS, int((end - since) / 120))
    panels = []
    for panel in dashboard["panels"]:
        found = [{"format": target.get("legendFormat"), "series": prometheus.series(target["expr"], since, end, step)} for target in panel.get("targets", [])]
        panels.append({word: panel[word] for word in ("id", "type", "title", "gridPos", "description", "fieldConfig") if word in panel} | {"answers": found})
    return panels


def draw(panels, since, end, picture, mode):
    width, height = 24 * 62 + 16, 38 * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 16
    built = HERE / "node_modules/.picture"
    built.mkdir(exist_ok=True)
    subprocess.run([HERE / "node_modules/.bin/esbuild", HERE / "panels.jsx", "--bundle", "--jsx=automatic", *[f"--loader:.{kind}=dataurl" for kind in ("svg", "ttf", "woff2", "png")], "--minify", "--log-level=error",
                    "--define:process.env.NODE_ENV=\"production\"", f"--outfile={built}/panels.js"], check=True)
    data = json.dumps({"panels": panels, "from": since, "to": end, "mode": mode}).replace("</", "<\\/")
    (built / "index.html").write_text(
        "<!doctype html><meta charset=utf-8><link rel=stylesheet href=panels.css><style>body{margin:0;font-family:Inter,Helvetica,Arial,sans-serif;font-size:14px}"
        "#panels{position:relative;margin:8px}.row{font-weight:500;font-size:16px;line-height:30px}.none{text-align:center;opacity:.6}</style><div id=panels></div>"
        f"<script>window.dashboard={data}</script><script src=panels.js></script>")
    subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files", f"--window-size={width},{height}", "--virtual-time-budget=15000",
                    f"--screenshot={picture}", (built / "index.html").as_uri()], check=True, stderr=subprocess.DEVNULL)


def main():
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("picture", type=Path)
    said.add_argument("--minutes", type=float, default=4)
    said.add_argument("--mode", choices=("light", "dark"), default="light")
    said = said.parse_args()
    dashboard = json.loads((ROOT / "deploy/grafana/vecmemo.json").read_text())
    tier = Single()
    tier.start()
    nodes = [Node(name, url=tier.url, VECMEMO_LOG="warn") for name in ("one", "two")]
    for node in nodes:
        node.arguments[node.arguments.index("--capacity-entries") + 1] = str(ENTRIES)
    ended, problems = threading.Event(), []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for node in nodes:
                node.start()
            with Prometheus(Path(folder), nodes) as prometheus:
                since = time.time()
                clients = [threading.Thread(target=traffic, args=(nodes, ended, seed, problems)) for seed in range(3)]
                for client in clients:
                    client.start()
                time.sleep(60 * said.minutes)
                ended.set()
                for client in clients:
                    client.join()
                end = time.time()
                panels = answers(prometheus, dashboard, since, end)
    finally:
        ended.set()
        for node in nodes:
            node.end()
        tier.server.end()
    empty = [panel["title"] for panel in panels if panel["type"] != "row" and not any(answer["series"] for answer in panel["answers"])]
    if empty:
        print(f"no answer for: {', '.join(empty)}", file=sys.stderr)
    draw(panels, since, end, said.picture.resolve(), said.mode)
    if problems:
        sys.exit(f"{len(problems)} requests failed: {problems[0]}")


if __name__ == "__main__":
    main()
