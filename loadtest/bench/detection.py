"""Measures the calendars: one driver, does this window overlap?

Contestants are every file of `booking/detection` and the libraries of
`loadtest.bench.rivals`; ratios are taken to `intervaltree.overlap`. `loadtest.bench.method`
says how the measurement works.

Calendars are filled in order of time with trips of 5 to 30 minutes and gaps of 2
to 15. Recording is measured by holding `EXTRAS` more bookings, each in another
gap, and giving them back.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from importlib.util import find_spec
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol, override

from api.settings import Settings
from booking.calendars import Calendar
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
from loadtest.bench.rivals import BASELINE, FIRST_DAY, RIVALS, Rebuilt, Rival

FIT_FROM = 100
"""Growth is fitted from this size on: below it, the call itself outweighs the search."""

EXTRAS = 100

_SPEEDUP_BAR, _SPEEDUP_AT = 20, Shape(1, 100)
_COMPARISONS_MAX = 20_000_000

NewCalendar = Callable[[], Calendar]


class Subject(Protocol):
    """What calendars and rivals have in common."""

    def is_free(self, window: Any, /) -> bool:
        """Whether nothing that is held overlaps the window."""
        ...

    def hold(self, booking_id: int, window: Any, /) -> None:
        """Record a window."""
        ...

    def release(self, booking_id: int, /) -> None:
        """Give it back."""
        ...


class Work(NamedTuple):
    """A calendar's content, windows to ask for, and some that could be recorded beside it."""

    held: list[TimeWindow]
    free: list[TimeWindow]
    taken: list[TimeWindow]
    extras: list[TimeWindow]


class Detection(Contest[Subject, Work]):
    """Calendars against each other, and against the size of a calendar."""

    act = "detection"
    baseline = BASELINE
    measures = {  # noqa: RUF012  # as its type in `Contest` says
        "free": "asking for a window that is free",
        "taken": "asking for a window that is taken",
        "hold": "recording a booking",
        "release": "giving a booking back",
        "mixed": "eight questions, one booking, one given back: a call of these",
    }

    @override
    def contestants(self) -> tuple[dict[str, Contestant[Subject]], list[str]]:
        found: dict[str, Contestant[Subject]] = {
            each.name: Contestant(each.load()) for each in strategies(Act.DETECTION)
        }
        missing = []
        for name, (package, rival) in RIVALS.items():
            # Those that are built from arrays need who makes arrays.
            needed = (package, "numpy") if issubclass(rival, Rebuilt) else (package,)
            lacking = [each for each in needed if not find_spec(each)]
            if lacking:
                missing.append(lacking[0])
            else:
                found[name] = Contestant(rival, is_strategy=False, package=package)
        missing = list(dict.fromkeys(missing))
        return found, missing

    @override
    def size(self, shape: Shape) -> int:
        return shape.bookings_each

    @override
    def is_fitted(self, shape: Shape) -> bool:
        return shape.bookings_each >= FIT_FROM

    @override
    def bookings(self, shape: Shape, seed: int) -> Iterator[TimeWindow]:
        return _trips(shape.bookings_each, random.Random(seed))

    @override
    def work(self, shape: Shape, plan: Plan) -> Work:
        return make_work(shape.bookings_each, plan.questions, random.Random(plan.seed))

    @override
    def held(self, work: Work) -> Sequence[TimeWindow]:
        return work.held

    @override
    def fill(self, subject: Subject, shape: Shape, bookings: Iterable[TimeWindow]) -> None:
        if isinstance(subject, Rival):
            subject.fill(map(subject.prepare, bookings))
        else:
            for booking_id, window in enumerate(bookings):
                subject.hold(booking_id, window)

    @override
    def check(self, name: str, subject: Subject, work: Work) -> None:
        check(name, subject, work)

    @override
    def timer(self, measure: str, name: str, subject: Subject, work: Work) -> Timer:
        free, taken = _prepared(subject, work.free), _prepared(subject, work.taken)
        if measure in {"free", "taken"}:
            return time_asks(subject.is_free, free if measure == "free" else taken)
        extras = [
            Extra((booking_id, window), (booking_id,))
            for booking_id, window in _numbered(subject, work)
        ]
        if measure == "mixed":
            windows = list(chain.from_iterable(zip(free, taken, strict=True)))
            return time_mixed(subject.is_free, subject.hold, subject.release, extras, windows)
        return time_changes(subject.hold, subject.release, extras, holding=measure == "hold")

    @override
    def bars(self, result: Result) -> list[Bar]:
        default = Settings(database_url="").calendar
        sample = result.of(default, "free").get(_SPEEDUP_AT)
        speedup = sample.speedup if sample else None
        return [
            Bar(
                figure=f"default calendar (`{default}`): asking for a free window at"
                f" {_SPEEDUP_AT.bookings_each} bookings, against `{BASELINE}`",
                bar=f"at least {_SPEEDUP_BAR} times faster",
                measured="-" if speedup is None else f"{speedup:.1f} times",
                reached=None if speedup is None else speedup >= _SPEEDUP_BAR,
            )
        ]


def full() -> Plan:
    """What is recorded: minutes."""
    return Plan(shapes=tuple(Shape(1, 10**power) for power in range(1, 7)))


def quick() -> Plan:
    """Some twenty seconds: enough to see the shape, not to quote."""
    return Plan(
        shapes=(Shape(1, 10), Shape(1, 100), Shape(1, 1_000)),
        repeats=5,
        repeat_s=0.005,
        fill_s_max=2.0,
        measure_s_max=1.0,
        memory_bookings=0,
        is_quick=True,
    )


def _trips(size: int, rng: random.Random) -> Iterator[TimeWindow]:
    free_from = FIRST_DAY
    for _ in range(size):
        start = free_from + timedelta(seconds=rng.randint(120, 900))
        free_from = start + timedelta(seconds=rng.randint(300, 1_800))
        yield TimeWindow(start, free_from)


def make_work(size: int, questions: int, rng: random.Random) -> Work:
    """`size` trips, and windows that hit and miss them; the extras lie in a gap each."""
    held = list(_trips(size, rng))
    free, taken = [], []
    for _ in range(questions):
        number = rng.randrange(size)
        trip = held[number]
        begin = trip.start - timedelta(seconds=rng.randint(0, 299))
        taken.append(TimeWindow(begin, begin + timedelta(minutes=5)))
        free.append(_part_of_gap(held, number, rng))
    numbers = rng.sample(range(size), min(size, EXTRAS))
    return Work(held, free, taken, [_part_of_gap(held, number, rng) for number in numbers])


def _part_of_gap(held: list[TimeWindow], number: int, rng: random.Random) -> TimeWindow:
    """Some window in the gap before that trip."""
    gap_start = held[number - 1].end if number else FIRST_DAY
    gap_s = int((held[number].start - gap_start).total_seconds())
    first, last = sorted(rng.sample(range(gap_s + 1), 2))
    return TimeWindow(gap_start + timedelta(seconds=first), gap_start + timedelta(seconds=last))


def check(name: str, subject: Subject, work: Work) -> None:
    """Raise `Disagreement` where the subject and the definition of a conflict differ.

    As it is; with the extras held, as far as comparing allows; and with them given back.
    """
    count = max(20, min(len(work.free), _COMPARISONS_MAX // len(work.held) // 2))
    windows = [*work.free[:count], *work.taken[:count]]
    some = list(islice(_numbered(subject, work), 10))
    more = work.extras[: len(some)]
    _compare(name, subject, work.held, windows)
    for booking_id, window in some:
        subject.hold(booking_id, window)
    # What surrounds each trip is known to be as before, so only what is near is compared.
    _compare(name, subject, [*work.held, *more], [*more, *windows[:20]])
    for booking_id, _ in some:
        subject.release(booking_id)
    _compare(name, subject, work.held, [*more, *windows[:20]])


def _compare(
    name: str, subject: Subject, held: list[TimeWindow], windows: Iterable[TimeWindow]
) -> None:
    for window in windows:
        truly_free = not any(window.overlaps(other) for other in held)
        (prepared,) = _prepared(subject, [window])
        if bool(subject.is_free(prepared)) is not truly_free:
            raise Disagreement(
                f"{name} says that {window} is {'taken' if truly_free else 'free'}, which it is"
                f" not, among {len(held):,} bookings."
            )


def _prepared(subject: Subject, windows: list[TimeWindow]) -> list[Any]:
    return list(map(subject.prepare, windows)) if isinstance(subject, Rival) else windows


def _numbered(subject: Subject, work: Work) -> Iterator[tuple[int, Any]]:
    """The extras, with numbers that no booking has."""
    return enumerate(_prepared(subject, work.extras), start=len(work.held))
