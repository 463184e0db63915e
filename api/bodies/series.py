"""Series: a wish by the clock on the wall, and what became of each occurrence."""

from datetime import date, time
from typing import Annotated, Self

from msgspec import UNSET, Meta, Struct, UnsetType

from api.bodies.bookings import BookingOut, Conflict
from api.bodies.common import End, FleetName, Id, Instant, Weekday, ZoneName
from api.bodies.problems import Problem
from api.patterns import WALL_CLOCK
from booking.drivers import MAIN_FLEET
from booking.errors import BookingConflict, InvalidInput
from booking.postgres.series import OnConflict, Outcome, Series, SeriesRequest, StoredSeries
from booking.recurrence import INTERVAL_WEEKS_MAX, OCCURRENCES_MAX, Adjustment, Recurrence

WallClock = Annotated[
    str,
    Meta(
        pattern=WALL_CLOCK,
        description="By the clock on the wall, hours and minutes.",
        examples=["07:30"],
    ),
]


class RecurrenceBody(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A wish by the clock on the wall. It ends with `last_date`, or after `count` occurrences."""

    zone: ZoneName
    wall_clock: WallClock
    duration_s: Annotated[int, Meta(ge=1, le=86_400, examples=[1800])]
    weekdays: Annotated[list[Weekday], Meta(min_length=1, max_length=7, examples=[["monday"]])]
    first_date: Annotated[date, Meta(examples=["2027-01-04"])]
    last_date: date | None = None
    count: Annotated[int, Meta(ge=1, le=OCCURRENCES_MAX, examples=[10])] | None = None
    interval_weeks: Annotated[int, Meta(ge=1, le=INTERVAL_WEEKS_MAX)] = 1

    def recurrence(self) -> Recurrence:
        """What is meant. Raises as `Recurrence` does."""
        try:
            # The pattern lets a newline behind it pass, as Python reads it.
            wall_clock = time.fromisoformat(self.wall_clock)
        except ValueError:
            raise InvalidInput("It must be HH:MM.", field="wall_clock") from None
        return Recurrence(
            self.zone,
            wall_clock,
            self.duration_s,
            frozenset(weekday.day for weekday in self.weekdays),
            self.first_date,
            self.last_date,
            self.count,
            self.interval_weeks,
        )

    @classmethod
    def of(cls, recurrence: Recurrence) -> Self:
        """As it goes over the wire."""
        return cls(
            recurrence.zone,
            recurrence.wall_clock.strftime("%H:%M"),
            recurrence.duration_s,
            [Weekday[day.name] for day in sorted(recurrence.weekdays)],
            recurrence.first_date,
            recurrence.last_date,
            recurrence.count,
            recurrence.interval_weeks,
        )


class SeriesIn(Struct, forbid_unknown_fields=True):
    """A series that is asked for: of one driver, or each time of any free driver of a fleet."""

    rider_id: Id
    recurrence: RecurrenceBody
    driver_id: Id | None = None
    fleet: FleetName | None = None
    on_conflict: OnConflict = OnConflict.ALL_OR_NOTHING

    def request(self) -> SeriesRequest:
        """What the ledger is asked. Raises `InvalidInput` that names the field."""
        if self.driver_id is not None and self.fleet is not None:
            raise InvalidInput("Name a driver or a fleet, not both.", field="fleet")
        try:
            return SeriesRequest.of(
                self.recurrence.recurrence(),
                self.on_conflict,
                self.rider_id,
                self.driver_id,
                self.fleet or MAIN_FLEET,
            )
        except InvalidInput as error:
            raise type(error)(error.message, field=f"recurrence.{error.field}") from None


class OccurrenceOut(Struct):
    """What became of one occurrence. `adjustment` says what the clocks' changing did to it."""

    local_date: date
    start: Instant
    predicted_end: End
    adjustment: Adjustment
    booking: BookingOut | None
    refusal: str | None
    conflicts: list[Conflict]

    @classmethod
    def of(cls, outcome: Outcome, *, booked: bool = True) -> Self:
        """As it goes over the wire; not `booked`, if all of it was rolled back."""
        occurrence, booking, refusal = outcome
        conflicts = refusal.conflicts if isinstance(refusal, BookingConflict) else ()
        return cls(
            occurrence.local_date,
            occurrence.window.start,
            occurrence.window.end,
            occurrence.adjustment,
            BookingOut.of(booking) if booking is not None and booked else None,
            None if refusal is None else refusal.message,
            [Conflict.of(held) for held in conflicts],
        )


class SeriesOut(Struct):
    """A series that was booked, with the answer to each occurrence."""

    id: Id
    rider_id: Id
    recurrence: RecurrenceBody
    created_at: Instant
    occurrences: list[OccurrenceOut]

    @classmethod
    def of(cls, series: Series) -> Self:
        """As it goes over the wire."""
        return cls(
            series.id,
            series.rider_id,
            RecurrenceBody.of(series.recurrence),
            series.created_at,
            [OccurrenceOut.of(each) for each in series.outcomes],
        )


class SeriesDetail(Struct):
    """A series as it stands now: what was meant, and its bookings in order of start."""

    id: Id
    rider_id: Id
    recurrence: RecurrenceBody
    created_at: Instant
    bookings: list[BookingOut]

    @classmethod
    def of(cls, series: StoredSeries) -> Self:
        """As it goes over the wire."""
        return cls(
            series.id,
            series.rider_id,
            RecurrenceBody.of(series.recurrence),
            series.created_at,
            [BookingOut.of(each) for each in series.bookings],
        )


class SeriesProblem(Problem, kw_only=True):
    """Why a series was refused: the answer to each of its occurrences."""

    occurrences: list[OccurrenceOut] | UnsetType = UNSET
