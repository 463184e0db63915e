"""Drivers, their working hours, and what they have."""

from datetime import date
from typing import Annotated, Self

from msgspec import UNSET, Meta, Struct, UnsetType

from api.bodies.bookings import BookingOut
from api.bodies.common import End, FleetName, Id, Instant, Name, Page, Weekday, WindowOut, ZoneName
from api.bodies.problems import Problem
from api.patterns import CLOCK
from booking.drivers import MAIN_FLEET, TURNAROUND_S_MAX, Driver
from booking.shifts import AbsenceKind, Stranded

TurnaroundSeconds = Annotated[
    int,
    Meta(
        ge=0,
        le=TURNAROUND_S_MAX,
        description="What the driver needs between two trips, beside the way. With it, even if"
        " it is 0, the way from one trip to the next is kept free.",
        examples=[300],
    ),
]
ClockTime = Annotated[
    str,
    Meta(
        pattern=CLOCK,
        description="By the clock on the wall, from 00:00 to 24:00.",
        examples=["07:30"],
    ),
]


class DriverIn(Struct, forbid_unknown_fields=True):
    """A driver to be added to a fleet."""

    name: Name
    fleet: FleetName = MAIN_FLEET
    zone: ZoneName = "UTC"
    turnaround_s: TurnaroundSeconds | None = None


class DriverChange(Struct, forbid_unknown_fields=True):
    """What to change of a driver; what is left out stays."""

    name: Name | UnsetType = UNSET
    zone: ZoneName | UnsetType = UNSET
    turnaround_s: TurnaroundSeconds | UnsetType | None = UNSET


class DriverOut(Struct):
    """A driver."""

    id: Id
    name: str
    fleet: str
    zone: str
    created_at: Instant
    retired_at: Instant | None
    turnaround_s: int | None
    has_shifts: bool

    @classmethod
    def of(cls, driver: Driver) -> Self:
        """As it goes over the wire."""
        return cls(
            driver.id,
            driver.name,
            driver.fleet,
            driver.zone,
            driver.created_at,
            driver.retired_at,
            driver.turnaround_s,
            driver.has_shifts,
        )


class DriverPage(Page[DriverOut]):
    """A part of the list of drivers."""

    items: list[DriverOut]


class Agenda(Struct):
    """A driver's active bookings, in order of start."""

    items: list[BookingOut]


class Gaps(Struct):
    """When a driver is free, in order."""

    items: list[WindowOut]


class StrandedOut(Struct):
    """A booking that would lie outside of the working hours, and the first part that does."""

    booking_id: Id
    start: Instant
    predicted_end: End
    reason: AbsenceKind
    outside: WindowOut

    @classmethod
    def of(cls, stranded: Stranded) -> Self:
        """As it goes over the wire."""
        return cls(
            stranded.booking_id,
            stranded.window.start,
            stranded.window.end,
            stranded.absence.kind,
            WindowOut.of(stranded.absence.part),
        )


class StrandProblem(Problem, kw_only=True):
    """Why working hours were not changed: the bookings that would lie outside of them."""

    stranded: list[StrandedOut] | UnsetType = UNSET


class SpanBody(Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A part of a day by the clock on the wall; if it ends earlier than it begins, the next day."""

    from_: ClockTime
    until: ClockTime


class ShiftBody(Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A shift, and the breaks within it."""

    from_: ClockTime
    until: ClockTime
    breaks: Annotated[list[SpanBody], Meta(max_length=20)] = []


class TimeOffBody(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Time off: between two instants, or from one date to another, which is included."""

    start: Instant | None = None
    end: Instant | None = None
    first: date | None = None
    last: date | None = None


class ShiftsBody(Struct, forbid_unknown_fields=True):
    """Working hours, meant by the clock of the driver's own zone.

    `weekly` has the shifts of each weekday; a weekday that is left out is not worked.
    Without it every hour is. On the dates of `exceptions` other shifts begin, or none.
    """

    weekly: dict[Weekday, Annotated[list[ShiftBody], Meta(max_length=20)]] | None = None
    exceptions: dict[str, Annotated[list[ShiftBody], Meta(max_length=20)]] = {}
    time_off: Annotated[list[TimeOffBody], Meta(max_length=400)] = []


class ShiftsOut(Struct):
    """A driver's working hours, or null; and the bookings that lie outside of them."""

    shifts: ShiftsBody | None
    zone: str
    stranded: list[StrandedOut]
