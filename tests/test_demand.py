import io
import math
import statistics
import subprocess
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from booking.errors import InvalidInput
from loadtest.trips.demand import (
    PLACES,
    WEEKEND_DAY,
    WORKING_DAY,
    Demand,
    MadeTrip,
    at_rate,
    exactly,
    write,
    write_csv,
)
from loadtest.trips.files import Order, Trip, TripFile, in_order
from tests.commands import run

NEW_YORK = ZoneInfo("America/New_York")
MONDAY = date(2026, 3, 2)
CLOCKS_FORWARD, CLOCKS_BACK = date(2026, 3, 8), date(2026, 11, 1)


def demand(**changes: object) -> Demand:
    return Demand(**{"zone": NEW_YORK, "start": MONDAY, **changes})  # type: ignore[arg-type]  # by name


def read(path: Path) -> list[Trip]:
    file = TripFile(path, NEW_YORK)
    found = list(in_order(file, Order.FILE)[1])
    assert file.malformed_named == []
    return found


def as_csv(trips: Iterable[MadeTrip]) -> str:
    text = io.StringIO()
    write_csv(trips, text)
    return text.getvalue()


@pytest.mark.parametrize("trips", [0, 1, 777])
def test_a_number_that_is_asked_for_is_kept_exactly_and_in_order(trips: int) -> None:
    made = list(exactly(trips, demand(days=3)))
    assert len(made) == trips
    assert made == sorted(made, key=lambda trip: trip.start)
    assert {trip.start.date() for trip in made} <= {MONDAY + timedelta(days=d) for d in range(3)}
    assert all(1 <= place <= PLACES for trip in made for place in trip[2:])


def test_the_same_seed_gives_the_same_file_and_another_seed_another() -> None:
    assert as_csv(exactly(200, demand(seed=7))) == as_csv(exactly(200, demand(seed=7)))
    assert as_csv(exactly(200, demand(seed=7))) != as_csv(exactly(200, demand(seed=8)))
    assert as_csv(at_rate(2, demand(seed=7))) == as_csv(at_rate(2, demand(seed=7)))
    assert as_csv(at_rate(2, demand(seed=7))) != as_csv(at_rate(2, demand(seed=8)))


def test_the_number_at_a_rate_has_the_mean_and_the_variance_of_a_poisson_process() -> None:
    # A week of no change of clocks, in which one trip an hour is 168 trips.
    weeks = [
        len(list(at_rate(1, demand(start=date(2026, 6, 1), seed=seed)))) for seed in range(150)
    ]
    assert statistics.mean(weeks) == pytest.approx(168, rel=0.03)
    # A process of even gaps would have none, one of bunches more.
    assert statistics.variance(weeks) == pytest.approx(168, rel=0.35)


@pytest.mark.parametrize(
    "make",
    [lambda plan: exactly(40_000, plan), lambda plan: at_rate(60, plan)],
    ids=["a number", "a rate"],
)
def test_arrivals_follow_the_hours_of_the_week(
    make: Callable[[Demand], Iterable[MadeTrip]],
) -> None:
    made = list(make(demand(start=date(2026, 6, 1), days=28, seed=1)))
    weekly = 5 * sum(WORKING_DAY) + 2 * sum(WEEKEND_DAY)
    for profile, days, weekend in ((WORKING_DAY, 5, False), (WEEKEND_DAY, 2, True)):
        for hour, share in enumerate(profile):
            count = sum(
                trip.start.hour == hour and (trip.start.weekday() >= 5) == weekend for trip in made
            )
            expected = len(made) * days * share / weekly
            # Four standard deviations of a Poisson count: true of 48 such hours but once in 300.
            assert abs(count - expected) < 4 * math.sqrt(expected), (weekend, hour)


def test_durations_are_log_normal_with_the_median_and_the_spread_asked_for() -> None:
    made = exactly(20_000, demand(median_minutes=15, sigma=0.5, seed=2))
    logs = sorted(math.log((trip.end - trip.start) / timedelta(minutes=1)) for trip in made)
    normal = statistics.NormalDist(math.log(15), 0.5)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert logs[int(share * len(logs))] == pytest.approx(normal.inv_cdf(share), abs=0.03)
    assert statistics.stdev(logs) == pytest.approx(0.5, rel=0.03)


def test_no_trip_is_empty_or_longer_than_a_booking_may_be() -> None:
    made = list(exactly(2_000, demand(median_minutes=720, sigma=3)))
    assert all(timedelta(0) < trip.end - trip.start for trip in made)
    file_zone = NEW_YORK
    for trip in made:
        start, end = (each.replace(tzinfo=file_zone).timestamp() for each in trip[:2])
        assert 0 < end - start <= 24 * 3_600


@pytest.mark.parametrize("day", [CLOCKS_FORWARD, CLOCKS_BACK])
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_what_is_written_is_read_as_it_was_meant_on_the_nights_the_clocks_change(
    tmp_path: Path, day: date, ending: str
) -> None:
    path = tmp_path / f"demand{ending}"
    plan = demand(start=day, days=1, median_minutes=30)
    made = list(exactly(5_000, plan))
    assert write(iter(made), path) == 5_000
    found = read(path)
    first, last = plan.bounds()
    assert (last - first) / timedelta(hours=1) == (23 if day == CLOCKS_FORWARD else 25)
    assert all(first <= trip.start < last for trip in found)
    assert all(timedelta(0) < trip.end - trip.start <= timedelta(hours=24) for trip in found)
    local = [(trip.start.astimezone(NEW_YORK), trip.end.astimezone(NEW_YORK)) for trip in found]
    assert [(s.replace(tzinfo=None), e.replace(tzinfo=None)) for s, e in local] == [
        trip[:2] for trip in made
    ]
    starts = [trip.start for trip in found]
    assert starts == sorted(starts)  # nothing of a second pass is taken for the first
    assert [trip[3:] for trip in found] == [trip[2:] for trip in made]
    small_hours = {start.hour for start, _ in local if start.hour < 4}
    assert small_hours == ({0, 1, 3} if day == CLOCKS_FORWARD else {0, 1, 2, 3})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"days": 0}, "--days"),
        ({"days": 10**12}, "--start"),
        ({"start": date(9999, 12, 31)}, "--start"),
        ({"median_minutes": 0}, "--median-minutes"),
        ({"median_minutes": math.nan}, "--median-minutes"),
        ({"sigma": -1}, "--sigma"),
        ({"sigma": math.inf}, "--sigma"),
    ],
)
def test_what_makes_no_demand_is_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        demand(**change)
    assert caught.value.field == field


def test_a_file_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("demand.csv", "demand.parquet"):
        with pytest.raises(InvalidInput, match="cannot be written") as caught:
            write([], tmp_path / "no such folder" / name)
        assert caught.value.field == "--output"


def taxi_demand(*options: str) -> subprocess.CompletedProcess[str]:
    return run("demand", *options)


def test_the_command_writes_to_a_file_or_to_the_output(tmp_path: Path) -> None:
    path = tmp_path / "demand.parquet"
    options = ("--trips", "25", "--seed", "3", "--start", "2026-11-01", "--days", "1")
    to_file = taxi_demand(*options, "-o", str(path))
    assert (to_file.returncode, to_file.stdout) == (0, "")
    assert "25 trips" in to_file.stderr
    to_output = taxi_demand(*options, "-o", "-")
    assert to_output.stdout == as_csv(exactly(25, demand(start=CLOCKS_BACK, days=1, seed=3)))
    csv_path = tmp_path / "demand.csv"
    csv_path.write_text(to_output.stdout)
    assert [trip[1:] for trip in read(path)] == [trip[1:] for trip in read(csv_path)]


def test_the_command_wants_a_number_or_a_rate_and_not_both() -> None:
    for options in ((), ("--trips", "5", "--rate", "5")):
        result = taxi_demand(*options, "-o", "-")
        assert result.returncode == 2
        assert result.stderr == "taxi: --trips, --rate: Give one of them: a number, or a rate.\n"
        assert result.stdout == ""
