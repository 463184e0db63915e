"""What a client sees while the database is away or busy, and afterwards."""

import asyncio
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os import kill
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from booking.postgres.embedded import EmbeddedPostgres
from booking.postgres.schema import prepare
from tests.api.conftest import add, at
from tests.conftest import AUTHORIZATION, RunningService

Serve = Callable[..., RunningService]


def body(**changes: Any) -> dict[str, Any]:
    return {"rider_id": 1, "driver_id": 1, "start": at(0), "predicted_end": at(30)} | changes


def test_a_lost_database_is_a_503_that_says_when_to_retry_and_heals(
    server_directory: Path, serve: Serve
) -> None:
    with EmbeddedPostgres(server_directory) as server:
        service = serve(prepare(server.url))
        with httpx.Client(
            base_url=service.address, headers=AUTHORIZATION, trust_env=False, timeout=30
        ) as client:
            add(client, "/drivers", {"name": "Ada"})
            add(client, "/riders", {"name": "Alan"})
            key = {"Idempotency-Key": str(uuid4())}
            assert server.pid is not None
            kill(server.pid, signal.SIGKILL)

            for method, path in (("POST", "/bookings"), ("GET", "/bookings"), ("GET", "/ready")):
                sent = {"json": body(), "headers": key} if method == "POST" else {}
                away = client.request(method, path, **sent)
                assert away.status_code == 503, (method, path, away.text)
                assert away.headers["Retry-After"] == "1"
                assert away.headers["Content-Type"] == "application/problem+json"
            assert client.get("/health").status_code == 200

            with EmbeddedPostgres(server_directory):  # whoever enters starts it again
                healed = client.post("/bookings", json=body(), headers=key)
                for _ in range(20):  # each 503 has thrown away a connection that was lost
                    if healed.status_code != 503:
                        break
                    healed = client.post("/bookings", json=body(), headers=key)
                assert healed.status_code == 201, healed.text
                assert client.get("/ready").status_code == 200


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"TAXI_WAITING_MAX": "1", "TAXI_STATEMENT_S_MAX": "3"}, "ledger-busy"),
        ({"TAXI_WAIT_S_MAX": "0.2", "TAXI_STATEMENT_S_MAX": "3"}, "ledger-busy"),
        ({"TAXI_STATEMENT_S_MAX": "0.2"}, "contended"),
    ],
)
def test_too_many_at_once_are_turned_away_and_told_when_to_retry(
    fresh_url: str,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, str],
    problem: str,
) -> None:
    for variable, value in ({"TAXI_POOL_SIZE": "1"} | limits).items():
        monkeypatch.setenv(variable, value)
    service = serve(fresh_url)
    with httpx.Client(
        base_url=service.address, headers=AUTHORIZATION, trust_env=False, timeout=30
    ) as client:
        add(client, "/drivers", {"name": "Ada"})
        add(client, "/riders", {"name": "Alan"})

        def book(_: int) -> httpx.Response:
            return client.post("/bookings", json=body())

        async def while_locked() -> list[httpx.Response]:
            blocker = await asyncpg.connect(fresh_url)
            try:
                async with blocker.transaction():
                    await blocker.execute("LOCK TABLE bookings")
                    with ThreadPoolExecutor(8) as pool:
                        return await asyncio.to_thread(lambda: list(pool.map(book, range(8))))
            finally:
                await blocker.close()

        answers = asyncio.run(while_locked())
        assert {each.status_code for each in answers} == {503}
        assert {each.headers["Retry-After"] for each in answers} == {"1"}
        assert f"/problems/{problem}" in {each.json()["type"] for each in answers}
        assert book(0).status_code == 201, "and all is well once the lock is gone"
