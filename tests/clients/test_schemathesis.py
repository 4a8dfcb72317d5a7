"""schemathesis drives every route of /openapi.json with good and hostile requests: no 5xx, nothing outside the schema."""

import subprocess
import sys

import pytest
import requests

SEED = 20240229
EXAMPLES = 30
LIMIT_S = 240
CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance"]


def drive(server, folder, key=None, checks=CHECKS):
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--url", server.url,
               "--phases", "examples,coverage,fuzzing", "--checks", ",".join(checks), "--max-examples", str(EXAMPLES),
               "--seed", str(SEED), "--no-shrink", "--request-timeout", "30", "--suppress-health-check", "all", "--no-color"]
    if key:
        command += ["--header", f"Authorization: Bearer {key}"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    # It may have switched the cache off.
    headers = {"authorization": f"Bearer {server.key}"} if server.key else {}
    requests.put(f"{server.url}/admin/cache", json={"enabled": True}, headers=headers, timeout=10).raise_for_status()
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert server.ready()


def test_no_server_error_and_no_answer_outside_the_schema(server, tmp_path):
    drive(server, tmp_path)


@pytest.mark.parametrize("whose", ["operator", "tenant"])
def test_the_same_where_keys_are_wanted(keyed, tmp_path, whose):
    drive(keyed.server, tmp_path, keyed.server.key if whose == "operator" else keyed.tenant_key)
