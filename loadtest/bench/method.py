"""The benchmark's machinery: whatever is measured, by the same method.

Doubts first
------------
A microbenchmark measures the machine, its neighbours and the loop around the
call as much as the call. So:

- Contestants take turns within each repeat, in an order that rotates, so that a
  bad moment of the machine hits them all. Ratios are taken within a repeat, to a
  rival that is named, and hold better than times. Each figure is a median and
  comes with the smallest and the largest.
- Time is the CPU time of the thread: a neighbour who takes the core away is not
  counted, one who fills the caches is. The loop costs some 20 ns a call and is
  not taken off. The garbage collector is off.
- Before a contestant is timed, its answers are compared with the definition of a
  conflict, applied to every window that is held, and again with some more held,
  and again with those given back. How fast a wrong answer comes is nobody's
  business.
- What is asked for is another window each time, at a random place: a cache that
  remembers the last answer would gain nothing.
- Memory is measured in a process of its own for each contestant, from without and
  from within: see `loadtest.bench.memory`. Each window that is recorded is made
  anew, so whoever keeps it pays for it.

A size is left out where filling it would take longer than `Plan.fill_s_max`, and
a measure where it would take longer than `Plan.measure_s_max`, judged by the growth
between the two sizes before, and by how it goes. Filling is expected to take at least
as many times longer as there are more bookings; a call may take no longer than before.
The results name what was left out.
"""

import gc
import math
import statistics
import subprocess  # memory is measured in a process of its own
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import batched, cycle, islice
from typing import Any, NamedTuple

import msgspec

from booking.errors import TaxiError
from loadtest import machine
from loadtest.bars import Bar

_CALLS_MIN, _CALLS_MAX = 3, 100_000
_NS_A_S = 1_000_000_000
_LOOK_EVERY = 100

Tell = Callable[[float, str], None]
"""Hears which share is done, and what comes next."""


class Disagreement(TaxiError):
    """A contestant gave a wrong answer, so its speed is of no interest."""


class MemoryNotMeasured(TaxiError):
    """The process that measures memory did not come to an end."""


class Shape(NamedTuple):
    """How much there is: so many drivers, each with so many bookings."""

    drivers: int
    bookings_each: int


class Plan(msgspec.Struct, frozen=True):
    """How much to measure."""

    shapes: tuple[Shape, ...]
    repeats: int = 15
    repeat_s: float = 0.02
    fill_s_max: float = 60.0
    measure_s_max: float = 15.0
    memory_bookings: int = 1_000_000
    """Memory is measured at the largest shape with no more bookings; 0: not at all."""
    questions: int = 1_000
    seed: int = 1
    is_quick: bool = False
    """Whether it only shows the shape; what was measured so is not to quote."""


class Sample(msgspec.Struct, frozen=True):
    """One contestant, measure and shape. Times are CPU time a call, in nanoseconds."""

    name: str
    measure: str
    shape: Shape
    min_ns: float
    median_ns: float
    max_ns: float
    speedup: float | None
    """How many times faster than the baseline within a repeat; the median of the repeats.

    None where the baseline was not measured.
    """


class Growth(msgspec.Struct, frozen=True):
    """The exponent of the power of the size that fits the medians best, by least squares."""

    name: str
    measure: str
    exponent: float
    to_size: int


class Memory(msgspec.Struct, frozen=True):
    """What a contestant holds in memory for one booking."""

    name: str
    shape: Shape
    grown_bytes: float
    """How much the process grew, for each booking."""
    in_use_bytes: float
    """What Python's allocators gave out for it; nothing of a library in C."""


class LeftOut(msgspec.Struct, frozen=True):
    """What was not measured, as it would have taken about `expected_s`."""

    name: str
    shape: Shape
    measure: str | None
    """None when it is the filling that would take too long."""
    expected_s: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a benchmark."""

    machine: dict[str, Any]
    plan: Plan
    baseline: str
    strategies: list[str]
    """Those of the contestants that are files of this project; the rest are libraries."""
    measures: dict[str, str]
    samples: list[Sample]
    growth: list[Growth]
    memory: list[Memory]
    left_out: list[LeftOut]
    missing: list[str]
    """Libraries that are not installed."""
    bars: list[Bar] = []

    def names(self) -> list[str]:
        """The names of what was measured, in order of appearance."""
        return list(dict.fromkeys(sample.name for sample in self.samples))

    def of(self, name: str, measure: str) -> dict[Shape, Sample]:
        """The samples of one contestant and measure, by shape."""
        return {
            sample.shape: sample
            for sample in self.samples
            if (sample.name, sample.measure) == (name, measure)
        }

    def exponent(self, name: str, measure: str) -> float | None:
        """How that measure of the contestant grows; None if it was not fitted."""
        for each in self.growth:
            if (each.name, each.measure) == (name, measure):
                return each.exponent
        return None

    def memory_of(self, name: str) -> Memory | None:
        """What the contestant holds in memory for one booking; None if not measured."""
        return next((each for each in self.memory if each.name == name), None)


@dataclass(frozen=True)
class Timer:
    """Measures one kind of call: `run(calls)` makes that many and returns nanoseconds a call."""

    run: Callable[[int], float]
    calls_min: int = _CALLS_MIN


@dataclass(frozen=True)
class Contestant[Subject]:
    """Who takes part. `new` makes an empty subject to be measured."""

    new: Callable[[], Subject]
    is_strategy: bool = True
    package: str | None = None


class Contest[Subject, Work](ABC):
    """What a benchmark is about: the questions, the contestants, and who is right."""

    act: str
    baseline: str
    measures: dict[str, str]

    @abstractmethod
    def contestants(self) -> tuple[dict[str, Contestant[Subject]], list[str]]:
        """Everybody who takes part, by name; and the libraries that are not installed."""

    @abstractmethod
    def size(self, shape: Shape) -> int:
        """What the results grow with."""

    @abstractmethod
    def is_fitted(self, shape: Shape) -> bool:
        """Whether growth is fitted through this shape."""

    @abstractmethod
    def work(self, shape: Shape, plan: Plan) -> Work:
        """What is held and what is asked for."""

    @abstractmethod
    def bookings(self, shape: Shape, seed: int) -> Iterator[Any]:
        """What is held, made as it is asked for, the same for the same seed."""

    @abstractmethod
    def fill(self, subject: Subject, shape: Shape, bookings: Iterable[Any]) -> None:
        """Record the bookings."""

    @abstractmethod
    def held(self, work: Work) -> Sequence[Any]:
        """The bookings to fill with."""

    @abstractmethod
    def check(self, name: str, subject: Subject, work: Work) -> None:
        """Raise `Disagreement` where the subject and the definition of a conflict differ."""

    @abstractmethod
    def timer(self, measure: str, name: str, subject: Subject, work: Work) -> Timer:
        """What measures that."""

    @abstractmethod
    def bars(self, result: Result) -> list[Bar]:
        """The figures to reach, and whether they were."""


def measure[Subject, Work](
    contest: Contest[Subject, Work],
    plan: Plan,
    tell: Tell = lambda _share, _text: None,
    contestants: dict[str, Contestant[Subject]] | None = None,
) -> Result:
    """Run the benchmark with `contestants`, or everybody.

    Raises `Disagreement` if one of them answers wrongly.
    """
    everybody, missing = contest.contestants()
    weighs = plan.memory_bookings and find_spec("psutil")  # by which memory is measured
    contestants = everybody if contestants is None else contestants
    packages = sorted({each.package for each in contestants.values() if each.package})
    about = machine.describe(packages)
    run = _Run(contest, plan, tell, contestants)
    with undisturbed():
        for shape in plan.shapes:
            run.measure_shape(shape)
    if weighs:
        run.measure_memory()
    elif plan.memory_bookings:
        missing.append("psutil")
    result = Result(
        machine=about,
        plan=plan,
        baseline=contest.baseline,
        strategies=[name for name, each in contestants.items() if each.is_strategy],
        measures=contest.measures,
        samples=run.samples,
        growth=fit_growth(contest, run.samples),
        memory=run.memory,
        left_out=run.left_out,
        missing=missing,
    )
    return msgspec.structs.replace(result, bars=contest.bars(result))


@dataclass
class _Run[Subject, Work]:
    """One run under way."""

    contest: Contest[Subject, Work]
    plan: Plan
    tell: Tell
    contestants: dict[str, Contestant[Subject]]
    samples: list[Sample] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    filled: dict[str, list[Shape]] = field(default_factory=dict)
    fill_s: dict[str, dict[int, float]] = field(default_factory=dict)  # by bookings in all
    steps_done: int = 0

    def measure_shape(self, shape: Shape) -> None:
        said = f"{shape.drivers:,} x {shape.bookings_each:,}"
        self._step(f"making {said}")
        work = self.contest.work(shape, self.plan)
        subjects: dict[str, Subject] = {}
        for name in self.contestants:
            self._step(f"{name}: filling {said}")
            subject = self._fill(name, shape, work)
            if subject is not None:
                subjects[name] = subject
        for measured in self.contest.measures:
            self._step(f"{measured}: timing {said}")
            self._time_all(measured, shape, subjects, work)

    def measure_memory(self) -> None:
        for name in self.contestants:
            self._step(f"{name}: memory")
            fitting = [
                shape
                for shape in self.filled.get(name, ())
                if shape.drivers * shape.bookings_each <= self.plan.memory_bookings
            ]
            if fitting:
                largest = max(fitting, key=lambda shape: shape.drivers * shape.bookings_each)
                grown, in_use = _memory_of(self.contest.act, name, largest, self.plan.seed)
                self.memory.append(Memory(name, largest, round(grown, 1), round(in_use, 1)))

    def _step(self, text: str) -> None:
        steps = len(self.plan.shapes) * (1 + len(self.contestants) + len(self.contest.measures))
        self.tell(self.steps_done / (steps + len(self.contestants)), text)
        self.steps_done += 1

    def _fill(self, name: str, shape: Shape, work: Work) -> Subject | None:
        times = self.fill_s.setdefault(name, {})
        bookings = shape.drivers * shape.bookings_each
        expected_s = forecast(times, bookings, exponent_min=1.0)
        if expected_s <= self.plan.fill_s_max:
            subject = self.contestants[name].new()
            began_ns = time.thread_time_ns()
            to_come = _in_time(self.contest.held(work), self.plan.fill_s_max)
            try:
                self.contest.fill(subject, shape, to_come)
            except _TooLong as stopped:
                expected_s = times[bookings] = stopped.expected_s
            else:
                times[bookings] = (time.thread_time_ns() - began_ns) / _NS_A_S
                self.filled.setdefault(name, []).append(shape)
                self.contest.check(name, subject, work)
                return subject
        self.left_out.append(LeftOut(name, shape, None, round(expected_s)))
        return None

    def _time_all(
        self, measured: str, shape: Shape, subjects: dict[str, Subject], work: Work
    ) -> None:
        timers: dict[str, tuple[Timer, int]] = {}
        for name, subject in subjects.items():
            timer = self.contest.timer(measured, name, subject, work)
            expected_s = self._expected_s(name, measured, shape, timer)
            calls = 0
            if expected_s <= self.plan.measure_s_max:
                calls, expected_s = _calls(self.plan, timer)
            if expected_s > self.plan.measure_s_max:
                self.left_out.append(LeftOut(name, shape, measured, round(expected_s)))
            else:
                timers[name] = timer, calls
        times = _in_turns(self.plan, timers)
        baseline_ns = times.get(self.contest.baseline)
        for name, each_ns in times.items():
            self.samples.append(
                Sample(
                    name,
                    measured,
                    shape,
                    min_ns=round(min(each_ns), 1),
                    median_ns=round(statistics.median(each_ns), 1),
                    max_ns=round(max(each_ns), 1),
                    speedup=_speedup(baseline_ns, each_ns),
                )
            )

    def _expected_s(self, name: str, measured: str, shape: Shape, timer: Timer) -> float:
        """How long measuring will take, from the sizes before; 0 where there is none."""
        past = {
            self.contest.size(sample.shape): sample.median_ns
            for sample in self.samples
            if (sample.name, sample.measure) == (name, measured)
        }
        call_ns = forecast(past, self.contest.size(shape), exponent_min=0.0)
        return call_ns / _NS_A_S * timer.calls_min * (self.plan.repeats + 1)


class _TooLong(Exception):
    """Filling was given up; as fast as so far, it would take `expected_s`."""

    def __init__(self, expected_s: float) -> None:
        self.expected_s = expected_s


def _in_time(bookings: Sequence[Any], s_max: float) -> Iterator[Any]:
    """The bookings, as long as there is time. Raises `_TooLong`."""
    began_ns = time.thread_time_ns()
    for number, booking in enumerate(bookings):
        if number % _LOOK_EVERY == 0:
            spent_s = (time.thread_time_ns() - began_ns) / _NS_A_S
            if spent_s > s_max:
                raise _TooLong(spent_s * len(bookings) / number)
        yield booking


def forecast(times: dict[int, float], size: int, *, exponent_min: float) -> float:
    """What comes next, if it goes on growing as it did between the last two sizes.

    Or as the size to the power of `exponent_min`, if it grew less, or if it is unknown.
    """
    if not times:
        return 0.0
    *_, last = times
    exponent = exponent_min
    if len(times) > 1:
        *_, one, last = times
        exponent = max(exponent, math.log(times[last] / times[one]) / math.log(last / one))
    return float(times[last] * (size / last) ** exponent)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the garbage collector out of the measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def time_asks(ask: Callable[[Any], object], windows: Sequence[Any]) -> Timer:
    """Asks for the windows in turn."""
    batch: list[Any] = []

    def run(calls: int) -> float:
        nonlocal batch
        if len(batch) != calls:
            batch = list(islice(cycle(windows), calls))
        started_ns = time.thread_time_ns()
        for window in batch:
            ask(window)
        return (time.thread_time_ns() - started_ns) / calls

    return Timer(run)


class Extra(NamedTuple):
    """A booking to record and to give back: the arguments of either call."""

    hold: tuple[Any, ...]
    release: tuple[Any, ...]


def time_changes(
    hold: Callable[..., object],
    release: Callable[..., object],
    extras: Sequence[Extra],
    *,
    holding: bool,
) -> Timer:
    """Holds all extras, then gives them back in another order; one of the two is timed."""

    def run(calls: int) -> float:
        spent_ns, made = 0, 0
        while made < calls:
            some = extras[: calls - made]
            forth = [extra.hold for extra in some]
            back = [extra.release for extra in (*some[1::2], *some[0::2])]
            began_ns = time.thread_time_ns()
            for arguments in forth:
                hold(*arguments)
            turned_ns = time.thread_time_ns()
            for arguments in back:
                release(*arguments)
            ended_ns = time.thread_time_ns()
            spent_ns += turned_ns - began_ns if holding else ended_ns - turned_ns
            made += len(some)
        return spent_ns / made

    return Timer(run)


def time_mixed(
    ask: Callable[[Any], object],
    hold: Callable[..., object],
    release: Callable[..., object],
    extras: Sequence[Extra],
    windows: Sequence[Any],
) -> Timer:
    """Eight questions, one booking, one given back: ten calls, again and again."""
    a_round, half = 10, 4
    questions = batched(cycle(windows), half, strict=False)
    rounds = [(*extra, next(questions), next(questions)) for extra in extras]

    def run(calls: int) -> float:
        count = max(1, calls // a_round)
        batch = list(islice(cycle(rounds), count))
        started_ns = time.thread_time_ns()
        for holding, releasing, before, after in batch:
            for window in before:
                ask(window)
            hold(*holding)
            for window in after:
                ask(window)
            release(*releasing)
        return (time.thread_time_ns() - started_ns) / (count * a_round)

    return Timer(run, calls_min=a_round)


def _in_turns(plan: Plan, timers: dict[str, tuple[Timer, int]]) -> dict[str, list[float]]:
    """Nanoseconds a call, by name, one figure for each repeat."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    order = list(timers)
    for _ in range(plan.repeats):
        for name in order:
            timer, calls = timers[name]
            times[name].append(timer.run(calls))
        order = order[1:] + order[:1]
    return times


def _calls(plan: Plan, timer: Timer) -> tuple[int, float]:
    """How many calls fill a repeat, and how many seconds all repeats will take at least."""
    count = timer.calls_min
    while True:
        # All of it, also what the timer leaves out, such as recording what is to be given back.
        began_ns = time.thread_time_ns()
        timer.run(count)
        spent_ns = max(time.thread_time_ns() - began_ns, 1)
        if spent_ns > plan.repeat_s * _NS_A_S / 4 or count >= _CALLS_MAX:
            break
        count *= 4
    wanted = round(count * plan.repeat_s * _NS_A_S / spent_ns)
    calls = max(timer.calls_min, min(_CALLS_MAX, wanted))
    return calls, spent_ns / count * calls * plan.repeats / _NS_A_S


def _speedup(baseline_ns: list[float] | None, own_ns: list[float]) -> float | None:
    if baseline_ns is None:
        return None
    pairs = zip(baseline_ns, own_ns, strict=True)
    return round(statistics.median(base / own for base, own in pairs), 4)


def fit_growth(contest: Contest[Any, Any], samples: Sequence[Sample]) -> list[Growth]:
    """The growth of each contestant and measure that has two points or more to fit."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for sample in samples:
        if contest.is_fitted(sample.shape):
            point = contest.size(sample.shape), sample.median_ns
            points.setdefault((sample.name, sample.measure), []).append(point)
    return [
        Growth(*key, round(slope(fitted), 3), fitted[-1][0])
        for key, fitted in points.items()
        if len(fitted) > 1
    ]


def slope(points: Sequence[tuple[int, float]]) -> float:
    """The slope of the straight line through the points on log-log paper."""
    sizes = [math.log(size) for size, _ in points]
    times = [math.log(value) for _, value in points]
    return statistics.linear_regression(sizes, times).slope


def _memory_of(act: str, name: str, shape: Shape, seed: int) -> tuple[float, float]:
    """Bytes a booking, grown and in use, by `loadtest.bench.memory` in a process of its own."""
    words = [act, name, str(shape.drivers), str(shape.bookings_each), str(seed)]
    ran = subprocess.run(
        [sys.executable, "-m", "loadtest.bench.memory", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:] or [f"status {ran.returncode}"]
        raise MemoryNotMeasured(f"The memory of {name} could not be measured: {last[0]}")
    grown, in_use = map(float, ran.stdout.split())
    return grown, in_use
