import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import add
from tests.conftest import RunningService

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
    elsewhere = client.post("/riders", json={"name": "Alan"}, headers=headers)
    assert elsewhere.status_code == 422


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
        async with httpx.AsyncClient(base_url=service.address, trust_env=False) as many:
            posts = (many.post("/bookings", json=body, headers=headers) for _ in range(20))
            return await asyncio.gather(*posts)

    answers = asyncio.run(together())
    booked = [each for each in answers if each.status_code == 201]
    running = [each for each in answers if each.status_code == 409]
    assert booked
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
