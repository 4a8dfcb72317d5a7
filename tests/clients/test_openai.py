"""The OpenAI package: asks for base64 unless told otherwise."""

import asyncio

import numpy
import openai
import pytest
from support import MODEL, cosines, embeds_right_then_from_cache


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def vectors(answer):
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return [item.embedding for item in answer.data]


def test_lists_come_right_and_then_from_the_cache(server, texts, client):
    embeds_right_then_from_cache(
        server, texts.share("openai"), lambda batch: vectors(client.embeddings.create(model=MODEL, input=batch)))


def test_async_client_with_many_requests_at_once(server, texts):
    async def all_at_once(batch):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
            answers = await asyncio.gather(*(client.embeddings.create(model=MODEL, input=text) for text in batch))
        return [answer.data[0].embedding for answer in answers]

    embeds_right_then_from_cache(server, texts.share("openai-async"), lambda batch: asyncio.run(all_at_once(batch)))


def test_floats_and_base64_are_the_same_numbers(texts, client):
    batch, _ = texts.share("openai", 5)
    floats = client.embeddings.create(model=MODEL, input=batch, encoding_format="float")
    default = client.embeddings.create(model=MODEL, input=batch)
    # JSON numbers are the shortest that name the same f32; Python reads them as f64.
    assert numpy.array_equal(numpy.float32(vectors(floats)), numpy.float32(vectors(default)))


def test_usage_counts_every_token_and_says_which_were_cached(texts, client):
    batch, _ = texts.share("openai", 5)
    expected = sum(min(texts.tokens[texts.texts.index(text)], 256) for text in batch)
    client.embeddings.create(model=MODEL, input=batch)
    answer = client.embeddings.create(model=MODEL, input=batch)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == expected
    assert answer.usage.cached_tokens == expected
    assert answer.model and answer.object == "list"


def test_models_are_listed(client):
    assert MODEL in [model.id for model in client.models.list()]


def test_an_error_reaches_the_caller_with_its_message(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input=[])
    assert refused.value.message and refused.value.type and "input" in str(refused.value)
    assert refused.value.request_id


def test_token_ids_are_refused_with_the_switch_that_helps(client):
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
        client.embeddings.create(model=MODEL, input=[[9906, 1917]])


def test_dimensions_are_refused_for_a_model_not_trained_so(client):
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model=MODEL, input="text", dimensions=64)


def test_empty_string_is_embedded(texts, client):
    answer = client.embeddings.create(model=MODEL, input="")
    golden = texts.unit[[texts.ids.index("edge-empty")]]
    assert cosines(numpy.asarray(vectors(answer)), golden).min() >= 0.9999
