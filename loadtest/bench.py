"""Measures the detection strategies, each against the others and against the size of a calendar.

Doubts first
------------
A microbenchmark measures the machine, its neighbours and the loop around the
call as much as the call. So:

- Strategies take turns within each repeat, in an order that rotates, so that a
  bad moment of the machine hits them all. Ratios are taken within a repeat and
  hold better than times. Each figure is a median and comes with the smallest
  and the largest.
- Time is the CPU time of the thread: a neighbour who takes the core away is not
  counted, one who fills the caches is. The loop costs some 20 ns a call and is
  not taken off.
- Before a strategy is timed, its answers are compared with the definition of a
  conflict, applied to every window of the calendar.
- Calendars are filled in order of time, and each window asked for is another
  one, at a random place: a cache that remembers the last answer would gain
  nothing.

Rivals: every file of `booking/detection`, and one exhibit, the tempting call of
the interval tree's library. Other libraries that index intervals are left out
here: none is a dependency of this project.

A size is left out where filling the calendar alone would take longer than
`Plan.fill_s_max`; the results say so.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from typing import Any, NamedTuple, override

import msgspec

from booking.calendars import Calendar
from booking.detection.interval_tree import IntervalTree
from booking.errors import TaxiError
from booking.strategies import Act, strategies
from booking.time_window import TimeWindow
from loadtest import machine

EXHIBIT = "intervaltree.overlaps"
BASELINE = "interval_tree"
"""Ratios are taken to this strategy: the library, used as it should be."""

MEASURES = {
    "free": "asking for a window that is free",
    "taken": "asking for a window that is taken",
    "hold": "recording a booking and giving it back",
}

FIT_FROM = 100
"""Growth is fitted from this size on: below it, the call itself outweighs the search."""

_FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
_COMPARISONS_MAX = 20_000_000
_CALLS_MIN, _CALLS_MAX = 3, 100_000
_NS_A_S = 1_000_000_000

NewCalendar = Callable[[], Calendar]
Ask = Callable[[TimeWindow], object]


class Disagreement(TaxiError):
    """A strategy gave a wrong answer, so its speed is of no interest."""


class TemptingOverlaps(IntervalTree):
    """The interval tree asked by `overlaps`, which reads like the better question."""

    @override
    def is_free(self, window: TimeWindow) -> bool:
        return not self._tree.overlaps(window.start, window.end)


class Plan(msgspec.Struct, frozen=True):
    """How much to measure. Sizes are bookings in one driver's calendar."""

    sizes: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
    repeats: int = 15
    repeat_s: float = 0.02
    fill_s_max: float = 60.0
    questions: int = 1_000
    seed: int = 1

    @classmethod
    def quick(cls) -> "Plan":
        """A few seconds: enough to see the shape, not to quote."""
        return cls(sizes=(10, 100, 1_000), repeats=5, repeat_s=0.005, fill_s_max=2.0)


class Sample(msgspec.Struct, frozen=True):
    """One strategy, measure and size. Times are CPU time a call, in nanoseconds."""

    strategy: str
    measure: str
    size: int
    min_ns: float
    median_ns: float
    max_ns: float
    speedup: float | None
    """How many times faster than `BASELINE` within a repeat; the median of the repeats.

    None where the baseline was not measured.
    """


class Growth(msgspec.Struct, frozen=True):
    """The exponent of the power of the size that fits the medians from `FIT_FROM` on best."""

    strategy: str
    measure: str
    exponent: float
    to_size: int


class LeftOut(msgspec.Struct, frozen=True):
    """A size that was not measured, as filling the calendar would take about `fill_s`."""

    strategy: str
    size: int
    fill_s: float


class Result(msgspec.Struct, frozen=True):
    """One run of the benchmark."""

    machine: dict[str, Any]
    plan: Plan
    samples: list[Sample]
    growth: list[Growth]
    left_out: list[LeftOut]

    def strategies(self) -> list[str]:
        """The names of what was measured, in order of appearance."""
        return list(dict.fromkeys(sample.strategy for sample in self.samples))

    def of(self, strategy: str, measure: str) -> dict[int, Sample]:
        """The samples of one strategy and measure, by size."""
        return {
            sample.size: sample
            for sample in self.samples
            if sample.strategy == strategy and sample.measure == measure
        }


class Work(NamedTuple):
    """A calendar's content, and windows to ask for."""

    held: list[TimeWindow]
    free: list[TimeWindow]
    taken: list[TimeWindow]


def rivals() -> dict[str, NewCalendar]:
    """What is measured, by name: every detection strategy there is, and the exhibit."""
    found: dict[str, NewCalendar] = {each.name: each.load() for each in strategies(Act.DETECTION)}
    return found | {EXHIBIT: TemptingOverlaps}


def measure(
    plan: Plan,
    tell: Callable[[float, str], None] = lambda _share, _text: None,
    contestants: dict[str, NewCalendar] | None = None,
) -> Result:
    """Run the benchmark. `tell` hears which share is done, and what comes next.

    Raises `Disagreement` if a contestant (`rivals()` unless given) answers wrongly.
    """
    contestants = contestants or rivals()
    about = machine.describe(["intervaltree", "sortedcontainers"])
    fill_times: dict[str, dict[int, float]] = {name: {} for name in contestants}
    samples: list[Sample] = []
    left_out: list[LeftOut] = []
    steps = len(plan.sizes) * (len(contestants) + 1)
    done = 0
    for size in plan.sizes:
        work = make_work(size, plan.questions, random.Random(plan.seed))
        calendars: dict[str, Calendar] = {}
        for name, new_calendar in contestants.items():
            tell(done / steps, f"{name}: filling {size:,}")
            done += 1
            expected_s = _expected_fill_s(fill_times[name], size)
            if expected_s > plan.fill_s_max:
                left_out.append(LeftOut(name, size, round(expected_s)))
                continue
            calendars[name], fill_times[name][size] = _fill(new_calendar, work.held)
            check(name, calendars[name], work)
        tell(done / steps, f"timing {size:,}")
        done += 1
        with _undisturbed():
            samples += _time_all(plan, size, calendars, work)
    return Result(about, plan, samples, _fit_growth(samples), left_out)


def make_work(size: int, questions: int, rng: random.Random) -> Work:
    """`size` trips of 5 to 30 minutes with gaps of 2 to 15, and windows that hit and miss them."""
    held: list[TimeWindow] = []
    free_from = _FIRST_DAY
    for _ in range(size):
        start = free_from + timedelta(seconds=rng.randint(120, 900))
        free_from = start + timedelta(seconds=rng.randint(300, 1_800))
        held.append(TimeWindow(start, free_from))
    free, taken = [], []
    for _ in range(questions):
        number = rng.randrange(size)
        trip = held[number]
        begin = trip.start - timedelta(seconds=rng.randint(0, 299))
        taken.append(TimeWindow(begin, begin + timedelta(minutes=5)))
        gap_start = held[number - 1].end if number else _FIRST_DAY
        gap_s = int((trip.start - gap_start).total_seconds())
        first, last = sorted(rng.sample(range(gap_s + 1), 2))
        free.append(
            TimeWindow(gap_start + timedelta(seconds=first), gap_start + timedelta(seconds=last))
        )
    return Work(held, free, taken)


def check(name: str, calendar: Calendar, work: Work) -> None:
    """Raise `Disagreement` where the calendar and the definition of a conflict differ."""
    count = max(20, min(len(work.free), _COMPARISONS_MAX // len(work.held) // 2))
    for window in (*work.free[:count], *work.taken[:count]):
        truly_free = not any(window.overlaps(held) for held in work.held)
        if calendar.is_free(window) is not truly_free:
            raise Disagreement(
                f"{name} says that {window} is {'taken' if truly_free else 'free'}, which it is"
                f" not, among {len(work.held):,} bookings."
            )


def _fill(new_calendar: NewCalendar, held: Sequence[TimeWindow]) -> tuple[Calendar, float]:
    calendar = new_calendar()
    started_ns = time.thread_time_ns()
    for booking_id, window in enumerate(held):
        calendar.hold(booking_id, window)
    return calendar, (time.thread_time_ns() - started_ns) / _NS_A_S


def _expected_fill_s(fill_times: dict[int, float], size: int) -> float:
    """What filling will take, if it goes on growing as it did between the last two sizes."""
    if not fill_times:
        return 0.0
    *_, last = fill_times
    exponent = 1.0
    if len(fill_times) > 1:
        *_, one, last = fill_times
        exponent = math.log(fill_times[last] / fill_times[one]) / math.log(last / one)
    return float(fill_times[last] * (size / last) ** max(exponent, 1.0))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the garbage collector out of the measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _time_all(
    plan: Plan, size: int, calendars: dict[str, Calendar], work: Work
) -> Iterator[Sample]:
    for measured in MEASURES:
        windows = work.taken if measured == "taken" else work.free
        asks = {
            name: _ask(measured, calendar, size)
            for name, calendar in calendars.items()
            if not (name == EXHIBIT and measured == "hold")  # it records as the tree does
        }
        times = _in_turns(plan, asks, windows)
        for name, each_ns in times.items():
            yield Sample(
                name,
                measured,
                size,
                min_ns=round(min(each_ns), 1),
                median_ns=round(statistics.median(each_ns), 1),
                max_ns=round(max(each_ns), 1),
                speedup=_speedup(times.get(BASELINE), each_ns),
            )


def _speedup(baseline_ns: list[float] | None, own_ns: list[float]) -> float | None:
    if baseline_ns is None:
        return None
    pairs = zip(baseline_ns, own_ns, strict=True)
    return round(statistics.median(base / own for base, own in pairs), 4)


def _ask(measured: str, calendar: Calendar, size: int) -> Ask:
    if measured != "hold":
        return calendar.is_free

    def hold_and_release(window: TimeWindow) -> None:
        calendar.hold(size, window)  # the bookings that are there are numbered below
        calendar.release(size)

    return hold_and_release


def _in_turns(
    plan: Plan, asks: dict[str, Ask], windows: Sequence[TimeWindow]
) -> dict[str, list[float]]:
    """Nanoseconds a call, by name, one figure for each repeat."""
    batches = {
        name: list(islice(cycle(windows), _calls(plan, ask, windows))) for name, ask in asks.items()
    }
    times: dict[str, list[float]] = {name: [] for name in asks}
    order = list(asks)
    for _ in range(plan.repeats):
        for name in order:
            times[name].append(_ns_a_call(asks[name], batches[name]))
        order = order[1:] + order[:1]
    return times


def _calls(plan: Plan, ask: Ask, windows: Sequence[TimeWindow]) -> int:
    """How many calls fill a repeat."""
    count = _CALLS_MIN
    while True:
        spent_ns = _ns_a_call(ask, list(islice(cycle(windows), count))) * count
        if spent_ns > plan.repeat_s * _NS_A_S / 4 or count >= _CALLS_MAX:
            break
        count *= 4
    wanted = count * plan.repeat_s * _NS_A_S / spent_ns
    return max(_CALLS_MIN, min(_CALLS_MAX, round(wanted)))


def _ns_a_call(ask: Ask, windows: Sequence[TimeWindow]) -> float:
    started_ns = time.thread_time_ns()
    for window in windows:
        ask(window)
    return (time.thread_time_ns() - started_ns) / len(windows)


def _fit_growth(samples: Sequence[Sample]) -> list[Growth]:
    points: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        if sample.size >= FIT_FROM:
            points.setdefault((sample.strategy, sample.measure), []).append(sample)
    return [
        Growth(*key, round(_slope(fitted), 3), fitted[-1].size)
        for key, fitted in points.items()
        if len(fitted) > 1
    ]


def _slope(samples: Sequence[Sample]) -> float:
    sizes = [math.log(sample.size) for sample in samples]
    times = [math.log(sample.median_ns) for sample in samples]
    return statistics.linear_regression(sizes, times).slope
