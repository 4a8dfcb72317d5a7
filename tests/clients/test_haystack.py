"""Haystack's Hugging Face API embedders, as for text-embeddings-inference: POST / with `normalize: false`."""

from haystack import Document
from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPIDocumentEmbedder, HuggingFaceAPITextEmbedder
from support import embeds_right_then_from_cache


def settings(server, **more):
    return {"api_type": "text_embeddings_inference", "api_params": {"url": server.url}, "token": None, **more}


def test_documents_come_right_and_then_from_the_cache(server, texts):
    embedder = HuggingFaceAPIDocumentEmbedder(**settings(server, batch_size=8, progress_bar=False))

    def embed(batch):
        documents = embedder.run(documents=[Document(content=text) for text in batch])["documents"]
        return [document.embedding for document in documents]

    embeds_right_then_from_cache(server, texts.share("haystack-documents"), embed)


def test_texts_one_by_one(server, texts):
    embedder = HuggingFaceAPITextEmbedder(**settings(server, normalize=True))
    embeds_right_then_from_cache(
        server, texts.share("haystack-texts"), lambda batch: [embedder.run(text=text)["embedding"] for text in batch])
