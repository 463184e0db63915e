"""A service that is stopped under load: what was acknowledged is there, nothing is half done."""

import asyncio
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from tests.api.conftest import add, at
from tests.conftest import AUTHORIZATION, RunningService

CLIENTS = 6
BEFORE = 20
"""Bookings that are acknowledged before the service is told to stop."""


@dataclass
class Load:
    """Clients that book, each its own driver, one time after the other, until nobody answers."""

    address: str
    acknowledged: list[int] = field(default_factory=list)
    broken: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    other: list[httpx.Response] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)

    def run(self, driver: int, rider: int) -> None:
        with httpx.Client(
            headers=AUTHORIZATION, base_url=self.address, trust_env=False, timeout=30
        ) as client:
            for half_hour in count():
                key = str(uuid4())
                minute = 30 * half_hour
                body = {
                    "driver_id": driver,
                    "rider_id": rider,
                    "start": at(minute),
                    "predicted_end": at(minute + 30),
                }
                try:
                    answer = client.post("/bookings", json=body, headers={"Idempotency-Key": key})
                except httpx.ConnectError:
                    return  # nobody listens any more
                except httpx.TransportError:
                    self.broken.append((key, body))
                    continue
                if answer.status_code == 201:
                    self.acknowledged.append(answer.json()["id"])
                else:
                    self.other.append(answer)
                if len(self.acknowledged) >= BEFORE:
                    self.enough.set()


def start_load(address: str) -> tuple[Load, list[threading.Thread]]:
    load = Load(address)
    with httpx.Client(headers=AUTHORIZATION, base_url=address, trust_env=False) as client:
        rider = add(client, "/riders", {"name": "Alan"})
        drivers = [add(client, "/drivers", {"name": "Ada"}) for _ in range(CLIENTS)]
    clients = [threading.Thread(target=load.run, args=(driver, rider)) for driver in drivers]
    for each in clients:
        each.start()
    assert load.enough.wait(60)
    return load, clients


def in_the_ledger(url: str) -> list[int]:
    async def look() -> list[int]:
        connection = await asyncpg.connect(url)
        try:
            return [row["id"] for row in await connection.fetch("SELECT id FROM bookings")]
        finally:
            await connection.close()

    return asyncio.run(look())


def finish(load: Load, clients: list[threading.Thread], service: RunningService) -> list[int]:
    """Wait for all of them; what the ledger holds then."""
    service.process.wait(timeout=60)
    for each in clients:
        each.join(timeout=60)
    assert load.other == [], [each.text for each in load.other]
    return in_the_ledger(service.database_url)


def check_the_retries(load: Load, serve: Callable[..., RunningService], url: str) -> None:
    """Who was cut off asks again under the key, twice, and has one booking."""
    if not load.broken:
        return
    again = serve(url)
    with httpx.Client(
        headers=AUTHORIZATION, base_url=again.address, trust_env=False, timeout=30
    ) as client:
        for key, body in load.broken:
            answers = [
                client.post("/bookings", json=body, headers={"Idempotency-Key": key})
                for _ in range(2)
            ]
            assert [each.status_code for each in answers] == [201, 201]
            assert answers[0].json()["id"] == answers[1].json()["id"]


def test_a_service_that_is_told_to_stop_says_so_first_and_finishes_what_it_has_taken(
    fresh_url: str, serve: Callable[..., RunningService], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAXI_DRAIN_S", "3")
    service = serve(fresh_url)
    load, clients = start_load(service.address)
    service.process.send_signal(signal.SIGTERM)
    statuses = []
    while 503 not in statuses:
        ready = httpx.get(f"{service.address}/ready", trust_env=False, timeout=30)
        statuses.append(ready.status_code)
    assert ready.json()["type"] == "/problems/service-stopping"
    assert "Retry-After" in ready.headers
    # It is not ready, and answers all the same; each connection ends with its answer.
    listed = httpx.get(
        f"{service.address}/bookings", headers=AUTHORIZATION, trust_env=False, timeout=30
    )
    assert (listed.status_code, listed.headers["Connection"]) == (200, "close")

    ledger = finish(load, clients, service)
    assert sorted(ledger) == sorted(load.acknowledged), "all that was done was acknowledged"
    check_the_retries(load, serve, fresh_url)


def test_the_control_a_service_that_is_killed_leaves_some_without_an_answer(
    fresh_url: str, serve: Callable[..., RunningService]
) -> None:
    service = serve(fresh_url)
    load, clients = start_load(service.address)
    service.process.kill()
    ledger = finish(load, clients, service)
    assert load.broken, "somebody must have been cut off, or the test shows nothing"
    assert set(load.acknowledged) <= set(ledger), "what was acknowledged is there nevertheless"
    check_the_retries(load, serve, fresh_url)
    assert len(in_the_ledger(fresh_url)) == len(load.acknowledged) + len(load.broken)
