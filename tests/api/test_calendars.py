"""The iCalendar feeds, read by two readers that are not ours, and the schedule of a fleet."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import icalendar
import pytest
import vobject

from api import ical
from booking.bookings import Booking, BookingState
from tests.api.conftest import NINE, add, at

Wish = Callable[..., dict[str, Any]]


def events_of(client: httpx.Client, path: str) -> dict[str, Any]:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/calendar; charset=utf-8"
    calendar = icalendar.Calendar.from_ical(answer.content)
    assert calendar.errors == []
    return {str(event["UID"]): event for event in calendar.walk("VEVENT")}


def test_a_driver_and_a_rider_read_the_same_booking_in_their_calendars(
    client: httpx.Client, wish: Wish, driver_id: int, rider_id: int
) -> None:
    booking = client.post("/bookings", json=wish()).json()
    uid = f"booking-{booking['id']}@taxi-booking"
    for path, who in ((f"/drivers/{driver_id}", "Alan"), (f"/riders/{rider_id}", "Ada")):
        event = events_of(client, f"{path}/calendar.ics")[uid]
        assert (event.start, event.end) == (NINE, NINE + timedelta(minutes=30))
        assert who in event["SUMMARY"]
        assert (event["STATUS"], event["TRANSP"]) == ("CONFIRMED", "OPAQUE")
        seen = vobject.readOne(client.get(f"{path}/calendar.ics").text)
        assert seen.vevent.dtstart.value == NINE
        assert seen.vevent.uid.value == uid
    assert client.get("/drivers/999999/calendar.ics").status_code == 404
    assert client.get("/riders/999999/calendar.ics").status_code == 404


def test_every_change_has_a_higher_sequence_and_what_is_cancelled_stays_as_cancelled(
    client: httpx.Client, wish: Wish, driver_id: int
) -> None:
    path, feed = client.post("/bookings", json=wish()).headers["Location"], f"/drivers/{driver_id}"
    sequences = []
    for step, body in (
        ("reschedule", {"start": at(60), "predicted_end": at(90)}),
        ("cancel", {"reason": "flight; late, or so\nit seems"}),
    ):
        (before,) = events_of(client, f"{feed}/calendar.ics").values()
        client.post(f"{path}/{step}", json=body)
        (after,) = events_of(client, f"{feed}/calendar.ics").values()
        assert before["UID"] == after["UID"]
        sequences.append((int(before["SEQUENCE"]), int(after["SEQUENCE"])))
    assert all(one < other for one, other in sequences)
    assert (after["STATUS"], after["TRANSP"]) == ("CANCELLED", "TRANSPARENT")
    assert str(after["COMMENT"]) == "flight; late, or so\nit seems"


def test_what_was_given_to_another_driver_is_cancelled_for_the_first(
    client: httpx.Client, wish: Wish, driver_id: int
) -> None:
    grace = add(client, "/drivers", {"name": "Grace"})
    booking = client.post("/bookings", json=wish()).json()
    feeds = [f"/drivers/{each}/calendar.ics" for each in (driver_id, grace)]
    (before,) = events_of(client, feeds[0]).values()
    client.post(f"/bookings/{booking['id']}/reassign", json={"driver_id": grace})
    (gone,), (got,) = (events_of(client, feed).values() for feed in feeds)
    assert before["UID"] == gone["UID"] == got["UID"]
    assert (gone["STATUS"], got["STATUS"]) == ("CANCELLED", "CONFIRMED")
    assert int(before["SEQUENCE"]) < int(gone["SEQUENCE"])
    # What becomes of it then is none of their business.
    later = {"start": at(60), "predicted_end": at(90)}
    client.post(f"/bookings/{booking['id']}/reschedule", json=later)
    (still_gone,), (got,) = (events_of(client, feed).values() for feed in feeds)
    assert (got.start, got.end) == (NINE + timedelta(minutes=60), NINE + timedelta(minutes=90))
    assert (still_gone.start, still_gone.end) == (before.start, before.end)
    assert still_gone["SEQUENCE"] == gone["SEQUENCE"]
    # Who gets it back has it again.
    client.post(f"/bookings/{booking['id']}/reassign", json={"driver_id": driver_id})
    (got,), (gone,) = (events_of(client, feed).values() for feed in feeds)
    assert (gone["STATUS"], got["STATUS"]) == ("CANCELLED", "CONFIRMED")


def test_a_feed_that_has_not_changed_is_not_sent_again(
    client: httpx.Client, wish: Wish, driver_id: int, rider_id: int
) -> None:
    path = client.post("/bookings", json=wish()).headers["Location"]
    for feed in (f"/drivers/{driver_id}/calendar.ics", f"/riders/{rider_id}/calendar.ics"):
        tag = client.get(feed).headers["ETag"]
        head = client.head(feed)
        assert (head.status_code, head.headers["ETag"], head.content) == (200, tag, b"")
        assert head.headers["Content-Type"] == "text/calendar; charset=utf-8"
        for seen in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
            same = client.get(feed, headers={"If-None-Match": seen})
            assert (same.status_code, same.headers["ETag"], same.content) == (304, tag, b"")
        assert client.head(feed, headers={"If-None-Match": tag}).status_code == 304
        assert client.get(feed, headers={"If-None-Match": '"other"'}).status_code == 200
        client.post(f"{path}/reschedule", json={"start": at(60), "predicted_end": at(90)})
        changed = client.get(feed, headers={"If-None-Match": tag})
        assert changed.status_code == 200
        assert changed.headers["ETag"] != tag


@pytest.mark.parametrize("state", BookingState)
def test_every_state_has_a_status(state: BookingState) -> None:
    booking = Booking(1, 2, 3, state, NINE, NINE + timedelta(hours=1), NINE)
    (event,) = icalendar.Calendar.from_ical(ical.feed("x", [(booking, "y")])).walk("VEVENT")
    assert event["STATUS"] in {"TENTATIVE", "CONFIRMED", "CANCELLED"}
    assert (event["TRANSP"] == "OPAQUE") is state.active


def test_a_fleet_and_its_day_are_read_at_once(client: httpx.Client, wish: Wish) -> None:
    fleet = f"fleet-{uuid4()}"
    ada, idle = (add(client, "/drivers", {"name": n, "fleet": fleet}) for n in ("Ada", "Idle"))
    first = client.post("/bookings", json=wish(driver_id=ada)).json()
    second = client.post("/bookings", json=wish(60, 90, driver_id=ada)).json()
    gone = client.post("/bookings", json=wish(120, 150, driver_id=ada)).json()
    client.post(f"/bookings/{gone['id']}/cancel")
    client.post("/bookings", json=wish(24 * 60, 24 * 60 + 30, driver_id=ada))
    day = {"fleet": fleet, "start": at(-60), "end": at(600)}
    answer = client.get("/schedule", params=day)
    assert answer.status_code == 200
    rows = [
        (each["driver"]["id"], [booking["id"] for booking in each["bookings"]])
        for each in answer.json()["items"]
    ]
    assert rows == [(ada, [first["id"], second["id"]]), (idle, [])]
    too_long = client.get("/schedule", params=day | {"end": at(60 * 24 * 9)})
    assert too_long.status_code == 422
    assert [each["field"] for each in too_long.json()["errors"]] == ["end"]
    assert datetime.fromisoformat(answer.json()["as_of"]).tzinfo is not None
