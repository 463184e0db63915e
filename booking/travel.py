"""Port `TravelTimes`: how long a driver needs from one place to another.

What is asked is always the time behind the wheel from where one trip ends to
where the next begins, so `departing` is when the earlier trip ends. The default
needs no network; a routing engine stands behind the same port.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from booking.drivers import check_zone
from booking.errors import InvalidInput
from booking.places import Place
from booking.time_window import utc


class Source(StrEnum):
    """Where an estimate comes from. Who asked a routing engine sees here that it failed."""

    GREAT_CIRCLE = "great circle"
    OSRM = "osrm"
    NO_PLACE = "no place"
    """One of the two places is not known, so no travel is counted."""


class Estimate(NamedTuple):
    """Whole seconds of travel, rounded up and never negative, and who said so."""

    duration_s: int
    source: Source


Departing = datetime | Sequence[datetime]
"""When somebody leaves: at one instant for all pairs, or at one for each."""


class TravelTimes(Protocol):
    """Estimates how long it takes to drive."""

    async def between(
        self, pairs: Sequence[tuple[Place, Place]], departing: Departing
    ) -> Sequence[Estimate]:
        """An estimate for each pair (from, to), in their order, when leaving at `departing`.

        It never fails: whoever cannot tell asks somebody who can. Raises
        `NaiveInstant` for a `departing` without an offset.
        """
        ...


def departures(departing: Departing, count: int) -> list[datetime]:
    """When to leave for each of so many pairs, in UTC. Raises `NaiveInstant`."""
    if isinstance(departing, datetime):
        return [utc(departing, "departing")] * count
    return [utc(each, "departing") for each in departing]


async def estimates(
    travel_times: TravelTimes,
    legs: Sequence[tuple[Place | None, Place | None]],
    departing: Departing,
) -> list[Estimate]:
    """As `between`, for legs of which an end may not be known: those take no time."""
    known: list[tuple[Place, Place]] = []
    leaving: list[datetime] = []
    for (start, end), instant in zip(legs, departures(departing, len(legs)), strict=True):
        if start is not None and end is not None:
            known.append((start, end))
            leaving.append(instant)
    answers = iter(await travel_times.between(known, leaving) if known else ())
    return [
        Estimate(0, Source.NO_PLACE) if start is None or end is None else next(answers)
        for start, end in legs
    ]


class Speeds(NamedTuple):
    """Average speeds along the road in km/h, one for each hour of the local day."""

    weekday_kmh: tuple[float, ...]
    weekend_kmh: tuple[float, ...]


CITY = Speeds(
    #           0   1   2   3   4   5   6   7   8 to 18     19  20  21  22  23
    weekday_kmh=(26, 28, 28, 30, 34, 36, 30, 24, *[18] * 11, 20, 22, 22, 24, 24),
    weekend_kmh=(26, 26, 26, 28, 32, 36, 34, 32, *[24] * 11, 24, 24, 24, 24, 24),
)
"""A dense city, after the taxis of New York in 2013: 11.5 mph from 8 to 19 o'clock, 13.3
over the day, and up to 24 at a quarter past five (B. Wellington, "I Quant NY", from the
trips of the TLC). That weekends are faster by day is known as well; what lies between
these figures is an assumption. A company with trips of its own should put its own here."""

DETOUR_FACTOR = 1.4
"""Length of the road over that of the great circle. About 1.2 in a city's street network
(Newell 1980, "Traffic Flow on Transportation Networks"); rivers and one-way streets cost
more. An assumption, on the side of leaving early."""

_EARTH_RADIUS_M = 6_371_008.8
_KMH_IN_M_PER_S = 3.6
_HOURS_A_DAY = 24
_KMH_MIN = 5
_DETOUR_FACTOR_MAX = 2
_SATURDAY = 5


def great_circle_m(start: Place, end: Place) -> float:
    """Metres along the surface of a spherical Earth, by the haversine formula.

    The sphere is that of the Earth's mean radius, which is right to half a percent.
    """
    latitudes = math.radians(start.latitude_deg), math.radians(end.latitude_deg)
    across = math.radians(end.longitude_deg - start.longitude_deg)
    chord = (
        math.sin((latitudes[1] - latitudes[0]) / 2) ** 2
        + math.cos(latitudes[0]) * math.cos(latitudes[1]) * math.sin(across / 2) ** 2
    )
    # On the other side of the Earth rounding carries it past one, where asin has no answer.
    return 2 * _EARTH_RADIUS_M * math.asin(math.sqrt(min(1.0, chord)))


class GreatCircle:
    """The default: a straight line, a detour factor, and the city's speeds by the hour.

    `zone` is the IANA name of the city's time zone. The drive goes on at the
    next hour's speed when the hour is over, so who leaves later never arrives
    earlier. (With the speed of the hour of departure throughout, they would: see
    Ichoua, Gendreau and Potvin 2003, "Vehicle dispatching with time-dependent
    travel times".) Raises `InvalidInput` for a zone, a factor or speeds that
    cannot be. An estimate is O(hours of the drive).
    """

    def __init__(
        self, zone: str, *, detour_factor: float = DETOUR_FACTOR, speeds: Speeds = CITY
    ) -> None:
        self._zone = ZoneInfo(check_zone(zone))
        if not 1 <= detour_factor <= _DETOUR_FACTOR_MAX:
            raise InvalidInput(
                f"A detour factor lies between 1 and {_DETOUR_FACTOR_MAX}.", field="detour_factor"
            )
        for field, of_the_day in speeds._asdict().items():
            # Slower than on foot, a drive across the Earth would last for years.
            if len(of_the_day) != _HOURS_A_DAY or not all(
                _KMH_MIN <= kmh < math.inf for kmh in of_the_day
            ):
                raise InvalidInput(
                    f"There are {_HOURS_A_DAY} speeds, one an hour, of {_KMH_MIN} km/h or more.",
                    field=field,
                )
        self._detour_factor = detour_factor
        self._speeds = speeds

    async def between(
        self, pairs: Sequence[tuple[Place, Place]], departing: Departing
    ) -> list[Estimate]:
        """See `TravelTimes.between`."""
        leaving = departures(departing, len(pairs))
        return [
            Estimate(self._duration_s(great_circle_m(*pair), instant), Source.GREAT_CIRCLE)
            for pair, instant in zip(pairs, leaving, strict=True)
        ]

    def _duration_s(self, distance_m: float, departing: datetime) -> int:
        left_m = distance_m * self._detour_factor
        now = departing
        while True:
            local = now.astimezone(self._zone)
            hour_left = timedelta(hours=1) - timedelta(
                minutes=local.minute, seconds=local.second, microseconds=local.microsecond
            )
            speed = self._speed_m_per_s(local)
            if left_m <= speed * hour_left.total_seconds():
                return math.ceil((now - departing).total_seconds() + left_m / speed)
            left_m -= speed * hour_left.total_seconds()
            now += hour_left

    def _speed_m_per_s(self, local: datetime) -> float:
        weekend = local.weekday() >= _SATURDAY
        of_the_day = self._speeds.weekend_kmh if weekend else self._speeds.weekday_kmh
        return of_the_day[local.hour] / _KMH_IN_M_PER_S
