"""Calendars as iCalendar (RFC 5545), for whatever calendar program one has.

A feed is read again and again, and each program keeps what it has read. So an event
has the same UID for ever, its SEQUENCE grows with every change of the booking, and a
cancelled booking stays in the feed for a while, as cancelled: one that is merely
missing is kept by some programs. (One that was given to another driver is missing from
the feed of the first.)
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from icalendar import Calendar, Event
from litestar import Response

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


def response(name: str, events: Iterable[tuple[Booking, str]]) -> Response[bytes]:
    """The feed as an answer."""
    return Response(feed(name, events), media_type=MEDIA_TYPE)


def feed(name: str, events: Iterable[tuple[Booking, str]]) -> bytes:
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
