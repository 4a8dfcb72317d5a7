"""What the cache promises, seen from outside: order, duplicates, provenance, modes, namespaces; and its errors."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from support import cosines


def embed(server, body, path="/embed"):
    return requests.post(server.url + path, json=body, timeout=60)


def test_order_holds_under_any_mix_of_hits_misses_and_duplicates(server, texts):
    batch, golden = texts.share("raw-order")
    embed(server, {"inputs": batch[::3]})
    draw = random.Random(1)
    order = [draw.randrange(len(batch)) for _ in range(100)]
    answer = embed(server, {"inputs": [batch[index] for index in order]}).json()
    assert cosines(answer, golden[order]).min() >= 0.99999


def test_details_say_where_each_vector_came_from(server, texts):
    batch, _ = texts.share("raw-cache")
    known, new = batch[0], batch[1]
    embed(server, {"inputs": known})
    told = embed(server, {"inputs": [known, new, new]}, "/embed?details=true").json()
    statuses = [item["status"] for item in told["items"]]
    assert statuses[0] == "hit" and sorted(statuses[1:]) == ["computed", "joined"]
    assert told["dims"] == 384 and len(told["items"][0]["key"]) == 64
    assert told["items"][1]["key"] == told["items"][2]["key"] != told["items"][0]["key"]
    assert told["items"][1]["embedding"] == told["items"][2]["embedding"]


def test_another_spelling_with_the_same_tokens_costs_nothing(server):
    embed(server, {"inputs": "Spelling of a text, in two ways"})
    before = server.computed()
    told = embed(server, {"inputs": "spelling  OF a text ,\tin two  ways"}, "/embed?details=true").json()
    assert told["items"][0]["status"] == "token_hit" and server.computed() == before


def test_many_clients_for_one_new_text_compute_it_once(server):
    before = server.computed()
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda _: embed(server, {"inputs": "everyone wants this at once"}).content, range(200)))
    assert len(set(answers)) == 1 and server.computed() == before + 1


def test_modes(server):
    missing = embed(server, {"inputs": ["never seen by only"], "cache": "only"})
    assert missing.status_code == 404 and '"missing":[0]' in missing.text.replace(" ", "")
    before = server.computed()
    embed(server, {"inputs": "bypassed", "cache": "bypass"})
    assert embed(server, {"inputs": "bypassed", "cache": "only"}).status_code == 404
    assert embed(server, {"inputs": "bypassed"}).status_code == 200
    embed(server, {"inputs": "bypassed", "cache": "refresh"})
    assert server.computed() == before + 3
    assert embed(server, {"inputs": "bypassed", "cache": "only"}).status_code == 200


def test_namespaces_do_not_see_each_other(server):
    embed(server, {"inputs": "whose is this", "namespace": "a"})
    assert embed(server, {"inputs": "whose is this", "namespace": "b", "cache": "only"}).status_code == 404
    assert embed(server, {"inputs": "whose is this", "namespace": "a", "cache": "only"}).status_code == 200


REFUSED = [
    ("empty-list", {"inputs": []}, {400}, "inputs"),
    ("no-inputs", {}, {400, 422}, "inputs"),
    ("wrong-type", {"inputs": 7}, {400, 422}, "inputs"),
    ("wrong-type-inside", {"inputs": ["a", 7]}, {400, 422}, "1"),
    ("unknown-field", {"inputs": "a", "namespcae": "b"}, {400, 422}, "namespcae"),
    ("unknown-prompt", {"inputs": "a", "prompt_name": "nobody"}, {400, 422}, "nobody"),
    ("bad-direction", {"inputs": "a", "truncation_direction": "up"}, {400, 422}, "truncation_direction"),
    ("too-many", {"inputs": ["a"] * 2049}, {422}, "2048"),
    ("too-long", {"inputs": ["a", "word " * 300], "truncate": False}, {422}, "302"),
]


@pytest.mark.parametrize(("body", "statuses", "named"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_refusal_names_what_is_wrong(server, body, statuses, named):
    answer = embed(server, body)
    assert answer.status_code in statuses and answer.headers["x-request-id"]
    told = answer.json()
    assert isinstance(told["error"], str) and told["error_type"] and named in told["error"]


def test_malformed_json_is_refused_with_its_place(server):
    answer = requests.post(f"{server.url}/embed", data='{"inputs": ["a", }', headers={"content-type": "application/json"}, timeout=10)
    assert answer.status_code == 400 and "column" in answer.json()["error"]


def test_a_body_over_the_limit_is_refused(server):
    answer = embed(server, {"inputs": "a" * (33 << 20)})
    assert answer.status_code == 413


def test_the_other_routes_answer(server, texts):
    info = requests.get(f"{server.url}/info", timeout=10).json()
    assert info["max_client_batch_size"] == 2048 and info["max_input_length"] == 256
    assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
    stats = requests.get(f"{server.url}/stats", timeout=10).json()
    assert isinstance(stats, dict) and stats
    tokens = embed(server, {"inputs": "Hello, wörld"}, "/tokenize").json()[0]
    assert [token["id"] for token in tokens] == [101, 7592, 1010, 2088, 102]
    assert [token["special"] for token in tokens] == [True, False, False, False, True]
    assert tokens[1]["text"].lower() == "hello" and tokens[2]["text"] == ","
    assert (tokens[3]["start"], tokens[3]["stop"]) == (7, 12)
