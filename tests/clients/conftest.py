"""One server for all client tests; nothing here reaches beyond loopback."""

import os

import pytest

# Before any client is imported: no downloads, no telemetry, no proxy between us and loopback.
os.environ.update(
    HF_HUB_OFFLINE="0",  # huggingface_hub refuses every URL when offline; no test names anything but loopback
    HF_HUB_DISABLE_TELEMETRY="1", HAYSTACK_TELEMETRY_ENABLED="False", LITELLM_LOCAL_MODEL_COST_MAP="True",
    LITELLM_TELEMETRY="False", NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost", LANGSMITH_TRACING="false",
    OPENAI_API_KEY="unused", TOKENIZERS_PARALLELISM="false")
for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN", "OPENAI_BASE_URL"):
    os.environ.pop(name, None)

import support  # noqa: E402


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server with an empty store; asked to end after the last test, which it must do in good order."""
    if url := os.environ.get("VECMEMO_URL"):
        yield support.Server(url)
        return
    folder = tmp_path_factory.mktemp("vecmemo")
    with open(folder / "log", "wb") as log:
        running = support.start(folder / "data", log)
        try:
            yield running
        finally:
            code = support.stop(running)
    assert code == 0, f"exit code {code} after SIGTERM; the log ends:\n{(folder / 'log').read_text()[-2000:]}"


class Keyed:
    """A server with keys: the operator's, and one that embeds for a tenant."""

    def __init__(self, server, tenant_key):
        self.server = server
        self.tenant_key = tenant_key


@pytest.fixture(scope="session")
def keyed(tmp_path_factory):
    """A second server, which wants keys."""
    folder = tmp_path_factory.mktemp("vecmemo-keys")
    table, tenant_key = support.new_key("acme", ["embed", "search", "invalidate"])
    (folder / "keys.toml").write_text(table)
    with open(folder / "log", "wb") as log:
        running = support.start(folder / "data", log, key="a-key-for-the-tests-alone", keys_file=folder / "keys.toml")
        try:
            yield Keyed(running, tenant_key)
        finally:
            code = support.stop(running)
    assert code == 0, f"exit code {code} after SIGTERM"
    said = (folder / "log").read_text()
    assert running.key not in said and tenant_key not in said, "a key is in the log"


@pytest.fixture(scope="session")
def texts():
    """The fixture texts with their golden vectors."""
    return support.Texts()
