"""The experiment: trips are booked with predicted ends, packed on drivers, and then driven."""

import heapq
import math
import platform
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from booking.errors import InvalidInput
from booking.overrun import Policy
from booking.predictions import EndPredictor
from loadtest.bench.overrun.results import (
    ALIKE,
    LEARNT,
    LONGEST_MIN,
    MINUTE_S,
    QUANTILES,
    Outcome,
    Plan,
    Result,
)
from loadtest.trips.demand import Demand, exactly
from loadtest.trips.distances import distances
from loadtest.trips.files import Order, TripFile, in_order

_FIRST_DAY = date(2026, 3, 2)
_DISTANCE_STEPS = (1.25, 2.0)
"""Trips are of one class of distance if they differ by less than about such a factor."""

_SATURDAY = 5
_TOLERANCE_S = Policy().tolerance_s
_TRIPS_MIN = 100

Tell = Callable[[str], None]


class TooFewTrips(InvalidInput):
    """A hundred trips are needed: half of them to learn from, half to try it on."""


class Ride(NamedTuple):
    """One trip as it was, and the classes by which its duration is predicted."""

    start_s: int
    duration_s: int
    classes: tuple[Hashable, ...]


class Tally(NamedTuple):
    """What became of all rides, once they lasted as they did."""

    late: int = 0
    handed_on: int = 0
    too_late: int = 0
    late_s: float = 0
    idle_s: float = 0


def measure(plan: Plan, tell: Tell = lambda _: None) -> Result:
    """Run the experiment on synthetic demand."""
    runs = []
    for seed in range(plan.seeds):
        tell(f"making the demand of seed {seed}")
        runs.append(list(make(plan, seed)))
    left_out = plan.trips * plan.seeds - sum(map(len, runs))
    return _try_out("synthetic", plan, runs, left_out, tell)


def measure_file(
    path: Path, zone: ZoneInfo | None, rows_max: int | None = None, tell: Tell = lambda _: None
) -> Result:
    """Run the experiment on a file of trips. `zone` and `rows_max` are those of `TripFile`.

    Raises `TooFewTrips`, and as `TripFile` does.
    """
    tell(f"reading {path.name}")
    file = TripFile(path, zone, rows_max)
    _, trips = in_order(file, Order.START)
    how_far = distances(path, rows_max)
    rides = [
        Ride(
            int(trip.start.timestamp()),
            int(duration_s),
            classes_of(trip.start.astimezone(zone or UTC), how_far.get(trip.line)),
        )
        for trip in trips
        if _is_believed(duration_s := (trip.end - trip.start).total_seconds())
    ]
    return _try_out(path.name, None, [rides], file.rows - len(rides), tell)


def make(plan: Plan, seed: int) -> Iterator[Ride]:
    """Synthetic rides in order of start, each with a distance that it may have come from."""
    demand = Demand(zone=ZoneInfo("UTC"), start=_FIRST_DAY, days=plan.days, seed=seed)
    dice = random.Random(seed)
    spread = demand.sigma * math.sqrt(plan.known * (1 - plan.known))
    for trip in exactly(plan.trips, demand):
        duration_s = (trip.end - trip.start).total_seconds()
        deviation = math.log(duration_s / MINUTE_S / demand.median_minutes)
        distance = math.exp(dice.gauss(plan.known * deviation, spread))
        if _is_believed(duration_s):
            start = trip.start.replace(tzinfo=UTC)
            yield Ride(int(start.timestamp()), int(duration_s), classes_of(start, distance))


def classes_of(local: datetime, distance: float | None) -> tuple[Hashable, ...]:
    """What a trip has in common with others, from the finest to the coarsest."""
    hour = ("hour", local.weekday() >= _SATURDAY, local.hour)
    if distance is None:
        return (hour,)
    fine, coarse = (
        ("distance", step, round(math.log(distance) / math.log(step))) for step in _DISTANCE_STEPS
    )
    return (*fine, *hour), fine, coarse, hour


def pack(rides: Sequence[Ride], held_s: Sequence[float]) -> list[list[int]]:
    """The rides of each driver, by their place in `rides`, which is in order of start.

    Each goes to the first driver on the list who is free. O(n log n) for n rides.
    """
    agendas: list[list[int]] = []
    free: list[int] = []
    busy: list[tuple[float, int]] = []  # until when, and who
    for place, (ride, seconds) in enumerate(zip(rides, held_s, strict=True)):
        while busy and busy[0][0] <= ride.start_s:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            heapq.heappush(free, len(agendas))
            agendas.append([])
        driver = heapq.heappop(free)
        agendas[driver].append(place)
        heapq.heappush(busy, (ride.start_s + seconds, driver))
    return agendas


def drive(
    rides: Sequence[Ride], held_s: Sequence[float], agenda: Sequence[int], tolerance_s: float
) -> Tally:
    """What becomes of one driver's rides: each lasts as it did, and starts when it can."""
    tally = Tally()
    free_from_s, was_late = -math.inf, False
    for place in agenda:
        ride = rides[place]
        late_s = max(0, free_from_s - ride.start_s)
        free_from_s = ride.start_s + late_s + ride.duration_s
        tally = Tally(
            tally.late + (late_s > 0),
            tally.handed_on + (late_s > 0 and was_late),
            tally.too_late + (late_s > tolerance_s),
            tally.late_s + late_s,
            tally.idle_s + max(0, ride.start_s + held_s[place] - free_from_s),
        )
        was_late = late_s > 0
    return tally


def _try_out(
    source: str, plan: Plan | None, runs: Sequence[Sequence[Ride]], left_out: int, tell: Tell
) -> Result:
    halves = [(rides[: len(rides) // 2], rides[len(rides) // 2 :]) for rides in runs]
    if min(len(before) for before, _ in halves) < _TRIPS_MIN // 2:
        raise TooFewTrips(field="TRIPS")
    outcomes = []
    for predictor in (LEARNT, ALIKE):
        knows = predictor == LEARNT
        learnt = [
            EndPredictor((ride.classes if knows else (), ride.duration_s) for ride in before)
            for before, _ in halves
        ]
        for quantile in plan.quantiles if plan else QUANTILES:
            tell(f"{predictor}, {quantile:g}")
            tried = [
                _book_and_drive(
                    after, [by.seconds(ride.classes if knows else (), quantile) for ride in after]
                )
                for by, (_, after) in zip(learnt, halves, strict=True)
            ]
            outcomes.append(_outcome(predictor, quantile, tried))
    return Result(
        source=source,
        plan=plan,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        learnt_from=len(halves[0][0]),
        tried=len(halves[0][1]),
        left_out=left_out,
        tolerance_s=_TOLERANCE_S,
        outcomes=outcomes,
    )


class _Tried(NamedTuple):
    kept: int
    drivers: int
    tally: Tally
    alone_late_s: float
    alone_idle_s: float


def _book_and_drive(rides: Sequence[Ride], held_s: Sequence[float]) -> _Tried:
    agendas = pack(rides, held_s)
    tallies = [drive(rides, held_s, agenda, _TOLERANCE_S) for agenda in agendas]
    over_s = [ride.duration_s - seconds for ride, seconds in zip(rides, held_s, strict=True)]
    return _Tried(
        sum(each <= 0 for each in over_s),
        len(agendas),
        Tally(*map(sum, zip(*tallies, strict=True))),
        sum(each for each in over_s if each > 0),
        -sum(each for each in over_s if each < 0),
    )


def _outcome(predictor: str, quantile: float, tried: Sequence[_Tried]) -> Outcome:
    return Outcome(
        predictor=predictor,
        quantile=quantile,
        kept=[each.kept for each in tried],
        drivers=[each.drivers for each in tried],
        late=[each.tally.late for each in tried],
        handed_on=[each.tally.handed_on for each in tried],
        too_late=[each.tally.too_late for each in tried],
        late_min=[_minutes(each.tally.late_s) for each in tried],
        idle_min=[_minutes(each.tally.idle_s) for each in tried],
        alone_late_min=[_minutes(each.alone_late_s) for each in tried],
        alone_idle_min=[_minutes(each.alone_idle_s) for each in tried],
    )


def _is_believed(duration_s: float) -> bool:
    return 0 < duration_s <= LONGEST_MIN * MINUTE_S


def _minutes(seconds: float) -> float:
    return round(seconds / MINUTE_S, 1)
