"""What the bodies of several subjects are made of."""

from calendar import Day
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Self

from msgspec import Meta, Struct

from api.patterns import PRINTABLE
from booking.errors import EmptyWindow
from booking.time_window import TimeWindow, utc

ID_MAX = 2**53 - 1
"""The largest integer that every reader of JSON keeps exact (RFC 8259, section 6)."""

Id = Annotated[int, Meta(ge=1, le=ID_MAX, examples=[1])]
Name = Annotated[
    str, Meta(min_length=1, max_length=200, pattern=PRINTABLE, examples=["Ada Lovelace"])
]
FleetName = Annotated[str, Meta(min_length=1, max_length=100, pattern=PRINTABLE, examples=["main"])]
ZoneName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100,
        description="The IANA name of a time zone.",
        examples=["Europe/Berlin"],
    ),
]
_RFC_3339 = "RFC 3339 with its offset from UTC."
Instant = Annotated[datetime, Meta(description=_RFC_3339, examples=["2026-12-01T09:00:00Z"])]
End = Annotated[datetime, Meta(description=_RFC_3339, examples=["2026-12-01T09:30:00Z"])]


class WindowOut(Struct):
    """A half-open span of time, `[start, end)`."""

    start: Instant
    end: End

    @classmethod
    def of(cls, window: TimeWindow) -> Self:
        """As it goes over the wire."""
        return cls(window.start, window.end)


class Weekday(StrEnum):
    """A day of the week."""

    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"

    @property
    def day(self) -> Day:
        """As the calendar counts them."""
        return Day[self.name]


class Page[T](Struct):
    """A part of a list; `next_cursor` leads to the next part, and is null on the last."""

    items: list[T]
    next_cursor: str | None


def window_of(start: datetime, end: datetime, *, end_field: str = "end") -> TimeWindow:
    """A `TimeWindow` whose errors name the fields as the request does."""
    start, end = utc(start, "start"), utc(end, end_field)
    if end <= start:
        raise EmptyWindow(field=end_field)
    return TimeWindow(start, end)
