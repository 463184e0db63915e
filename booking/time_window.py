"""`TimeWindow`, and the one overlap predicate of the project.

A window is half-open, `[start, end)`: it holds its start but not its end, so a
trip that ends at ten and one that begins at ten do not overlap. It is never
empty, because an empty window overlaps nothing and so would be let in
everywhere. Instants are zone-aware and kept in UTC: two datetimes of one local
zone compare by their wall clocks, which is wrong on the night the clocks change.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from booking.errors import EmptyWindow, NaiveInstant, OutOfCalendar

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

EARLIEST = datetime(2, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 1, 1, tzinfo=UTC) - _MICROSECOND
"""The first and the last instant that `utc` accepts."""


def utc(instant: datetime, field: str = "instant") -> datetime:
    """`instant` in UTC.

    Raises `NaiveInstant`, naming `field`, when it carries no offset, and
    `OutOfCalendar` in the first and last year there are: databases take the
    ends of the calendar for infinity, and a day must fit behind every instant.
    """
    if instant.utcoffset() is None:
        raise NaiveInstant(field=field)
    try:
        converted = instant.astimezone(UTC)
    except OverflowError:
        raise OutOfCalendar(field=field) from None
    if not EARLIEST <= converted <= LATEST:
        raise OutOfCalendar(field=field)
    return converted


def microseconds(instant: datetime) -> int:
    """Microseconds since 1970-01-01T00:00Z, exact (a float would round past 2255)."""
    return (instant - _EPOCH) // _MICROSECOND


def from_microseconds(instant_us: int) -> datetime:
    """The inverse of `microseconds`."""
    return _EPOCH + timedelta(microseconds=instant_us)


@dataclass(frozen=True, slots=True, order=True)
class TimeWindow:
    """The half-open span of time `[start, end)`, in UTC.

    Raises `NaiveInstant` for an instant without an offset and `EmptyWindow`
    when `end` is not after `start`.

    >>> from datetime import UTC, datetime
    >>> ten, eleven, noon = (datetime(2026, 3, 8, hour, tzinfo=UTC) for hour in (10, 11, 12))
    >>> TimeWindow(ten, eleven).overlaps(TimeWindow(eleven, noon))
    False
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        # Already UTC is the common case: conversion would cost as much as all the rest.
        if self.start.tzinfo is not UTC:
            object.__setattr__(self, "start", utc(self.start, "start"))
        if self.end.tzinfo is not UTC:
            object.__setattr__(self, "end", utc(self.end, "end"))
        if self.end <= self.start:
            raise EmptyWindow(field="end")

    def overlaps(self, other: "TimeWindow") -> bool:
        """Whether some instant lies in both. Touching windows do not overlap. O(1)."""
        return self.start < other.end and other.start < self.end

    @property
    def duration(self) -> timedelta:
        """Elapsed time between start and end: real time, whatever the clocks on the wall did."""
        return self.end - self.start

    def moved_to(self, start: datetime) -> Self:
        """A window of the same duration that begins at `start`."""
        # Added to a local time, a duration would be counted on the wall clock.
        start = utc(start, "start")
        return type(self)(start, utc(start + self.duration, "end"))

    def __str__(self) -> str:
        return f"[{self.start.isoformat()}, {self.end.isoformat()})"
