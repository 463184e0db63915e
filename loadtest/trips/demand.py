"""Makes synthetic demand in the form of the TLC's trip files, for whoever has no real one.

Arrivals are a Poisson process whose rate follows the hours of the week, by
thinning: candidates come at the greatest rate, evenly over time, and each is
kept with probability rate(then) / greatest rate. The kept ones arrive exactly
at the varying rate, and no integral had to be inverted.

Asked for a *rate*, the number of trips is Poisson, as it would be. Asked for a
*number*, there are exactly that many: given their number, the arrivals of such
a process are independent draws from the profile, each thinned in the same way,
and then put in order.

Durations are log-normal: most trips are short, a few are very long, and none is
negative. The profile and the defaults were fitted to 6,500 trips of the TLC's
records of March 2019.

Sources: P. A. W. Lewis and G. S. Shedler, "Simulation of nonhomogeneous Poisson
processes by thinning", Naval Research Logistics Quarterly 26 (1979) 403-413;
J. F. C. Kingman, *Poisson Processes* (1993), section 2.4, for the conditional
draws; J. Aitchison and J. A. C. Brown, *The Lognormal Distribution* (1957).
"""

import csv
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import batched
from pathlib import Path
from typing import NamedTuple, TextIO
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq

from booking.bookings import LONGEST
from booking.errors import InvalidInput
from loadtest.outputs import writing
from loadtest.trips.files import BATCH_TRIPS, PLACE_COLUMNS, TIME_COLUMNS

_SATURDAY = 5

# Trips in each local hour of the day, 1 being the mean hour of the week.
WORKING_DAY = (
    *(0.55, 0.26, 0.25, 0.14, 0.13, 0.21, 0.66, 1.05, 1.41, 1.31, 1.25, 0.99),
    *(1.21, 1.11, 1.31, 1.28, 1.33, 1.53, 1.68, 1.55, 1.44, 1.50, 1.25, 1.13),
)
WEEKEND_DAY = (
    *(1.23, 0.77, 0.67, 0.53, 0.40, 0.15, 0.26, 0.37, 0.65, 0.93, 1.12, 1.30),
    *(1.35, 1.34, 1.39, 1.09, 1.10, 1.26, 1.23, 1.38, 1.23, 0.95, 1.08, 1.05),
)
_GREATEST = max(*WORKING_DAY, *WEEKEND_DAY)
_MEAN = (5 * sum(WORKING_DAY) + 2 * sum(WEEKEND_DAY)) / (7 * 24)

_SIGMA_MAX = 3.0

PLACES = 263
"""Taxi zones in New York."""

HEADER = (*TIME_COLUMNS[0], *PLACE_COLUMNS)


class MadeTrip(NamedTuple):
    """One trip: naive local times, to the second, and the taxi zones of its ends."""

    start: datetime
    end: datetime
    pickup_place: int
    dropoff_place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Which demand to make: the same fields and version of Python give the same trips.

    `start` is a local date of `zone`; `days` local days are filled from its
    midnight on. Half of the trips last longer than `median_minutes`, and two
    thirds between that divided by, and multiplied with, e to the power of `sigma`.

    Raises `InvalidInput`, naming the option, for values that make no demand.
    """

    zone: ZoneInfo
    start: date
    days: int = 7
    seed: int = 0
    median_minutes: float = 11.0
    sigma: float = 0.77

    def __post_init__(self) -> None:
        rules = (
            (self.days >= 1, "It must be at least 1.", "--days"),
            (
                1 <= self.median_minutes <= LONGEST / timedelta(minutes=2),
                "It must lie in 1 to 720.",
                "--median-minutes",
            ),
            (0 <= self.sigma <= _SIGMA_MAX, f"It must lie in 0 to {_SIGMA_MAX:g}.", "--sigma"),
        )
        for holds, rule, field in rules:
            if not holds:
                raise InvalidInput(rule, field=field)
        try:
            self.bounds()
        except (OverflowError, ValueError):
            raise InvalidInput("The days lie outside the calendar.", field="--start") from None

    def bounds(self) -> tuple[datetime, datetime]:
        """First and last instant, in UTC: `days` local days, whatever their length."""
        first, last = (
            datetime.combine(day, time(), self.zone).astimezone(UTC)
            for day in (self.start, self.start + timedelta(days=self.days))
        )
        return first, last


def exactly(trips: int, demand: Demand) -> Iterator[MadeTrip]:
    """`trips` trips in order of start. Holds some 120 bytes a trip, to put them in order."""
    dice = random.Random(demand.seed)
    first, last = demand.bounds()
    span_s = (last - first).total_seconds()
    drawn: list[tuple[float, int]] = []
    while len(drawn) < trips:
        at_s = dice.random() * span_s
        duration_s = _thin(first + timedelta(seconds=at_s), demand, dice)
        if duration_s is not None:
            drawn.append((at_s, duration_s))
    drawn.sort()
    for at_s, duration_s in drawn:
        yield _trip(first + timedelta(seconds=at_s), duration_s, demand, dice)


def at_rate(trips_an_hour: float, demand: Demand) -> Iterator[MadeTrip]:
    """Trips at `trips_an_hour` in the mean hour of a week, in order of start; their number varies.

    Holds nothing.
    """
    dice = random.Random(demand.seed)
    first, last = demand.bounds()
    span_s = (last - first).total_seconds()
    candidates_a_second = trips_an_hour * _GREATEST / _MEAN / 3_600
    at_s = dice.expovariate(candidates_a_second)
    while at_s < span_s:
        at = first + timedelta(seconds=at_s)
        duration_s = _thin(at, demand, dice)
        if duration_s is not None:
            yield _trip(at, duration_s, demand, dice)
        at_s += dice.expovariate(candidates_a_second)


def write(trips: Iterable[MadeTrip], path: Path) -> int:
    """Write the trips, as Parquet if the file is so named and else as CSV; how many there were.

    Raises `InvalidInput`, naming the option, if the file cannot be written.
    """
    with writing(path, "--output"):
        if path.suffix.lower() == ".parquet":
            return _write_parquet(trips, path)
        with path.open("w", encoding="utf-8", newline="") as file:
            return write_csv(trips, file)


def write_csv(trips: Iterable[MadeTrip], file: TextIO) -> int:
    """Write the trips as CSV to an open file; how many there were."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    written = 0
    for written, trip in enumerate(trips, start=1):  # noqa: B007  # the last one is the count
        writer.writerow(trip)
    return written


def _write_parquet(trips: Iterable[MadeTrip], path: Path) -> int:
    times, places = pa.timestamp("us"), pa.int32()
    schema = pa.schema(list(zip(HEADER, (times, times, places, places), strict=True)))
    written = 0
    with pq.ParquetWriter(path, schema) as writer:
        for some in batched(trips, BATCH_TRIPS, strict=False):
            columns = zip(*some, strict=True)
            arrays = [pa.array(each, of) for each, of in zip(columns, schema.types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            written += len(some)
    return written


def _thin(at: datetime, demand: Demand, dice: random.Random) -> int | None:
    """How many seconds a trip that begins at `at` lasts, or None: this candidate is dropped.

    Dropped are those above the rate of the hour, and the few that no row can
    hold: of no length or more than a booking may have, and those with an end in
    the second pass of an hour that the clocks repeat, which naive local times
    cannot tell from the first. What the clocks skip needs no care: no instant
    has such a local time.
    """
    local = at.astimezone(demand.zone)
    day = WORKING_DAY if local.weekday() < _SATURDAY else WEEKEND_DAY
    if local.fold or dice.random() * _GREATEST >= day[local.hour]:
        return None
    duration_s = round(60 * dice.lognormvariate(math.log(demand.median_minutes), demand.sigma))
    if not 0 < duration_s <= LONGEST.total_seconds():
        return None
    end = at + timedelta(seconds=duration_s)
    return None if end.astimezone(demand.zone).fold else duration_s


def _trip(at: datetime, duration_s: int, demand: Demand, dice: random.Random) -> MadeTrip:
    start = at.replace(microsecond=0)
    end = start + timedelta(seconds=duration_s)
    return MadeTrip(
        start.astimezone(demand.zone).replace(tzinfo=None),
        end.astimezone(demand.zone).replace(tzinfo=None),
        dice.randint(1, PLACES),
        dice.randint(1, PLACES),
    )
