"""numpy reads the live store's matrix in place, as src/store/FORMAT.md describes it, while the server goes on writing."""

import io
import threading

import numpy
import pytest
import requests
import xxhash
from support import cosines

HEADER = numpy.dtype([("magic", "S8"), ("format_version", "<u4"), ("dims", "<u4"), ("capacity", "<u8"), ("slots_offset", "<u8"),
                      ("rows_offset", "<u8"), ("model", "V32")])
RECORD = numpy.dtype([("key", "V32"), ("checksum", "<u8"), ("sequence_and_namespace", "<u8"), ("created", "<u4"), ("expires", "<u4"),
                      ("norm", "<f4"), ("tokens", "<u2"), ("flags", "u1"), ("state", "u1")])
LIVE = 1


def space(data_dir):
    """The one file under the data folder that begins as a space does."""
    found = []
    for path in data_dir.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                if file.read(8) == b"vecmemo\0":
                    found.append(path)
    assert len(found) == 1, found
    return found[0]


def layout(path):
    """The arrays of a space's file, mapped where they are: records and rows."""
    header = numpy.fromfile(path, dtype=HEADER, count=1)[0]
    assert header["format_version"] == 1 and header["rows_offset"] % (2 << 20) == 0
    capacity, dims = int(header["capacity"]), int(header["dims"])
    slots = numpy.memmap(path, dtype=RECORD, mode="r", offset=int(header["slots_offset"]), shape=(capacity,))
    rows = numpy.memmap(path, dtype="<f2", mode="r", offset=int(header["rows_offset"]), shape=(capacity, dims))
    return slots, rows


def is_intact(record, row):
    """Whether a record's checksum is right for a row: what a reader beside a writer has to ask of its copies."""
    record = record.tobytes()
    checksum = xxhash.xxh3_64(record[:32] + record[40:] + row.tobytes(), seed=int.from_bytes(record[:8], "little"))
    return checksum.intdigest() == int.from_bytes(record[32:40], "little")


def test_the_line_of_the_readme_reads_the_rows_while_they_are_written(server):
    """Every row that is live and intact beside a server that writes is the row that the server answers."""
    if server.data_dir is None:
        pytest.skip("VECMEMO_URL: that server's data folder is not ours to read")

    def embed(inputs):
        return requests.post(f"{server.url}/embed", json={"inputs": inputs}, timeout=60)

    assert embed(["the first of many"]).status_code == 200
    slots, rows = layout(space(server.data_dir))
    stop, failed = threading.Event(), []

    def write():
        number = 0
        while not stop.is_set():
            answer = embed([f"written meanwhile {number} {part}" for part in range(8)])
            if answer.status_code != 200:
                failed.append(answer.text)
                return
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    seen = {}
    try:
        before = int((slots["state"] == LIVE).sum())
        while len(seen) < before + 100 and writer.is_alive():
            for slot in numpy.flatnonzero(slots["state"] == LIVE):
                record, row = slots[slot].copy(), rows[slot].copy()
                if is_intact(record, row):
                    seen[record["key"].tobytes()] = row
    finally:
        stop.set()
        writer.join()
    assert not failed, failed
    assert len(seen) >= before + 100
    keys = list(seen)
    for some in (keys[at:at + 500] for at in range(0, len(keys), 500)):
        answer = requests.post(f"{server.url}/lookup", json={"keys": [key.hex() for key in some]},
                               headers={"accept": "application/x-npy"}, timeout=60)
        assert "x-missing" not in answer.headers or not answer.headers["x-missing"], answer.headers
        assert numpy.array_equal(numpy.load(io.BytesIO(answer.content)), [seen[key] for key in some])


def test_numpy_maps_the_rows_of_the_live_file(server, texts):
    if server.data_dir is None:
        pytest.skip("VECMEMO_URL: that server's data folder is not ours to read")
    batch, golden = texts.share("store-file")
    told = requests.post(f"{server.url}/embed?details=true", json={"inputs": batch}, timeout=60).json()
    raw = requests.post(f"{server.url}/embed", json={"inputs": batch}, headers={"accept": "application/x-npy"}, timeout=60)
    answered = numpy.load(io.BytesIO(raw.content))

    path = space(server.data_dir)
    slots, rows = layout(path)
    assert rows.shape[1] == 384

    live = {slots["key"][slot].tobytes(): slot for slot in numpy.flatnonzero(slots["state"] == LIVE)}
    mine = [live[bytes.fromhex(item["key"])] for item in told["items"]]
    assert numpy.array_equal(rows[mine], answered)
    assert cosines(rows[mine], golden).min() >= 0.99999
    raw_norms = numpy.linalg.norm(texts.raw[[texts.texts.index(text) for text in batch]], axis=1)
    assert numpy.allclose(slots["norm"][mine], raw_norms, rtol=1e-3)
