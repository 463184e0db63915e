"""What goes over the wire: one struct a body.

Requests refuse fields they do not know: a misspelt `predicted_end` must not be
taken for one that was left out. Every instant comes and goes as RFC 3339 with
an offset, and goes as UTC.
"""

from datetime import datetime
from typing import Annotated, Self

from msgspec import UNSET, Meta, Struct, UnsetType

from booking.bookings import Booking, BookingRequest, BookingState
from booking.calendars import Held
from booking.drivers import MAIN_FLEET, Driver, Rider
from booking.errors import EmptyWindow, InvalidInput
from booking.time_window import TimeWindow, utc

ID_MAX = 2**53 - 1
"""The largest integer that every reader of JSON keeps exact (RFC 8259, section 6)."""

Id = Annotated[int, Meta(ge=1, le=ID_MAX, examples=[1])]
# No NUL: PostgreSQL's text cannot hold it. Not all blank. No lookahead: those who generate
# requests from the pattern cannot follow one.
PRINTABLE = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"
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
Reason = Annotated[str, Meta(max_length=500, pattern=r"^[^\x00]*$", examples=["flight cancelled"])]


class DriverIn(Struct, forbid_unknown_fields=True):
    """A driver to be added to a fleet."""

    name: Name
    fleet: FleetName = MAIN_FLEET
    zone: ZoneName = "UTC"


class DriverChange(Struct, forbid_unknown_fields=True):
    """What to change of a driver; what is left out stays."""

    name: Name | UnsetType = UNSET
    zone: ZoneName | UnsetType = UNSET


class DriverOut(Struct):
    """A driver."""

    id: Id
    name: str
    fleet: str
    zone: str
    created_at: Instant
    retired_at: Instant | None

    @classmethod
    def of(cls, driver: Driver) -> Self:
        """As it goes over the wire."""
        return cls(
            driver.id, driver.name, driver.fleet, driver.zone, driver.created_at, driver.retired_at
        )


class RiderIn(Struct, forbid_unknown_fields=True):
    """A rider to be added."""

    name: Name


class RiderOut(Struct):
    """A rider."""

    id: Id
    name: str
    created_at: Instant

    @classmethod
    def of(cls, rider: Rider) -> Self:
        """As it goes over the wire."""
        return cls(rider.id, rider.name, rider.created_at)


class BookingIn(Struct, forbid_unknown_fields=True):
    """A booking that is asked for: of one driver, or of any free driver of a fleet."""

    rider_id: Id
    start: Instant
    predicted_end: End
    driver_id: Id | None = None
    fleet: FleetName | None = None

    def request(self) -> BookingRequest:
        """What the ledger is asked.

        Raises `InvalidInput` when both a driver and a fleet are named, and what
        `TimeWindow` and `BookingRequest` raise.
        """
        if self.driver_id is not None and self.fleet is not None:
            raise InvalidInput("Name a driver or a fleet, not both.", field="fleet")
        return BookingRequest(
            rider_id=self.rider_id,
            window=window_of(self.start, self.predicted_end, end_field="predicted_end"),
            driver_id=self.driver_id,
            fleet=self.fleet or MAIN_FLEET,
        )


class BookingOut(Struct):
    """A booking. Its end is a prediction until it is completed."""

    id: Id
    driver_id: Id
    rider_id: Id
    state: BookingState
    start: Instant
    predicted_end: End
    created_at: Instant
    actual_start: Instant | None
    actual_end: Instant | None
    cancel_reason: str | None

    @classmethod
    def of(cls, booking: Booking) -> Self:
        """As it goes over the wire."""
        return cls(
            booking.id,
            booking.driver_id,
            booking.rider_id,
            booking.state,
            booking.start,
            booking.predicted_end,
            booking.created_at,
            booking.actual_start,
            booking.actual_end,
            booking.cancel_reason,
        )


class NewTime(Struct, forbid_unknown_fields=True):
    """The time to which a booking is moved."""

    start: Instant
    predicted_end: End


class Cancellation(Struct, forbid_unknown_fields=True):
    """Why a booking is cancelled."""

    reason: Reason | None = None


class Happened(Struct, forbid_unknown_fields=True):
    """When a trip started or ended; now, if left out."""

    at: Instant | None = None


class WindowOut(Struct):
    """A half-open span of time, `[start, end)`."""

    start: Instant
    end: End

    @classmethod
    def of(cls, window: TimeWindow) -> Self:
        """As it goes over the wire."""
        return cls(window.start, window.end)


class Offer(Struct):
    """A time at which the trip could be booked instead."""

    start: Instant
    predicted_end: End

    @classmethod
    def of(cls, window: TimeWindow | None) -> Self | None:
        """As it goes over the wire."""
        return None if window is None else cls(window.start, window.end)


class Conflict(Struct):
    """A booking that is in the way."""

    booking_id: Id
    start: Instant
    predicted_end: End

    @classmethod
    def of(cls, held: Held) -> Self:
        """As it goes over the wire."""
        return cls(held.booking_id, held.window.start, held.window.end)


class Check(Struct):
    """What a booking would meet if it were made now."""

    would_conflict: bool
    conflicts: list[Conflict]
    next_free: Offer | None
    free_drivers: list[Id]


class Availability(Struct):
    """Drivers who were free for the whole window at `as_of`."""

    items: list[Id]
    as_of: Instant
    source: str


class Page[T](Struct):
    """A part of a list; `next_cursor` leads to the next part, and is null on the last."""

    items: list[T]
    next_cursor: str | None


class DriverPage(Page[DriverOut]):
    """A part of the list of drivers."""

    items: list[DriverOut]


class RiderPage(Page[RiderOut]):
    """A part of the list of riders."""

    items: list[RiderOut]


class BookingPage(Page[BookingOut]):
    """A part of a list of bookings."""

    items: list[BookingOut]


class Agenda(Struct):
    """A driver's active bookings, in order of start."""

    items: list[BookingOut]


class Gaps(Struct):
    """When a driver is free, in order."""

    items: list[WindowOut]


class FieldError(Struct):
    """One input that breaks a rule."""

    field: str
    rule: str


class Problem(Struct, omit_defaults=True, kw_only=True):
    """RFC 9457: why a request was not carried out."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | UnsetType = UNSET


class BookingProblem(Problem, kw_only=True):
    """Why a booking was refused; if its time was not free, what is free instead."""

    conflicts: list[Conflict] | UnsetType = UNSET
    next_free: Offer | UnsetType | None = UNSET
    free_drivers: list[Id] | UnsetType = UNSET


class ProblemType(Struct):
    """A kind of problem that this service answers with."""

    type: str
    title: str
    status: int


class ProblemTypes(Struct):
    """Every kind of problem."""

    items: list[ProblemType]


class Status(Struct):
    """Whether the service, or one part of it, works."""

    status: str


class Readiness(Struct):
    """What the service needs in order to answer."""

    status: str
    database: str
    index: str
    index_lag_s: float | None


def window_of(start: datetime, end: datetime, *, end_field: str = "end") -> TimeWindow:
    """A `TimeWindow` whose errors name the fields as the request does."""
    start, end = utc(start, "start"), utc(end, end_field)
    if end <= start:
        raise EmptyWindow(field=end_field)
    return TimeWindow(start, end)
