"""Time windows: what they refuse, when they overlap, and the nights when the clocks change."""

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from booking.errors import EmptyWindow, NaiveInstant, OutOfCalendar
from booking.time_window import TimeWindow, from_microseconds, microseconds, utc
from tests.contracts.histories import CALM
from tests.world import hours

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize("field", ["start", "end"])
def test_a_naive_instant_is_refused_by_the_name_of_its_field(field: str) -> None:
    instants = {"start": hours(9, 10).start, "end": hours(9, 10).end}
    instants[field] = instants[field].replace(tzinfo=None)
    with pytest.raises(NaiveInstant) as refused:
        TimeWindow(**instants)
    assert refused.value.field == field
    assert "offset" in str(refused.value)


@pytest.mark.parametrize("end", [9, 8])
def test_an_empty_or_inverted_window_is_refused(end: int) -> None:
    with pytest.raises(EmptyWindow) as refused:
        hours(9, end)
    assert refused.value.field == "end"


def test_touching_windows_do_not_overlap() -> None:
    assert not hours(9, 10).overlaps(hours(10, 11))
    assert not hours(10, 11).overlaps(hours(9, 10))


def test_a_microsecond_in_common_is_an_overlap() -> None:
    morning = hours(9, 10)
    late = TimeWindow(morning.end - timedelta(microseconds=1), morning.end + timedelta(hours=1))
    assert morning.overlaps(late)
    assert late.overlaps(morning)


spans = st.tuples(st.integers(0, 12), st.integers(1, 6))


@settings(CALM)
@given(spans, spans)
def test_windows_overlap_exactly_when_they_share_an_hour(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    shared = set(range(one[0], sum(one))) & set(range(other[0], sum(other)))
    assert hours(one[0], sum(one)).overlaps(hours(other[0], sum(other))) is bool(shared)


def test_instants_are_kept_in_utc() -> None:
    window = TimeWindow(
        datetime(2026, 7, 1, 10, tzinfo=BERLIN), datetime(2026, 7, 1, 5, tzinfo=NEW_YORK)
    )
    assert window.start == datetime(2026, 7, 1, 8, tzinfo=UTC)
    assert window.end == datetime(2026, 7, 1, 9, tzinfo=UTC)
    assert window.start.tzinfo is UTC
    assert window.end.tzinfo is UTC
    assert str(window) == "[2026-07-01T08:00:00+00:00, 2026-07-01T09:00:00+00:00)"


def test_the_same_time_said_in_two_zones_is_the_same_window() -> None:
    there = TimeWindow(
        datetime(2026, 7, 1, 10, tzinfo=BERLIN), datetime(2026, 7, 1, 11, tzinfo=BERLIN)
    )
    here = TimeWindow(
        datetime(2026, 7, 1, 4, tzinfo=NEW_YORK), datetime(2026, 7, 1, 5, tzinfo=NEW_YORK)
    )
    assert there == here
    assert len({there, here}) == 1


@pytest.mark.parametrize(
    "day", [datetime(2026, 3, 29, tzinfo=BERLIN), datetime(2026, 3, 8, tzinfo=NEW_YORK)]
)
def test_the_night_that_loses_an_hour_has_the_hour_less(day: datetime) -> None:
    night = TimeWindow(day.replace(hour=1), day.replace(hour=4))
    assert night.duration == timedelta(hours=2)


@pytest.mark.parametrize(
    "day", [datetime(2026, 10, 25, tzinfo=BERLIN), datetime(2026, 11, 1, tzinfo=NEW_YORK)]
)
def test_the_night_that_gains_an_hour_has_the_hour_more(day: datetime) -> None:
    night = TimeWindow(day, day.replace(hour=4))
    assert night.duration == timedelta(hours=5)


@pytest.mark.parametrize(
    "hour",
    [datetime(2026, 10, 25, 2, tzinfo=BERLIN), datetime(2026, 11, 1, 1, tzinfo=NEW_YORK)],
)
def test_the_hour_that_comes_twice_is_two_hours(hour: datetime) -> None:
    first = hour.replace(minute=15)
    second = hour.replace(minute=15, fold=1)
    quarter = timedelta(minutes=15)
    before = TimeWindow(first, first.astimezone(UTC) + quarter)
    after = TimeWindow(second, second.astimezone(UTC) + quarter)
    # On the wall the two windows are the same, and Python says so; in truth an hour lies between.
    assert first == second
    assert before != after
    assert not before.overlaps(after)
    assert after.start - before.start == timedelta(hours=1)


@pytest.mark.parametrize(
    "hour",
    [datetime(2026, 10, 25, 2, tzinfo=BERLIN), datetime(2026, 11, 1, 1, tzinfo=NEW_YORK)],
)
def test_a_trip_across_the_fold_may_end_before_it_began_on_the_wall(
    hour: datetime,
) -> None:
    trip = TimeWindow(hour.replace(minute=50), hour.replace(minute=10, fold=1))
    assert trip.duration == timedelta(minutes=20)


@pytest.mark.parametrize(
    "missing",
    [datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN), datetime(2026, 3, 8, 2, 30, tzinfo=NEW_YORK)],
)
def test_an_hour_that_does_not_exist_is_read_by_the_offset_before_it(
    missing: datetime,
) -> None:
    # PEP 495: in a gap, fold=0 means the offset that was in force before.
    window = TimeWindow(missing, missing.replace(hour=4))
    assert window.start.astimezone(missing.tzinfo).hour == 3
    assert window.duration == timedelta(minutes=30 + 30)


@pytest.mark.parametrize(
    ("zone", "offset"),
    [
        ("Asia/Kathmandu", timedelta(hours=5, minutes=45)),
        ("Australia/Eucla", timedelta(hours=8, minutes=45)),
        ("Pacific/Kiritimati", timedelta(hours=14)),
        ("America/St_Johns", timedelta(hours=-3, minutes=-30)),
    ],
)
def test_zones_with_odd_offsets_are_converted_exactly(zone: str, offset: timedelta) -> None:
    noon = datetime(2026, 1, 15, 12, tzinfo=ZoneInfo(zone))
    assert utc(noon) == datetime(2026, 1, 15, 12, tzinfo=UTC) - offset
    assert utc(noon).utcoffset() == timedelta(0)


def test_half_an_hour_of_summer_time_is_half_an_hour() -> None:
    # Lord Howe Island moves its clocks by thirty minutes.
    zone = ZoneInfo("Australia/Lord_Howe")
    night = TimeWindow(datetime(2026, 4, 5, 0, tzinfo=zone), datetime(2026, 4, 5, 4, tzinfo=zone))
    assert night.duration == timedelta(hours=4, minutes=30)


def test_a_zone_before_standard_time_has_seconds_in_its_offset() -> None:
    noon = datetime(1890, 1, 1, 12, tzinfo=ZoneInfo("Europe/Amsterdam"))
    window = TimeWindow(noon, noon + timedelta(hours=1))
    assert window.start.second != 0
    assert window.duration == timedelta(hours=1)


@pytest.mark.parametrize(
    "instant",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        datetime(1, 12, 31, 23, 59, tzinfo=UTC),
        datetime(9999, 1, 1, tzinfo=UTC),
    ],
)
def test_an_instant_outside_the_calendar_is_refused(instant: datetime) -> None:
    with pytest.raises(OutOfCalendar) as refused:
        utc(instant, "start")
    assert refused.value.field == "start"


def test_a_moved_window_keeps_its_duration() -> None:
    moved = hours(9, 10.5).moved_to(hours(20, 21).start)
    assert moved == hours(20, 21.5)


def test_a_window_moved_across_a_change_of_clocks_keeps_its_real_duration() -> None:
    before = TimeWindow(
        datetime(2026, 3, 28, 1, tzinfo=BERLIN), datetime(2026, 3, 28, 4, tzinfo=BERLIN)
    )
    moved = before.moved_to(datetime(2026, 3, 29, 1, tzinfo=BERLIN))
    assert moved.duration == timedelta(hours=3)
    assert moved.end.astimezone(BERLIN).hour == 5


def test_a_window_cannot_be_moved_to_a_naive_start() -> None:
    with pytest.raises(NaiveInstant):
        hours(9, 10).moved_to(datetime(2026, 3, 8))  # noqa: DTZ001  # what is refused


def test_windows_are_in_order_of_start_and_then_of_end() -> None:
    assert sorted([hours(9, 11), hours(8, 12), hours(9, 10)]) == [
        hours(8, 12),
        hours(9, 10),
        hours(9, 11),
    ]


@settings(CALM)
@given(st.datetimes(timezones=st.just(UTC)))
def test_microseconds_are_exact_and_lead_back(instant: datetime) -> None:
    assert from_microseconds(microseconds(instant)) == instant


def test_microseconds_count_from_1970() -> None:
    assert microseconds(datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)) == 1_000_005
