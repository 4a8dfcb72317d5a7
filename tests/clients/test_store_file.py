"""numpy reads the live store's matrix in place, as src/store/FORMAT.md describes it, while the server goes on writing."""

import io

import numpy
import pytest
import requests
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


def test_numpy_maps_the_rows_of_the_live_file(server, texts):
    if server.data_dir is None:
        pytest.skip("VECMEMO_URL: that server's data folder is not ours to read")
    batch, golden = texts.share("store-file")
    told = requests.post(f"{server.url}/embed?details=true", json={"inputs": batch}, timeout=60).json()
    raw = requests.post(f"{server.url}/embed", json={"inputs": batch}, headers={"accept": "application/x-npy"}, timeout=60)
    answered = numpy.load(io.BytesIO(raw.content))

    path = space(server.data_dir)
    header = numpy.fromfile(path, dtype=HEADER, count=1)[0]
    assert (header["format_version"], header["dims"]) == (1, 384) and header["rows_offset"] % (2 << 20) == 0
    capacity = int(header["capacity"])
    slots = numpy.memmap(path, dtype=RECORD, mode="r", offset=int(header["slots_offset"]), shape=(capacity,))
    rows = numpy.memmap(path, dtype="<f2", mode="r", offset=int(header["rows_offset"]), shape=(capacity, 384))

    live = {slots["key"][slot].tobytes(): slot for slot in numpy.flatnonzero(slots["state"] == LIVE)}
    mine = [live[bytes.fromhex(item["key"])] for item in told["items"]]
    assert numpy.array_equal(rows[mine], answered)
    assert cosines(rows[mine], golden).min() >= 0.99999
    raw_norms = numpy.linalg.norm(texts.raw[[texts.texts.index(text) for text in batch]], axis=1)
    assert numpy.allclose(slots["norm"][mine], raw_norms, rtol=1e-3)
