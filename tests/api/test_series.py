"""Series over HTTP: every occurrence is checked, and each has an answer of its own."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx
import pytest

from tests.api.conftest import add

Ask = Callable[..., dict[str, Any]]
BERLIN = ZoneInfo("Europe/Berlin")
EVERY_DAY = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WEEKDAYS = EVERY_DAY[:5]


@pytest.fixture
def ask(driver_id: int, rider_id: int) -> Ask:
    """The body of a request for a series: ten weekdays around a change of the clocks."""

    def make(recurrence: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        wish = {
            "zone": "Europe/Berlin",
            "wall_clock": "07:30",
            "duration_s": 1800,
            "weekdays": WEEKDAYS,
            "first_date": "2031-03-24",
            "count": 10,
        } | (recurrence or {})
        body = {"rider_id": rider_id, "driver_id": driver_id, "recurrence": wish} | changes
        body["recurrence"] = {key: value for key, value in wish.items() if value is not None}
        return {key: value for key, value in body.items() if value is not None}

    return make


def bookings_of(client: httpx.Client, driver_id: int) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = client.get(
        "/bookings", params={"driver_id": driver_id, "limit": 500}
    ).json()["items"]
    return listed


def test_half_past_seven_stays_half_past_seven_when_the_clocks_change(
    client: httpx.Client, ask: Ask, driver_id: int
) -> None:
    answer = client.post("/series", json=ask())
    assert answer.status_code == 201
    series = answer.json()
    assert [each["adjustment"] for each in series["occurrences"]] == ["none"] * 10
    booked = bookings_of(client, driver_id)
    assert [each["booking"] for each in series["occurrences"]] == booked
    starts = [datetime.fromisoformat(each["start"]) for each in booked]
    assert {start.astimezone(BERLIN).strftime("%H:%M") for start in starts} == {"07:30"}
    # The control: in UTC it is not always the same time, so the change really lies between.
    assert len({start.astimezone(UTC).time() for start in starts}) == 2
    detail = client.get(answer.headers["Location"]).json()
    assert detail["bookings"] == booked
    assert detail["recurrence"] == ask()["recurrence"]
    assert {each["series_id"] for each in booked} == {series["id"]}


@pytest.mark.parametrize("third_or_later", ["2031-03-26", "2031-04-04"])
def test_occurrences_beyond_the_second_are_checked(
    client: httpx.Client, ask: Ask, driver_id: int, rider_id: int, third_or_later: str
) -> None:
    hour = "05" if third_or_later.startswith("2031-04") else "06"
    in_the_way = {
        "driver_id": driver_id,
        "rider_id": rider_id,
        "start": f"{third_or_later}T{hour}:45:00Z",
        "predicted_end": f"{third_or_later}T{hour}:50:00Z",
    }
    other = client.post("/bookings", json=in_the_way).json()
    refused = client.post("/series", json=ask())
    assert refused.status_code == 409
    problem = refused.json()
    assert problem["type"] == "/problems/series-refused"
    taken = [each for each in problem["occurrences"] if each["refusal"]]
    assert [each["local_date"] for each in taken] == [third_or_later]
    assert [each["booking_id"] for each in taken[0]["conflicts"]] == [other["id"]]
    assert bookings_of(client, driver_id) == [other]
    skipped = client.post("/series", json=ask(on_conflict="skip"))
    assert skipped.status_code == 201
    answers = skipped.json()["occurrences"]
    assert [each["local_date"] for each in answers if each["booking"] is None] == [third_or_later]
    assert len(bookings_of(client, driver_id)) == 10


def test_a_series_of_which_nothing_can_be_booked_is_none(client: httpx.Client, ask: Ask) -> None:
    assert client.post("/series", json=ask()).status_code == 201
    assert client.post("/series", json=ask(on_conflict="skip")).status_code == 409


def test_any_free_driver_may_come_each_time(client: httpx.Client, ask: Ask) -> None:
    fleet = f"fleet-{uuid4()}"
    ada, grace = (add(client, "/drivers", {"name": n, "fleet": fleet}) for n in ("A", "G"))
    assert client.post("/series", json=ask({"count": 4}, driver_id=ada)).status_code == 201
    anybody = ask({"count": 6}, driver_id=None, fleet=fleet)
    answer = client.post("/series", json=anybody)
    assert answer.status_code == 201
    drivers = [each["booking"]["driver_id"] for each in answer.json()["occurrences"]]
    assert drivers[:4] == [grace] * 4
    assert set(drivers[4:]) <= {ada, grace}


def test_what_is_left_of_a_series_is_cancelled_at_once(
    client: httpx.Client, ask: Ask, driver_id: int
) -> None:
    path = client.post("/series", json=ask({"count": 3})).headers["Location"]
    first, *rest = bookings_of(client, driver_id)
    client.post(f"/bookings/{first['id']}/start")
    cancelled = client.post(f"{path}/cancel", json={"reason": "moved away"})
    assert cancelled.status_code == 200
    states = [(each["id"], each["state"]) for each in cancelled.json()["bookings"]]
    assert states == [
        (first["id"], "in_progress"),
        *((each["id"], "cancelled") for each in rest),
    ]
    assert client.post(f"{path}/cancel").json()["type"] == "/problems/illegal-transition"
    assert client.get("/series/999999").status_code == 404


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"zone": "Mars/Olympus"}, "recurrence.zone"),
        ({"wall_clock": "07:30\n"}, "recurrence.wall_clock"),
        (
            {"duration_s": 86_400, "weekdays": [*WEEKDAYS, "saturday", "sunday"]},
            "recurrence.duration_s",
        ),
        ({"wall_clock": "7:30"}, "recurrence.wall_clock"),
        ({"weekdays": []}, "recurrence.weekdays"),
        ({"duration_s": 0}, "recurrence.duration_s"),
        ({"count": 367}, "recurrence.count"),
        ({"count": None}, "recurrence.last_date"),
        ({"last_date": "2031-12-01"}, "recurrence.last_date"),
        # From a Monday to the day before it: nothing is wished for, so nothing is blocked.
        ({"count": None, "last_date": "2031-03-23"}, "recurrence.last_date"),
    ],
)
def test_a_wish_that_is_none_is_refused_by_field(
    client: httpx.Client, ask: Ask, driver_id: int, changed: dict[str, Any], field: str
) -> None:
    refused = client.post("/series", json=ask(changed))
    assert refused.status_code == 422
    assert [each["field"] for each in refused.json()["errors"]] == [field]
    assert bookings_of(client, driver_id) == []


def test_a_series_sent_twice_under_one_key_is_booked_once(
    client: httpx.Client, ask: Ask, driver_id: int
) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    first, again = (client.post("/series", json=ask(), headers=headers) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert len(bookings_of(client, driver_id)) == 10
