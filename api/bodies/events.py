"""What happened to bookings, and who did it."""

from typing import Annotated, Any, Self, override

from msgspec import Meta, Struct, structs

from api.bodies.common import Id, Instant
from booking.events import BookingEvent, EventKind

EventId = Annotated[
    str,
    Meta(
        description="The event, and its place in the order of all; otherwise opaque.",
        examples=["4711-12"],
    ),
]


class EventOut(Struct):
    """One change of one booking, and who did it.

    `booking` is the booking after the change, and `changed` what was different before,
    both by name.
    """

    id: EventId
    kind: EventKind
    at: Instant
    actor: str
    request_id: str | None
    booking_id: Id
    version: int
    booking: dict[str, Any]
    changed: dict[str, Any]

    @classmethod
    def of(cls, event: BookingEvent) -> Self:
        """As it goes over the wire."""
        return cls(
            str(event.cursor),
            event.kind,
            event.at,
            event.actor,
            event.request_id,
            event.booking_id,
            event.version,
            dict(event.booking),
            dict(event.changed),
        )


class TrailEntry(EventOut):
    """An event, and from which address it was brought about."""

    origin: str | None

    @classmethod
    @override
    def of(cls, event: BookingEvent) -> Self:
        """As it goes over the wire."""
        told = EventOut.of(event)
        return cls(**structs.asdict(told), origin=event.origin)


class EventsPage(Struct):
    """Some events in their order. `position` is where to read on, also if there is no more yet."""

    items: list[EventOut]
    position: EventId
    more: bool


class Trail(Struct):
    """What happened to one booking, in order; read on at `position` if there is `more`."""

    items: list[TrailEntry]
    position: EventId
    more: bool
