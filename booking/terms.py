"""Terms: what a driver asks of a booking besides free time.

Working hours, and time between two trips: a turnaround, and the way from where the one
ends to where the next begins. A driver without terms is booked by free time alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from booking.blocking import Misfit, Reason
from booking.bookings import Booking
from booking.calendars import Held, gaps_between
from booking.drivers import MAIN_FLEET
from booking.errors import BookingConflict, NoTimeToTravel, NoTurnaround, OffShift
from booking.places import Place
from booking.shifts import AbsenceKind, Shifts, why_not, working_windows
from booking.time_window import TimeWindow

REACH = timedelta(hours=24)
"""Trips that lie further apart are no neighbours: nobody waits a day at a kerb."""

_ABSENT = {
    AbsenceKind.OFF_SHIFT: "is off shift",
    AbsenceKind.ON_BREAK: "has a break",
    AbsenceKind.TIME_OFF: "has time off",
}
_MISFITS: dict[Reason, type[BookingConflict]] = {
    Reason.OVERLAP: BookingConflict,
    Reason.TRAVEL: NoTimeToTravel,
    Reason.TURNAROUND: NoTurnaround,
}


class Wish(NamedTuple):
    """A trip that somebody might ask a fleet for."""

    window: TimeWindow
    fleet: str = MAIN_FLEET
    pickup: Place | None = None
    dropoff: Place | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """Of one driver. Without `shifts` any hour will do; without `turnaround_s`, any neighbour."""

    shifts: Shifts | None = None
    turnaround_s: int | None = None


def check_shifts(shifts: Shifts | None, trip: TimeWindow) -> None:
    """Raise `OffShift`, naming the first part of the trip that is not worked, if there is one."""
    absence = None if shifts is None else why_not(shifts, trip)
    if absence is not None:
        part = absence.part
        raise OffShift(
            f"The driver {_ABSENT[absence.kind]} from {part.start:%Y-%m-%dT%H:%M:%SZ}"
            f" to {part.end:%Y-%m-%dT%H:%M:%SZ}."
        )


def refusal_of(misfit: Misfit) -> BookingConflict:
    """The error that says why a trip does not fit, and by how much."""
    return _MISFITS[misfit.reason](
        f"{_MISFITS[misfit.reason].default_message()} Booking {misfit.in_the_way.booking_id}"
        f" would have to lie {misfit.missing_s} seconds further away.",
        conflicts=[misfit.in_the_way],
    )


def neighbours(
    theirs: Iterable[Booking], trip: TimeWindow, besides: int | None = None
) -> tuple[Booking | None, Booking | None]:
    """Of one driver's active bookings, the last that starts before `trip`, and the next.

    All but `besides`, a booking that is being moved; None where there is none within `REACH`.
    """
    in_order = sorted(
        (each for each in theirs if each.id != besides), key=lambda each: (each.start, each.id)
    )
    before = [each for each in in_order if each.start < trip.start]
    after = [each for each in in_order if each.start >= trip.start]
    last = before[-1] if before else None
    following = after[0] if after else None
    if last is not None and trip.start - last.predicted_end > REACH:
        last = None
    if following is not None and following.start - trip.end > REACH:
        following = None
    return last, following


def bookable(
    terms: Terms, theirs: Iterable[Booking], within: TimeWindow, at_least: timedelta
) -> Iterator[TimeWindow]:
    """The parts of `within` in which any trip that names no place can be booked, in order.

    `theirs` are the driver's active bookings in and around it. Parts shorter than
    `at_least` are left out.
    """
    worked = [within] if terms.shifts is None else working_windows(terms.shifts, within)
    taken = sorted((_kept_free(terms, each), each.id) for each in theirs)
    for part in worked:
        held = [Held(id_, window) for window, id_ in taken if window.overlaps(part)]
        yield from gaps_between(held, part, at_least)


def _kept_free(terms: Terms, booking: Booking) -> TimeWindow:
    """The time in and around a booking in which no trip without a place can begin or end."""
    if terms.turnaround_s is None:
        return booking.window
    margin = timedelta(seconds=terms.turnaround_s)
    return TimeWindow(booking.start - margin, booking.predicted_end + margin)
