"""llama-index's text-embeddings-inference client: POST /embed in batches of ten."""

import asyncio

import numpy
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from support import MODEL, embeds_right_then_from_cache


def client(server):
    return TextEmbeddingsInference(model_name=MODEL, base_url=server.url)


def test_batches_come_right_and_then_from_the_cache(server, texts):
    share = texts.share("llama-index")
    embedded = embeds_right_then_from_cache(server, share, client(server).get_text_embedding_batch)
    assert numpy.array_equal(client(server).get_query_embedding(share[0][3]), embedded[3])


def test_async_batches(server, texts):
    embeds_right_then_from_cache(
        server, texts.share("llama-index-async"), lambda batch: asyncio.run(client(server).aget_text_embedding_batch(batch)))
