"""huggingface_hub's InferenceClient: posts to the URL it is given, wants a bare list of lists."""

import asyncio

import numpy
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from support import cosines, embeds_right_then_from_cache


@pytest.mark.parametrize("path", ["", "/embed"])
def test_feature_extraction_of_a_list(server, texts, path):
    client = InferenceClient(model=server.url + path)
    batch, golden = texts.share("huggingface_hub", 20)
    half = slice(0, 10) if path else slice(10, 20)
    embeds_right_then_from_cache(server, (batch[half], golden[half]), client.feature_extraction)


def test_feature_extraction_of_one_text_at_a_time(server, texts):
    async def all_at_once(batch):
        client = AsyncInferenceClient(model=server.url)
        return await asyncio.gather(*(client.feature_extraction(text) for text in batch))

    embeds_right_then_from_cache(
        server, texts.share("huggingface_hub-async"), lambda batch: [numpy.asarray(v).reshape(-1) for v in asyncio.run(all_at_once(batch))])


def test_not_normalised_has_the_models_own_length(server, texts):
    batch, _ = texts.share("huggingface_hub", 10)
    raw = numpy.asarray(InferenceClient(model=server.url).feature_extraction(batch, normalize=False))
    golden = texts.raw[[texts.texts.index(text) for text in batch]]
    assert cosines(raw, golden).min() >= 0.9999
    assert numpy.allclose(numpy.linalg.norm(raw, axis=1), numpy.linalg.norm(golden, axis=1), rtol=1e-3)


def test_truncation_refused_says_which_and_how_long(server, texts):
    long = texts.texts[texts.ids.index("edge-255-words-one-too-many")]
    with pytest.raises(HfHubHTTPError) as refused:
        InferenceClient(model=server.url).feature_extraction(["short", long], truncate=False)
    assert refused.value.response.status_code == 422
    assert "257" in str(refused.value) + refused.value.response.text and "1" in refused.value.response.text


def test_truncation_direction_is_honoured(server):
    client = InferenceClient(model=server.url)
    text = "alpha " * 300 + "omega " * 300
    left = client.feature_extraction(text, truncate=True, truncation_direction="left")
    right = client.feature_extraction(text, truncate=True, truncation_direction="right")
    assert cosines(numpy.asarray(left).reshape(1, -1), numpy.asarray(client.feature_extraction("omega " * 254)).reshape(1, -1)) > 0.9999
    assert cosines(numpy.asarray(right).reshape(1, -1), numpy.asarray(client.feature_extraction("alpha " * 254)).reshape(1, -1)) > 0.9999


def test_sentence_similarity(server, texts):
    batch, golden = texts.share("huggingface_hub", 10)
    told = InferenceClient(model=server.url).sentence_similarity(batch[0], other_sentences=batch[1:])
    assert numpy.allclose(told, golden[1:] @ golden[0], atol=2e-3)
