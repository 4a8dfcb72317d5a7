"""What one vector takes in Redis: in vecmemo's tier, in LangChain's CacheBackedEmbeddings over its RedisStore, and in RedisVL's EmbeddingsCache.

    peers.py FOLDER PROGRAM       makes an environment with the peers in the folder, and leaves peers.json there
    peers.py keep PEER PORT FILE  in that environment: has a peer keep the vectors of a file

The vectors are the default model's, of 4,000 real one-line texts, and the same for all. Each has a server of its own. Counted is what the
server's used memory has grown by, with the names, and what it says of each key.
"""

import gzip
import json
import subprocess
import sys
from pathlib import Path

COUNT = 4000
PACKAGES = ["langchain-classic==1.0.8", "langchain-community==0.4.2", "redis==8.1.0", "redisvl==0.28.0"]


def keep_langchain(port, texts, vectors):
    """As its documentation has it: a store of bytes under the texts' digests."""
    from langchain_classic.embeddings import CacheBackedEmbeddings
    from langchain_community.storage import RedisStore
    from langchain_core.embeddings import Embeddings

    class Given(Embeddings):
        known = dict(zip(texts, vectors))

        def embed_documents(self, texts):
            return [self.known[text] for text in texts]

        def embed_query(self, text):
            return self.known[text]

    store = RedisStore(redis_url=f"redis://127.0.0.1:{port}")
    cached = CacheBackedEmbeddings.from_bytes_store(Given(), store, namespace="all-MiniLM-L6-v2", key_encoder="blake2b")
    cached.embed_documents(texts)
    assert len(list(store.yield_keys())) == len(texts)


def keep_redisvl(port, texts, vectors):
    from redisvl.extensions.cache.embeddings import EmbeddingsCache

    cache = EmbeddingsCache(name="embedcache", redis_url=f"redis://127.0.0.1:{port}")
    for text, vector in zip(texts, vectors):
        cache.set(content=text, model_name="sentence-transformers/all-MiniLM-L6-v2", embedding=vector)
    assert cache.get(texts[0], "sentence-transformers/all-MiniLM-L6-v2")


PEERS = {"langchain": keep_langchain, "redisvl": keep_redisvl}
NAMES = {"langchain": "LangChain's CacheBackedEmbeddings over RedisStore (JSON)", "redisvl": "RedisVL's EmbeddingsCache (a hash with JSON)"}


def used(server, Connection):
    """Memory in use, and how many bytes each key takes in the middle, of how many keys."""
    with Connection(server.port, 60) as connection:
        info = connection.ask("INFO", "memory").decode()
        keys = connection.ask("KEYS", "*")
        sizes = sorted(connection.ask_all([("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys]))
    memory = next(int(line.split(":")[1]) for line in info.splitlines() if line.startswith("used_memory:"))
    return memory, sizes


def main(folder, program):
    sys.dont_write_bytecode = True
    from node import ROOT, Node
    from servers import Connection, Server, until

    lines = gzip.decompress((ROOT / "tests/data/short-10k.txt.gz").read_bytes()).decode().splitlines()
    texts = list(dict.fromkeys(lines))[:COUNT]
    subprocess.run([ROOT / "scripts/fetch-model"], check=True)
    rows = []

    def measured(name, keep):
        server = Server()
        try:
            server.start()
            before, _ = used(server, Connection)
            keep(server)
            after, sizes = used(server, Connection)
            rows.append({"name": name, "keys": len(sizes), "bytes_a_vector": (after - before) / COUNT, "bytes_a_key": sum(sizes) / len(sizes)})
        finally:
            server.end()

    def ours(server):
        node = Node("bytes", server.url, model="all-MiniLM-L6-v2", VECMEMO_REMOTE_DEADLINE_MS="500")
        try:
            node.start()
            until("the tier is ready", node.is_settled)
            items = [item for at in range(0, COUNT, 32) for item in node.items(texts[at:at + 32])]
            until("what was computed is written", node.has_written, 60)
        finally:
            node.end()
        (folder / "vectors.json").write_text(json.dumps({"texts": texts, "vectors": [item["embedding"] for item in items]}))

    measured("vecmemo", ours)
    python = folder / "venv/bin/python"
    environment = [sys.executable, "-m", "venv", folder / "venv"]
    packages = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    for command in (environment, packages):
        installed = subprocess.run(command, capture_output=True, text=True)
        if installed.returncode:
            rows.append({"left_out": f"the peers: {installed.stderr.strip().splitlines()[-1:]}"})
            break
    else:
        for peer, name in NAMES.items():
            try:
                measured(name, lambda server: subprocess.run([python, __file__, "keep", peer, str(server.port), folder / "vectors.json"],
                                                             check=True, capture_output=True, text=True))
            except subprocess.CalledProcessError as problem:
                rows.append({"left_out": f"{name}: {problem.stderr.strip().splitlines()[-1:]}"})
    (folder / "peers.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        given = json.loads(Path(sys.argv[4]).read_text())
        PEERS[sys.argv[2]](int(sys.argv[3]), given["texts"], given["vectors"])
    else:
        main(Path(sys.argv[1]), sys.argv[2])
