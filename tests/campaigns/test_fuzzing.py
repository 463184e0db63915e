"""Requests that nobody would think of, made up from the OpenAPI document by schemathesis.

All its phases: the document's examples, every boundary of every rule, random requests, and
sequences of them that follow one answer to the next. Each answer must be documented, and of
the documented form, and none of them a 500.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import AUTHORIZATION, RunningService

CASES_MIN = 20_000
_EXAMPLES = 400  # for each operation and phase


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_no_request_that_the_document_allows_or_forbids_is_answered_in_an_undocumented_way(
    service: RunningService, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        *("run", f"{service.address}/docs/openapi.json"),
        *(f"--header={name}: {value}" for name, value in AUTHORIZATION.items()),
        *("--mode=all", f"--max-examples={_EXAMPLES}", "--continue-on-failure"),
        *("--checks=all", "--exclude-checks=positive_data_acceptance"),
        *("--seed=1", "--generation-database=none", "--no-color"),
        *("--report=json", f"--report-json-path={report}"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-20_000:]
    found = json.loads(report.read_text())
    assert found["test_cases"]["generated"] >= CASES_MIN
    assert found["operations"]["tested"] == found["operations"]["total"]
