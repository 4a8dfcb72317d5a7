#!/usr/bin/env python3
"""faiss, usearch and numpy as the search's peers: `benches/search_peers` starts this and talks to it line by line.

    peer.py ROWS.f16 DIMS QUERIES.f32 THREADS

Rows are raw little-endian f16, queries raw f32, both of length one. Answers requests, one JSON object a line:

    {"peer": "faiss|usearch|numpy", "first": q, "count": n, "k": k}   -> {"seconds": s, "found": [[row, ...], ...]}
    {"peer": "faiss", "kept": [row, ...], ...}                        -> the same, among those rows only

    {"peer": "graph", "expansion": e, ...}                            -> the same, by one usearch f16 graph
    {"peer": "graph", "memory": true}                                 -> {"seconds": 0, "found": bytes}
    {"draw": FILE.svg, "curves": {name: [[recall, queries a second], ...]}, "note": text}

All but the graph are exact: faiss IndexScalarQuantizer QT_fp16 by inner product, usearch `search(exact=True)` over f16, numpy's f32 product
and argpartition; filtered: faiss with a selector over the batch of rows (usearch's Python package has no filter). The graph is
usearch's with connectivity 16 and expansion 128, made once and kept beside the rows.

Needs: numpy, faiss-cpu, usearch, matplotlib (the figures in README.md: numpy 2.4.6, faiss-cpu 1.15.1, usearch 2.26.6).
"""

import json
import pathlib
import sys
import time

import faiss
import numpy
from usearch.index import Index, MetricKind, search


def draw(path, curves, note):
    """Queries a second against recall, a line a way."""
    import matplotlib

    matplotlib.use("svg")
    # The same file for the same figures, with letters that can be searched for.
    matplotlib.rcParams.update({"svg.hashsalt": "search", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for (name, points), marker in zip(curves.items(), "osD^v"):
        points = sorted(points)
        axes.plot([recall for recall, _ in points], [rate for _, rate in points], marker=marker, markersize=4, label=name)
    axes.set_yscale("log")
    axes.set_xlim(0.8, 1.005)
    axes.set_xlabel("recall@10")
    axes.set_ylabel("queries a second")
    axes.set_title(note, fontsize=9)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})


def graph_of(path, rows, threads):
    """usearch's graph over the rows, from its file if there is one."""
    file = pathlib.Path(path).with_name("peer-graph.usearch")
    index = Index(ndim=rows.shape[1], metric=MetricKind.IP, dtype="f16", connectivity=16, expansion_add=128)
    if file.exists():
        index.load(str(file))
    if len(index) != len(rows):
        index.reset()
        index.add(numpy.arange(len(rows), dtype=numpy.uint64), rows, threads=threads)
        index.save(str(file))
    return index


def main():
    path, dims, queries_path, threads = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    rows = numpy.fromfile(path, dtype=numpy.float16).reshape(-1, dims)
    queries = numpy.fromfile(queries_path, dtype=numpy.float32).reshape(-1, dims)
    faiss.omp_set_num_threads(threads)
    flat = faiss.IndexScalarQuantizer(dims, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    flat.train(rows[:1].astype(numpy.float32))
    flat.add(rows.astype(numpy.float32))
    wide = rows.astype(numpy.float32)
    halves = queries.astype(numpy.float16)

    def by_numpy(of, k):
        scores = queries[of] @ wide.T
        best = numpy.argpartition(-scores, k, axis=1)[:, :k]
        order = numpy.argsort(-numpy.take_along_axis(scores, best, axis=1), axis=1)
        return numpy.take_along_axis(best, order, axis=1)

    def by_usearch(of, k):
        found = search(rows, halves[of], k, MetricKind.IP, exact=True, threads=threads)
        return found.keys.reshape(len(halves[of]), k)

    def by_faiss(of, k, kept=None):
        if kept is None:
            return flat.search(queries[of], k)[1]
        chosen = faiss.IDSelectorBatch(numpy.asarray(kept, dtype=numpy.int64))
        return flat.search(queries[of], k, params=faiss.SearchParameters(sel=chosen))[1]

    graph = None

    def by_graph(of, k, expansion):
        graph.expansion_search = expansion
        return graph.search(halves[of], k, threads=threads).keys.reshape(len(halves[of]), k)

    peers = {"graph": by_graph, "numpy": by_numpy, "usearch": by_usearch, "faiss": by_faiss}
    print(json.dumps({"numpy": numpy.__version__, "faiss": faiss.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "draw" in asked:
            draw(asked["draw"], asked["curves"], asked["note"])
            print(json.dumps({"seconds": 0, "found": []}), flush=True)
            continue
        if asked["peer"] == "graph" and graph is None:
            graph = graph_of(path, rows, threads)
        if "memory" in asked:
            print(json.dumps({"seconds": 0, "found": graph.memory_usage}), flush=True)
            continue
        of = slice(asked["first"], asked["first"] + asked["count"])
        others = {name: asked[name] for name in ("kept", "expansion") if name in asked}
        started = time.perf_counter()
        found = peers[asked["peer"]](of, asked["k"], **others)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "found": found.tolist()}), flush=True)


if __name__ == "__main__":
    main()
