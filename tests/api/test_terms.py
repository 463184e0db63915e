"""Terms over HTTP: shifts, turnaround, places, and the reason of a refusal."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.api.conftest import add, at

Wish = Callable[..., dict[str, Any]]

BERLIN = {"latitude_deg": 52.52, "longitude_deg": 13.405}
POTSDAM = {"latitude_deg": 52.4, "longitude_deg": 13.06}


def shifts_of(client: httpx.Client, driver_id: int, body: dict[str, Any], **query: str) -> Any:
    return client.put(f"/drivers/{driver_id}/shifts", json=body, params=query)


@pytest.fixture
def fitted(client: httpx.Client) -> int:
    return add(client, "/drivers", {"name": "Ada", "turnaround_s": 300})


def test_a_booking_says_what_it_blocks_and_who_estimated_the_way(
    client: httpx.Client, fitted: int, wish: Wish
) -> None:
    client.post("/bookings", json=wish(driver_id=fitted, dropoff=BERLIN))
    far = client.post("/bookings", json=wish(240, 270, driver_id=fitted, pickup=POTSDAM)).json()
    assert far["start"] == at(240)
    assert far["blocked_from"] < at(240 - 30)
    assert far["travel_source"] == "great circle"
    assert far["pickup"] == POTSDAM
    assert client.get(f"/bookings/{far['id']}").json() == far


@pytest.mark.parametrize(
    ("start", "pickup", "reason", "slug"),
    [
        (10, BERLIN, "overlap", "booking-conflict"),
        (60, POTSDAM, "travel", "no-time-to-travel"),
        (32, BERLIN, "turnaround", "no-turnaround"),
    ],
)
def test_a_refusal_names_its_reason_and_what_is_free_instead(
    client: httpx.Client,
    fitted: int,
    wish: Wish,
    start: int,
    pickup: dict[str, float],
    reason: str,
    slug: str,
) -> None:
    first = client.post("/bookings", json=wish(driver_id=fitted, dropoff=BERLIN)).json()
    body = wish(start, start + 30, driver_id=fitted, pickup=pickup)
    check = client.post("/bookings/check", json=body).json()
    assert (check["would_conflict"], check["reason"]) == (True, reason)
    refused = client.post("/bookings", json=body)
    assert refused.status_code == 409
    problem = refused.json()
    assert (problem["type"], problem["reason"]) == (f"/problems/{slug}", reason)
    assert [each["booking_id"] for each in problem["conflicts"]] == [first["id"]]
    offered = problem["next_free"]
    del body["pickup"]
    assert client.post("/bookings", json=body | offered).status_code == 201


def test_working_hours_are_laid_down_read_and_dropped(
    client: httpx.Client, driver_id: int, wish: Wish
) -> None:
    path = f"/drivers/{driver_id}/shifts"
    assert client.get(path).json() == {"shifts": None, "zone": "UTC", "stranded": []}
    booked = client.post("/bookings", json=wish(60, 90)).json()
    hours = {"weekly": {"tuesday": [{"from": "09:00", "until": "10:15", "breaks": []}]}}
    refused = shifts_of(client, driver_id, hours)
    assert refused.status_code == 409
    [stranded] = refused.json()["stranded"]
    assert (stranded["booking_id"], stranded["reason"]) == (booked["id"], "off_shift")
    assert stranded["outside"] == {"start": at(75), "end": at(90)}
    assert client.get(path).json()["shifts"] is None
    laid = shifts_of(client, driver_id, hours, strand="true")
    assert laid.status_code == 200
    assert laid.json() == client.get(path).json()
    assert laid.json()["shifts"]["weekly"] == hours["weekly"]
    assert client.get(f"/drivers/{driver_id}").json()["has_shifts"] is True

    off = client.post("/bookings", json=wish(90, 100))
    assert (off.status_code, off.json()["reason"]) == (409, "shift")
    assert "off shift" in off.json()["detail"]
    gaps = client.get(f"/drivers/{driver_id}/gaps", params={"start": at(0), "end": at(600)})
    assert gaps.json()["items"] == [{"start": at(0), "end": at(60)}]
    free = client.get("/availability", params={"start": at(90), "end": at(100), "limit": 1000})
    assert driver_id not in free.json()["items"]

    assert client.delete(path).json()["shifts"] is None
    assert client.post("/bookings", json=wish(90, 100)).status_code == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"weekly": {"monday": [{"from": "09:00", "until": "09:00"}]}}, "weekly.monday[0].until"),
        ({"weekly": {"moonday": []}}, "weekly"),
        ({"exceptions": {"2031-13-01": []}}, "exceptions.2031-13-01"),
        ({"time_off": [{"first": "2031-05-07", "last": "2031-05-06"}]}, "time_off[0].last"),
        ({"time_off": [{"start": "2031-05-07T00:00:00Z"}]}, "time_off[0].end"),
        ({"weekly": {"monday": [{"from": "9", "until": "10:00"}]}}, "weekly"),
    ],
)
def test_hours_that_cannot_be_are_refused_by_name(
    client: httpx.Client, driver_id: int, body: dict[str, Any], field: str
) -> None:
    refused = shifts_of(client, driver_id, body)
    assert refused.status_code == 422
    [error] = refused.json()["errors"]
    assert error["field"].startswith(field)
    assert client.get(f"/drivers/{driver_id}/shifts").json()["shifts"] is None


def test_hours_are_meant_by_the_drivers_own_clock(client: httpx.Client, wish: Wish) -> None:
    driver = add(client, "/drivers", {"name": "Ada", "zone": "Europe/Berlin"})
    hours = {"weekly": {"tuesday": [{"from": "11:00", "until": "12:00"}]}}
    assert shifts_of(client, driver, hours).status_code == 200
    # Nine in London is eleven in Berlin, in May.
    assert client.post("/bookings", json=wish(0, 60, driver_id=driver)).status_code == 201
    moved = client.patch(f"/drivers/{driver}", json={"zone": "America/New_York"})
    assert moved.status_code == 200
    off = client.post("/bookings", json=wish(60, 70, driver_id=driver))
    assert off.json()["reason"] == "shift"


def test_who_could_not_get_there_is_not_offered(
    client: httpx.Client, fitted: int, wish: Wish
) -> None:
    client.post("/bookings", json=wish(driver_id=fitted, dropoff=BERLIN))
    span = {"start": at(60), "end": at(80), "limit": "1000"}
    assert fitted in client.get("/availability", params=span).json()["items"]
    here = client.get("/availability", params=span | {"pickup": "52.52,13.405"})
    far = client.get("/availability", params=span | {"pickup": "52.4,13.06"})
    assert fitted in here.json()["items"]
    assert fitted not in far.json()["items"]
    for wrong in ("north", "91,0"):
        refused = client.get("/availability", params=span | {"pickup": wrong})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == "pickup"


def test_a_turnaround_is_laid_down_later_and_dropped(
    client: httpx.Client, driver_id: int, wish: Wish
) -> None:
    client.post("/bookings", json=wish(0, 30))
    close = client.post("/bookings", json=wish(31, 40)).json()
    changed = client.patch(f"/drivers/{driver_id}", json={"turnaround_s": 300})
    assert changed.json()["turnaround_s"] == 300
    read = client.get(f"/bookings/{close['id']}").json()
    assert (read["blocked_from"], read["lead_short_s"]) == (at(30), 240)
    dropped = client.patch(f"/drivers/{driver_id}", json={"turnaround_s": None})
    assert dropped.json()["turnaround_s"] is None
    read = client.get(f"/bookings/{close['id']}").json()
    assert (read["blocked_from"], read["lead_short_s"]) == (at(31), 0)
