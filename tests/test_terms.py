"""Terms in the pure: who is a neighbour, and when somebody can be booked."""

from datetime import UTC, datetime, timedelta

from booking.bookings import Booking, BookingState
from booking.shifts import Shifts
from booking.terms import REACH, Terms, bookable, neighbours
from booking.time_window import TimeWindow

NINE = datetime(2026, 3, 9, 9, tzinfo=UTC)
NOTHING = timedelta(0)


def at(start_min: float, end_min: float) -> TimeWindow:
    return TimeWindow(NINE + timedelta(minutes=start_min), NINE + timedelta(minutes=end_min))


def booking(id_: int, window: TimeWindow, lead_min: float | None = None) -> Booking:
    lead = None if lead_min is None else timedelta(minutes=lead_min)
    return Booking(id_, 1, 1, BookingState.CONFIRMED, window.start, window.end, NINE, lead=lead)


def test_neighbours_are_told_by_when_trips_start_and_not_by_what_they_block() -> None:
    first, second = booking(1, at(0, 30)), booking(2, at(120, 150), lead_min=60)
    # It starts within what the second blocks, and comes before it all the same.
    assert neighbours([second, first], at(70, 80)) == (first, second)
    assert neighbours([first, second], at(120, 130)) == (first, second)
    assert neighbours([first, second], at(125, 130)) == (second, None)
    assert neighbours([first, second], at(70, 80), besides=1) == (None, second)


def test_who_is_a_day_away_is_no_neighbour() -> None:
    day_min = REACH / timedelta(minutes=1)
    before, after = booking(1, at(0, 30)), booking(2, at(40 + 2 * day_min, 50 + 2 * day_min))
    trip = at(30 + day_min, 40 + day_min)
    assert neighbours([before, after], trip) == (before, after)
    assert neighbours([before, after], at(31 + day_min, 39 + day_min)) == (None, None)


def test_with_a_turnaround_a_trip_keeps_away_from_both_neighbours() -> None:
    theirs = [booking(2, at(120, 150), lead_min=60), booking(1, at(0, 30), lead_min=0)]
    day = at(-60, 240)
    with_turnaround = list(bookable(Terms(turnaround_s=300), theirs, day, NOTHING))
    assert with_turnaround == [at(-60, -5), at(35, 115), at(155, 240)]
    # Without one, what is blocked is blocked.
    assert list(bookable(Terms(), theirs, day, NOTHING)) == [
        at(-60, 0),
        at(30, 60),
        at(150, 240),
    ]
    assert list(bookable(Terms(), theirs, day, timedelta(minutes=60))) == [
        at(-60, 0),
        at(150, 240),
    ]


def test_time_that_is_not_worked_cannot_be_booked() -> None:
    shifts = Shifts("UTC", time_off=(at(60, 90),))
    found = bookable(Terms(shifts), [booking(1, at(0, 30))], at(0, 120), NOTHING)
    assert list(found) == [at(30, 60), at(90, 120)]
