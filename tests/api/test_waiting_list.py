"""The waiting list over HTTP."""

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import add, at
from tests.conftest import RunningService
from tests.world import Execute

Wish = Callable[..., dict[str, Any]]


def test_who_waits_is_offered_what_is_cancelled(
    client: httpx.Client, wish: Wish, rider_id: int
) -> None:
    taken = client.post("/bookings", json=wish()).headers["Location"]
    headers = {"Idempotency-Key": str(uuid4())}
    joined, again = (client.post("/waiting-list", json=wish(), headers=headers) for _ in range(2))
    assert joined.status_code == again.status_code == 201
    assert joined.content == again.content
    entry = joined.json()
    assert (entry["state"], entry["booking_id"]) == ("waiting", None)
    assert (entry["start"], entry["predicted_end"]) == (at(0), at(30))
    path = joined.headers["Location"]
    assert client.get(path).json() == entry
    client.post(f"{taken}/cancel")
    offered = client.get(path).json()
    booking = client.get(f"/bookings/{offered['booking_id']}").json()
    assert (offered["state"], booking["state"]) == ("offered", "held")
    assert offered["offer_expires_at"] == booking["held_until"]
    assert client.post("/bookings", json=wish()).status_code == 409
    client.post(f"/bookings/{booking['id']}/confirm")
    booked = client.get(path).json()
    assert (booked["state"], booked["offer_expires_at"]) == ("booked", None)
    refused = client.post(f"{path}/withdraw")
    assert refused.json()["type"] == "/problems/illegal-transition"
    for state, expected in (("booked", [booked]), ("waiting", [])):
        params = {"rider_id": rider_id, "state": state}
        assert client.get("/waiting-list", params=params).json()["items"] == expected


def test_what_is_declined_goes_to_the_next(client: httpx.Client, wish: Wish) -> None:
    first = client.post("/waiting-list", json=wish())
    assert first.json()["state"] == "offered"  # it was free
    second = client.post("/waiting-list", json=wish())
    assert second.json()["state"] == "waiting"
    declined = client.post(f"{first.headers['Location']}/withdraw")
    assert (declined.status_code, declined.json()["state"]) == (200, "withdrawn")
    assert client.get(second.headers["Location"]).json()["state"] == "offered"


def test_a_driver_who_comes_is_offered(client: httpx.Client, wish: Wish) -> None:
    fleet = f"fleet-{uuid4()}"
    ada = add(client, "/drivers", {"name": "Ada", "fleet": fleet})
    client.post("/bookings", json=wish(driver_id=ada))
    entry = client.post("/waiting-list", json=wish(driver_id=None, fleet=fleet))
    assert entry.json()["state"] == "waiting"
    grace = add(client, "/drivers", {"name": "Grace", "fleet": fleet})
    offered = client.get(entry.headers["Location"]).json()
    assert (offered["state"], offered["driver_id"]) == ("offered", None)
    booking = client.get(f"/bookings/{offered['booking_id']}").json()
    assert booking["driver_id"] == grace
    # It is known at once to the advice: nobody is free.
    params = {"start": at(0), "end": at(30), "fleet": fleet}
    assert client.get("/availability", params=params).json()["items"] == []


def test_what_became_free_behind_the_services_back_is_offered_by_and_by(
    service: RunningService, client: httpx.Client, wish: Wish, execute: Execute
) -> None:
    taken = client.post("/bookings", json=wish()).json()["id"]
    path = client.post("/waiting-list", json=wish()).headers["Location"]
    gone = f"UPDATE bookings SET state = 'cancelled' WHERE id = {taken}"
    asyncio.run(execute(service.database_url, gone))
    while client.get(path).json()["state"] != "offered":
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("changes", "status", "problem", "field"),
    [
        ({"rider_id": 2**52}, 404, "unknown-rider", "rider_id"),
        ({"driver_id": 2**52}, 404, "unknown-driver", "driver_id"),
        ({"driver_id": None, "fleet": "nobody's"}, 409, "no-driver-free", "fleet"),
        ({"fleet": "main"}, 422, "invalid-input", "fleet"),
        (
            {"start": "2020-05-06T09:00:00Z", "predicted_end": "2020-05-06T09:30:00Z"},
            422,
            "invalid-input",
            "start",
        ),
        ({"predicted_end": at(0)}, 422, "empty-window", "predicted_end"),
        ({"hold_s": 60}, 422, "invalid-input", "hold_s"),
    ],
)
def test_a_wish_that_is_none_is_refused_by_field(
    client: httpx.Client, wish: Wish, changes: dict[str, Any], status: int, problem: str, field: str
) -> None:
    refused = client.post("/waiting-list", json=wish(**changes))
    assert refused.status_code == status
    assert refused.json()["type"] == f"/problems/{problem}"
    assert [each["field"] for each in refused.json()["errors"]] == [field]


def test_an_entry_that_is_not_there(client: httpx.Client) -> None:
    for answer in (
        client.get(f"/waiting-list/{2**52}"),
        client.post(f"/waiting-list/{2**52}/withdraw"),
    ):
        assert answer.status_code == 404
        assert answer.json()["type"] == "/problems/unknown-entry"
