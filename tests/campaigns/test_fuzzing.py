"""Requests that nobody would think of, made up from the OpenAPI document by schemathesis.

All its phases: the document's examples, every boundary of every rule, random requests, and
sequences of them that follow one answer to the next. Each answer must be documented, and of
the documented form, and none of them a 500.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import AUTHORIZATION, RunningService

CASES_MIN = 20_000
_EXAMPLES = 320  # for each operation and phase
_ROOT = Path(__file__).parents[2]


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_no_request_that_the_document_allows_or_forbids_is_answered_in_an_undocumented_way(
    serve: Callable[..., RunningService],
    fresh_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Signing in is an operation like others here: behind the limit is what is to be tried.
    monkeypatch.setenv("TAXI_SIGN_INS_PER_MIN", "1000000")
    address = serve(fresh_url).address
    report = tmp_path / "report.json"
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        *("run", f"{address}/docs/openapi.json", "--workers=2"),
        *(f"--header={name}: {value}" for name, value in AUTHORIZATION.items()),
        *("--mode=all", f"--max-examples={_EXAMPLES}", "--continue-on-failure"),
        # What the document allows, the domain may refuse: a window that ends before it starts.
        *("--checks=all", "--exclude-checks=positive_data_acceptance"),
        "--exclude-operation-id=follow_events",  # a stream, whose answer never ends
        "--suppress-health-check=all",  # that much is thrown away is no fault of the service
        *("--seed=1", "--generation-database=none", "--no-color"),
        *("--report=json", f"--report-json-path={report}"),
    ]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.campaigns.fuzzing_hooks",
        "PYTHONPATH": str(_ROOT),
    }
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    found = json.loads(report.read_text())
    cases, operations = found["test_cases"]["generated"], found["operations"]
    never = sorted(
        operation
        for operation, phases in found["valid_rates"].items()
        if not any(each["accepted"] for each in phases.values())
    )
    print(f"{cases:,} cases of {operations['tested']} operations")  # noqa: T201  # to be seen
    print(f"Never answered with a success: {', '.join(never) or 'none'}")  # noqa: T201  # as well
    assert cases >= CASES_MIN
    assert operations["tested"] == operations["selected"] == operations["total"] - 1
