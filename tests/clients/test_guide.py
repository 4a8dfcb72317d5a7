"""The blocks of docs/integration.md, run as they stand but for the address."""

import json
import os
import subprocess

import pytest
from guide import AS_IN_GUIDE, blocks, right, run_python
from support import ROOT

PYTHON = blocks("python")


def test_the_guide_has_a_block_for_each_client():
    assert set(PYTHON) == {"OpenAI, Python", "LangChain", "LlamaIndex", "Haystack", "LiteLLM", "huggingface_hub"}
    assert set(blocks("javascript")) == {"OpenAI, JavaScript"} and set(blocks("sh")) == {"curl"}


@pytest.mark.parametrize("client", [client for client in PYTHON if client != "LiteLLM"])
def test_python(server, client):
    right(server, run_python(server, PYTHON[client]))


def test_curl(server):
    answer = subprocess.run(["sh", "-c", blocks("sh")["curl"].replace(AS_IN_GUIDE, server.url)], capture_output=True, check=True)
    right(server, json.loads(answer.stdout))


@pytest.mark.skipif(not os.environ.get("NODE_MODULES"), reason="scripts/test-clients brings OpenAI's JavaScript package where npm is")
def test_javascript(server, tmp_path):
    block = blocks("javascript")["OpenAI, JavaScript"].replace(AS_IN_GUIDE, server.url)
    script = tmp_path / "block.mjs"
    script.write_text(block + "\nconsole.log(JSON.stringify(vectors));\n")
    (tmp_path / "node_modules").symlink_to(ROOT / os.environ["NODE_MODULES"])
    answer = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    right(server, json.loads(answer.stdout))
