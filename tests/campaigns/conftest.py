"""A client of the running service, who may do everything."""

from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import AUTHORIZATION, RunningService


@pytest.fixture
def client(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=service.address, headers=AUTHORIZATION, trust_env=False, timeout=30
    ) as opened:
        yield opened
