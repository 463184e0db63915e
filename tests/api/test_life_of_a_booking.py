"""Holds, steps, versions and a change of driver, over HTTP."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import add, at

Wish = Callable[..., dict[str, Any]]


def test_time_is_held_and_then_confirmed(client: httpx.Client, wish: Wish) -> None:
    held = client.post("/bookings", json=wish(hold_s=60)).json()
    assert held["state"] == "held"
    until = datetime.fromisoformat(held["held_until"])
    assert timedelta(0) < until - datetime.now(UTC) <= timedelta(seconds=60)
    refused = client.post("/bookings", json=wish(10, 40))
    assert [each["booking_id"] for each in refused.json()["conflicts"]] == [held["id"]]
    confirmed = client.post(f"/bookings/{held['id']}/confirm")
    assert confirmed.status_code == 200
    assert (confirmed.json()["state"], confirmed.json()["held_until"]) == ("confirmed", None)
    assert client.post(f"/bookings/{held['id']}/confirm").status_code == 409


def test_a_hold_that_nobody_confirms_is_over_and_the_list_says_so(
    client: httpx.Client, wish: Wish
) -> None:
    held = client.post("/bookings", json=wish(hold_s=1)).json()
    path = f"/bookings/{held['id']}"
    # A second is the shortest hold there is, and the sweep comes within the next.
    while client.get(path).json()["state"] == "held":
        time.sleep(0.05)
    assert client.get(path).json()["state"] == "expired"
    late = client.post(f"{path}/confirm")
    assert late.status_code == 409
    assert client.post("/bookings", json=wish()).status_code == 201


@pytest.mark.parametrize("hold_s", [0, 901, 1.5, "60"])
def test_a_hold_has_bounds(client: httpx.Client, wish: Wish, hold_s: object) -> None:
    refused = client.post("/bookings", json=wish(hold_s=hold_s))
    assert refused.status_code == 422
    assert [each["field"] for each in refused.json()["errors"]] == ["hold_s"]


def test_of_two_dispatchers_who_saw_the_same_version_one_is_told_so(
    client: httpx.Client, wish: Wish
) -> None:
    booked = client.post("/bookings", json=wish())
    path, seen = booked.headers["Location"], booked.headers["ETag"]
    assert client.get(path).headers["ETag"] == seen
    later = {"start": at(60), "predicted_end": at(90)}
    first = client.post(f"{path}/reschedule", json=later, headers={"If-Match": seen})
    assert first.status_code == 200
    assert first.headers["ETag"] != seen
    for step, body in (("cancel", {}), ("reschedule", later), ("reassign", {}), ("start", {})):
        second = client.post(f"{path}/{step}", json=body, headers={"If-Match": seen})
        assert second.status_code == 412
        problem = second.json()
        assert problem["type"] == "/problems/version-mismatch"
        assert [each["field"] for each in problem["errors"]] == ["If-Match"]
    assert client.get(path).json() == first.json()
    for headers in ({"If-Match": first.headers["ETag"]}, {"If-Match": "*"}, {}):
        assert client.post(f"{path}/reschedule", json=later, headers=headers).status_code == 200


@pytest.mark.parametrize("tag", ["3", 'W/"3"', '"x"', '"1", "2"'])
def test_a_tag_that_is_none_is_refused(client: httpx.Client, wish: Wish, tag: str) -> None:
    path = client.post("/bookings", json=wish()).headers["Location"]
    refused = client.post(f"{path}/cancel", headers={"If-Match": tag})
    assert refused.status_code == 422
    assert [each["field"] for each in refused.json()["errors"]] == ["If-Match"]


def test_an_answer_that_is_given_again_has_the_tag_of_the_first_time(
    client: httpx.Client, wish: Wish
) -> None:
    path = client.post("/bookings", json=wish()).headers["Location"]
    headers = {"Idempotency-Key": str(uuid4()), "If-Match": client.get(path).headers["ETag"]}
    first, again = (client.post(f"{path}/cancel", headers=headers) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert again.headers["Idempotency-Replayed"] == "true"
    assert first.headers["ETag"] == again.headers["ETag"]
    other = client.post(f"{path}/cancel", headers=headers | {"If-Match": first.headers["ETag"]})
    assert other.json()["type"] == "/problems/key-reused"


def test_a_booking_is_given_to_another_driver(client: httpx.Client, wish: Wish) -> None:
    fleet = f"fleet-{uuid4()}"
    ada, grace = (add(client, "/drivers", {"name": n, "fleet": fleet}) for n in ("A", "G"))
    booked = client.post("/bookings", json=wish(driver_id=ada)).json()
    busy = client.post("/bookings", json=wish(15, 45, driver_id=grace)).json()
    path = f"/bookings/{booked['id']}"
    refused = client.post(f"{path}/reassign", json={"driver_id": grace})
    assert refused.status_code == 409
    assert [each["booking_id"] for each in refused.json()["conflicts"]] == [busy["id"]]
    assert client.post(f"{path}/reassign").json()["type"] == "/problems/no-driver-free"
    assert client.get(path).json() == booked
    client.post(f"/bookings/{busy['id']}/cancel")
    given = client.post(f"{path}/reassign")
    assert given.status_code == 200
    assert given.json()["driver_id"] == grace
    assert client.post("/bookings", json=wish(driver_id=ada)).status_code == 201
    assert client.post("/bookings", json=wish(driver_id=grace)).status_code == 409


def test_a_rider_is_missed_once_the_start_has_come(client: httpx.Client, wish: Wish) -> None:
    path = client.post("/bookings", json=wish()).headers["Location"]
    early = client.post(f"{path}/no-show")
    assert early.json()["type"] == "/problems/too-early"
    assert client.get(path).json()["state"] == "confirmed"
    now = datetime.now(UTC)
    past = {
        "start": (now - timedelta(minutes=10)).isoformat(),
        "predicted_end": (now + timedelta(minutes=20)).isoformat(),
    }
    path = client.post("/bookings", json=wish() | past).headers["Location"]
    missed = client.post(f"{path}/no-show")
    assert missed.status_code == 200
    assert missed.json()["state"] == "no_show"


def test_a_late_trip_moves_the_next_booking_and_the_list_says_who_is_at_risk(
    client: httpx.Client, wish: Wish, driver_id: int
) -> None:
    trip = client.post("/bookings", json=wish()).json()
    path = f"/bookings/{trip['id']}"
    late = {"predicted_end": at(40)}
    assert client.post(f"{path}/predict-end", json=late).json()["type"] == (
        "/problems/illegal-transition"
    )
    behind = client.post("/bookings", json=wish(30, 60)).json()
    client.post(f"{path}/start")
    answer = client.post(f"{path}/predict-end", json=late)
    assert answer.status_code == 200
    assert answer.json()["booking"]["predicted_end"] == at(40)
    (moved,) = answer.json()["moved"]
    assert (moved["remedy"], moved["late_s"]) == ("push_back", 600)
    found = client.get(f"/bookings/{behind['id']}").json()
    assert found == moved["booking"]
    assert (found["start"], found["promised_start"], found["late_s"]) == (at(40), at(30), 600)
    for at_risk, expected in (("true", [behind["id"]]), ("false", [trip["id"]])):
        listed = client.get("/bookings", params={"driver_id": driver_id, "at_risk": at_risk})
        assert [each["id"] for each in listed.json()["items"]] == expected


def test_the_clock_says_that_a_trip_is_late_when_nobody_does(
    client: httpx.Client, wish: Wish
) -> None:
    now = datetime.now(UTC)
    # One that is overdue for longer, and cannot be helped: another trip of its driver, under
    # way as well, is right behind it. It must not keep the others waiting.
    stuck = add(client, "/drivers", {"name": "Stuck"})
    for begin, end in ((-20, -1), (-1, 20)):
        times = {
            "start": (now + timedelta(minutes=begin)).isoformat(),
            "predicted_end": (now + timedelta(minutes=end)).isoformat(),
        }
        booked = client.post("/bookings", json=wish(driver_id=stuck) | times)
        assert client.post(f"{booked.headers['Location']}/start").status_code == 200
    times = {
        "start": (now - timedelta(minutes=10)).isoformat(),
        "predicted_end": (now + timedelta(seconds=1)).isoformat(),
    }
    trip = client.post("/bookings", json=wish() | times).json()
    path = f"/bookings/{trip['id']}"
    client.post(f"{path}/start")
    while client.get(path).json()["predicted_end"] == trip["predicted_end"]:
        time.sleep(0.1)
    predicted = datetime.fromisoformat(client.get(path).json()["predicted_end"])
    assert predicted > datetime.now(UTC)


def test_a_trip_in_the_past_cannot_be_predicted_to_end_there(
    client: httpx.Client, wish: Wish
) -> None:
    path = client.post("/bookings", json=wish()).headers["Location"]
    client.post(f"{path}/start")
    refused = client.post(f"{path}/predict-end", json={"predicted_end": "2020-01-01T00:00:00Z"})
    assert refused.status_code == 422
    assert refused.json()["type"] == "/problems/already-past"
    assert [each["field"] for each in refused.json()["errors"]] == ["predicted_end"]


@pytest.mark.parametrize("name", ["Ada\n", "A\u2028da", "\x85"])
def test_a_name_is_one_line(client: httpx.Client, name: str) -> None:
    for path in ("/riders", "/drivers"):
        refused = client.post(path, json={"name": name})
        assert refused.status_code == 422
        assert [each["field"] for each in refused.json()["errors"]] == ["name"]
