"""schemathesis drives every route of /openapi.json with good and hostile requests: no 5xx, nothing outside the schema."""

import subprocess
import sys

import requests

SEED = 20240229
EXAMPLES = 30
LIMIT_S = 240
CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance"]


def test_no_server_error_and_no_answer_outside_the_schema(server, tmp_path):
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--url", server.url,
               "--phases", "examples,coverage,fuzzing", "--checks", ",".join(CHECKS), "--max-examples", str(EXAMPLES),
               "--seed", str(SEED), "--no-shrink", "--request-timeout", "30", "--suppress-health-check", "all", "--no-color"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    # It may have switched the cache off.
    requests.put(f"{server.url}/admin/cache", json={"enabled": True}, timeout=10).raise_for_status()
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert server.ready()
