"""What docs/integration.md shows, block by block."""

import json
import re
import urllib.request

import numpy
from support import ROOT

AS_IN_GUIDE = "http://127.0.0.1:8080"
TEXTS = ["a text", "another"]


def blocks(language):
    """The blocks of a language, by their headings."""
    guide = (ROOT / "docs/integration.md").read_text(encoding="utf-8")
    found = {}
    for section in re.split(r"^## ", guide, flags=re.MULTILINE)[1:]:
        heading = section.splitlines()[0]
        for block in re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
            assert heading not in found and AS_IN_GUIDE in block
            found[heading] = block
    return found


def run_python(server, block):
    """The `vectors` that a block makes."""
    names = {}
    exec(compile(block.replace(AS_IN_GUIDE, server.url), "docs/integration.md", "exec"), names)  # noqa: S102: our own guide
    return names["vectors"]


def right(server, vectors):
    """Whether they are those of the two texts in the guide."""
    body = json.dumps({"inputs": TEXTS}).encode()
    request = urllib.request.Request(f"{server.url}/embed", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        expected = numpy.array(json.load(answer))
    vectors = numpy.asarray(vectors, dtype=float)
    assert vectors.shape == expected.shape
    assert (vectors * expected).sum(axis=1).min() > 0.9999
