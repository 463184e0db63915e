from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import add, at

Wish = Callable[..., dict[str, Any]]


def test_a_booking_is_recorded_and_found_where_its_location_says(
    client: httpx.Client, wish: Wish
) -> None:
    response = client.post("/bookings", json=wish())
    assert response.status_code == 201
    booking = response.json()
    assert booking["state"] == "confirmed"
    assert booking["start"] == at(0)
    assert response.headers["Location"] == f"/bookings/{booking['id']}"
    assert client.get(response.headers["Location"]).json() == booking


def test_a_booking_in_the_way_is_named_and_alternatives_are_offered(
    client: httpx.Client, wish: Wish, driver_id: int
) -> None:
    other = add(client, "/drivers", {"name": "Grace"})
    first = client.post("/bookings", json=wish(0, 30)).json()
    response = client.post("/bookings", json=wish(20, 40))
    assert response.status_code == 409
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == "/problems/booking-conflict"
    assert problem["conflicts"] == [
        {"booking_id": first["id"], "start": at(0), "predicted_end": at(30)}
    ]
    assert problem["next_free"] == {"start": at(30), "predicted_end": at(50)}
    assert other in problem["free_drivers"]
    assert driver_id not in problem["free_drivers"]
    # What is offered can be had.
    assert client.post("/bookings", json=wish(30, 50)).status_code == 201
    assert client.post("/bookings", json=wish(20, 40, driver_id=other)).status_code == 201


def test_touching_bookings_do_not_conflict(client: httpx.Client, wish: Wish) -> None:
    assert client.post("/bookings", json=wish(0, 30)).status_code == 201
    assert client.post("/bookings", json=wish(30, 60)).status_code == 201
    assert client.post("/bookings", json=wish(-30, 0)).status_code == 201


def test_any_free_driver_of_a_fleet_is_found_until_none_is_left(
    client: httpx.Client, wish: Wish
) -> None:
    fleet = f"fleet-{uuid4()}"
    drivers = {add(client, "/drivers", {"name": n, "fleet": fleet}) for n in ("A", "B")}
    anyone = wish(0, 30, driver_id=None, fleet=fleet)
    answers = [client.post("/bookings", json=anyone) for _ in range(3)]
    assert [each.status_code for each in answers] == [201, 201, 409]
    assert {each.json()["driver_id"] for each in answers[:2]} == drivers
    problem = answers[2].json()
    assert problem["type"] == "/problems/no-driver-free"
    assert problem["free_drivers"] == []
    assert problem["next_free"] == {"start": at(30), "predicted_end": at(60)}
    assert client.post("/bookings", json=anyone | problem["next_free"]).status_code == 201


def test_a_cancelled_booking_gives_its_time_back(client: httpx.Client, wish: Wish) -> None:
    booking = client.post("/bookings", json=wish()).json()
    cancelled = client.post(f"/bookings/{booking['id']}/cancel", json={"reason": "rain"})
    assert cancelled.status_code == 200
    assert cancelled.json()["state"] == "cancelled"
    assert cancelled.json()["cancel_reason"] == "rain"
    assert client.post("/bookings", json=wish()).status_code == 201


def test_a_booking_is_moved_or_stays_where_it_is(client: httpx.Client, wish: Wish) -> None:
    booking = client.post("/bookings", json=wish(0, 30)).json()
    other = client.post("/bookings", json=wish(30, 60)).json()
    time = {"start": at(10), "predicted_end": at(40)}
    path = f"/bookings/{booking['id']}"
    refused = client.post(f"{path}/reschedule", json=time)
    assert refused.status_code == 409
    assert [each["booking_id"] for each in refused.json()["conflicts"]] == [other["id"]]
    assert client.get(path).json() == booking
    # What is offered can be had.
    offered = client.post(f"{path}/reschedule", json=refused.json()["next_free"])
    assert offered.status_code == 200
    client.post(f"/bookings/{other['id']}/cancel")
    moved = client.post(f"{path}/reschedule", json=time)
    new = {"version": moved.json()["version"], "blocked_from": time["start"]}
    assert moved.json() == booking | time | new
    assert moved.json()["version"] > booking["version"]
    assert client.get(path).json() == moved.json()
    empty = client.post(f"{path}/reschedule", json=time | {"predicted_end": at(10)})
    assert (empty.status_code, empty.json()["errors"][0]["field"]) == (422, "predicted_end")
    unknown = client.post(f"/bookings/{2**52}/reschedule", json=time)
    assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/unknown-booking")


def test_a_trip_starts_and_is_completed_and_then_nothing_more(
    client: httpx.Client, wish: Wish
) -> None:
    path = f"/bookings/{client.post('/bookings', json=wish()).json()['id']}"
    assert client.post(f"{path}/complete").status_code == 409
    assert client.post(f"{path}/start").json()["state"] == "in_progress"
    done = client.post(f"{path}/complete").json()
    assert done["state"] == "completed"
    assert done["actual_end"] > done["actual_start"]
    refused = client.post(f"{path}/cancel")
    assert refused.status_code == 409
    assert refused.json()["type"] == "/problems/illegal-transition"


def test_what_happened_cannot_lie_in_the_future(client: httpx.Client, wish: Wish) -> None:
    path = f"/bookings/{client.post('/bookings', json=wish()).json()['id']}"
    refused = client.post(f"{path}/start", json={"at": "2100-01-01T00:00:00Z"})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "at"


@pytest.mark.parametrize("anyone", [False, True])
def test_a_check_says_what_a_booking_would_meet_and_holds_nothing(
    client: httpx.Client, wish: Wish, driver_id: int, anyone: bool
) -> None:
    fleet = f"fleet-{uuid4()}"
    mine = add(client, "/drivers", {"name": "Tony", "fleet": fleet})
    body = wish(driver_id=None, fleet=fleet) if anyone else wish(driver_id=mine)
    for _ in range(2):
        before = client.post("/bookings/check", json=body)
        assert before.status_code == 200
        assert before.json()["would_conflict"] is False
        assert before.json()["conflicts"] == []
    assert client.post("/bookings", json=body).status_code == 201
    after = client.post("/bookings/check", json=body).json()
    assert after["would_conflict"] is True
    assert after["free_drivers"] == []
    assert driver_id  # another fleet's driver is free and is not offered


def test_bookings_are_listed_by_driver_rider_state_fleet_and_window(
    client: httpx.Client, wish: Wish, driver_id: int, rider_id: int
) -> None:
    ids = [client.post("/bookings", json=wish(60 * n, 60 * n + 30)).json()["id"] for n in range(4)]
    client.post(f"/bookings/{ids[0]}/cancel")

    def listed(**params: Any) -> list[int]:
        response = client.get("/bookings", params={"driver_id": driver_id} | params)
        assert response.status_code == 200, response.text
        return [each["id"] for each in response.json()["items"]]

    assert listed() == ids
    assert listed(rider_id=rider_id) == ids
    assert listed(rider_id=rider_id + 1_000) == []
    assert listed(state="cancelled") == ids[:1]
    assert listed(fleet="main") == ids
    assert listed(fleet="elsewhere") == []
    # Half-open: what ends at the window's start, or starts at its end, lies outside.
    assert listed(start=at(30), end=at(60)) == []
    assert listed(start=at(29), end=at(61)) == ids[:2]
    assert listed(start=at(150)) == ids[3:]


def test_pages_follow_each_other_without_a_gap_even_while_bookings_are_made(
    client: httpx.Client, wish: Wish, driver_id: int
) -> None:
    made = [client.post("/bookings", json=wish(60 * n, 60 * n + 30)).json()["id"] for n in range(5)]
    seen: list[int] = []
    cursor: str | None = None
    while True:
        params = {"driver_id": driver_id, "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = client.get("/bookings", params=params).json()
        seen += [each["id"] for each in page["items"]]
        # With an offset, this one would push the next page along.
        client.post("/bookings", json=wish(-60 * len(seen), -60 * len(seen) + 30))
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made


def test_a_drivers_agenda_and_gaps_cover_the_window_between_them(
    client: httpx.Client, wish: Wish, driver_id: int
) -> None:
    first = client.post("/bookings", json=wish(0, 30)).json()
    second = client.post("/bookings", json=wish(40, 60)).json()
    span = {"start": at(-60), "end": at(120)}
    agenda = client.get(f"/drivers/{driver_id}/agenda", params=span).json()["items"]
    assert agenda == [first, second]
    gaps = client.get(f"/drivers/{driver_id}/gaps", params=span).json()["items"]
    assert gaps == [
        {"start": at(-60), "end": at(0)},
        {"start": at(30), "end": at(40)},
        {"start": at(60), "end": at(120)},
    ]
    long = client.get(f"/drivers/{driver_id}/gaps", params=span | {"at_least_minutes": 20})
    assert long.json()["items"] == [gaps[0], gaps[2]]


def test_availability_names_the_free_drivers_of_the_fleet(client: httpx.Client, wish: Wish) -> None:
    fleet = f"fleet-{uuid4()}"
    one, two = (add(client, "/drivers", {"name": n, "fleet": fleet}) for n in ("A", "B"))
    client.post("/bookings", json=wish(0, 30, driver_id=one))

    def free(from_minute: int, to_minute: int) -> list[int]:
        params = {"start": at(from_minute), "end": at(to_minute), "fleet": fleet}
        answer = client.get("/availability", params=params).json()
        assert answer["source"] in {"memory", "database"}
        return sorted(answer["items"])

    assert free(10, 20) == [two]
    assert free(30, 60) == [one, two]


def test_a_retired_driver_takes_no_more_bookings(
    client: httpx.Client, wish: Wish, driver_id: int
) -> None:
    booking = client.post("/bookings", json=wish()).json()
    still = client.post(f"/drivers/{driver_id}/retire")
    assert still.status_code == 409
    assert still.json()["type"] == "/problems/driver-still-booked"
    client.post(f"/bookings/{booking['id']}/cancel")
    assert client.post(f"/drivers/{driver_id}/retire").json()["retired_at"] is not None
    refused = client.post("/bookings", json=wish())
    assert refused.status_code == 409
    assert refused.json()["type"] == "/problems/driver-retired"
    assert client.post("/bookings/check", json=wish()).status_code == 409


def test_drivers_are_listed_changed_and_paged(client: httpx.Client) -> None:
    fleet = f"fleet-{uuid4()}"
    ids = [add(client, "/drivers", {"name": f"D{n}", "fleet": fleet}) for n in range(3)]
    changed = client.patch(f"/drivers/{ids[0]}", json={"zone": "Europe/Berlin"}).json()
    assert (changed["name"], changed["zone"]) == ("D0", "Europe/Berlin")
    client.post(f"/drivers/{ids[2]}/retire")
    first = client.get("/drivers", params={"fleet": fleet, "limit": 2}).json()
    assert [each["id"] for each in first["items"]] == ids[:2]
    rest = client.get(
        "/drivers", params={"fleet": fleet, "limit": 2, "cursor": first["next_cursor"]}
    ).json()
    assert [each["id"] for each in rest["items"]] == ids[2:]
    assert rest["next_cursor"] is None
    working = client.get("/drivers", params={"fleet": fleet, "working": True}).json()["items"]
    assert [each["id"] for each in working] == ids[:2]
