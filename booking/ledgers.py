"""Port `Ledger`: the system of record for every driver. Asynchronous, atomic, durable.

A `Calendar` answers a query. A ledger takes a *command*: record this booking
unless it overlaps another, and do both in one step. A shared
`has_conflict() -> bool` would put a gap between the look and the write, and the
interface itself would be the race.
"""

from datetime import datetime
from enum import StrEnum
from typing import Protocol

from booking.bookings import Booking, BookingRequest, BookingState
from booking.time_window import TimeWindow


class Claim(StrEnum):
    """What a prevention recipe promises. The tests hold it to that in both directions."""

    NOTHING = "nothing"
    """It double-books when two ask at once, and must be caught doing so."""
    ONE_PROCESS = "safe within one process"
    ACROSS_PROCESSES = "safe across processes"


class Ledger(Protocol):
    """Records bookings, so that no driver is ever double-booked (as far as it claims).

    Every method is one transaction: when it returns, what it did is durable;
    when it raises, nothing was done, save for `LedgerLost`, which means that
    the answer was lost and nobody knows. Every method may raise `Unavailable`.
    """

    async def book(self, request: BookingRequest) -> Booking:
        """Record the booking or refuse it.

        Raises `BookingConflict` with the bookings in the way, `NoDriverFree`
        when any driver would do and none is free, `DriverRetired`,
        `UnknownDriver` or `UnknownRider`.
        """
        ...

    async def change_state(
        self,
        booking_id: int,
        wanted: BookingState,
        *,
        at: datetime | None = None,
        reason: str | None = None,
        version: int | None = None,
    ) -> Booking:
        """Take one step in the booking's life; time that becomes free is free at once.

        `at` is the actual start or end, now if omitted. With `version`, only if the
        booking is still that one. Raises `UnknownBooking`, `VersionMismatch`,
        `IllegalTransition`, `HoldLapsed` for a hold that is confirmed too late,
        `TooEarly` for a rider who is missed before the start, or `InvalidInput`
        when the actual end would not be after the actual start.
        """
        ...

    async def reschedule(
        self, booking_id: int, window: TimeWindow, *, version: int | None = None
    ) -> Booking:
        """Move the booking to another time of the same driver, or leave it where it is.

        The old time is free once the new one is held, and never if it is not; a
        booking is not in its own way. Raises `UnknownBooking`, `VersionMismatch`,
        `IllegalTransition` if the trip has begun or the booking is final,
        `HoldLapsed`, `BookingConflict`, `DriverRetired`, or `TooLong`.
        """
        ...

    async def reassign(
        self, booking_id: int, driver_id: int | None, *, version: int | None = None
    ) -> Booking:
        """Give the booking to another driver, or (None) to any who is free, at the same time.

        It stays with its driver if it cannot be had by the other. Raises as
        `reschedule` does, and `NoDriverFree` or `UnknownDriver`.
        """
        ...
