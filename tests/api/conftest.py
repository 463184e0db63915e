"""A client of the running service, and the people whom the tests book."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from booking.postgres import schema
from booking.postgres.embedded import EmbeddedPostgres
from tests.conftest import AUTHORIZATION, RunningService, _copies

NINE = datetime(2031, 5, 6, 9, tzinfo=UTC)


@pytest.fixture
def client(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=service.address, headers=AUTHORIZATION, trust_env=False, timeout=30
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def own_url(server: EmbeddedPostgres, template_of: Callable[..., str]) -> Iterator[str]:
    """A database that the tests of one file share, which serve it themselves."""
    with _copies(server, template_of) as make:
        yield make(schema.SHIPPED)


@pytest.fixture
def driver_id(client: httpx.Client) -> int:
    return add(client, "/drivers", {"name": "Ada"})


@pytest.fixture
def rider_id(client: httpx.Client) -> int:
    return add(client, "/riders", {"name": "Alan"})


@pytest.fixture
def wish(driver_id: int, rider_id: int) -> Callable[..., dict[str, Any]]:
    """`wish(from_minute, to_minute, **changes)`: the body of a request to book."""

    def make(from_minute: int = 0, to_minute: int = 30, **changes: Any) -> dict[str, Any]:
        body = {
            "driver_id": driver_id,
            "rider_id": rider_id,
            "start": at(from_minute),
            "predicted_end": at(to_minute),
        }
        return {key: value for key, value in (body | changes).items() if value is not None}

    return make


def at(minute: int) -> str:
    """So many minutes after nine."""
    return (NINE + timedelta(minutes=minute)).isoformat().replace("+00:00", "Z")


def add(client: httpx.Client, path: str, body: dict[str, Any]) -> int:
    """The id of something new."""
    response = client.post(path, json=body)
    assert response.status_code == 201, response.text
    id_: int = response.json()["id"]
    return id_
