"""The contract of the port `Calendar`, over every detection strategy there is.

It has two halves: examples, each named for the sentence it checks, and long
random histories in which a calendar is compared with the oracle, step by step.
Both must have teeth, so calendars broken on purpose are held to them too, and
every one of those must fail.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import override

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from booking.calendars import Calendar, Held, gaps_between
from booking.detection.linear_scan import LinearScan
from booking.errors import BookingConflict
from booking.strategies import Act, strategies
from booking.time_window import TimeWindow
from tests.contracts.histories import CALM, SEARCH_ONLY, live_through, outcome, windows
from tests.world import MIDNIGHT, hours

MICROSECOND = timedelta(microseconds=1)

NewCalendar = Callable[[], Calendar]
Example = Callable[[Calendar], None]

CALENDARS: list[NewCalendar] = [each.load() for each in strategies(Act.DETECTION)]
EXAMPLES: list[Example] = []

each_calendar = pytest.mark.parametrize(
    "new_calendar", CALENDARS, ids=[each.name for each in strategies(Act.DETECTION)]
)


def example(function: Example) -> Example:
    EXAMPLES.append(function)
    return function


@example
def an_empty_calendar_is_free(calendar: Calendar) -> None:
    assert calendar.is_free(hours(9, 10))
    assert list(calendar.conflicts(hours(9, 10))) == []
    assert list(calendar) == []
    assert len(calendar) == 0


@example
def a_held_window_is_not_free(calendar: Calendar) -> None:
    calendar.hold(1, hours(9, 10))
    assert not calendar.is_free(hours(9, 10))
    assert list(calendar.conflicts(hours(9, 10))) == [Held(1, hours(9, 10))]
    assert len(calendar) == 1


@example
def touching_windows_do_not_conflict(calendar: Calendar) -> None:
    calendar.hold(1, hours(9, 10))
    for window in (hours(8, 9), hours(10, 11)):
        assert calendar.is_free(window)
        assert list(calendar.conflicts(window)) == []
    calendar.hold(2, hours(10, 11))
    calendar.hold(3, hours(8, 9))
    assert [held.booking_id for held in calendar] == [3, 1, 2]


@example
def one_microsecond_in_common_is_a_conflict(calendar: Calendar) -> None:
    held = hours(9, 10)
    calendar.hold(1, held)
    instant = timedelta(microseconds=1)
    before = TimeWindow(held.start - timedelta(hours=1), held.start + instant)
    after = TimeWindow(held.end - instant, held.end + timedelta(hours=1))
    for window in (before, after):
        assert not calendar.is_free(window)
        assert list(calendar.conflicts(window)) == [Held(1, held)]


@example
def a_window_inside_a_held_one_conflicts(calendar: Calendar) -> None:
    calendar.hold(1, hours(8, 12))
    assert not calendar.is_free(hours(9, 10))
    assert not calendar.is_free(hours(8, 9))
    assert not calendar.is_free(hours(11, 12))


@example
def a_window_around_held_ones_conflicts_with_them_all(calendar: Calendar) -> None:
    calendar.hold(2, hours(11, 12))
    calendar.hold(1, hours(9, 10))
    assert not calendar.is_free(hours(8, 13))
    assert list(calendar.conflicts(hours(8, 13))) == [
        Held(1, hours(9, 10)),
        Held(2, hours(11, 12)),
    ]


@example
def a_gap_is_free_to_its_very_edges(calendar: Calendar) -> None:
    calendar.hold(1, hours(9, 10))
    calendar.hold(2, hours(12, 13))
    assert calendar.is_free(hours(10, 12))
    gaps = gaps_between(calendar.conflicts(hours(8, 14)), hours(8, 14))
    assert list(gaps) == [hours(8, 9), hours(10, 12), hours(13, 14)]


@example
def a_refused_window_names_what_is_in_the_way_and_changes_nothing(calendar: Calendar) -> None:
    calendar.hold(1, hours(9, 10))
    calendar.hold(2, hours(10, 11))
    with pytest.raises(BookingConflict) as refused:
        calendar.hold(3, hours(9.5, 12))
    assert refused.value.conflicts == (Held(1, hours(9, 10)), Held(2, hours(10, 11)))
    assert list(calendar) == [Held(1, hours(9, 10)), Held(2, hours(10, 11))]
    assert calendar.is_free(hours(11, 12))


@example
def a_booking_holds_one_window_at_most(calendar: Calendar) -> None:
    calendar.hold(1, hours(9, 10))
    for window in (hours(14, 15), hours(9, 10)):
        with pytest.raises(ValueError, match="1"):
            calendar.hold(1, window)
    assert list(calendar) == [Held(1, hours(9, 10))]
    assert calendar.is_free(hours(14, 15))


@example
def released_time_is_free_and_nothing_else_is(calendar: Calendar) -> None:
    for booking_id, start in enumerate((9, 10, 11)):
        calendar.hold(booking_id, hours(start, start + 1))
    calendar.release(1)
    assert calendar.is_free(hours(10, 11))
    assert not calendar.is_free(hours(9, 10))
    assert not calendar.is_free(hours(11, 12))
    calendar.hold(7, hours(10, 11))
    assert [held.booking_id for held in calendar] == [0, 7, 2]


@example
def a_booking_that_holds_nothing_cannot_be_released(calendar: Calendar) -> None:
    calendar.hold(1, hours(9, 10))
    with pytest.raises(KeyError):
        calendar.release(2)
    calendar.release(1)
    with pytest.raises(KeyError):
        calendar.release(1)
    assert len(calendar) == 0


@example
def a_released_booking_may_hold_again(calendar: Calendar) -> None:
    calendar.hold(1, hours(9, 10))
    calendar.release(1)
    calendar.hold(1, hours(9.5, 11))
    assert list(calendar) == [Held(1, hours(9.5, 11))]


@example
def order_is_by_start_whatever_the_order_of_holding(calendar: Calendar) -> None:
    for start in (13, 9, 11, 8, 15, 10):
        calendar.hold(start, hours(start, start + 0.5))
    assert [held.booking_id for held in calendar] == [8, 9, 10, 11, 13, 15]
    in_the_way = calendar.conflicts(hours(9.25, 13.25))
    assert [held.booking_id for held in in_the_way] == [9, 10, 11, 13]


@example
def time_may_be_held_to_the_ends_of_the_calendar(calendar: Calendar) -> None:
    beginning, end = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    first = TimeWindow(beginning, beginning + timedelta(hours=1))
    last = TimeWindow(end - timedelta(hours=1), end)
    calendar.hold(1, last)
    calendar.hold(2, first)
    assert not calendar.is_free(first)
    assert not calendar.is_free(last)
    assert calendar.is_free(TimeWindow(first.end, last.start))
    assert [held.booking_id for held in calendar] == [2, 1]


@example
def a_gap_of_any_length_is_found_wherever_it_lies(calendar: Calendar) -> None:
    seven_past = MIDNIGHT + timedelta(hours=9, minutes=7, seconds=13)
    for booking_id, length in enumerate((MICROSECOND, timedelta(seconds=1), timedelta(minutes=1))):
        first_ends = seven_past + booking_id * timedelta(hours=1)
        gap = TimeWindow(first_ends, first_ends + length)
        calendar.hold(2 * booking_id, TimeWindow(gap.start - timedelta(minutes=3), gap.start))
        calendar.hold(2 * booking_id + 1, TimeWindow(gap.end, gap.end + timedelta(minutes=3)))
        assert calendar.is_free(gap)
        assert not calendar.is_free(TimeWindow(gap.start - MICROSECOND, gap.end))
        assert not calendar.is_free(TimeWindow(gap.start, gap.end + MICROSECOND))


@example
def a_window_may_last_for_days(calendar: Calendar) -> None:
    calendar.hold(1, hours(-2, 61.3))
    calendar.hold(2, hours(80, 81))
    for held in (hours(-1.5, -1), hours(23.9, 24.1), hours(30, 31), hours(61.2, 62)):
        assert list(calendar.conflicts(held)) == [Held(1, hours(-2, 61.3))]
        assert not calendar.is_free(held)
    assert calendar.is_free(hours(61.3, 80))
    assert [held.booking_id for held in calendar.conflicts(hours(-40, 90))] == [1, 2]
    calendar.release(1)
    for free in (hours(-40, 80), hours(-40, 60), hours(81, 200)):
        assert calendar.is_free(free)
    assert not calendar.is_free(hours(-40, 90))


@example
def a_short_booking_is_found_anywhere_in_a_long_window(calendar: Calendar) -> None:
    hour, margin = hours(9, 10), timedelta(minutes=5)
    for minute in range(60):
        start = hour.start + timedelta(minutes=minute)
        short = TimeWindow(start, start + timedelta(seconds=30))
        calendar.hold(minute, short)
        for around in (hour, TimeWindow(short.start - margin, short.end + margin)):
            assert not calendar.is_free(around)
            assert list(calendar.conflicts(around)) == [Held(minute, short)]
        calendar.release(minute)


@example
def bookings_minutes_apart_are_released_one_by_one(calendar: Calendar) -> None:
    minutes = [hours(9 + minute / 60, 9 + (minute + 1) / 60) for minute in range(10)]
    for minute, window in enumerate(minutes):
        calendar.hold(minute, window)
    for minute, window in enumerate(minutes):
        calendar.release(minute)
        assert calendar.is_free(window)
        assert all(not calendar.is_free(later) for later in minutes[minute + 1 :])


@example
def every_change_counts_in_the_next_answer(calendar: Calendar) -> None:
    for _ in range(3):
        for hour in range(6):
            assert calendar.is_free(hours(hour, hour + 1))
            calendar.hold(hour, hours(hour, hour + 1))
            assert not calendar.is_free(hours(hour, hour + 1))
            assert len(calendar.conflicts(hours(0, 7))) == hour + 1
        for hour in (3, 0, 5, 1, 4, 2):
            calendar.release(hour)
            assert calendar.is_free(hours(hour, hour + 1))
        assert list(calendar.conflicts(hours(0, 7))) == []


@example
def years_far_from_now_are_told_apart(calendar: Calendar) -> None:
    far = [hours(0, 1).moved_to(datetime(year, 6, 1, tzinfo=UTC)) for year in (2, 1901, 2107, 9998)]
    for booking_id, window in enumerate(far):
        calendar.hold(booking_id, window)
    assert [
        held.window for held in calendar.conflicts(TimeWindow(far[0].start, far[-1].end))
    ] == far
    for window in far:
        assert not calendar.is_free(window)
        assert calendar.is_free(window.moved_to(window.end))
        assert calendar.is_free(window.moved_to(window.start - window.duration))


booking_ids = st.integers(1, 12)


@dataclass(frozen=True)
class Scale:
    """When a history happens, and how long its half hours last."""

    midnight: datetime
    half_hour: timedelta

    def at(self, instant: datetime) -> datetime:
        return self.midnight + (instant - MIDNIGHT) // timedelta(minutes=30) * self.half_hour

    def window(self, window: TimeWindow) -> TimeWindow:
        return TimeWindow(self.at(window.start), self.at(window.end))


SCALES = (
    Scale(MIDNIGHT, timedelta(minutes=30)),
    Scale(MIDNIGHT + timedelta(minutes=7, seconds=13), timedelta(seconds=47)),  # on no grid
    Scale(MIDNIGHT - MICROSECOND, timedelta(hours=9)),  # from one day into the next but one
    Scale(datetime(2200, 1, 1, tzinfo=UTC), timedelta(minutes=30)),  # far from now
)


class Comparison(RuleBasedStateMachine):
    """A calendar and the oracle live through the same history, on every scale."""

    def __init__(self, new_calendar: NewCalendar) -> None:
        super().__init__()
        self.lives = [(scale, new_calendar(), LinearScan()) for scale in SCALES]

    @rule(booking_id=booking_ids, window=windows)
    def hold(self, booking_id: int, window: TimeWindow) -> None:
        for scale, calendar, oracle in self.lives:
            wanted = scale.window(window)
            refused = outcome(partial(oracle.hold, booking_id, wanted))
            assert outcome(partial(calendar.hold, booking_id, wanted)) == refused

    @rule(booking_id=booking_ids)
    def release(self, booking_id: int) -> None:
        for _, calendar, oracle in self.lives:
            refused = outcome(partial(oracle.release, booking_id))
            assert outcome(partial(calendar.release, booking_id)) == refused

    @rule(window=windows)
    def ask(self, window: TimeWindow) -> None:
        for scale, calendar, oracle in self.lives:
            wanted = scale.window(window)
            assert calendar.is_free(wanted) is oracle.is_free(wanted)
            assert list(calendar.conflicts(wanted)) == list(oracle.conflicts(wanted))

    @invariant()
    def hold_the_same(self) -> None:
        for _, calendar, oracle in self.lives:
            assert list(calendar) == list(oracle)
            assert len(calendar) == len(oracle)


@each_calendar
@pytest.mark.parametrize("keeps", EXAMPLES, ids=[each.__name__ for each in EXAMPLES])
def test_a_calendar_keeps_the_contract(new_calendar: NewCalendar, keeps: Example) -> None:
    keeps(new_calendar())


@each_calendar
def test_a_calendar_agrees_with_the_oracle_through_any_history(new_calendar: NewCalendar) -> None:
    live_through(lambda: Comparison(new_calendar))


@settings(CALM)
@given(st.sets(st.integers(0, 20)), st.integers(0, 20), st.integers(1, 6))
def test_the_oracle_agrees_with_counting_hours(taken: set[int], start: int, length: int) -> None:
    calendar = LinearScan()
    for hour in taken:
        calendar.hold(hour, hours(hour, hour + 1))
    wanted = set(range(start, start + length))
    assert calendar.is_free(hours(start, start + length)) is wanted.isdisjoint(taken)
    found = [held.booking_id for held in calendar.conflicts(hours(start, start + length))]
    assert found == sorted(wanted & taken)


class ClosedBounds(LinearScan):
    """Takes `[]` for `[)`: touching windows collide."""

    @override
    def is_free(self, window: TimeWindow) -> bool:
        return not self.conflicts(window)

    @override
    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        return [
            held
            for held in self
            if held.window.start <= window.end and window.start <= held.window.end
        ]


class HoldsWithoutLooking(LinearScan):
    """Has no check at all."""

    @override
    def hold(self, booking_id: int, window: TimeWindow) -> None:
        if booking_id in self._windows:
            raise ValueError(booking_id)
        self._windows[booking_id] = window


class LooksAtThePredecessorOnly(LinearScan):
    """Forgets that the next booking may begin before the wanted window ends."""

    @override
    def is_free(self, window: TimeWindow) -> bool:
        return not self.conflicts(window)

    @override
    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        return [held for held in super().conflicts(window) if held.window.start <= window.start]


class ReleasesTooMuch(LinearScan):
    """Gives back the neighbours together with the booking."""

    @override
    def release(self, booking_id: int) -> None:
        gone = self._windows[booking_id]
        for held in list(self):
            if gone.start <= held.window.end and held.window.start <= gone.end:
                del self._windows[held.booking_id]


class MovesABookingHeldTwice(LinearScan):
    """Lets a second `hold` of the same booking replace the first."""

    @override
    def hold(self, booking_id: int, window: TimeWindow) -> None:
        self._windows.pop(booking_id, None)
        super().hold(booking_id, window)


class ForgetsTheOrder(LinearScan):
    """Answers in the order of holding."""

    @override
    def __iter__(self) -> Iterator[Held]:
        return (Held(*item) for item in self._windows.items())


class RoundsOutward(LinearScan):
    """Takes every five minutes that are touched for taken."""

    @override
    def is_free(self, window: TimeWindow) -> bool:
        return not self.conflicts(window)

    @override
    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        return [held for held in self if _rounded(held.window).overlaps(_rounded(window))]


def _rounded(window: TimeWindow) -> TimeWindow:
    slot = timedelta(minutes=5)
    before, behind = (window.start - MIDNIGHT) % slot, (MIDNIGHT - window.end) % slot
    return TimeWindow(window.start - before, window.end + behind)


class AsksForTheEdgesOnly(LinearScan):
    """Asks whether somebody holds the first instant or the last, and not what lies between."""

    @override
    def is_free(self, window: TimeWindow) -> bool:
        return not self.conflicts(window)

    @override
    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        first = TimeWindow(window.start, window.start + MICROSECOND)
        last = TimeWindow(window.end - MICROSECOND, window.end)
        return [held for held in self if held.window.overlaps(first) or held.window.overlaps(last)]


class ReleasesTheSlot(LinearScan):
    """Gives back the five minutes with all that was in them."""

    @override
    def release(self, booking_id: int) -> None:
        gone = _rounded(self._windows[booking_id])
        for held in list(self):
            if held.window.overlaps(gone):
                del self._windows[held.booking_id]


class FilesByTheFirstDay(LinearScan):
    """Looks only among what begins on the days that the window touches."""

    @override
    def is_free(self, window: TimeWindow) -> bool:
        return not self.conflicts(window)

    @override
    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        first, last = window.start.date(), window.end.date()
        return [
            held for held in super().conflicts(window) if first <= held.window.start.date() <= last
        ]


class AnswersFromYesterdaysIndex(LinearScan):
    """Notices a change by the number of bookings alone."""

    def __init__(self) -> None:
        super().__init__()
        self._index: list[Held] = []

    @override
    def is_free(self, window: TimeWindow) -> bool:
        if len(self._index) < len(self):
            self._index = list(self)
        return not any(held.window.overlaps(window) for held in self._index)


class EndsIn2038(LinearScan):
    """Counts seconds in a C integer of 32 bits, and cannot tell apart what is too large."""

    @override
    def is_free(self, window: TimeWindow) -> bool:
        return not self.conflicts(window)

    @override
    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        largest = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=2**31 - 1)
        return [
            held
            for held in self
            if held.window.overlaps(window) or min(held.window.end, window.end) > largest
        ]


BROKEN: list[tuple[NewCalendar, Example]] = [
    (ClosedBounds, touching_windows_do_not_conflict),
    (HoldsWithoutLooking, a_refused_window_names_what_is_in_the_way_and_changes_nothing),
    (LooksAtThePredecessorOnly, a_window_around_held_ones_conflicts_with_them_all),
    (ReleasesTooMuch, released_time_is_free_and_nothing_else_is),
    (MovesABookingHeldTwice, a_booking_holds_one_window_at_most),
    (ForgetsTheOrder, order_is_by_start_whatever_the_order_of_holding),
    (RoundsOutward, a_gap_of_any_length_is_found_wherever_it_lies),
    (AsksForTheEdgesOnly, a_short_booking_is_found_anywhere_in_a_long_window),
    (ReleasesTheSlot, bookings_minutes_apart_are_released_one_by_one),
    (FilesByTheFirstDay, a_window_may_last_for_days),
    (AnswersFromYesterdaysIndex, every_change_counts_in_the_next_answer),
    (EndsIn2038, years_far_from_now_are_told_apart),
]


@pytest.mark.parametrize(("broken", "teeth"), BROKEN)
def test_a_broken_calendar_fails_the_example_about_it(broken: NewCalendar, teeth: Example) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, BookingConflict)):
        teeth(broken())


@pytest.mark.parametrize("broken", [broken for broken, _ in BROKEN])
def test_a_broken_calendar_disagrees_with_the_oracle(broken: NewCalendar) -> None:
    with pytest.raises(AssertionError):
        live_through(lambda: Comparison(broken), SEARCH_ONLY)
