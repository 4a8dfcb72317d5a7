"""The bytes themselves, as curl or a program without a client library sees them."""

import base64
import io

import numpy
import pytest
import requests
from support import MODEL, cosines


@pytest.fixture(scope="module")
def batch(texts):
    return texts.share("raw-formats")


def post(server, body, path="/embed", **headers):
    return requests.post(server.url + path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}, timeout=60)


def test_a_miss_and_then_a_hit_are_the_same_bytes(server, batch):
    body = {"inputs": batch[0]}
    first, second = post(server, body), post(server, body)
    assert first.status_code == second.status_code == 200
    assert first.headers["cache-status"].startswith("vecmemo; fwd=miss")
    assert second.headers["cache-status"].startswith("vecmemo; hit")
    assert f"items={len(batch[0])}" in second.headers["cache-status"] and "computed=0" in second.headers["cache-status"]
    assert first.content == second.content
    assert cosines(first.json(), batch[1]).min() >= 0.99999


def test_one_string_is_answered_by_a_list_of_one(server, batch):
    one = post(server, {"inputs": batch[0][0]}).json()
    assert one == post(server, {"inputs": batch[0][:1]}).json() and len(one) == 1


def test_npy_is_read_by_numpy(server, batch):
    floats = numpy.array(post(server, {"inputs": batch[0]}).json(), dtype=numpy.float32)
    half = post(server, {"inputs": batch[0]}, accept="application/x-npy")
    assert half.headers["content-type"].startswith("application/x-npy")
    array = numpy.load(io.BytesIO(half.content), allow_pickle=False)
    assert array.dtype == numpy.float16 and array.shape == batch[1].shape
    assert numpy.array_equal(array.astype(numpy.float32), floats)
    single = numpy.load(io.BytesIO(post(server, {"inputs": batch[0]}, accept="application/x-npy;dtype=f32").content), allow_pickle=False)
    assert single.dtype == numpy.float32 and numpy.array_equal(single, floats)


def test_octet_stream_is_the_same_rows(server, batch):
    floats = numpy.array(post(server, {"inputs": batch[0]}).json(), dtype=numpy.float32)
    answer = post(server, {"inputs": batch[0]}, accept="application/octet-stream")
    assert answer.headers["x-embedding-dims"] == "384" and answer.headers["x-embedding-dtype"] == "f16"
    rows = numpy.frombuffer(answer.content, dtype="<f2").reshape(-1, 384)
    assert numpy.array_equal(rows.astype(numpy.float32), floats)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_base64_and_floats_of_the_openai_dialect_are_the_same_numbers(server, batch, path):
    body = {"model": MODEL, "input": batch[0], "user": None, "dimensions": None}
    floats = [item["embedding"] for item in post(server, body | {"encoding_format": "float"}, path).json()["data"]]
    encoded = [item["embedding"] for item in post(server, body | {"encoding_format": "base64"}, path).json()["data"]]
    decoded = [numpy.frombuffer(base64.b64decode(one, validate=True), dtype="<f4") for one in encoded]
    assert numpy.array_equal(numpy.array(floats, dtype=numpy.float32), decoded)
    assert floats == post(server, {"inputs": batch[0]}).json()


def test_every_fixture_text_is_right_edge_cases_included(server, texts):
    own = {"inputs": texts.texts, "namespace": "every-text"}  # the other tests' texts stay new in theirs
    answer = post(server, own, accept="application/x-npy;dtype=f32")
    cosine = cosines(numpy.load(io.BytesIO(answer.content)), texts.unit)
    # The bound of the precision class, for the server computes in whatever is fastest within it; `fidelity` holds f32 to 0.999999.
    assert cosine.min() >= 0.9999, texts.ids[int(cosine.argmin())]
    truncated = sum(tokens > 256 for tokens in texts.tokens)
    assert f"truncated={truncated}" in answer.headers["cache-status"]


def test_answers_carry_their_facts_in_headers(server, batch):
    headers = post(server, {"inputs": batch[0]}, x_request_id="my-own-id").headers
    assert headers["x-request-id"] == "my-own-id"
    assert headers["x-compute-type"] == "cache"
    assert int(headers["x-compute-characters"]) == sum(len(text) for text in batch[0])
    assert int(headers["x-compute-tokens"]) > 0
    for stage in ("key", "store"):
        assert stage in headers["server-timing"]
    for name in ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert float(headers[name]) >= 0


def test_lookup_gives_the_cached_rows_and_nan_for_the_rest(server, batch):
    post(server, {"inputs": batch[0]})
    before = server.computed()
    asked = [batch[0][0], "never embedded before", batch[0][1]]
    told = post(server, {"inputs": asked}, "/lookup").json()["items"]
    assert [item["cached"] for item in told] == [True, False, True]
    answer = post(server, {"inputs": asked}, "/lookup", accept="application/x-npy")
    rows = numpy.load(io.BytesIO(answer.content))
    assert numpy.isnan(rows[1]).all() and answer.headers["x-missing"] == "1"
    assert cosines(rows[[0, 2]], batch[1][:2]).min() >= 0.99999
    keys = b"".join(bytes.fromhex(item["key"]) for item in told)
    fastest = requests.post(f"{server.url}/lookup", data=keys, timeout=10,
                            headers={"content-type": "application/octet-stream", "accept": "application/octet-stream"})
    assert numpy.array_equal(numpy.frombuffer(fastest.content, "<f2").reshape(3, 384)[[0, 2]], rows[[0, 2]])
    assert server.computed() == before
