"""Places, the great circle, and how long a drive takes in a city's traffic."""

import asyncio
import itertools
import math
import operator
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from booking.errors import InvalidInput, NaiveInstant
from booking.places import Place
from booking.travel import (
    CITY,
    Departing,
    Estimate,
    GreatCircle,
    Source,
    Speeds,
    departures,
    estimates,
    great_circle_m,
)
from tests.contracts.histories import CALM, SEARCH_ONLY

EARTH_RADIUS_M = 6_371_008.8
MONDAY = datetime(2026, 3, 9, tzinfo=UTC)
HERE = Place(52.52, 13.405)
KM = 1000

places = st.builds(
    Place,
    st.floats(-90, 90, allow_nan=False),
    st.floats(-180, 180, allow_nan=False),
)
in_town = st.builds(Place, st.floats(52.4, 52.6), st.floats(13.2, 13.6))
instants = st.integers(0, 8 * 24 * 60).map(lambda minute: MONDAY + timedelta(minutes=minute))
speeds_kmh = st.lists(st.integers(5, 60), min_size=24, max_size=24).map(tuple)


def north_of_here(distance_m: float) -> Place:
    return Place(HERE.latitude_deg + math.degrees(distance_m / EARTH_RADIUS_M), HERE.longitude_deg)


def at_one_speed(kmh: float) -> GreatCircle:
    return GreatCircle("UTC", detour_factor=1, speeds=Speeds((kmh,) * 24, (kmh,) * 24))


def duration_s(times: GreatCircle, start: Place, end: Place, departing: datetime = MONDAY) -> int:
    (estimate,) = asyncio.run(times.between([(start, end)], departing))
    assert estimate.source == Source.GREAT_CIRCLE
    return estimate.duration_s


# --- Places. ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *itertools.product(["latitude_deg"], [90.0001, -90.0001, 180, math.inf, math.nan]),
        *itertools.product(["longitude_deg"], [180.0001, -180.0001, -math.inf, math.nan]),
    ],
)
def test_a_place_off_the_earth_is_refused_by_the_name_of_its_field(field: str, bad: float) -> None:
    with pytest.raises(InvalidInput) as refused:
        Place(**{"latitude_deg": 0, "longitude_deg": 0, field: bad})
    assert refused.value.field == field


def test_the_poles_and_the_date_line_are_places() -> None:
    assert Place(90, 180) != Place(-90, -180)


# --- Distance. --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "of_a_circle"),
    [
        (Place(0, 0), Place(1, 0), 1 / 360),
        (Place(0, 179.5), Place(0, -179.5), 1 / 360),
        (Place(60, 0), Place(60, 180), 60 / 360),
        (Place(90, 0), Place(0, 77), 1 / 4),
        (Place(30, 20), Place(-30, -160), 1 / 2),
        (Place(8, -136), Place(-8, 44), 1 / 2),
    ],
)
def test_distances_that_follow_from_the_shape_of_a_sphere(
    start: Place, end: Place, of_a_circle: float
) -> None:
    around_m = 2 * math.pi * EARTH_RADIUS_M
    assert great_circle_m(start, end) == pytest.approx(of_a_circle * around_m, rel=1e-9)


@settings(CALM)
@given(places, places)
def test_the_haversine_agrees_with_the_angle_between_two_vectors(one: Place, other: Place) -> None:
    def vector(place: Place) -> tuple[float, float, float]:
        latitude, longitude = math.radians(place.latitude_deg), math.radians(place.longitude_deg)
        return (
            math.cos(latitude) * math.cos(longitude),
            math.cos(latitude) * math.sin(longitude),
            math.sin(latitude),
        )

    angle = 2 * math.asin(min(1, math.dist(vector(one), vector(other)) / 2))
    # Close to the other side of the Earth either formula is good to some metres.
    assert great_circle_m(one, other) == pytest.approx(angle * EARTH_RADIUS_M, abs=5)


# --- Time. ------------------------------------------------------------------------------------


@settings(CALM)
@given(places, places, places)
def test_at_one_speed_the_way_back_takes_as_long_and_no_detour_is_a_short_cut(
    one: Place, other: Place, between: Place
) -> None:
    times = at_one_speed(20)
    direct = duration_s(times, one, other)
    assert direct == duration_s(times, other, one) >= 0
    assert direct <= duration_s(times, one, between) + duration_s(times, between, other)
    assert duration_s(times, one, one) == 0


@settings(CALM)
@given(in_town, in_town, in_town, instants)
def test_what_is_farther_takes_no_less_time(
    start: Place, one: Place, other: Place, departing: datetime
) -> None:
    nearer, farther = sorted([one, other], key=lambda end: great_circle_m(start, end))
    times = GreatCircle("Europe/Berlin")
    assert duration_s(times, start, nearer, departing) <= duration_s(
        times, start, farther, departing
    )


@settings(CALM)
@given(in_town, in_town, instants, speeds_kmh, speeds_kmh)
def test_faster_traffic_never_makes_a_drive_longer(
    start: Place, end: Place, departing: datetime, one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    slower = tuple(map(min, one, other))
    taken_s = [
        duration_s(GreatCircle("UTC", speeds=Speeds(row, row)), start, end, departing)
        for row in (one, slower)
    ]
    assert taken_s[0] <= taken_s[1]


def check_nobody_overtakes(kind: type[GreatCircle], phases: Sequence[Phase] = tuple(Phase)) -> None:
    @settings(CALM, phases=phases)
    @given(instants, st.integers(0, 180), st.integers(0, 60), speeds_kmh)
    def later_is_not_earlier(
        departing: datetime, later_min: int, distance_km: int, row: tuple[int, ...]
    ) -> None:
        times = kind("UTC", speeds=Speeds(row, row))
        end = north_of_here(distance_km * KM)
        later = departing + timedelta(minutes=later_min)
        arrivals = [
            at + timedelta(seconds=duration_s(times, HERE, end, at)) for at in (departing, later)
        ]
        assert arrivals[0] <= arrivals[1]

    later_is_not_earlier()


def test_who_leaves_later_never_arrives_earlier() -> None:
    check_nobody_overtakes(GreatCircle)


class SpeedOfDeparture(GreatCircle):
    """Drives on at the speed of the hour it left in."""

    def _duration_s(self, distance_m: float, departing: datetime) -> int:
        speed = self._speed_m_per_s(departing.astimezone(self._zone))
        return math.ceil(distance_m * self._detour_factor / speed)


def test_the_speed_of_the_hour_of_departure_is_caught_overtaking() -> None:
    with pytest.raises(AssertionError):
        check_nobody_overtakes(SpeedOfDeparture, SEARCH_ONLY)


def test_the_drive_goes_on_at_the_next_hours_speed() -> None:
    speeds = Speeds((36.0,) * 8 + (18.0,) * 16, (72.0,) * 24)
    times = GreatCircle("America/New_York", detour_factor=1, speeds=speeds)
    half_past_seven = datetime(2026, 3, 9, 7, 30, tzinfo=ZoneInfo("America/New_York"))
    # 18 km in the half hour before eight, and 12 more at half the speed.
    assert duration_s(times, HERE, north_of_here(30 * KM), half_past_seven) == 70 * 60
    for days, minutes in ((-3, 70), (-2, 25), (-1, 25)):  # Friday, Saturday, Sunday
        at = half_past_seven + timedelta(days=days)
        assert duration_s(times, HERE, north_of_here(30 * KM), at) == minutes * 60


def test_seconds_are_rounded_up() -> None:
    times = at_one_speed(18)  # 5 m/s
    assert duration_s(times, HERE, north_of_here(4)) == 1
    assert duration_s(times, HERE, north_of_here(5.001)) == 2


def test_the_detour_makes_it_longer_by_its_factor() -> None:
    row = (18,) * 24
    times = GreatCircle("UTC", detour_factor=1.5, speeds=Speeds(row, row))
    assert duration_s(times, HERE, north_of_here(9_999)) == 3_000


def test_an_estimate_reaches_around_the_earth_at_the_end_of_time() -> None:
    slowest = Speeds((5,) * 24, (5,) * 24)
    times = GreatCircle("Europe/Berlin", detour_factor=2, speeds=slowest)
    last = datetime(9998, 12, 31, 23, 59, tzinfo=UTC)
    around = duration_s(times, Place(0, 0), Place(0, 180), last)
    assert around == math.ceil(2 * math.pi * EARTH_RADIUS_M / (5 / 3.6))


def test_the_citys_table_is_as_fast_as_its_sources_say() -> None:
    mph = 1.609344
    assert all(kmh == int(11.5 * mph) for kmh in CITY.weekday_kmh[8:19])
    assert max(CITY.weekday_kmh) == CITY.weekday_kmh[5] <= 24 * mph
    assert all(map(operator.le, CITY.weekday_kmh[5:], CITY.weekend_kmh[5:]))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("zone", {"zone": "Berlin"}),
        ("detour_factor", {"detour_factor": 0.99}),
        ("detour_factor", {"detour_factor": math.nan}),
        ("detour_factor", {"detour_factor": math.inf}),
        ("weekday_kmh", {"speeds": Speeds((18,) * 23, (18,) * 24)}),
        ("weekend_kmh", {"speeds": Speeds((18,) * 24, (*[18] * 23, 0))}),
        ("weekend_kmh", {"speeds": Speeds((18,) * 24, (*[18] * 23, math.nan))}),
    ],
)
def test_a_city_that_cannot_be_is_refused(field: str, changes: dict[str, object]) -> None:
    whole: dict[str, Any] = {"zone": "UTC"} | changes
    with pytest.raises(InvalidInput) as refused:
        GreatCircle(**whole)
    assert refused.value.field == field


def test_a_departure_without_an_offset_is_refused() -> None:
    with pytest.raises(NaiveInstant) as refused:
        duration_s(at_one_speed(20), HERE, HERE, datetime(2026, 3, 9))  # noqa: DTZ001 the point
    assert refused.value.field == "departing"


# --- Legs of which an end may not be known. ---------------------------------------------------


class Remembers:
    """Says 60, 61, 62 … seconds, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Sequence[tuple[Place, Place]]] = []

    async def between(
        self, pairs: Sequence[tuple[Place, Place]], departing: Departing
    ) -> list[Estimate]:
        assert departures(departing, len(pairs)) == [MONDAY] * len(pairs)
        self.asked.append(pairs)
        return [Estimate(60 + number, Source.OSRM) for number in range(len(pairs))]


def test_without_both_places_there_is_no_travel_and_nobody_is_asked() -> None:
    times = Remembers()
    unknown = Estimate(0, Source.NO_PLACE)
    legs = [(None, HERE), (HERE, None), (None, None)]
    assert asyncio.run(estimates(times, legs, MONDAY)) == [unknown] * 3
    assert times.asked == []


def test_the_legs_that_are_known_are_asked_for_at_once_and_keep_their_order() -> None:
    times = Remembers()
    there = north_of_here(KM)
    legs = [(HERE, there), (None, HERE), (there, HERE)]
    found = asyncio.run(estimates(times, legs, MONDAY))
    assert [estimate.duration_s for estimate in found] == [60, 0, 61]
    assert times.asked == [[(HERE, there), (there, HERE)]]
