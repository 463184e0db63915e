"""Recurrences: the wall clock keeps its promise, and the nights when it cannot are by the rule."""

import asyncio
import itertools
from calendar import Day
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import asyncpg
import pytest
from dateutil import tz
from dateutil.rrule import WEEKLY, rrule
from hypothesis import given, settings
from hypothesis import strategies as st

from booking.errors import EmptyWindow, InvalidInput, OutOfCalendar, TooLong
from booking.postgres.embedded import EmbeddedPostgres
from booking.recurrence import OCCURRENCES_MAX, Adjustment, Occurrence, Recurrence
from booking.time_window import TimeWindow
from tests.contracts.histories import CALM

EVERY_DAY = frozenset(Day)
WEEKDAYS = EVERY_DAY - {Day.SATURDAY, Day.SUNDAY}
HALF_AN_HOUR_S = 1800
NONE, GAP, FOLD = Adjustment


def recurrence(zone: str, wall_clock: time, first: date, **other: Any) -> Recurrence:
    """Half an hour, daily, unless `other` says otherwise."""
    rule = {"duration_s": HALF_AN_HOUR_S, "weekdays": EVERY_DAY, **other}
    return Recurrence(zone=zone, wall_clock=wall_clock, first_date=first, **rule)


def around(zone: str, wall_clock: time, day: date) -> list[tuple[str, str, Adjustment]]:
    """Starts on the day before, the day and the day after: in UTC, on the wall, and the flag."""
    day_before = day - timedelta(days=1)
    return [
        (
            f"{each.window.start:%dT%H:%MZ}",
            f"{each.window.start.astimezone(ZoneInfo(zone)):%dT%H:%M}",
            each.adjustment,
        )
        for each in recurrence(
            zone, wall_clock, day_before, last_date=day + timedelta(days=1)
        ).occurrences
    ]


def instants(meant: datetime) -> set[datetime]:
    """Every instant at which the wall shows `meant`: none in a gap, two in a fold."""
    a_day = timedelta(days=1)
    offsets = {(meant - a_day).utcoffset(), (meant + a_day).utcoffset()}
    bare = meant.replace(tzinfo=None)
    tried = {(bare - offset).replace(tzinfo=UTC) for offset in offsets if offset is not None}
    return {each for each in tried if each.astimezone(meant.tzinfo).replace(tzinfo=None) == bare}


def broken_promises(asked: Recurrence, occurrences: Sequence[Occurrence]) -> list[str]:
    """What is wrong with daily `occurrences`, by what the wall shows and by `dateutil`."""
    zone = ZoneInfo(asked.zone)
    wrong = []
    for each in occurrences:
        meant = datetime.combine(each.local_date, asked.wall_clock, zone)
        there = instants(meant)
        start = min(there, default=tz.resolve_imaginary(meant).astimezone(UTC))
        if each.window.start != start:
            wrong.append(f"{meant} starts at {each.window.start.astimezone(zone)}")
        if each.adjustment is not (GAP, NONE, FOLD)[len(there)]:
            wrong.append(f"{meant} is said to be {each.adjustment}")
        if each.window.duration != timedelta(seconds=asked.duration_s):
            wrong.append(f"{meant} lasts {each.window.duration}")
    for earlier, later in itertools.pairwise(occurrences):
        if earlier.window.start >= later.window.start:
            wrong.append(f"{later} does not come after {earlier}")
        between = range(earlier.local_date.toordinal() + 1, later.local_date.toordinal())
        wrong.extend(
            f"{day} is left out"
            for day in map(date.fromordinal, between)
            if any(instants(datetime.combine(day, at, zone)) for at in (time(0), time(12)))
        )
    return wrong


def test_half_past_seven_on_weekdays_in_berlin_stays_half_past_seven_all_year() -> None:
    asked = recurrence(
        "Europe/Berlin",
        time(7, 30),
        date(2026, 1, 1),
        last_date=date(2026, 12, 31),
        weekdays=WEEKDAYS,
    )
    berlin = ZoneInfo("Europe/Berlin")
    starts = [each.window.start for each in asked.occurrences]
    assert len(starts) == 261
    assert {f"{start.astimezone(berlin):%H:%M}" for start in starts} == {"07:30"}
    assert all(start.tzinfo is UTC for start in starts)
    hours_of_day = [(start.date(), start.hour) for start in starts]
    assert {hour for day, hour in hours_of_day if date(2026, 3, 29) < day < date(2026, 10, 25)} == {
        5
    }
    assert {
        hour for day, hour in hours_of_day if not date(2026, 3, 29) < day < date(2026, 10, 25)
    } == {6}
    assert {each.adjustment for each in asked.occurrences} == {NONE}
    assert {each.local_date.weekday() for each in asked.occurrences} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("zone", "wall_clock", "day", "start"),
    [
        ("Europe/Berlin", time(2, 30), date(2026, 3, 29), ("29T01:30Z", "29T03:30", GAP)),
        ("Europe/Berlin", time(2, 0), date(2026, 3, 29), ("29T01:00Z", "29T03:00", GAP)),
        ("Europe/Berlin", time(3, 0), date(2026, 3, 29), ("29T01:00Z", "29T03:00", NONE)),
        ("Europe/Berlin", time(2, 30), date(2026, 10, 25), ("25T00:30Z", "25T02:30", FOLD)),
        ("Europe/Berlin", time(3, 0), date(2026, 10, 25), ("25T02:00Z", "25T03:00", NONE)),
        # An API hands over what it was sent, and a time of day can carry a fold.
        ("Europe/Berlin", time(2, 30, fold=1), date(2026, 10, 25), ("25T00:30Z", "25T02:30", FOLD)),
        ("Europe/Berlin", time(2, 30, fold=1), date(2026, 3, 29), ("29T01:30Z", "29T03:30", GAP)),
        # Half an hour of daylight saving.
        ("Australia/Lord_Howe", time(2, 15), date(2026, 10, 4), ("03T15:45Z", "04T02:45", GAP)),
        ("Australia/Lord_Howe", time(1, 45), date(2026, 4, 5), ("04T14:45Z", "05T01:45", FOLD)),
        # Two hours.
        ("Antarctica/Troll", time(1, 30), date(2026, 3, 29), ("29T01:30Z", "29T03:30", GAP)),
        # A gap from 23:00 on: the trip of Saturday starts on Sunday.
        ("America/Nuuk", time(23, 30), date(2026, 3, 28), ("29T01:30Z", "29T00:30", GAP)),
    ],
)
def test_a_night_when_the_clocks_change_is_by_the_rule(
    zone: str, wall_clock: time, day: date, start: tuple[str, str, Adjustment]
) -> None:
    before, that_night, after = around(zone, wall_clock, day)
    assert that_night == start
    assert (before[2], after[2]) == (NONE, NONE)
    assert before[1].endswith(f"{wall_clock:%H:%M}")
    assert after[1].endswith(f"{wall_clock:%H:%M}")


@pytest.mark.parametrize(
    ("night", "wall_clock"),
    [(date(2026, 3, 29), time(1, 45)), (date(2026, 10, 25), time(2, 45))],
)
def test_a_trip_across_the_change_lasts_as_long_as_any_other(night: date, wall_clock: time) -> None:
    (trip,) = recurrence("Europe/Berlin", wall_clock, night, count=1).occurrences
    start = datetime.combine(night, time(0, 45), UTC)
    assert trip.window == TimeWindow(start, start + timedelta(minutes=30))


def test_the_friday_that_samoa_left_out_has_no_trip_and_is_not_counted() -> None:
    asked = recurrence("Pacific/Apia", time(7, 30), date(2011, 12, 29), count=3)
    assert [(each.local_date.day, each.adjustment) for each in asked.occurrences] == [
        (29, NONE),
        (31, NONE),
        (1, NONE),
    ]
    first, second, third = (each.window.start for each in asked.occurrences)
    assert (first, second, third) == (
        datetime(2011, 12, 29, 17, 30, tzinfo=UTC),
        datetime(2011, 12, 30, 17, 30, tzinfo=UTC),
        datetime(2011, 12, 31, 17, 30, tzinfo=UTC),
    )
    with pytest.raises(InvalidInput, match="no occurrence") as refused:
        recurrence("Pacific/Apia", time(7, 30), date(2011, 12, 30), last_date=date(2011, 12, 30))
    assert refused.value.field == "last_date"


zones = st.one_of(
    st.sampled_from(["Europe/Berlin", "Australia/Lord_Howe", "America/Nuuk", "Africa/Casablanca"]),
    # Links of the machine, such as `localtime`, are not the same everywhere.
    st.sampled_from(sorted(name for name in available_timezones() if "/" in name)),
)
nights = st.builds(time, st.sampled_from([0, 1, 2, 3, 23]), st.sampled_from([0, 15, 30, 45]))
wall_clocks = st.one_of(nights, st.times())
years_of_days = st.dates(date(1900, 1, 1), date(2060, 1, 1))


@settings(CALM, max_examples=200)
@given(zones, wall_clocks, years_of_days, st.integers(1, 86400))
def test_in_any_zone_the_wall_shows_what_was_meant_unless_the_occurrence_says_otherwise(
    zone: str, wall_clock: time, first: date, duration_s: int
) -> None:
    # A whole year of days: whatever changes there are lie within.
    asked = recurrence(zone, wall_clock, first, count=OCCURRENCES_MAX, duration_s=duration_s)
    assert broken_promises(asked, asked.occurrences) == []


def test_broken_promises_are_noticed() -> None:
    asked = recurrence("Europe/Berlin", time(2, 30), date(2026, 1, 1), count=OCCURRENCES_MAX)
    right = asked.occurrences
    assert broken_promises(asked, right) == []

    def moved(which: int, by: timedelta) -> Occurrence:
        window = right[which].window
        return replace(right[which], window=window.moved_to(window.start + by))

    def wrong(which: int, *instead: Occurrence) -> list[str]:
        return broken_promises(asked, [*right[:which], *instead, *right[which + 1 :]])

    an_hour = timedelta(hours=1)
    places = {each.adjustment: place for place, each in enumerate(right)}
    assert set(places) == set(Adjustment)
    for flag, which in places.items():
        assert wrong(which, moved(which, an_hour))
        assert wrong(which, moved(which, -an_hour))
        for other in set(Adjustment) - {flag}:
            assert wrong(which, replace(right[which], adjustment=other))
    assert wrong(5)
    assert wrong(5, right[5], right[5])

    every_24_hours = [moved(0, n * timedelta(days=1)) for n in range(len(right))]
    drifted = [
        replace(each, window=there.window)
        for each, there in zip(right, every_24_hours, strict=True)
    ]
    # From 30 March to 25 October: the gap's night is right by luck, and the fold's is not.
    assert len(broken_promises(asked, drifted)) == 210


@settings(CALM)
@given(
    st.sampled_from(
        [
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
            "America/Nuuk",
            "Europe/Dublin",
        ]
    ),
    wall_clocks,
    st.dates(date(2012, 1, 1), date(2060, 1, 1)),
)
def test_daily_trips_of_up_to_23_hours_never_overlap_each_other(
    zone: str, wall_clock: time, first: date
) -> None:
    asked = recurrence(zone, wall_clock, first, count=OCCURRENCES_MAX, duration_s=23 * 3600)
    for earlier, later in itertools.pairwise(asked.occurrences):
        assert not earlier.window.overlaps(later.window)


@pytest.mark.parametrize(
    ("zone", "shortest_day_hours"), [("Europe/Berlin", 23), ("Antarctica/Troll", 22)]
)
def test_a_daily_trip_longer_than_the_shortest_day_overlaps_once_a_year(
    zone: str, shortest_day_hours: int
) -> None:
    def overlaps(duration_s: int) -> int:
        asked = recurrence(zone, time(12), date(2026, 1, 1), count=365, duration_s=duration_s)
        return sum(
            earlier.window.overlaps(later.window)
            for earlier, later in itertools.pairwise(asked.occurrences)
        )

    assert overlaps(shortest_day_hours * 3600) == 0
    assert overlaps(shortest_day_hours * 3600 + 1) == 1


some_weekdays = st.frozensets(st.sampled_from(Day), min_size=1)


@settings(CALM, max_examples=200)
@given(some_weekdays, st.dates(date(2000, 1, 1), date(2050, 1, 1)), st.integers(1, 52), st.data())
def test_the_dates_are_those_of_an_iCalendar_rule(  # noqa: N802 - the standard's own name
    weekdays: frozenset[Day], first: date, interval_weeks: int, data: st.DataObject
) -> None:
    until = first + timedelta(days=data.draw(st.integers(0, 420 * interval_weeks)))
    ends: dict[str, Any] = data.draw(
        st.one_of(
            st.builds(lambda count: {"count": count}, st.integers(1, OCCURRENCES_MAX)),
            st.just({"last_date": until}),
        )
    )
    by_rule = [
        each.date()
        for each in rrule(
            WEEKLY,
            dtstart=datetime.combine(first, time(7, 30)),
            byweekday=sorted(weekdays),
            interval=interval_weeks,
            count=ends.get("count"),
            until=datetime.combine(until, time.max) if "last_date" in ends else None,
        )
    ]

    def ours() -> list[date]:
        asked = recurrence(
            "UTC", time(7, 30), first, weekdays=weekdays, interval_weeks=interval_weeks, **ends
        )
        return [each.local_date for each in asked.occurrences]

    if 1 <= len(by_rule) <= OCCURRENCES_MAX:
        assert ours() == by_rule
    else:
        with pytest.raises(InvalidInput) as refused:
            ours()
        assert refused.value.field == "last_date"


TUESDAY = date(2026, 3, 24)


@pytest.mark.parametrize(
    ("field", "error", "other"),
    [
        ("zone", InvalidInput, {"zone": "Europe/Bärlin"}),
        ("zone", InvalidInput, {"zone": "+01:00"}),
        ("wall_clock", InvalidInput, {"wall_clock": time(7, 30, tzinfo=UTC)}),
        ("duration_s", EmptyWindow, {"duration_s": 0}),
        ("duration_s", TooLong, {"duration_s": 86401}),
        ("weekdays", InvalidInput, {"weekdays": frozenset()}),
        ("weekdays", InvalidInput, {"weekdays": frozenset({0, 7})}),
        ("interval_weeks", InvalidInput, {"interval_weeks": 0}),
        ("interval_weeks", InvalidInput, {"interval_weeks": 53}),
        ("count", InvalidInput, {"count": 0}),
        ("count", InvalidInput, {"count": OCCURRENCES_MAX + 1}),
        ("last_date", InvalidInput, {"count": None, "last_date": TUESDAY - timedelta(days=1)}),
        ("last_date", InvalidInput, {"count": None, "last_date": TUESDAY + timedelta(days=366)}),
        ("last_date", InvalidInput, {"count": None, "last_date": date.max}),
        ("first_date", OutOfCalendar, {"first_date": date.min}),
        ("first_date", OutOfCalendar, {"first_date": date.max}),
        ("first_date", OutOfCalendar, {"first_date": date(9990, 1, 1), "interval_weeks": 52}),
    ],
)
def test_what_breaks_a_rule_is_refused_by_the_name_of_its_field(
    field: str, error: type[InvalidInput], other: dict[str, Any]
) -> None:
    right = {
        "zone": "Europe/Berlin",
        "wall_clock": time(7, 30),
        "duration_s": 86400,
        "weekdays": EVERY_DAY,
        "first_date": TUESDAY,
        "count": OCCURRENCES_MAX,
    }
    assert len(Recurrence(**right).occurrences) == OCCURRENCES_MAX
    with pytest.raises(error) as refused:
        Recurrence(**{**right, **other})
    assert refused.value.field == field


@pytest.mark.parametrize("ends", [{}, {"last_date": TUESDAY, "count": 1}])
def test_a_recurrence_ends_in_exactly_one_way(ends: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="exactly one") as refused:
        recurrence("Europe/Berlin", time(7, 30), TUESDAY, **ends)
    assert refused.value.field == "last_date"


def test_a_recurrence_without_any_occurrence_is_refused() -> None:
    only_mondays = {"weekdays": frozenset({Day.MONDAY})}
    friday, monday = date(2026, 3, 27), date(2026, 3, 30)
    with pytest.raises(InvalidInput, match="no occurrence from 2026-03-24 to 2026-03-27") as none:
        recurrence("Europe/Berlin", time(7, 30), TUESDAY, last_date=friday, **only_mondays)
    assert none.value.field == "last_date"
    asked = recurrence("Europe/Berlin", time(7, 30), TUESDAY, last_date=monday, **only_mondays)
    assert [each.local_date for each in asked.occurrences] == [monday]


def test_a_whole_leap_year_of_days_is_allowed_and_the_refusal_names_the_last_that_is() -> None:
    first = date(2028, 1, 1)
    asked = recurrence("Europe/Berlin", time(7, 30), first, last_date=date(2028, 12, 31))
    assert len(asked.occurrences) == OCCURRENCES_MAX
    with pytest.raises(InvalidInput, match="on 2028-12-31"):
        recurrence("Europe/Berlin", time(7, 30), first, last_date=date(2029, 1, 1))


def test_postgresql_reads_the_hour_that_comes_twice_the_other_way(server: EmbeddedPostgres) -> None:
    async def as_postgresql_reads(wall: datetime) -> datetime:
        connection = await asyncpg.connect(server.url)
        try:
            instant: datetime = await connection.fetchval(
                "SELECT $1::timestamp AT TIME ZONE 'Europe/Berlin'", wall
            )
            return instant
        finally:
            await connection.close()

    for night, later in ((date(2026, 3, 29), 0), (date(2026, 10, 25), 1)):
        (ours,) = recurrence("Europe/Berlin", time(2, 30), night, count=1).occurrences
        theirs = asyncio.run(as_postgresql_reads(datetime.combine(night, time(2, 30))))
        assert theirs - ours.window.start == timedelta(hours=later)
