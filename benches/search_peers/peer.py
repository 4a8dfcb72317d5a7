#!/usr/bin/env python3
"""faiss, usearch and numpy as the search's peers: `benches/search_peers` starts this and talks to it line by line.

    peer.py ROWS.f16 DIMS QUERIES.f32 THREADS

Rows are raw little-endian f16, queries raw f32, both of length one. Answers requests, one JSON object a line:

    {"peer": "faiss|usearch|numpy", "first": q, "count": n, "k": k}   -> {"seconds": s, "found": [[row, ...], ...]}
    {"peer": "faiss", "kept": [row, ...], ...}                        -> the same, among those rows only

All are exact: faiss IndexScalarQuantizer QT_fp16 by inner product, usearch `search(exact=True)` over f16, numpy's f32 product
and argpartition; filtered: faiss with a selector over the batch of rows (usearch's Python package has no filter).

Needs: numpy, faiss-cpu, usearch (the figures in README.md: numpy 2.4.6, faiss-cpu 1.15.1, usearch 2.26.6).
"""

import json
import sys
import time

import faiss
import numpy
from usearch.index import MetricKind, search


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

    peers = {"numpy": by_numpy, "usearch": by_usearch, "faiss": by_faiss}
    print(json.dumps({"numpy": numpy.__version__, "faiss": faiss.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        of = slice(asked["first"], asked["first"] + asked["count"])
        others = {"kept": asked["kept"]} if "kept" in asked else {}
        started = time.perf_counter()
        found = peers[asked["peer"]](of, asked["k"], **others)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "found": found.tolist()}), flush=True)


if __name__ == "__main__":
    main()
