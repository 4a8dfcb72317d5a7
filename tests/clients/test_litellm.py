"""LiteLLM's `openai/…` provider: expects plain floats. In an environment of its own: it wants an older OpenAI package."""

import litellm
import pytest
from guide import blocks, right, run_python
from support import MODEL, embeds_right_then_from_cache


def embed(server, batch, **more):
    return litellm.embedding(
        model=f"openai/{MODEL}", input=batch, api_base=f"{server.url}/v1", api_key="unused", max_retries=0, **more)


def test_lists_come_right_and_then_from_the_cache(server, texts):
    def vectors(batch):
        answer = embed(server, batch)
        assert [item["index"] for item in answer.data] == list(range(len(batch)))
        return [item["embedding"] for item in answer.data]

    embeds_right_then_from_cache(server, texts.share("litellm"), vectors)


def test_an_error_reaches_the_caller_with_its_message(server):
    with pytest.raises(litellm.BadRequestError, match="input"):
        embed(server, [])


def test_the_guides_block(server):
    right(server, run_python(server, blocks("python")["LiteLLM"]))
