"""`Booking`, its states, and what each state may become."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from booking.drivers import MAIN_FLEET
from booking.errors import IllegalTransition, InvalidInput, TooLong
from booking.places import Place
from booking.time_window import TimeWindow


class BookingState(StrEnum):
    """Where a booking stands in its life."""

    HELD = "held"
    """Time is held while the rider makes up their mind; the hold will expire."""
    CONFIRMED = "confirmed"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """It was held, and nobody confirmed it in time."""
    NO_SHOW = "no_show"

    @property
    def active(self) -> bool:
        """Whether a booking in this state keeps others out of its time.

        A completed trip does not: a driver who comes back twenty minutes late
        has completed it all the same, and no rule about calendars may forbid
        the report of what happened.
        """
        return self in ACTIVE_STATES

    @property
    def to_come(self) -> bool:
        """Whether the trip has not begun and may yet: only then can it be moved."""
        return self in {BookingState.HELD, BookingState.CONFIRMED}


ACTIVE_STATES = frozenset({BookingState.HELD, BookingState.CONFIRMED, BookingState.IN_PROGRESS})

TRANSITIONS: Mapping[BookingState, frozenset[BookingState]] = {
    BookingState.HELD: frozenset(
        {BookingState.CONFIRMED, BookingState.CANCELLED, BookingState.EXPIRED}
    ),
    BookingState.CONFIRMED: frozenset(
        {BookingState.IN_PROGRESS, BookingState.CANCELLED, BookingState.NO_SHOW}
    ),
    BookingState.IN_PROGRESS: frozenset({BookingState.COMPLETED, BookingState.CANCELLED}),
    BookingState.COMPLETED: frozenset(),
    BookingState.CANCELLED: frozenset(),
    BookingState.EXPIRED: frozenset(),
    BookingState.NO_SHOW: frozenset(),
}
"""From each state, the states it may become. Nothing leaves a final state, so
time that was given back is never taken again by a booking come back to life."""


HOLD_S_MAX = 900
"""The longest hold, in seconds: time that nobody else can have is not kept for nothing."""

LONGEST = timedelta(hours=24)
"""The longest booking. Whoever looks for what overlaps a window looks back this far."""


def check_transition(present: BookingState, wanted: BookingState) -> None:
    """Raise `IllegalTransition`, naming what is allowed, unless `present` may become `wanted`."""
    allowed = TRANSITIONS[present]
    if wanted not in allowed:
        options = ", ".join(sorted(allowed)) or "nothing: it is final"
        raise IllegalTransition(
            f"A booking that is {present} cannot become {wanted}; it can become {options}.",
            field="state",
        )


def check_movable(present: BookingState) -> None:
    """Raise `IllegalTransition` unless a booking in this state may be given another time."""
    if not present.to_come:
        raise IllegalTransition(
            f"A booking that is {present} cannot be moved; one that is held or confirmed can.",
            field="state",
        )


@dataclass(frozen=True, slots=True)
class BookingRequest:
    """What a rider asks for: `window`, with `driver_id` or (None) any free driver of `fleet`.

    With `hold_s` the time is held for so many seconds, to be confirmed by then. The
    places count where the driver has a turnaround: then the way to the pick-up is kept
    free as well. `terms_met` says that the driver's terms have been judged already, or
    do not matter, as for what has happened; `window` is then what is to be blocked.

    Raises `TooLong` for a window of more than `LONGEST`, and `InvalidInput` for a hold
    that is not between 1 and `HOLD_S_MAX` seconds.
    """

    rider_id: int
    window: TimeWindow
    driver_id: int | None = None
    fleet: str = MAIN_FLEET
    hold_s: int | None = None
    pickup: Place | None = None
    dropoff: Place | None = None
    terms_met: bool = False

    def __post_init__(self) -> None:
        if self.window.duration > LONGEST:
            raise TooLong(field="predicted_end")
        if self.hold_s is not None and not 1 <= self.hold_s <= HOLD_S_MAX:
            raise InvalidInput(f"Time is held for 1 to {HOLD_S_MAX} seconds.", field="hold_s")


@dataclass(frozen=True, slots=True)
class Booking:
    """A rider's claim on a driver's time, from `start` to a *predicted* end.

    The end is a prediction until the trip is over. `actual_start` and
    `actual_end` say what happened and are kept apart from what was promised.
    """

    id: int
    driver_id: int
    rider_id: int
    state: BookingState
    start: datetime
    predicted_end: datetime
    created_at: datetime
    actual_start: datetime | None = None
    actual_end: datetime | None = None
    cancel_reason: str | None = None
    promised_start: datetime | None = None
    """When the rider was first promised to be fetched, if a trip before it has made it later."""
    held_until: datetime | None = None
    """Until when the time is held, while it is; after that it must not be confirmed any more."""
    series_id: int | None = None
    """The recurrence that it is an occurrence of, if any."""
    version: int = 1
    """How often it was written: whoever has seen an older version has not seen this one."""
    lead: timedelta | None = None
    """What is kept free before the trip, for the way to the pick-up and the turnaround.

    None if the driver had no turnaround when it was booked.
    """
    pickup: Place | None = None
    dropoff: Place | None = None
    travel_source: str | None = None
    """Who said how long the way to the pick-up takes, if it was asked."""
    lead_short_s: int = 0
    """By how many seconds the lead falls short, where what came before it has changed."""

    @property
    def trip(self) -> TimeWindow:
        """The trip as booked, `[start, predicted_end)`."""
        return TimeWindow(self.start, self.predicted_end)

    @property
    def window(self) -> TimeWindow:
        """What it takes of its driver's time, and what conflicts are judged on."""
        begin = self.start if self.lead is None else self.start - self.lead
        return TimeWindow(begin, self.predicted_end)

    @property
    def began(self) -> datetime:
        """When the trip began, or else when it will."""
        return self.actual_start or self.start

    @property
    def late_s(self) -> float:
        """How much later than promised the trip began, or will, in seconds."""
        late = self.began - (self.promised_start or self.start)
        return max(late.total_seconds(), 0) if self.promised_start else 0
