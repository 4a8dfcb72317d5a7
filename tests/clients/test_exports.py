"""What `vecmemo export` writes, read by the libraries that people read such files with: numpy, pyarrow, polars, safetensors."""

import hashlib
import io
import json
import subprocess
from types import SimpleNamespace

import numpy
import polars
import pyarrow
import pyarrow.parquet
import pytest
import requests
import safetensors
import safetensors.numpy
import support

TAGS = ["a tag", "é"]


def export(folder, name, *arguments):
    """Runs `vecmemo export` on the folder's data and gives the path of what it wrote."""
    out = folder / name
    command = [support.binary(), "export", str(out), "--data-dir", str(folder / "data"), "--model", support.MODEL, *arguments]
    done = subprocess.run(command, cwd=support.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A stopped server's folder, and what the server answered: keys, f16 rows, the facts that were asked for."""
    folder = tmp_path_factory.mktemp("exports")
    texts = [f"a text with the number {number}" for number in range(50)]
    with open(folder / "log", "wb") as log:
        server = support.start(folder / "data", log)
        try:
            rows, keys = [], []
            # In the order of the export: that of the writes.
            for more, some in ({}, texts[:30]), ({"tags": TAGS}, texts[30:40]), ({"namespace": "tenant", "ttl": 3600}, texts[40:]):
                body = {"inputs": some, **more}
                told = requests.post(f"{server.url}/embed?details=true", json=body, timeout=60).json()
                keys += [item["key"] for item in told["items"]]
                raw = requests.post(f"{server.url}/embed", json=body, headers={"accept": "application/x-npy"}, timeout=60)
                rows.append(numpy.load(io.BytesIO(raw.content)))
        finally:
            assert support.stop(server) == 0
    return SimpleNamespace(folder=folder, keys=keys, rows=numpy.concatenate(rows))


def in_order(cached, keys):
    """Where each answered key stands in an export. A batch's entries may be written in any order."""
    places = {key: place for place, key in enumerate(keys)}
    assert len(places) == len(keys) == len(cached.keys)
    return [places[key] for key in cached.keys]


def test_numpy_reads_the_folder(cached):
    out = export(cached.folder, "out")
    vectors = numpy.load(out / "vectors.npy", mmap_mode="r")
    entries = [json.loads(line) for line in open(out / "entries.jsonl", encoding="utf-8")]
    manifest = json.loads((out / "manifest.json").read_text())
    assert vectors.dtype == numpy.float16 and vectors.flags.c_contiguous
    assert (manifest["format"], manifest["count"], manifest["dims"]) == ("vecmemo export 1", 50, vectors.shape[1])
    assert manifest["sha256"]["vectors.npy"] == hashlib.sha256((out / "vectors.npy").read_bytes()).hexdigest()
    places = in_order(cached, [entry["key"] for entry in entries])
    assert numpy.array_equal(vectors[places], cached.rows)
    tagged, tenant = entries[places[35]], entries[places[45]]
    assert (tagged["tags"], tagged["namespace"], tagged["expires"]) == (TAGS, "", None)
    assert (tenant["tags"], tenant["namespace"], tenant["expires"] - tenant["created"] in range(3300, 4000)) == ([], "tenant", True)


def test_pyarrow_and_polars_read_the_parquet_file(cached):
    out = export(cached.folder, "out.parquet")
    table = pyarrow.parquet.read_table(out)
    manifest = json.loads(table.schema.metadata[b"vecmemo"])
    places = in_order(cached, [key.hex() for key in table["key"].to_pylist()])
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, manifest["dims"])
    assert vectors.dtype == numpy.float32
    assert numpy.array_equal(vectors[places].astype(numpy.float16), cached.rows)
    assert numpy.array_equal(vectors[places], cached.rows.astype(numpy.float32)), "widening loses nothing"
    tagged, tenant = table.slice(places[35], 1).to_pylist()[0], table.slice(places[45], 1).to_pylist()[0]
    assert (tagged["tags"], tagged["namespace"], tagged["expires"]) == (TAGS, "", None)
    assert tenant["namespace"] == "tenant" and 3300 <= (tenant["expires"] - tenant["created"]).total_seconds() < 4000
    assert pyarrow.types.is_timestamp(table["created"].type) and pyarrow.types.is_boolean(table["pinned"].type)

    frame = polars.read_parquet(out)
    assert numpy.array_equal(frame["embedding"].list.to_array(manifest["dims"]).to_numpy()[places], vectors[places])
    only = frame.filter(polars.col("namespace") == "tenant")
    assert {key.hex() for key in only["key"]} == set(cached.keys[40:])
    assert frame.filter(polars.col("tags").list.contains("é")).height == 10


def test_safetensors_reads_the_file(cached):
    out = export(cached.folder, "out.safetensors")
    tensors = safetensors.numpy.load_file(out)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "embeddings": numpy.float16, "keys": numpy.uint8, "norms": numpy.float32, "entries": numpy.uint8}
    places = in_order(cached, [key.tobytes().hex() for key in tensors["keys"]])
    assert numpy.array_equal(tensors["embeddings"][places], cached.rows)
    entries = [json.loads(line) for line in tensors["entries"].tobytes().decode().splitlines()]
    assert [entry["key"] for entry in entries] == [key.tobytes().hex() for key in tensors["keys"]]
    assert numpy.array_equal(tensors["norms"], numpy.array([entry["norm"] for entry in entries], dtype=numpy.float32))
    with safetensors.safe_open(out, framework="numpy") as file:
        assert json.loads(file.metadata()["vecmemo"])["count"] == 50
        assert file.get_slice("embeddings")[:3].shape == (3, cached.rows.shape[1])


def test_vectors_that_numpy_saved_are_imported_and_found(cached, tmp_path):
    vectors = cached.rows.astype(numpy.float32) * 3
    for dtype in ("<f2", "<f4", "<f8"):
        folder = tmp_path / dtype[1:]
        folder.mkdir()
        numpy.save(folder / "vectors.npy", vectors.astype(dtype))
        (folder / "texts.txt").write_text("\n".join(f"other text {number}" for number in range(50)))
        common = ["--data-dir", str(folder / "data"), "--model", support.MODEL]
        done = subprocess.run([support.binary(), "import", str(folder / "vectors.npy"), "--texts", str(folder / "texts.txt"), *common],
                              cwd=support.ROOT, capture_output=True, text=True)
        assert done.stdout.startswith("50 entries imported"), done.stdout + done.stderr
        read = numpy.load(export(folder, "back", "--format", "npy") / "vectors.npy")
        unit = vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)
        assert numpy.abs(read - unit).max() < 2e-3

