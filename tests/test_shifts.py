"""When a driver works: examples by name, and random shifts against a model of minutes.

The model never asks for the instant of a time of day. It reads the clock on the wall
at every minute of ten days, and looks which of them lie in which span. Versions of
`booking.shifts` that are broken on purpose must disagree with it.
"""

import copy
import json
from calendar import Day
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cache
from itertools import cycle, groupby
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from booking import shifts as module
from booking.calendars import Held
from booking.errors import InvalidInput
from booking.shifts import (
    Absence,
    AbsenceKind,
    DaysOff,
    LocalSpan,
    Shift,
    Shifts,
    Stranded,
    TimeOff,
    covers,
    stranded,
    why_not,
    working_windows,
)
from booking.time_window import EARLIEST, LATEST, TimeWindow
from tests.contracts.histories import CALM, SEARCH_ONLY

DAY_MIN = 24 * 60
MINUTE = timedelta(minutes=1)
MICROSECOND = timedelta(microseconds=1)

BERLIN = "Europe/Berlin"
MONDAY = date(2026, 6, 1)
"""In Berlin, two hours ahead of UTC."""


def shift(hours: str, *breaks: str) -> Shift:
    """`shift("22:00-06:00", "02:00-02:30")`."""
    return Shift(span(hours), tuple(map(span, breaks)))


def span(hours: str) -> LocalSpan:
    return LocalSpan.between(*hours.split("-"))


def utc_window(start: str, end: str) -> TimeWindow:
    """`utc_window("2026-06-01 06:00", "2026-06-01 15:00")`."""
    return TimeWindow(*(datetime.fromisoformat(f"{each}Z") for each in (start, end)))


def around(day: date, days: int = 3) -> TimeWindow:
    """Some days on either side of a date."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    return TimeWindow(noon - timedelta(days=days), noon + timedelta(days=days))


def only_on(day: date, *shifts: Shift, zone: str = BERLIN, **more: Any) -> Shifts:
    """Shifts that begin on one date and no other."""
    return Shifts(zone, weekly={}, exceptions={day: shifts}, **more)


def worked(shifts: Shifts, within: TimeWindow) -> list[TimeWindow]:
    return list(working_windows(shifts, within))


EVERY_DAY_EIGHT_TO_FIVE = Shifts(BERLIN, dict.fromkeys(Day, (shift("08:00-17:00"),)))


# --- Examples: the week. -----------------------------------------------------------------


def test_a_driver_without_a_pattern_works_always() -> None:
    always = Shifts("America/New_York")
    for window in (around(MONDAY), TimeWindow(EARLIEST, LATEST)):
        assert worked(always, window) == [window]
        assert covers(always, window)
        assert why_not(always, window) is None


def test_an_empty_pattern_is_a_driver_who_works_on_exceptions_only() -> None:
    window = around(MONDAY)
    assert worked(Shifts(BERLIN, weekly={}), window) == []
    assert worked(only_on(MONDAY, shift("08:00-17:00")), window) == [
        utc_window("2026-06-01 06:00", "2026-06-01 15:00")
    ]


def test_a_window_is_covered_to_the_very_edges_of_a_shift_and_no_further() -> None:
    whole = utc_window("2026-06-01 06:00", "2026-06-01 15:00")
    assert covers(EVERY_DAY_EIGHT_TO_FIVE, whole)
    early = TimeWindow(whole.start - MICROSECOND, whole.end)
    late = TimeWindow(whole.start, whole.end + MICROSECOND)
    assert why_not(EVERY_DAY_EIGHT_TO_FIVE, early) == Absence(
        AbsenceKind.OFF_SHIFT, TimeWindow(early.start, whole.start)
    )
    assert why_not(EVERY_DAY_EIGHT_TO_FIVE, late) == Absence(
        AbsenceKind.OFF_SHIFT, TimeWindow(whole.end, late.end)
    )


def test_a_night_shift_belongs_to_the_day_it_begins_on() -> None:
    monday_night = Shifts(BERLIN, {Day.MONDAY: (shift("22:00-06:00"),)})
    night = utc_window("2026-06-01 20:00", "2026-06-02 04:00")
    assert worked(monday_night, around(MONDAY)) == [night]
    after_midnight = TimeWindow(night.end - timedelta(hours=1), night.end)
    assert covers(monday_night, after_midnight)
    assert not covers(monday_night, after_midnight.moved_to(night.start - timedelta(days=1)))


def test_shifts_that_touch_are_one_window() -> None:
    split = only_on(MONDAY, shift("12:00-17:00"), shift("08:00-12:00"))
    assert worked(split, around(MONDAY)) == [utc_window("2026-06-01 06:00", "2026-06-01 15:00")]
    round_the_clock = Shifts(BERLIN, dict.fromkeys(Day, (shift("00:00-24:00"),)))
    assert worked(round_the_clock, around(MONDAY, 60)) == [around(MONDAY, 60)]


def test_where_a_night_shift_overlaps_the_next_days_shift_the_time_is_worked_once() -> None:
    tuesday = MONDAY + timedelta(days=1)
    both = Shifts(
        BERLIN,
        weekly={Day.MONDAY: (shift("22:00-06:00", "05:00-05:30"),)},
        exceptions={tuesday: (shift("05:15-09:00"),)},
    )
    assert worked(both, around(MONDAY)) == [
        utc_window("2026-06-01 20:00", "2026-06-02 03:00"),
        # The break of the one shift is no work for the other.
        utc_window("2026-06-02 03:30", "2026-06-02 07:00"),
    ]


def test_breaks_are_taken_out_also_those_after_midnight() -> None:
    night = only_on(MONDAY, shift("22:00-06:00", "02:00-02:30", "23:00-23:15"))
    assert worked(night, around(MONDAY)) == [
        utc_window("2026-06-01 20:00", "2026-06-01 21:00"),
        utc_window("2026-06-01 21:15", "2026-06-02 00:00"),
        utc_window("2026-06-02 00:30", "2026-06-02 04:00"),
    ]


def test_an_exception_takes_the_place_of_its_date_and_of_no_other() -> None:
    tuesday = MONDAY + timedelta(days=1)
    night = (shift("22:00-06:00"),)
    shifts = Shifts(
        BERLIN,
        {Day.MONDAY: night, Day.TUESDAY: night, Day.WEDNESDAY: night},
        exceptions={tuesday: ()},
    )
    assert worked(shifts, around(tuesday)) == [
        utc_window("2026-06-01 20:00", "2026-06-02 04:00"),
        utc_window("2026-06-03 20:00", "2026-06-04 04:00"),
    ]


# --- Examples: time off. -----------------------------------------------------------------


def test_days_off_include_the_last_and_the_shift_that_begins_on_it() -> None:
    nights = Shifts(
        BERLIN,
        dict.fromkeys(Day, (shift("22:00-06:00"),)),
        time_off=(DaysOff(MONDAY, MONDAY + timedelta(days=1)),),
    )
    assert worked(nights, utc_window("2026-05-31 12:00", "2026-06-04 12:00")) == [
        utc_window("2026-05-31 20:00", "2026-05-31 22:00"),
        utc_window("2026-06-03 20:00", "2026-06-04 04:00"),
    ]


def test_a_driver_without_a_pattern_may_still_take_time_off() -> None:
    hour = utc_window("2026-06-01 09:00", "2026-06-01 10:00")
    always = Shifts(BERLIN, time_off=(hour, DaysOff(MONDAY, MONDAY)))
    day = utc_window("2026-05-31 22:00", "2026-06-01 22:00")
    assert why_not(always, around(MONDAY)) == Absence(AbsenceKind.TIME_OFF, day)
    before, after = worked(always, around(MONDAY))
    assert (before.end, after.start) == (day.start, day.end)


def test_the_first_part_that_is_not_worked_is_told_with_its_reason() -> None:
    hour = utc_window("2026-06-01 08:00", "2026-06-01 09:00")
    shifts = only_on(MONDAY, shift("08:00-17:00", "12:00-12:30"), time_off=(hour,))
    asked = utc_window("2026-06-01 05:00", "2026-06-01 14:00")
    found = []
    while (absence := why_not(shifts, asked)) is not None:
        found.append(absence)
        asked = TimeWindow(absence.part.end, asked.end)
    assert found == [
        Absence(AbsenceKind.OFF_SHIFT, utc_window("2026-06-01 05:00", "2026-06-01 06:00")),
        Absence(AbsenceKind.TIME_OFF, hour),
        Absence(AbsenceKind.ON_BREAK, utc_window("2026-06-01 10:00", "2026-06-01 10:30")),
    ]


def test_time_off_is_told_before_a_break_and_before_the_end_of_a_shift() -> None:
    off = utc_window("2026-06-01 10:15", "2026-06-01 16:00")
    shifts = only_on(MONDAY, shift("08:00-17:00", "12:00-12:30"), time_off=(off,))
    on_break = utc_window("2026-06-01 10:00", "2026-06-01 10:15")
    assert why_not(shifts, TimeWindow(on_break.start, off.end)) == Absence(
        AbsenceKind.ON_BREAK, on_break
    )
    assert why_not(shifts, off) == Absence(AbsenceKind.TIME_OFF, off)


# --- Examples: the nights when the clocks change. ----------------------------------------

SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)
"""In Berlin: 02:00 is 03:00, which is 01:00 UTC; 03:00 is 02:00, which is 01:00 UTC."""


@pytest.mark.parametrize(("night", "hours"), [(SPRING, 7), (date(2026, 6, 7), 8), (AUTUMN, 9)])
def test_a_night_shift_is_as_long_as_the_night(night: date, hours: int) -> None:
    saturday = Shifts(BERLIN, {Day.SATURDAY: (shift("22:00-06:00"),)})
    (window,) = worked(saturday, around(night))
    assert window.duration == timedelta(hours=hours)


EVE = timedelta(days=1)
BOUNDS = [
    ("begins in the gap", SPRING, "02:30-06:00", ("2026-03-29 01:00", "2026-03-29 04:00")),
    ("ends in the gap", SPRING - EVE, "22:00-02:30", ("2026-03-28 21:00", "2026-03-29 01:00")),
    ("ends where it begins", SPRING, "00:00-02:00", ("2026-03-28 23:00", "2026-03-29 01:00")),
    ("begins where it ends", SPRING, "03:00-06:00", ("2026-03-29 01:00", "2026-03-29 04:00")),
    ("within the gap", SPRING, "02:15-02:45", None),
    ("is the gap", SPRING, "02:00-03:00", None),
    ("begins in the fold", AUTUMN, "02:30-06:00", ("2026-10-25 00:30", "2026-10-25 05:00")),
    ("ends in the fold", AUTUMN - EVE, "22:00-02:30", ("2026-10-24 20:00", "2026-10-25 01:30")),
    ("within the fold", AUTUMN, "02:15-02:45", ("2026-10-25 00:15", "2026-10-25 01:45")),
    ("is the fold", AUTUMN, "02:00-03:00", ("2026-10-25 00:00", "2026-10-25 02:00")),
    ("up to the fold", AUTUMN - EVE, "22:00-02:00", ("2026-10-24 20:00", "2026-10-25 00:00")),
    ("from its end", AUTUMN, "03:00-06:00", ("2026-10-25 02:00", "2026-10-25 05:00")),
]


@pytest.mark.parametrize(
    ("day", "hours", "expected"),
    [row[1:] for row in BOUNDS],
    ids=[row[0] for row in BOUNDS],
)
def test_a_span_lasts_from_the_first_time_that_the_clock_shows_in_it_to_the_last(
    day: date, hours: str, expected: tuple[str, str] | None
) -> None:
    windows = [] if expected is None else [utc_window(*expected)]
    assert worked(only_on(day, shift(hours)), around(day)) == windows


def test_a_break_is_not_cut_short_by_the_fold_and_is_lost_in_the_gap() -> None:
    night = shift("22:00-06:00", "02:15-02:45")
    assert worked(only_on(AUTUMN - EVE, night), around(AUTUMN)) == [
        utc_window("2026-10-24 20:00", "2026-10-25 00:15"),
        utc_window("2026-10-25 01:45", "2026-10-25 05:00"),
    ]
    assert worked(only_on(SPRING - EVE, night), around(SPRING)) == [
        utc_window("2026-03-28 21:00", "2026-03-29 04:00")
    ]


@pytest.mark.parametrize(
    ("zone", "day", "hours", "expected"),
    [
        # Half an hour: 02:00 is 01:30 again.
        (
            "Australia/Lord_Howe",
            date(2026, 4, 5),
            "01:45-05:00",
            ("2026-04-04 14:45", "2026-04-04 18:30"),
        ),
        ("Asia/Kathmandu", MONDAY, "09:00-17:00", ("2026-06-01 03:15", "2026-06-01 11:15")),
        # 01:00 is 00:00 again, and the day before is over at the first.
        (
            "America/Havana",
            date(2026, 10, 31),
            "00:00-24:00",
            ("2026-10-31 04:00", "2026-11-01 04:00"),
        ),
        # 00:01 is 23:01 of the day before.
        (
            "America/St_Johns",
            date(2010, 11, 5),
            "23:59-23:58",
            ("2010-11-06 02:29", "2010-11-07 03:28"),
        ),
        # There was no such day.
        ("Pacific/Apia", date(2011, 12, 30), "09:00-17:00", None),
    ],
)
def test_clocks_elsewhere_change_in_other_ways(
    zone: str, day: date, hours: str, expected: tuple[str, str] | None
) -> None:
    windows = [] if expected is None else [utc_window(*expected)]
    assert worked(only_on(day, shift(hours), zone=zone), around(day)) == windows


def test_clocks_that_show_a_date_a_second_time_hide_no_shift() -> None:
    # In St. John's 00:01 on the 7th was 23:01 on the 6th.
    first_midnight = utc_window("2010-11-07 02:30", "2010-11-07 02:31")
    still_on = only_on(date(2010, 11, 5), shift("23:59-23:58"), zone="America/St_Johns")
    assert covers(still_on, first_midnight)
    second_evening = TimeWindow(first_midnight.start, first_midnight.end + 30 * MINUTE)
    already_on = only_on(date(2010, 11, 7), shift("00:00-08:00"), zone="America/St_Johns")
    assert covers(already_on, second_evening)


# --- Examples: long times, and changed shifts. -------------------------------------------


def test_the_next_working_window_is_found_without_walking_through_all_time() -> None:
    weekends = Shifts(BERLIN, {Day.SATURDAY: (shift("08:00-17:00"),)})
    for_ever = TimeWindow(utc_window("2026-06-01 00:00", "2026-06-02 00:00").start, LATEST)
    assert next(working_windows(weekends, for_ever)) == utc_window(
        "2026-06-06 06:00", "2026-06-06 15:00"
    )
    assert why_not(weekends, for_ever) == Absence(
        AbsenceKind.OFF_SHIFT, utc_window("2026-06-01 00:00", "2026-06-06 06:00")
    )


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/New_York"])
@pytest.mark.parametrize(
    "window",
    [
        TimeWindow(EARLIEST, EARLIEST + timedelta(days=1)),
        TimeWindow(LATEST - timedelta(days=1), LATEST),
    ],
)
def test_shifts_are_worked_to_the_ends_of_the_calendar(window: TimeWindow, zone: str) -> None:
    day = TimeWindow(EARLIEST, LATEST)
    off = DaysOff(day.start.date(), day.end.date())
    round_the_clock = dict.fromkeys(Day, (shift("00:00-12:00"), shift("12:00-24:00")))
    assert worked(Shifts(zone, round_the_clock), window) == [window]
    absence = why_not(Shifts(zone, round_the_clock, time_off=(off,)), window)
    assert absence is not None
    assert absence.kind is AbsenceKind.TIME_OFF


def test_bookings_that_changed_shifts_would_strand_are_shown_with_the_part_outside() -> None:
    shorter = Shifts(BERLIN, dict.fromkeys(Day, (shift("08:00-16:00", "12:00-13:00"),)))
    held = [
        Held(4, utc_window("2026-06-01 13:30", "2026-06-01 14:30")),
        Held(1, utc_window("2026-06-01 06:00", "2026-06-01 07:00")),
        Held(2, utc_window("2026-06-01 09:30", "2026-06-01 10:30")),
        Held(3, utc_window("2026-06-01 13:00", "2026-06-01 14:00")),
    ]
    assert stranded(EVERY_DAY_EIGHT_TO_FIVE, held) == []
    assert stranded(shorter, held) == [
        Stranded(
            4,
            held[0].window,
            Absence(AbsenceKind.OFF_SHIFT, utc_window("2026-06-01 14:00", "2026-06-01 14:30")),
        ),
        Stranded(
            2,
            held[2].window,
            Absence(AbsenceKind.ON_BREAK, utc_window("2026-06-01 10:00", "2026-06-01 10:30")),
        ),
    ]
    assert stranded(Shifts(BERLIN), held) == []


# --- Random shifts, and a model that reads the clock every minute. -----------------------

CHANGES = [
    ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 8, 7, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(1985, 12, 31, 18, 30, tzinfo=UTC)),  # by a quarter of an hour
    ("America/Havana", datetime(2026, 11, 1, 5, tzinfo=UTC)),  # back to midnight
    ("America/St_Johns", datetime(2010, 11, 7, 2, 31, tzinfo=UTC)),  # back past midnight
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),  # by a day
]
QUIET = [("UTC", datetime(2026, 3, 29, 1, tzinfo=UTC))]
MODEL_DAYS = 5
"""The model reads the clock from so many days before a change to as many after it."""


@pytest.mark.parametrize(("zone", "at"), CHANGES)
def test_each_change_of_clocks_is_one(zone: str, at: datetime) -> None:
    before, after = (each.astimezone(ZoneInfo(zone)).utcoffset() for each in (at - MINUTE, at))
    assert before != after


class Case(NamedTuple):
    at: datetime
    shifts: Shifts
    window: TimeWindow


@cache
def minutes_that_show(zone: str, at: datetime) -> dict[int, list[int]]:
    """For each time on the clock, in minutes of its own, the minutes at which it is shown."""
    shown: dict[int, list[int]] = {}
    first = at - timedelta(days=MODEL_DAYS)
    for number in range(2 * MODEL_DAYS * DAY_MIN):
        clock = (first + number * MINUTE).astimezone(ZoneInfo(zone))
        of_day = clock.hour * 60 + clock.minute
        shown.setdefault(clock.toordinal() * DAY_MIN + of_day, []).append(number)
    return shown


class Model:
    """Whether and why not, for every minute of the days around a change."""

    def __init__(self, case: Case) -> None:
        self.shown = minutes_that_show(case.shifts.zone, case.at)
        self.first = case.at - timedelta(days=MODEL_DAYS)
        self.marks = {
            kind: bytearray(2 * MODEL_DAYS * DAY_MIN)
            for kind in (AbsenceKind.TIME_OFF, AbsenceKind.ON_BREAK, None)
        }
        for days in range(-4, 5):
            self._live_through((case.at + timedelta(days=days)).date(), case.shifts)
        for off in case.shifts.time_off:
            if isinstance(off, TimeWindow):
                self._mark(AbsenceKind.TIME_OFF, self._numbers(off))

    def _numbers(self, window: TimeWindow) -> range:
        return range((window.start - self.first) // MINUTE, (window.end - self.first) // MINUTE)

    def _live_through(self, day: date, shifts: Shifts) -> None:
        is_off = any(
            isinstance(off, DaysOff) and off.first <= day <= off.last for off in shifts.time_off
        )
        if is_off:
            self._mark(AbsenceKind.TIME_OFF, self._shown_in(day, 0, DAY_MIN))
        for shift in pattern_of(day, shifts):
            hours = range(shift.hours.from_min, shift.hours.until_min)
            worked = AbsenceKind.TIME_OFF if is_off else None
            self._mark(worked, self._shown_in(day, hours.start, hours.stop))
            for pause in shift.breaks:
                begins = next(each for each in hours if each % DAY_MIN == pause.from_min)
                ends = begins + pause.until_min - pause.from_min
                self._mark(AbsenceKind.ON_BREAK, self._shown_in(day, begins, ends))

    def _shown_in(self, day: date, begins: int, ends: int) -> list[int]:
        midnight = day.toordinal() * DAY_MIN
        return [
            number
            for clock in range(midnight + begins, midnight + ends)
            for number in self.shown.get(clock, ())
        ]

    def _mark(self, kind: AbsenceKind | None, numbers: Sequence[int]) -> None:
        """From the first to the last of them."""
        if numbers:
            first, last = min(numbers), max(numbers)
            self.marks[kind][first : last + 1] = b"x" * (last + 1 - first)

    def _kind(self, number: int) -> AbsenceKind | None:
        return next(
            (kind for kind, marks in self.marks.items() if marks[number]), AbsenceKind.OFF_SHIFT
        )

    def parts(self, window: TimeWindow) -> Iterator[tuple[AbsenceKind | None, TimeWindow]]:
        """Minutes that follow each other and are alike, as one."""
        for kind, run in groupby(self._numbers(window), self._kind):
            alike = list(run)
            ends = self.first + (alike[-1] + 1) * MINUTE
            yield kind, TimeWindow(self.first + alike[0] * MINUTE, ends)


def pattern_of(day: date, shifts: Shifts) -> Iterable[Shift]:
    if day in shifts.exceptions:
        return shifts.exceptions[day]
    if shifts.weekly is None:
        return (shift("00:00-24:00"),)
    return shifts.weekly.get(Day(day.weekday()), ())


class Drawn(NamedTuple):
    """A shift, and perhaps its break: minutes from the time on the clock of the change."""

    begins: int
    length: int
    break_after: int
    break_length: int


def day_of_shifts(drawn: Iterable[Drawn], change_min: int) -> tuple[Shift, ...]:
    """The shifts that were drawn for a day, but for those that overlap one before."""
    found: list[Shift] = []
    free_from = 0
    for each in drawn:
        begins = (change_min + each.begins) % DAY_MIN
        hours = LocalSpan(begins, begins + each.length)
        if begins >= free_from:
            breaks = []
            if each.break_after < each.length:
                pause = (begins + each.break_after) % DAY_MIN
                length = min(each.break_length, each.length - each.break_after)
                breaks.append(LocalSpan(pause, pause + length))
            found.append(Shift(hours, tuple(breaks)))
            free_from = hours.until_min
    return tuple(found)


def build_case(
    change: tuple[str, datetime],
    week: list[list[Drawn]],
    exceptions: dict[int, list[Drawn]],
    off: list[tuple[int, int, bool]],
    asked: tuple[int, int],
) -> Case:
    zone, at = change
    clock = (at - MINUTE).astimezone(ZoneInfo(zone)) + MINUTE
    change_min = clock.hour * 60 + clock.minute

    def window(start_min: int, length_min: int) -> TimeWindow:
        start = at + start_min * MINUTE
        return TimeWindow(start, start + length_min * MINUTE)

    def time_off(start_min: int, length_min: int, by_days: bool) -> TimeOff:
        if not by_days:
            return window(start_min, length_min)
        first = (clock + start_min * MINUTE).date()
        return DaysOff(first, first + timedelta(days=length_min // DAY_MIN))

    days = (day_of_shifts(each, change_min) for each in week)
    weekly = dict(zip(Day, cycle(days), strict=False)) if week else None
    instead = {
        (clock + timedelta(days=days)).date(): day_of_shifts(drawn, change_min)
        for days, drawn in exceptions.items()
    }
    shifts = Shifts(zone, weekly, instead, tuple(time_off(*each) for each in off))
    return Case(at, shifts, window(*asked))


# Close to the change more often than not, and long enough for midnight to matter.
close = st.integers(-60, 60)
offsets = st.one_of(close, close, st.integers(61, DAY_MIN - 61))
lengths = st.one_of(st.integers(300, DAY_MIN - 1), st.integers(1, 90))
drawn = st.builds(Drawn, offsets, lengths, st.integers(0, 500), st.integers(1, 200))
starts = st.integers(-36 * 60, 12 * 60)
cases = st.builds(
    build_case,
    st.sampled_from([*CHANGES, *QUIET]),
    st.lists(st.lists(drawn, min_size=1, max_size=2), max_size=3),
    st.dictionaries(st.sampled_from([0, -1, 1]), st.lists(drawn, max_size=2), max_size=2),
    st.lists(st.tuples(starts, st.integers(1, 40 * 60), st.booleans()), max_size=2),
    st.tuples(
        st.integers(-36 * 60, 0), st.one_of(st.integers(36 * 60, 60 * 60), st.integers(1, 120))
    ),
)


def agree(case: Case) -> None:
    """What `booking.shifts` says, and what the model does."""
    _, shifts, window = case
    parts = list(Model(case).parts(window))
    absences = [Absence(kind, part) for kind, part in parts if kind is not None]
    assert worked(shifts, window) == [part for kind, part in parts if kind is None]
    assert why_not(shifts, window) == next(iter(absences), None)
    assert covers(shifts, window) is (not absences)


MANY = settings(CALM, max_examples=400)
SEARCH = settings(CALM, max_examples=4_000, phases=SEARCH_ONLY)
"""Ends with the first disagreement; for the rarest that takes a few hundred examples."""


def test_shifts_are_worked_in_the_very_minutes_in_which_the_clock_says_so() -> None:
    settings(MANY)(given(cases)(agree))()


def one_offset_for_all(patch: pytest.MonkeyPatch) -> None:
    """The offset of the window's start, whatever the clocks do later."""
    edges = module._edges  # noqa: SLF001  # broken on purpose

    def broken(shifts: Shifts, within: TimeWindow) -> Iterator[Any]:
        offset = within.start.astimezone(ZoneInfo(shifts.zone)).utcoffset()
        fixed = copy.copy(shifts)
        object.__setattr__(fixed, "zone_info", timezone(offset or timedelta()))
        return edges(fixed, within)

    patch.setattr(module, "_edges", broken)


def the_fold_ends_at_the_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "_ends", module._begins)  # noqa: SLF001


def the_fold_begins_at_the_second(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "_begins", module._ends)  # noqa: SLF001


def the_end_is_the_second_even_where_the_fold_begins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        module,
        "_ends",
        lambda zone, local: max(module._readings(zone, local)),  # noqa: SLF001
    )


def the_gap_is_read_by_the_offset_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "_jump", lambda _zone, _local, _before, after: after)


def days_from(earlier: int, later: int) -> Callable[[pytest.MonkeyPatch], None]:
    def patched(patch: pytest.MonkeyPatch) -> None:
        def broken(shifts: Shifts, within: TimeWindow) -> Iterator[date]:
            first = within.start.astimezone(shifts.zone_info).toordinal() - earlier
            last = within.end.astimezone(shifts.zone_info).toordinal() + later
            return map(date.fromordinal, range(first, last + 1))

        patch.setattr(module, "_days", broken)

    return patched


def breaks_of_the_night_lie_on_the_evening_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Shift,
        "breaks_min",
        lambda shift: [(each.from_min, each.until_min) for each in shift.breaks],
    )


def a_day_off_leaves_its_night_shift(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DaysOff, "__contains__", lambda _days, _day: False)


def exceptions_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    asked = Shifts.beginning_on
    patch.setattr(
        Shifts,
        "beginning_on",
        lambda shifts, day: asked(Shifts(shifts.zone, shifts.weekly), day),
    )


def breaks_are_told_before_time_off(patch: pytest.MonkeyPatch) -> None:
    kind = module._kind  # noqa: SLF001
    patch.setattr(
        module,
        "_kind",
        lambda depth: (
            AbsenceKind.ON_BREAK
            if depth[module._Layer.BREAK]  # noqa: SLF001
            else kind(depth)
        ),
    )


def shifts_that_overlap_end_with_the_first(patch: pytest.MonkeyPatch) -> None:
    kind = module._kind  # noqa: SLF001
    patch.setattr(module, "_kind", lambda depth: kind({**depth, 0: depth[0] % 2}))


BROKEN = [
    one_offset_for_all,
    the_fold_ends_at_the_first,
    the_fold_begins_at_the_second,
    the_end_is_the_second_even_where_the_fold_begins,
    the_gap_is_read_by_the_offset_before,
    pytest.param(days_from(0, 1), id="the_night_shift_of_yesterday_is_forgotten"),
    breaks_of_the_night_lie_on_the_evening_before,
    a_day_off_leaves_its_night_shift,
    exceptions_are_forgotten,
    breaks_are_told_before_time_off,
    shifts_that_overlap_end_with_the_first,
]


@pytest.mark.parametrize("broken", BROKEN)
def test_shifts_broken_on_purpose_disagree_with_the_model(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        settings(SEARCH)(given(cases)(agree))()


@pytest.mark.parametrize("days", [(1, 1), (2, 0)])
def test_a_day_fewer_on_either_side_would_hide_one(
    days: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    days_from(*days)(monkeypatch)
    with pytest.raises(AssertionError):
        test_clocks_that_show_a_date_a_second_time_hide_no_shift()


# --- What is refused, and what is stored. ------------------------------------------------


def weekly(*shifts: dict[str, Any]) -> dict[str, Any]:
    return {"weekly": {"monday": list(shifts)}}


def hours(start: str, until: str, *breaks: tuple[str, str]) -> dict[str, Any]:
    written: dict[str, Any] = {"from": start, "until": until}
    if breaks:
        written["breaks"] = [{"from": begins, "until": ends} for begins, ends in breaks]
    return written


DAY = hours("08:00", "17:00")
REFUSED: list[tuple[object, str, str]] = [
    ([], "shifts", "object"),
    ({"weekley": {}}, "shifts", "'weekley' is not known here; weekly, exceptions, time_off are"),
    ({"weekly": []}, "weekly", "object"),
    ({"weekly": {"Mon": []}}, "weekly", "'Mon' is not known here; monday"),
    ({"weekly": {"monday": DAY}}, "weekly.monday", "list"),
    (weekly(DAY, {"from": "18:00"}), "weekly.monday[1].until", "text"),
    (weekly({"from": 8, "until": "17:00"}), "weekly.monday[0].from", "text"),
    (weekly({**DAY, "untill": "9"}), "weekly.monday[0]", "'untill' is not known"),
    (weekly(hours("8:00", "17:00")), "weekly.monday[0].from", "HH:MM"),
    (weekly(hours("08:00", "24:01")), "weekly.monday[0].until", "HH:MM"),
    (weekly(hours("08:00", "٠٩:00")), "weekly.monday[0].until", "HH:MM"),
    (weekly(hours("24:00", "08:00")), "weekly.monday[0].from", "between 00:00 and 23:59"),
    (weekly(hours("08:00", "08:00")), "weekly.monday[0].until", "a whole day is 00:00 to 24:00"),
    (weekly(hours("00:00", "00:00")), "weekly.monday[0].until", "a whole day is 00:00 to 24:00"),
    (
        weekly(DAY, hours("20:00", "21:00"), hours("16:59", "18:00")),
        "weekly.monday[2].from",
        "16:59 to 18:00 overlaps 08:00 to 17:00",
    ),
    (weekly(hours("22:00", "06:00"), hours("23:00", "23:30")), "weekly.monday[1].from", "overlaps"),
    (
        weekly(hours("08:00", "17:00", ("07:30", "08:30"))),
        "weekly.monday[0].breaks[0].from",
        "The break 07:30 to 08:30 begins outside of the shift 08:00 to 17:00",
    ),
    (
        weekly(hours("08:00", "17:00", ("12:00", "13:00"), ("16:30", "17:30"))),
        "weekly.monday[0].breaks[1].until",
        "ends outside",
    ),
    (
        weekly(hours("22:00", "06:00", ("06:00", "06:30"))),
        "weekly.monday[0].breaks[0].from",
        "begins outside",
    ),
    (
        weekly(hours("22:00", "06:00", ("00:00", "00:30"), ("23:50", "00:10"))),
        "weekly.monday[0].breaks[0].from",
        "overlaps",
    ),
    (weekly(hours("08:00", "17:00", ("12", "13"))), "weekly.monday[0].breaks[0].from", "HH:MM"),
    (weekly({**DAY, "breaks": None}), "weekly.monday[0].breaks", "list"),
    ({"exceptions": []}, "exceptions", "object"),
    ({"exceptions": {"2026-02-29": []}}, "exceptions.2026-02-29", "YYYY-MM-DD"),
    ({"exceptions": {"20260301": []}}, "exceptions.20260301", "YYYY-MM-DD"),
    ({"exceptions": {"0001-01-01": []}}, "exceptions.0001-01-01", "years 2 to 9998"),
    ({"exceptions": {"2026-03-01": [DAY, DAY]}}, "exceptions.2026-03-01[1].from", "overlaps"),
    ({"time_off": {}}, "time_off", "list"),
    ({"time_off": [[]]}, "time_off[0]", "object"),
    ({"time_off": [{"start": "x", "last": "y"}]}, "time_off[0]", "a first and a last date"),
    ({"time_off": [{"start": "2026-03-01T09:00:00Z"}]}, "time_off[0].end", "text"),
    (
        {"time_off": [{"start": "2026-03-01T09:00:00", "end": "2026-03-01T10:00:00Z"}]},
        "time_off[0].start",
        "offset",
    ),
    (
        {"time_off": [{"start": "2026-03-01T09:00:00Z", "end": "soon"}]},
        "time_off[0].end",
        "offset",
    ),
    (
        {"time_off": [{"start": "2026-03-01T09:00:00Z", "end": "2026-03-01T09:00:00Z"}]},
        "time_off[0].end",
        "end after",
    ),
    ({"time_off": [{"first": "2026-03-02", "last": "2026-03-01"}]}, "time_off[0].last", "before"),
    ({"time_off": [{"first": "2026-03-02", "last": "9999-12-31"}]}, "time_off[0].last", "9998"),
    ({"time_off": [{"first": "0001-01-01", "last": "2026-03-01"}]}, "time_off[0].first", "2 to"),
]


@pytest.mark.parametrize(("document", "field", "rule"), REFUSED)
def test_what_breaks_a_rule_is_refused_by_field_and_rule(
    document: object, field: str, rule: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        Shifts.from_dict(document, BERLIN)
    assert refused.value.field == field
    assert rule in refused.value.message


def test_shifts_in_no_zone_are_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        Shifts("Europe/Atlantis")
    assert refused.value.field == "zone"


def test_a_span_that_could_not_be_written_is_refused() -> None:
    for bounds in ((60, 60 + DAY_MIN), (0, DAY_MIN + 1), (-1, 5), (60, 60), (60, 30)):
        with pytest.raises(InvalidInput):
            LocalSpan(*bounds)
    assert LocalSpan(0, DAY_MIN) == span("00:00-24:00")


def test_what_is_stored_is_what_a_person_would_write() -> None:
    shifts = Shifts(
        BERLIN,
        {Day.SUNDAY: (), Day.MONDAY: (shift("22:00-06:00", "02:00-02:30"), shift("08:00-12:00"))},
        {SPRING: (), AUTUMN: (shift("23:00-00:00"),)},
        (
            DaysOff(date(2026, 12, 24), date(2026, 12, 31)),
            utc_window("2026-06-01 08:00", "2026-06-01 09:30"),
        ),
    )
    assert shifts.as_dict() == {
        "weekly": {
            "monday": [
                {"from": "08:00", "until": "12:00"},
                {
                    "from": "22:00",
                    "until": "06:00",
                    "breaks": [{"from": "02:00", "until": "02:30"}],
                },
            ]
        },
        "exceptions": {"2026-03-29": [], "2026-10-25": [{"from": "23:00", "until": "24:00"}]},
        "time_off": [
            {"first": "2026-12-24", "last": "2026-12-31"},
            {"start": "2026-06-01T08:00:00+00:00", "end": "2026-06-01T09:30:00+00:00"},
        ],
    }


@pytest.mark.parametrize("document", [{}, {"weekly": None}])
def test_what_says_nothing_is_a_driver_who_works_always(document: object) -> None:
    assert Shifts.from_dict(document, BERLIN) == Shifts(BERLIN)


@settings(CALM)
@given(cases)
def test_stored_shifts_are_read_back_as_they_were(case: Case) -> None:
    stored = json.dumps(case.shifts.as_dict())
    assert Shifts.from_dict(json.loads(stored), case.shifts.zone) == case.shifts
