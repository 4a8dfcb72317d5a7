"""langchain-openai: strings once its own token counting is off; an empty document is embedded as an empty string."""

import numpy
from langchain_openai import OpenAIEmbeddings
from support import MODEL, cosines, embeds_right_then_from_cache


def client(server, **more):
    return OpenAIEmbeddings(model=MODEL, base_url=f"{server.url}/v1", api_key="unused", max_retries=0, **more)


def test_documents_come_right_and_then_from_the_cache(server, texts):
    embedder = client(server, check_embedding_ctx_length=False)
    share = texts.share("langchain")
    documents = embeds_right_then_from_cache(server, share, embedder.embed_documents)
    assert numpy.array_equal(embedder.embed_query(share[0][0]), documents[0])


def test_an_empty_document_among_others(server, texts):
    batch, golden = texts.share("langchain", 2)
    embedded = client(server, check_embedding_ctx_length=False).embed_documents([batch[0], "", batch[1]])
    empty = texts.unit[texts.ids.index("edge-empty")]
    assert cosines(embedded, numpy.stack([golden[0], empty, golden[1]])).min() >= 0.9999


def test_more_documents_than_one_chunk(server, texts):
    batch, golden = texts.share("langchain")
    embedded = client(server, check_embedding_ctx_length=False, chunk_size=7).embed_documents(batch)
    assert cosines(embedded, golden).min() >= 0.9999
