"""What happened to a booking, as it is told to others: one `BookingEvent` a change."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple


class EventKind(StrEnum):
    """What a change came to."""

    HELD = "held"
    BOOKED = "booked"
    CONFIRMED = "confirmed"
    """Its time was held before."""
    STARTED = "started"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    NO_SHOW = "no_show"
    MOVED = "moved"
    """It has another time."""
    REASSIGNED = "reassigned"
    """It has another driver, and perhaps another time."""
    END_PREDICTED = "end_predicted"
    """The trip is under way, and will end at another time than was thought."""
    CHANGED = "changed"
    """Something else is different; `changed` says what."""
    DELETED = "deleted"
    """Somebody took the row away, which no part of the service does."""


class Cursor(NamedTuple):
    """A place in the order of events: behind the event that it names, and before the next.

    Events are in the order of the transactions that wrote them, which is not quite the
    order of time. To whoever reads it, it is opaque.
    """

    written_in: int
    """The number of the transaction."""
    number: int

    def __str__(self) -> str:
        return f"{self.written_in}-{self.number}"


BEGINNING = Cursor(0, 0)
"""Before the first event."""


@dataclass(frozen=True, slots=True)
class BookingEvent:
    """One change of one booking: what it came to, who did it, and from where.

    `booking` is the booking after the change, and `changed` what was different before,
    both by name. Several writes of one transaction are one change.
    """

    cursor: Cursor
    booking_id: int
    version: int
    kind: EventKind
    at: datetime
    actor: str
    request_id: str | None
    origin: str | None
    booking: Mapping[str, Any]
    changed: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted; with nothing said, all.

    A driver's are those of bookings that are theirs, or were until that very change.
    """

    booking_id: int | None = None
    driver_id: int | None = None
    rider_id: int | None = None

    def matches(self, event: BookingEvent) -> bool:
        """Whether the event is wanted."""
        return (
            self.booking_id in {None, event.booking_id}
            and self.rider_id in {None, event.booking["rider_id"]}
            and self.driver_id in {None, event.booking["driver_id"], event.changed.get("driver_id")}
        )


EVERYTHING = EventFilter()
"""Wants every event."""
