"""Measures the rosters: the whole fleet, who is free?

Contestants are the files of `booking/allocation` that answer from memory; ratios
are taken to `walk_with_bisect`. Libraries from PyPI answer another question, which
windows are in the way; `fleet_tree` is what comes of asking them. `loadtest.bench.method`
says how the measurement works.

Drivers work from the first hour on: trips of 10 to 30 minutes, gaps of 10 to 40,
each driver at other times. So at any moment a third of them is free for ten
minutes, and nobody for 45, as no gap is that long. (Of ten drivers it may by chance be
nobody already for ten minutes, once in sixty times.) Rosters are filled in order of
time, as bookings come. `same_window` is another case: everybody records one and the
same window, into an empty roster.
"""

import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from heapq import heapify, heapreplace
from itertools import chain
from typing import NamedTuple, override

from api.settings import Settings
from booking.rosters import Roster
from booking.strategies import Act, strategies
from booking.time_window import TimeWindow
from loadtest.bars import Bar
from loadtest.bench.method import (
    Contest,
    Contestant,
    Disagreement,
    Extra,
    Plan,
    Result,
    Shape,
    Timer,
    time_asks,
    time_changes,
    time_mixed,
)
from loadtest.bench.rivals import FIRST_DAY

BASELINE = "walk_with_bisect"
EXTRAS = 100

_TRIP_S, _GAP_S = (600, 1_800), (600, 2_400)
_SHORT, _LONG = timedelta(minutes=10), timedelta(minutes=45)
_PERIOD_S = (sum(_TRIP_S) + sum(_GAP_S)) / 2

_SPEEDUP_BAR, _SPEEDUP_AT = 5_000, Shape(10_000, 100)
_GROWTH_BAR = 0.1
_BYTES_BAR = 40
_COMPARISONS_MAX = 20_000_000

Held = tuple[int, TimeWindow]
"""A driver, and time of theirs."""


class Work(NamedTuple):
    """What a fleet holds, windows to ask for, and some that could be recorded beside it."""

    shape: Shape
    held: list[Held]
    third: list[TimeWindow]
    nobody: list[TimeWindow]
    extras: list[Held]
    truth: list[tuple[TimeWindow, frozenset[int]]]
    """Some of the windows, and by the definition of a conflict all who are free."""


class Allocation(Contest[Roster, Work]):
    """Rosters against each other, and against the size of the fleet."""

    act = "allocation"
    baseline = BASELINE
    measures = {  # noqa: RUF012  # as its type in `Contest` says
        "third": "finding a driver when a third is free",
        "nobody": "finding that nobody is free",
        "hold": "recording a booking",
        "release": "giving a booking back",
        "mixed": "eight questions, one booking, one given back: a call of these",
        "same_window": "recording one and the same window for every driver: a booking of these",
    }

    @override
    def contestants(self) -> tuple[dict[str, Contestant[Roster]], list[str]]:
        found = {each.name: each.load() for each in strategies(Act.ALLOCATION)}
        rosters = {name: new for name, new in found.items() if hasattr(new, "any_free")}
        return {name: Contestant(new) for name, new in rosters.items()}, []

    @override
    def size(self, shape: Shape) -> int:
        return shape.drivers

    @override
    def is_fitted(self, shape: Shape) -> bool:
        return shape.bookings_each == _SPEEDUP_AT.bookings_each

    @override
    def bookings(self, shape: Shape, seed: int) -> Iterator[Held]:
        return _trips(shape, random.Random(seed))

    @override
    def work(self, shape: Shape, plan: Plan) -> Work:
        return make_work(shape, plan)

    @override
    def held(self, work: Work) -> Sequence[Held]:
        return work.held

    @override
    def fill(self, subject: Roster, shape: Shape, bookings: Iterable[Held]) -> None:
        for driver_id in range(shape.drivers):
            subject.enrol(driver_id)
        for driver_id, window in bookings:
            subject.hold(driver_id, window)

    @override
    def check(self, name: str, subject: Roster, work: Work) -> None:
        check(name, subject, work)

    @override
    def timer(self, measure: str, name: str, subject: Roster, work: Work) -> Timer:
        if measure in {"third", "nobody"}:
            return time_asks(subject.any_free, work.third if measure == "third" else work.nobody)
        if measure == "same_window":
            return _time_same_window(type(subject), work.shape.drivers)
        extras = [Extra(held, held) for held in work.extras]
        if measure == "mixed":
            windows = list(chain.from_iterable(zip(work.third, work.nobody, strict=True)))
            return time_mixed(subject.any_free, subject.hold, subject.release, extras, windows)
        return time_changes(subject.hold, subject.release, extras, holding=measure == "hold")

    @override
    def bars(self, result: Result) -> list[Bar]:
        default = Settings(database_url="").roster
        sample = result.of(default, "nobody").get(_SPEEDUP_AT)
        speedup = sample.speedup if sample else None
        growth = result.exponent(default, "nobody")
        memory = result.memory_of(default)
        said = f"default roster (`{default}`)"
        return [
            Bar(
                figure=f"{said}: nobody free, {_SPEEDUP_AT.drivers:,} drivers x"
                f" {_SPEEDUP_AT.bookings_each}, against `{BASELINE}`",
                bar=f"at least {_SPEEDUP_BAR:,} times faster",
                measured="-" if speedup is None else f"{speedup:,.0f} times",
                reached=None if speedup is None else speedup >= _SPEEDUP_BAR,
            ),
            Bar(
                figure=f"{said}: growth with the fleet, nobody free",
                bar=f"exponent at most {_GROWTH_BAR}",
                measured="-" if growth is None else f"{growth:.2f}",
                reached=None if growth is None else growth <= _GROWTH_BAR,
            ),
            Bar(
                figure=f"{said}: memory",
                bar=f"at most {_BYTES_BAR} bytes a booking in use",
                measured="-"
                if memory is None
                else f"{memory.in_use_bytes:.1f} bytes; the process grew by"
                f" {memory.grown_bytes:.1f}",
                reached=None if memory is None else memory.in_use_bytes <= _BYTES_BAR,
            ),
        ]


def ordinary() -> Plan:
    """What `taxi bench` measures unless told otherwise."""
    return Plan(shapes=tuple(Shape(10**power, 100) for power in range(1, 5)))


def full() -> Plan:
    """What is recorded: also a fleet of a hundred thousand."""
    return Plan(shapes=(*ordinary().shapes, Shape(100_000, 20)), memory_bookings=2_000_000)


def quick() -> Plan:
    """Some twenty seconds: enough to see the shape, not to quote."""
    return Plan(
        shapes=(Shape(10, 100), Shape(100, 100), Shape(1_000, 100)),
        repeats=5,
        repeat_s=0.005,
        fill_s_max=2.0,
        measure_s_max=1.0,
        memory_bookings=0,
        is_quick=True,
    )


def _trips(shape: Shape, rng: random.Random) -> Iterator[Held]:
    """Each driver's trips, in order of start across the fleet."""
    coming = [(rng.randint(0, int(_PERIOD_S)), driver_id) for driver_id in range(shape.drivers)]
    heapify(coming)
    left = [shape.bookings_each] * shape.drivers
    for _ in range(shape.drivers * shape.bookings_each):
        start_s, driver_id = coming[0]
        end_s = start_s + rng.randint(*_TRIP_S)
        left[driver_id] -= 1
        next_s = end_s + rng.randint(*_GAP_S) if left[driver_id] else 2**62
        heapreplace(coming, (next_s, driver_id))
        yield driver_id, TimeWindow(_at(start_s), _at(end_s))


def make_work(shape: Shape, plan: Plan) -> Work:
    """A fleet's trips, and windows for which a third of it is free, or nobody."""
    rng = random.Random(plan.seed)
    held = list(_trips(shape, rng))
    # While everybody still has trips ahead: the last ones end at different times.
    until_s = int(0.75 * shape.bookings_each * _PERIOD_S)
    starts = [_at(rng.randint(3_600, until_s)) for _ in range(2 * plan.questions)]
    third = [TimeWindow(start, start + _SHORT) for start in starts[::2]]
    nobody = [TimeWindow(start, start + _LONG) for start in starts[1::2]]
    count = max(5, min(50, _COMPARISONS_MAX // len(held) // 2))
    truth = [(window, who_is_free(window, shape, held)) for window in third[:count]]
    truth += [(window, who_is_free(window, shape, held)) for window in nobody[:count]]
    return Work(shape, held, third, nobody, _extras(shape, held, rng), truth)


def who_is_free(window: TimeWindow, shape: Shape, held: Iterable[Held]) -> frozenset[int]:
    """By the definition: all but those who hold a window that overlaps it."""
    busy = {driver_id for driver_id, other in held if other.overlaps(window)}
    return frozenset(range(shape.drivers)) - busy


def _extras(shape: Shape, held: list[Held], rng: random.Random) -> list[Held]:
    """For some drivers, the first five minutes of one of their gaps."""
    chosen = rng.sample(range(shape.drivers), min(shape.drivers, EXTRAS))
    windows: defaultdict[int, list[TimeWindow]] = defaultdict(list)
    wanted = set(chosen)
    for driver_id, window in held:
        if driver_id in wanted:
            windows[driver_id].append(window)
    ends = [(driver_id, rng.choice(windows[driver_id]).end) for driver_id in chosen]
    return [(driver_id, TimeWindow(end, end + timedelta(minutes=5))) for driver_id, end in ends]


def check(name: str, subject: Roster, work: Work) -> None:
    """Raise `Disagreement` where the subject and the definition of a conflict differ.

    As it is; with the extras held; and with them given back.
    """
    for window, free in work.truth:
        _compare(name, subject, window, free)
    for driver_id, window in work.extras:
        subject.hold(driver_id, window)
    _, window = work.extras[0]
    held = [*work.held, *work.extras]
    _compare(name, subject, window, who_is_free(window, work.shape, held))
    for driver_id, extra in work.extras:
        subject.release(driver_id, extra)
    _compare(name, subject, window, who_is_free(window, work.shape, work.held))


def _compare(name: str, subject: Roster, window: TimeWindow, free: frozenset[int]) -> None:
    some = subject.any_free(window)
    listed = list(subject.free(window, 5))
    wrong = some not in free if free else some is not None
    if wrong or len(listed) != min(5, len(free)) or not set(listed) <= free:
        raise Disagreement(
            f"{name} says that {some} and {listed} are free in {window}, of {len(free):,} who are."
        )


def _time_same_window(new: type[Roster], drivers: int) -> Timer:
    window = TimeWindow(_at(0), _at(3_600))

    def run(calls: int) -> float:
        rosters = [_enrolled(new, drivers) for _ in range(max(1, calls // drivers))]
        started_ns = time.thread_time_ns()
        for roster in rosters:
            for driver_id in range(drivers):
                roster.hold(driver_id, window)
        return (time.thread_time_ns() - started_ns) / (len(rosters) * drivers)

    return Timer(run, calls_min=drivers)


def _enrolled(new: type[Roster], drivers: int) -> Roster:
    roster = new()
    for driver_id in range(drivers):
        roster.enrol(driver_id)
    return roster


def _at(seconds: int) -> datetime:
    return FIRST_DAY + timedelta(seconds=seconds)
