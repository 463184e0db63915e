"""Bookings, what is done with them, and why one is refused."""

from typing import Annotated, Self

from msgspec import UNSET, Meta, Struct, UnsetType

from api.bodies.common import End, FleetName, Id, Instant, Page, window_of
from api.bodies.problems import Problem
from api.patterns import WITHOUT_NUL
from booking.bookings import HOLD_S_MAX, Booking, BookingRequest, BookingState
from booking.calendars import Held
from booking.drivers import MAIN_FLEET
from booking.errors import InvalidInput
from booking.overrun import Remedy
from booking.places import Place
from booking.postgres.overruns import Overrun
from booking.time_window import TimeWindow

HoldSeconds = Annotated[
    int,
    Meta(
        ge=1,
        le=HOLD_S_MAX,
        description="Hold the time for so many seconds, to be confirmed by then.",
        examples=[300],
    ),
]
Reason = Annotated[str, Meta(max_length=500, pattern=WITHOUT_NUL, examples=["flight cancelled"])]


class PlaceBody(Struct, forbid_unknown_fields=True):
    """A point on the Earth, in degrees of WGS 84."""

    latitude_deg: Annotated[float, Meta(ge=-90, le=90, examples=[52.52])]
    longitude_deg: Annotated[float, Meta(ge=-180, le=180, examples=[13.405])]

    def place(self) -> Place:
        """What is meant."""
        return Place(self.latitude_deg, self.longitude_deg)

    @classmethod
    def of(cls, place: Place | None) -> Self | None:
        """As it goes over the wire."""
        return None if place is None else cls(place.latitude_deg, place.longitude_deg)


class BookingIn(Struct, forbid_unknown_fields=True):
    """A booking that is asked for: of one driver, or of any free driver of a fleet."""

    rider_id: Id
    start: Instant
    predicted_end: End
    driver_id: Id | None = None
    fleet: FleetName | None = None
    hold_s: HoldSeconds | None = None
    pickup: PlaceBody | None = None
    dropoff: PlaceBody | None = None

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
            hold_s=self.hold_s,
            pickup=None if self.pickup is None else self.pickup.place(),
            dropoff=None if self.dropoff is None else self.dropoff.place(),
        )


class BookingOut(Struct):
    """A booking. Its end is a prediction until it is completed.

    `blocked_from` is when it begins to take its driver's time: before `start`, where the
    driver has a turnaround. `lead_short_s` is by how much that is too late, where what
    comes before it has changed since. `travel_source` says who estimated the way.
    """

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
    promised_start: Instant | None
    late_s: float
    held_until: Instant | None
    series_id: Id | None
    version: int
    pickup: PlaceBody | None
    dropoff: PlaceBody | None
    blocked_from: Instant
    travel_source: str | None
    lead_short_s: int

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
            booking.promised_start,
            booking.late_s,
            booking.held_until,
            booking.series_id,
            booking.version,
            PlaceBody.of(booking.pickup),
            PlaceBody.of(booking.dropoff),
            booking.window.start,
            booking.travel_source,
            booking.lead_short_s,
        )


class NewEnd(Struct, forbid_unknown_fields=True):
    """When a trip that is under way will end, as it looks now."""

    predicted_end: End


class MovedOut(Struct):
    """A booking that a late trip has moved, and what was done about it.

    `late_s` counts from what its rider was first promised.
    """

    booking: BookingOut
    remedy: Remedy
    late_s: float


class OverrunOut(Struct):
    """A trip with its new predicted end, and every booking that had to move for it."""

    booking: BookingOut
    moved: list[MovedOut]

    @classmethod
    def of(cls, overrun: Overrun) -> Self:
        """As it goes over the wire."""
        return cls(
            BookingOut.of(overrun.trip),
            [
                MovedOut(BookingOut.of(each.booking), each.remedy, each.late_s)
                for each in overrun.moved
            ],
        )


class NewTime(Struct, forbid_unknown_fields=True):
    """The time to which a booking is moved."""

    start: Instant
    predicted_end: End


class NewDriver(Struct, forbid_unknown_fields=True):
    """The driver to whom a booking is given; without one, whoever of the fleet is free."""

    driver_id: Id | None = None


class Cancellation(Struct, forbid_unknown_fields=True):
    """Why a booking is cancelled."""

    reason: Reason | None = None


class Happened(Struct, forbid_unknown_fields=True):
    """When a trip started or ended; now, if left out."""

    at: Instant | None = None


class Offer(Struct):
    """A time at which the trip could be booked instead."""

    start: Instant
    predicted_end: End

    @classmethod
    def of(cls, window: TimeWindow | None) -> Self | None:
        """As it goes over the wire."""
        return None if window is None else cls(window.start, window.end)


class Conflict(Struct):
    """A booking that is in the way; riders do not see which."""

    booking_id: Id | None
    start: Instant
    predicted_end: End

    @classmethod
    def of(cls, held: Held) -> Self:
        """As it goes over the wire."""
        return cls(held.booking_id, held.window.start, held.window.end)


class Check(Struct):
    """What a booking would meet if it were made now; `reason` as in a refusal."""

    would_conflict: bool
    reason: str | None
    conflicts: list[Conflict]
    next_free: Offer | None
    free_drivers: list[Id]


class BookingPage(Page[BookingOut]):
    """A part of a list of bookings."""

    items: list[BookingOut]


class BookingProblem(Problem, kw_only=True):
    """Why a booking was refused; if its time was not free, what is free instead.

    `reason` is `overlap`, `travel`, `turnaround` or `shift`.
    """

    reason: str | UnsetType = UNSET
    conflicts: list[Conflict] | UnsetType = UNSET
    next_free: Offer | UnsetType | None = UNSET
    free_drivers: list[Id] | UnsetType = UNSET
