"""Overrun: the predicted end was wrong, so who comes too late, and what is done about it?

A booking rests on a *predicted* end. When the prediction changes, the driver's next
bookings, the *chain*, are worked out again: a late end makes the next start late,
and a late start makes its end late by as much, until free time between two bookings
has swallowed the lateness. Bookings that can no longer start when they should are
*at risk*.

What is held of a driver's time is always when the driver can really come. So a
booking at risk is never left where it overlaps another: its window moves, and how
far it is from what the rider was *promised* is its lateness. The remedies differ in
who is told, and in whose time it becomes. Lateness counts from the first promise, so
that many small delays do not add up to a great one that nobody allowed.

Nothing here reads a clock or changes anything: a plan is data, for a ledger to carry
out in one transaction.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import NamedTuple, Protocol

from booking.errors import InvalidInput
from booking.time_window import TimeWindow, utc


class NotAChain(InvalidInput):
    """A driver's bookings must come in order of start, and must not overlap."""


class AlreadyPast(InvalidInput):
    """A trip cannot be predicted to end in the past."""


@dataclass(frozen=True, slots=True)
class Upcoming:
    """A booking in a driver's chain. Its time is held from `start` to `predicted_end`.

    `gap_before_s` must lie between the end of the booking before and this start, for
    travel and turnaround; it is taken as it is, also if the one before is given away.
    `promised_start` is what the rider was first promised, where the booking has been
    moved since; never after `start`.

    Raises `InvalidInput` for a negative gap or a promise after the start, and as
    `TimeWindow` does.
    """

    booking_id: int
    start: datetime
    predicted_end: datetime
    gap_before_s: float = 0
    promised_start: datetime | None = None

    def __post_init__(self) -> None:
        window = TimeWindow(self.start, self.predicted_end)
        # Local times of one zone would be compared by the clock on the wall.
        object.__setattr__(self, "start", window.start)
        object.__setattr__(self, "predicted_end", window.end)
        if not self.gap_before_s >= 0:
            raise InvalidInput("A gap must not be negative.", field="gap_before_s")
        if self.promised_start is not None:
            promised = utc(self.promised_start, "promised_start")
            object.__setattr__(self, "promised_start", promised)
            if promised > self.start:
                raise InvalidInput("A booking is not held before its time.", field="promised_start")

    @property
    def window(self) -> TimeWindow:
        """The time that is held, `[start, predicted_end)`."""
        return TimeWindow(self.start, self.predicted_end)

    def after(self, free_from: datetime) -> datetime:
        """When it can start at the earliest, if the driver is free from then on."""
        return max(self.start, free_from + timedelta(seconds=self.gap_before_s))

    def late_s(self, start: datetime) -> float:
        """How late that start would be, against what the rider was first promised."""
        return (start - (self.promised_start or self.start)).total_seconds()


@dataclass(frozen=True, slots=True)
class Chain:
    """A driver's bookings from `first`, whose end is predicted anew, in order of start.

    Raises `NotAChain` if they are out of order, or overlap.
    """

    driver_id: int
    first: Upcoming
    following: Sequence[Upcoming] = ()

    def __post_init__(self) -> None:
        before = self.first
        for booking in self.following:
            if booking.start < before.predicted_end:
                raise NotAChain(field="following")
            before = booking


class AtRisk(NamedTuple):
    """A booking that cannot start when it should; `start` is when it can."""

    booking: Upcoming
    start: datetime
    late_s: float


def at_risk(chain: Chain, predicted_end: datetime) -> list[AtRisk]:
    """The bookings that come too late if `first` ends then and nothing is done. O(n).

    Raises `EmptyWindow` if it would end before it starts.
    """
    new = TimeWindow(chain.first.start, predicted_end)
    return list(_delayed(chain.following, new.end))


def given_back(booking: Upcoming, actual_end: datetime) -> TimeWindow | None:
    """The time that an early end gives back; None if it was not early."""
    free_from = max(utc(actual_end, "actual_end"), booking.start)
    if free_from >= booking.predicted_end:
        return None
    return TimeWindow(free_from, booking.predicted_end)


def clock_passed(
    start: datetime,
    predicted_end: datetime,
    now: datetime,
    *,
    least_s: float = 120,
    growth: float = 0.1,
) -> datetime | None:
    """The new predicted end of a trip that is still under way; None if the old one is to come.

    It is `now`, and a tenth (`growth`) of the time that the trip has taken so far,
    but `least_s` at least. The longer a trip has lasted, the longer it is likely to
    go on, if a few are very long; and each prediction makes a plan. So a trip that
    takes k times as long as predicted is predicted anew about log k / log 1.1
    times, and not every two minutes.
    """
    now = utc(now, "now")
    if now < utc(predicted_end, "predicted_end"):
        return None
    so_far = now - utc(start, "start")
    return now + max(timedelta(seconds=least_s), growth * so_far)


class Remedy(StrEnum):
    """What is done about a booking at risk."""

    WAIT = "wait"
    """The rider waits a little, and the promise stands."""
    PUSH_BACK = "push_back"
    """The rider is told a new time."""
    GIVE_AWAY = "give_away"
    """Another driver takes it, at the time that is held now."""
    CALL_DISPATCHER = "call_dispatcher"
    """Nothing that the policy allows will do. It stays at risk, and a person decides."""


class Step(NamedTuple):
    """What becomes of one booking: whose time it takes, and when."""

    booking_id: int
    remedy: Remedy
    driver_id: int
    window: TimeWindow
    late_s: float
    """Against what the rider was first promised."""


class FreeDriver(Protocol):
    """Finds some driver who can take a trip in that window, travel and turnaround included."""

    def __call__(self, window: TimeWindow, other_than: frozenset[int]) -> int | None:
        """Somebody who is not one of those; None if there is nobody."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """How late a booking may come. Up to `tolerance_s` the rider waits without being asked.

    Up to `may_push_back_s` the rider is told a new time, unless somebody behind
    would then wait for longer than the tolerance: nobody else pays for it.
    Otherwise another driver is looked for, and if there is none, the dispatcher is
    called.

    Raises `InvalidInput` unless 0 <= `tolerance_s` <= `may_push_back_s`.
    """

    tolerance_s: float = 300
    may_push_back_s: float = 900

    def __post_init__(self) -> None:
        if not self.tolerance_s >= 0:
            raise InvalidInput("It must be at least 0.", field="tolerance_s")
        if not self.may_push_back_s >= self.tolerance_s:
            raise InvalidInput("It must be at least the tolerance.", field="may_push_back_s")

    def plan(
        self, chain: Chain, predicted_end: datetime, now: datetime, free_driver: FreeDriver
    ) -> list[Step]:
        """What to do if `first` ends at `predicted_end`: a step for each booking that moves.

        In order of the chain. Whatever has no step stays as it is, and once every
        step has been taken, no driver's windows overlap. Taken from the last to the
        first, with the end of `first` after them all, they do not overlap in between
        either: each step moves into time that is free by then.

        Each other driver is given one booking at most, since the way from one to the
        next is not known here. O(n²) for n bookings in the chain, and asks
        `free_driver` n times at most.

        Raises `AlreadyPast` if `predicted_end` lies before `now`, and as `at_risk` does.
        """
        free_from = TimeWindow(chain.first.start, predicted_end).end
        now = utc(now, "now")
        if free_from < now:
            raise AlreadyPast(field="predicted_end")
        steps: list[Step] = []
        engaged = {chain.driver_id}
        for place, booking in enumerate(chain.following):
            window = booking.window.moved_to(booking.after(free_from))
            if window != booking.window:
                find = partial(free_driver, other_than=frozenset(engaged))
                step = (
                    self._stay(chain, place, window)
                    or self._give_away(booking, now, find)
                    or _step(booking, Remedy.CALL_DISPATCHER, chain.driver_id, window)
                )
                steps.append(step)
                engaged.add(step.driver_id)
                if step.driver_id != chain.driver_id:
                    continue  # the driver is as free as before
            free_from = window.end
        return steps

    def _stay(self, chain: Chain, place: int, window: TimeWindow) -> Step | None:
        """The booking keeps its driver, who comes late; None if that is too late."""
        booking, behind = chain.following[place], chain.following[place + 1 :]
        late_s = booking.late_s(window.start)
        if late_s <= self.tolerance_s:
            return _step(booking, Remedy.WAIT, chain.driver_id, window)
        if late_s <= self.may_push_back_s and all(
            each.late_s <= self.tolerance_s for each in _delayed(behind, window.end)
        ):
            return _step(booking, Remedy.PUSH_BACK, chain.driver_id, window)
        return None

    def _give_away(
        self, booking: Upcoming, now: datetime, find: Callable[[TimeWindow], int | None]
    ) -> Step | None:
        """Another driver takes it as it is held, or from now on if that has passed."""
        window = booking.window.moved_to(max(booking.start, now))
        if booking.late_s(window.start) > self.may_push_back_s:
            return None
        driver_id = find(window)
        return None if driver_id is None else _step(booking, Remedy.GIVE_AWAY, driver_id, window)


def _delayed(bookings: Iterable[Upcoming], free_from: datetime) -> Iterator[AtRisk]:
    """Those that cannot start in time if the driver is free from then on."""
    for booking in bookings:
        start = booking.after(free_from)
        if start > booking.start:
            yield AtRisk(booking, start, booking.late_s(start))
        free_from = start + booking.window.duration


def _step(booking: Upcoming, remedy: Remedy, driver_id: int, window: TimeWindow) -> Step:
    return Step(booking.booking_id, remedy, driver_id, window, booking.late_s(window.start))
