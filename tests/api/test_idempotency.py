import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from api.idempotency import forget_keys
from booking.postgres.database import Database
from booking.postgres.tables import idempotency_keys
from tests.api.conftest import add
from tests.conftest import ADMINISTRATOR_ID, AUTHORIZATION, RunningService

Wish = Callable[..., dict[str, Any]]


def key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid4())}


def test_the_same_request_under_the_same_key_is_answered_the_same_and_books_once(
    client: httpx.Client, wish: Wish, driver_id: int
) -> None:
    headers = key()
    first, again = (client.post("/bookings", json=wish(), headers=headers) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert first.headers["Location"] == again.headers["Location"]
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(client.get("/bookings", params={"driver_id": driver_id}).json()["items"]) == 1


def test_a_refusal_is_repeated_even_when_the_time_has_become_free(
    client: httpx.Client, wish: Wish
) -> None:
    in_the_way = client.post("/bookings", json=wish()).json()["id"]
    headers = key()
    first = client.post("/bookings", json=wish(), headers=headers)
    client.post(f"/bookings/{in_the_way}/cancel")
    again = client.post("/bookings", json=wish(), headers=headers)
    assert first.status_code == again.status_code == 409
    assert first.content == again.content
    assert again.headers["Content-Type"] == "application/problem+json"
    # The control: under a new key the same request is carried out.
    assert client.post("/bookings", json=wish(), headers=key()).status_code == 201


def test_another_request_under_the_same_key_is_refused(client: httpx.Client, wish: Wish) -> None:
    headers = key()
    assert client.post("/bookings", json=wish(0, 30), headers=headers).status_code == 201
    other = client.post("/bookings", json=wish(30, 60), headers=headers)
    assert other.status_code == 422
    assert other.json()["type"] == "/problems/key-reused"


def test_the_path_is_part_of_the_request(client: httpx.Client, wish: Wish) -> None:
    booking = f"/bookings/{client.post('/bookings', json=wish()).json()['id']}"
    headers = key()
    assert client.post(f"{booking}/start", headers=headers).status_code == 200
    elsewhere = client.post(f"{booking}/complete", headers=headers)  # with the same body: none
    assert elsewhere.status_code == 422
    assert elsewhere.json()["type"] == "/problems/key-reused"
    assert client.get(booking).json()["state"] == "in_progress"


def test_while_a_request_is_running_another_under_its_key_is_told_so_at_once(
    service: RunningService, client: httpx.Client, wish: Wish
) -> None:
    headers = key()

    async def meanwhile() -> httpx.Response:
        # What a running request holds: the lock of its key.
        running = await asyncpg.connect(service.database_url)
        try:
            async with running.transaction():
                await running.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
                    f"{ADMINISTRATOR_ID}:{headers['Idempotency-Key']}",
                )
                return await asyncio.to_thread(
                    lambda: client.post("/bookings", json=wish(), headers=headers)
                )
        finally:
            await running.close()

    answer = asyncio.run(meanwhile())
    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/key-in-use"
    assert answer.headers["Retry-After"] == "1"
    assert client.post("/bookings", json=wish(), headers=headers).status_code == 201


def test_a_booking_made_under_a_key_is_known_at_once_to_the_advice(
    client: httpx.Client, wish: Wish
) -> None:
    fleet = str(uuid4())
    driver = add(client, "/drivers", {"name": "Ada", "fleet": fleet})
    body = wish(driver_id=driver)
    client.post("/bookings", json=body, headers=key())
    window = {"start": body["start"], "end": body["predicted_end"], "fleet": fleet}
    answer = client.get("/availability", params=window).json()
    assert (answer["items"], answer["source"]) == ([], "memory")


@pytest.mark.anyio
async def test_keys_are_forgotten_when_they_are_old_and_no_sooner(database: Database) -> None:
    async def keys(connection: AsyncConnection) -> list[str]:
        return list(await connection.scalars(select(idempotency_keys.c.key)))

    async def remember(connection: AsyncConnection) -> None:
        for name, age in (("old", timedelta(hours=25)), ("young", timedelta(hours=23))):
            await connection.execute(
                insert(idempotency_keys).values(
                    key=name,
                    fingerprint=b"",
                    status=201,
                    body=b"",
                    created_at=func.now() - age,
                )
            )

    await database.transact(remember)
    assert await forget_keys(database, timedelta(hours=24)) == 1
    assert await database.transact(keys) == ["young"]


def test_a_running_service_forgets_old_keys_by_itself(
    fresh_url: str, serve: Callable[..., RunningService], execute: Any
) -> None:
    old = (
        "INSERT INTO idempotency_keys (key, fingerprint, status, body, created_at)"
        " VALUES ('old', '', 201, '', now() - interval '25 hours')"
    )
    asyncio.run(execute(fresh_url, old))
    serve(fresh_url)

    async def left() -> int:
        connection = await asyncpg.connect(fresh_url)
        try:
            count: int = await connection.fetchval("SELECT count(*) FROM idempotency_keys")
        finally:
            await connection.close()
        return count

    for _ in range(100):
        if asyncio.run(left()) == 0:
            return
        time.sleep(0.1)
    pytest.fail("the old key is still there")


@pytest.mark.parametrize("step", ["cancel", "start"])
def test_every_step_can_be_repeated(client: httpx.Client, wish: Wish, step: str) -> None:
    booking_id = client.post("/bookings", json=wish()).json()["id"]
    headers = key()
    first, again = (
        client.post(f"/bookings/{booking_id}/{step}", headers=headers) for _ in range(2)
    )
    assert first.status_code == again.status_code == 200
    assert first.content == again.content
    # The control: without a key the second is an illegal transition.
    assert client.post(f"/bookings/{booking_id}/{step}").status_code == 409


def test_drivers_and_riders_are_added_once(client: httpx.Client) -> None:
    for path in ("/drivers", "/riders"):
        headers = key()
        ids = {
            client.post(path, json={"name": "Once"}, headers=headers).json()["id"] for _ in range(2)
        }
        assert len(ids) == 1
        assert add(client, path, {"name": "Once"}) not in ids


def test_many_at_once_under_one_key_book_once(
    service: RunningService, client: httpx.Client, wish: Wish, driver_id: int
) -> None:
    body, headers = wish(), key()

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=service.address, headers=AUTHORIZATION, trust_env=False
        ) as many:
            posts = (many.post("/bookings", json=body, headers=headers) for _ in range(20))
            return await asyncio.gather(*posts)

    answers = asyncio.run(together())
    booked = [each for each in answers if each.status_code == 201]
    running = [each for each in answers if each.status_code == 409]
    assert booked
    assert running, "with none turned away, none ran at the same time"
    assert len({each.content for each in booked}) == 1
    assert len(booked) + len(running) == len(answers)
    for each in running:
        assert each.json()["type"] == "/problems/key-in-use"
        assert each.headers["Retry-After"] == "1"
    assert len(client.get("/bookings", params={"driver_id": driver_id}).json()["items"]) == 1


def test_a_key_is_printable_and_not_too_long(client: httpx.Client, wish: Wish) -> None:
    for wrong in ("", "x" * 256, "caf\xe9"):
        response = client.post(
            "/bookings", json=wish(), headers={"Idempotency-Key": wrong.encode("latin-1")}
        )
        assert response.status_code == 422, wrong
        assert response.json()["errors"][0]["field"] == "Idempotency-Key"
