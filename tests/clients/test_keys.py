"""Published clients where keys are wanted: each sends its own way, and tells its user when it is not let in."""

import openai
import pytest
import requests
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from support import MODEL

TEXTS = ["a text that is asked for with a key", "another"]


def openai_client(keyed, key):
    return openai.OpenAI(base_url=f"{keyed.server.url}/v1", api_key=key, max_retries=0)


def test_openai_sends_its_api_key(keyed):
    answer = openai_client(keyed, keyed.tenant_key).embeddings.create(model=MODEL, input=TEXTS)
    assert len(answer.data) == 2 and openai_client(keyed, keyed.tenant_key).models.list().data
    with pytest.raises(openai.AuthenticationError, match="the key is not known here"):
        openai_client(keyed, "unused").embeddings.create(model=MODEL, input=TEXTS)


def test_huggingface_hub_sends_its_token(keyed):
    client = InferenceClient(model=keyed.server.url, token=keyed.tenant_key)
    assert client.feature_extraction(TEXTS).shape[0] == 2
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(model=keyed.server.url, token="hf_unknown").feature_extraction(TEXTS)


def test_either_header_will_do_and_a_tenant_may_not_administer(keyed):
    for headers in [{"x-api-key": keyed.tenant_key}, {"authorization": f"Bearer {keyed.tenant_key}"}]:
        answer = requests.post(f"{keyed.server.url}/embed", json={"inputs": TEXTS}, headers=headers, timeout=60)
        assert answer.status_code == 200
        assert requests.post(f"{keyed.server.url}/admin/reload", headers=headers, timeout=10).status_code == 403
    refused = requests.post(f"{keyed.server.url}/embed", json={"inputs": TEXTS}, timeout=10)
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Bearer")


def test_what_a_tenant_has_had_embedded_is_a_miss_for_others(keyed):
    body = {"inputs": ["said to nobody else"], "cache": "only"}
    ours, theirs = ({"authorization": f"Bearer {key}"} for key in [keyed.tenant_key, keyed.server.key])
    requests.post(f"{keyed.server.url}/embed", json={"inputs": body["inputs"]}, headers=ours, timeout=60).raise_for_status()
    statuses = [requests.post(f"{keyed.server.url}/embed", json=body, headers=headers, timeout=10).status_code for headers in [ours, theirs]]
    assert statuses == [200, 404]
