"""Calendars as iCalendar (RFC 5545), for whatever calendar program one has.

A feed is read again and again, and each program keeps what it has read. So an event
has the same UID for ever, its SEQUENCE grows with every change of the booking, and a
cancelled booking stays in the feed for a while, as cancelled: one that is merely
missing is kept by some programs. So does one that was given to another driver, in the
feed of the first.

Most of the time nothing has changed. Then the tag of what was read before brings a 304
without a body (RFC 9110, section 13.1.2). The tag is a weak one: two feeds with the same
tag say the same, but each says when it was written.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated

import msgspec
from icalendar import Calendar, Event
from litestar import Response
from litestar.datastructures import ResponseHeader
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter

from booking.bookings import Booking, BookingState

_UNREADABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_LESS_THAN_A_SECOND = timedelta(microseconds=999_999)

MEDIA_TYPE = "text/calendar"  # in UTF-8, as the framework adds

_STATUS = {
    BookingState.HELD: "TENTATIVE",
    BookingState.CONFIRMED: "CONFIRMED",
    BookingState.IN_PROGRESS: "CONFIRMED",
    BookingState.COMPLETED: "CONFIRMED",
    BookingState.CANCELLED: "CANCELLED",
    BookingState.EXPIRED: "CANCELLED",
    BookingState.NO_SHOW: "CANCELLED",
}


KEEP = timedelta(days=30)
"""How long a booking stays in the feed after its end."""


SeenHeader = Annotated[
    str | None,
    HeaderParameter(
        name="If-None-Match",
        description="The `ETag` of the feed as it was read; a 304 if nothing has changed since.",
    ),
]
ETAG = ResponseHeader(
    name="ETag",
    description="Tells what the feed says, for `If-None-Match`.",
    documentation_only=True,
    value="",
)
NOT_MODIFIED = {
    int(HTTPStatus.NOT_MODIFIED): ResponseSpec(
        None, description="Nothing has changed since the feed of `If-None-Match`."
    )
}


def response(name: str, events: Sequence[tuple[Booking, str]], seen: str | None) -> Response[bytes]:
    """The feed as an answer, or that it is as it was `seen`, which is an `If-None-Match`."""
    tag = _tag_of(name, events)
    headers = {"ETag": f"W/{tag}"}
    if seen is not None and {"*", tag} & {
        each.strip().removeprefix("W/") for each in seen.split(",")
    }:
        return Response(b"", status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(feed(name, events), media_type=MEDIA_TYPE, headers=headers)


def _tag_of(name: str, events: Sequence[tuple[Booking, str]]) -> str:
    says = [(each.id, each.version, each.state, summary) for each, summary in events]
    return f'"{hashlib.sha256(msgspec.json.encode((name, says))).hexdigest()}"'


def feed(name: str, events: Sequence[tuple[Booking, str]]) -> bytes:
    """The calendar of that name, with an event for each booking, by its summary.

    Instants are in UTC, so a program shows them by its own clock.
    """
    calendar = Calendar()
    calendar.add("prodid", "-//taxi booking//calendar feed//EN")
    calendar.add("version", "2.0")
    calendar.add("method", "PUBLISH")
    calendar.add("x-wr-calname", name)
    for booking, summary in events:
        calendar.add_component(_event(booking, summary))
    written: bytes = calendar.to_ical()
    return written


def _event(booking: Booking, summary: str) -> Event:
    event = Event()
    event.add("uid", f"booking-{booking.id}@taxi-booking")
    event.add("dtstamp", datetime.now(UTC))
    event.add("dtstart", booking.start)
    # iCalendar knows whole seconds only, and an event must not end as it begins.
    event.add("dtend", (booking.actual_end or booking.predicted_end) + _LESS_THAN_A_SECOND)
    event.add("summary", _readable(summary))
    event.add("status", _STATUS[booking.state])
    event.add("sequence", booking.version)
    # A cancelled event, or one that is over for the driver, keeps nobody busy.
    event.add("transp", "OPAQUE" if booking.state.active else "TRANSPARENT")
    if booking.cancel_reason:
        event.add("comment", _readable(booking.cancel_reason))
    return event


def _readable(text: str) -> str:
    """The text without what RFC 5545 (section 3.1) does not allow, or readers stumble over."""
    return _UNREADABLE.sub(" ", text)
