"""Entries of the waiting list."""

from typing import Self

from msgspec import Struct

from api.bodies.bookings import BookingIn
from api.bodies.common import End, FleetName, Id, Instant, Page
from booking.bookings import BookingRequest
from booking.waiting import WaitingEntry, WaitingState


class WaitingIn(Struct, forbid_unknown_fields=True):
    """Time that is waited for: of one driver, or of any driver of a fleet."""

    rider_id: Id
    start: Instant
    predicted_end: End
    driver_id: Id | None = None
    fleet: FleetName | None = None

    def request(self) -> BookingRequest:
        """What would be booked. Raises as `BookingIn.request` does."""
        return BookingIn(
            self.rider_id, self.start, self.predicted_end, self.driver_id, self.fleet
        ).request()


class WaitingOut(Struct):
    """An entry of the waiting list.

    `booking_id` is the booking that was offered; while the entry is `offered`, it can be
    confirmed until `offer_expires_at`.
    """

    id: Id
    rider_id: Id
    fleet: str
    driver_id: Id | None
    start: Instant
    predicted_end: End
    state: WaitingState
    joined_at: Instant
    booking_id: Id | None
    offer_expires_at: Instant | None

    @classmethod
    def of(cls, entry: WaitingEntry) -> Self:
        """As it goes over the wire."""
        return cls(
            entry.id,
            entry.rider_id,
            entry.fleet,
            entry.driver_id,
            entry.window.start,
            entry.window.end,
            entry.state,
            entry.joined_at,
            entry.booking_id,
            entry.offer_expires_at,
        )


class WaitingPage(Page[WaitingOut]):
    """A part of the waiting list."""

    items: list[WaitingOut]
