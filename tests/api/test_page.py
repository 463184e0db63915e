"""The API page, in a real browser that can reach nothing but this machine."""

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.conftest import RunningService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_the_api_page_names_no_other_host(client: httpx.Client) -> None:
    page = client.get("/", follow_redirects=True)
    assert page.url.path == "/docs"
    assert re.findall(r"(?:src|href)\s*=\s*[\"']?https?:", page.text) == []
    for asset in re.findall(r"(?:src|href)=[\"'](/[^\"']+)", page.text):
        assert client.get(asset).status_code == 200, asset


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
def test_the_api_page_shows_the_operations_offline(service: RunningService, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    shown = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--user-data-dir={tmp_path}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            *("--virtual-time-budget=20000", "--dump-dom"),
            f"{service.address}/docs",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    for operation in ("book", "check_booking", "cancel_booking", "get_availability"):
        assert re.search(rf'id="operations-\w+-{operation}"', shown), operation
