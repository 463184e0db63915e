"""Was the service right? Four checks of what it said against what it wrote.

The checks are pure functions over the recorded history of a run (every request
with the moments of its sending and of its answer) and the rows of the ledger
after it. They know the rule, and nothing of how a recipe keeps it.

1. **Double bookings.** Two bookings of one driver over the same time. Those that
   are left at the end are found by `booking.postgres.audit` in the ledger itself;
   `passing_double_bookings` finds those of which one was given back before.
2. **Lost bookings.** `lost_bookings`: what was acknowledged is there, for the
   driver and the window that were acknowledged, unless a later request moved or
   cancelled it; it was told to nobody else; and its rider and driver are those
   that were asked for.
3. **Unjustified refusals.** `unjustified_refusals`: whoever was told that the time
   is held could be shown a booking that held it, at some moment between the
   sending and the answer.
4. **Unexpected answers.** `unexpected_answers`: an answer is a success, a refusal
   because time is held, or a request to come back later. All else is a fault of
   the service, as the load asks for nothing that is wrong.

What is proven. An observer at the client cannot know at which moment a request
took effect, only that it lies between sending and answer, and of a request
without an answer not even whether. So every booking has two spans: in which it
*may* have held its time (from the sending of the request that made it, to the
answer of the one that took it away), and in which it *surely* did (from answer
to sending). A double booking is reported where two sure spans meet; a refusal
where no possible span does. Each report is therefore certain, whatever the
network did.

What is not proven. The converse: a refusal that is let pass may still have been
wrong, if the booking that could have held the time was made or cancelled at the
same moment; a request that got no answer, and a row that nobody was told of,
excuse much. For "nobody is free" there must be one moment at which every driver
of the fleet may have been held. The clocks of all requests are one machine's;
if it is set while a run lasts, the checks mean nothing.
"""

import heapq
import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from booking.bookings import LONGEST, BookingState
from loadtest.history import CONFLICT, Request

_Span = tuple[float, float]
"""A closed span of moments, in seconds."""


class Row(NamedTuple):
    """A booking as the ledger has it in the end, active or not, and for which rider."""

    booking_id: int
    driver_id: int
    start: datetime
    end: datetime
    state: BookingState
    rider_id: int


@dataclass(frozen=True, slots=True)
class Stay:
    """Time of a driver, and from when until when (s) a booking may have, and surely had, it."""

    booking_id: int
    driver_id: int
    start: datetime
    end: datetime
    may_from_s: float = -math.inf
    may_until_s: float = math.inf
    sure_from_s: float = math.inf
    sure_until_s: float = -math.inf

    def overlaps(self, start: datetime, end: datetime) -> bool:
        """Whether it is about some of the time in `[start, end)`."""
        return self.start < end and start < self.end


class Together(NamedTuple):
    """Two bookings of one driver that surely held the same time at once, for a while."""

    first: Stay
    second: Stay


class Lost(NamedTuple):
    """An acknowledged booking that is not in the ledger as it should be, and what is wrong."""

    booking_id: int
    driver_id: int | None
    start: datetime | None
    end: datetime | None
    reason: str


class Unjustified(NamedTuple):
    """A refusal with nothing in the way, and what is wrong with it."""

    driver_id: int | None
    start: datetime | None
    end: datetime | None
    sent_s: float
    answered_s: float
    reason: str


@dataclass(slots=True)
class _Story:
    """What the history tells of one booking that was acknowledged, and to whom else it was."""

    made: Request
    made_again: list[Request] = field(default_factory=list)
    moves: list[Request] = field(default_factory=list)
    cancels: list[Request] = field(default_factory=list)

    @property
    def cancelled_s(self) -> float:
        """When it was surely cancelled; never, if no cancellation was acknowledged."""
        times = [_done_s(each) for each in self.cancels if each.acknowledged]
        return min(times, default=math.inf)


def _done_s(request: Request) -> float:
    """When it had surely taken effect, if it ever did; never known without a plain answer."""
    return math.inf if request.answered_s is None or request.unknown else request.answered_s


def stories(history: Iterable[Request]) -> dict[int, _Story]:
    """The requests about each booking that was acknowledged, by its number.

    Those that were refused changed nothing and are left out.
    """
    told: dict[int, _Story] = {}
    later: list[Request] = []
    for request in history:
        if request.booking_id is None or not (request.acknowledged or request.unknown):
            continue
        if request.action == "book" and request.acknowledged:
            if request.booking_id in told:
                told[request.booking_id].made_again.append(request)
            else:
                told[request.booking_id] = _Story(request)
        elif request.action in {"reschedule", "cancel"}:
            later.append(request)
    for request in later:
        story = told.get(request.booking_id or 0)
        if story is not None:
            (story.moves if request.action == "reschedule" else story.cancels).append(request)
    return told


def stays(history: Sequence[Request], rows: Iterable[Row]) -> list[Stay]:
    """All that may have held time while the history lasted, the ledger's rows included.

    A row that no acknowledgement explains may have held its time all along.
    """
    told = stories(history)
    found: list[Stay] = []
    explained: set[tuple[int, int, datetime, datetime]] = set()
    for booking_id, story in told.items():
        for stay in _stays_of(booking_id, story):
            found.append(stay)
            explained.add((booking_id, stay.driver_id, stay.start, stay.end))
    found += [Stay(*row[:4]) for row in rows if row[:4] not in explained]
    return found


def _stays_of(booking_id: int, story: _Story) -> Iterator[Stay]:
    """The windows that a booking had one after the other, or may have had."""
    driver_id = story.made.booked_driver_id
    for begun in (story.made, *story.moves):
        if driver_id is None or begun.start is None or begun.end is None:
            continue
        begun_s = _done_s(begun)
        others = [each for each in story.moves if each is not begun]
        # A move that was sent after this window was surely held came after it. One that was
        # under way at the same time may have come before: it ends nothing for sure.
        superseded_s = min(
            (_done_s(each) for each in others if each.acknowledged and each.left_s >= begun_s),
            default=math.inf,
        )
        enders = [*story.cancels, *(each for each in others if _done_s(each) > begun.left_s)]
        yield Stay(
            booking_id,
            driver_id,
            begun.start,
            begun.end,
            may_from_s=begun.left_s,
            # Nothing leaves a final state: after a cancellation it holds nothing at all.
            may_until_s=min(superseded_s, story.cancelled_s),
            sure_from_s=begun_s,
            sure_until_s=min((each.left_s for each in enders), default=math.inf),
        )


def passing_double_bookings(history: Sequence[Request], rows: Iterable[Row]) -> list[Together]:
    """Pairs of bookings that surely held the same time at once, and no more do.

    One of the two was cancelled or moved since, so a look at the ledger in the
    end shows nothing. O(R log R) for R requests, as long as few overlap.
    """
    left = {row[:4] for row in rows if row.state.active}
    by_driver: defaultdict[int, list[Stay]] = defaultdict(list)
    for stay in stays(history, ()):
        if stay.sure_from_s < stay.sure_until_s:
            by_driver[stay.driver_id].append(stay)
    return [
        pair
        for each in by_driver.values()
        for pair in _together(each)
        if not all((s.booking_id, s.driver_id, s.start, s.end) in left for s in pair)
    ]


def _together(of_one_driver: list[Stay]) -> Iterator[Together]:
    """Sweep through the moments, with all that is held at each in order of its start."""
    held: list[Stay] = []
    ends: list[tuple[float, int]] = []
    ordered = sorted(of_one_driver, key=lambda stay: stay.sure_from_s)
    for number, stay in enumerate(ordered):
        while ends and ends[0][0] <= stay.sure_from_s:
            _remove(held, ordered[heapq.heappop(ends)[1]])
        for other in _over(held, stay.start, stay.end):
            if other.booking_id != stay.booking_id:
                yield Together(other, stay)
        insort(held, stay, key=_start)
        heapq.heappush(ends, (stay.sure_until_s, number))


def _remove(by_start: list[Stay], stay: Stay) -> None:
    at = bisect_left(by_start, stay.start, key=_start)
    while by_start[at] is not stay:
        at += 1
    del by_start[at]


def _start(stay: Stay) -> datetime:
    return stay.start


def _over(by_start: list[Stay], start: datetime, end: datetime) -> list[Stay]:
    """Those over some of `[start, end)`, of stays in order of their start."""
    # No booking is longer than `LONGEST`, so none that began before that lasts until now.
    first = bisect_right(by_start, start - LONGEST, key=_start)
    last = bisect_left(by_start, end, key=_start)
    return [stay for stay in by_start[first:last] if stay.overlaps(start, end)]


def lost_bookings(
    history: Sequence[Request], rows: Iterable[Row], fleet: Sequence[int] = ()
) -> list[Lost]:
    """Acknowledged bookings that are not there as they were asked for and acknowledged.

    `fleet` are the drivers among whom a request for any driver chooses.
    """
    by_id = {row.booking_id: row for row in rows}
    drivers = frozenset(fleet)
    lost: list[Lost] = []
    for booking_id, story in stories(history).items():
        windows, row = list(_stays_of(booking_id, story)), by_id.get(booking_id)
        reason = _not_as_asked(story.made, drivers) or _whats_wrong(story, windows, row)
        if reason:
            lost.append(_lost(story.made, reason))
        lost += [
            _lost(each, "Another request was told that it made it.") for each in story.made_again
        ]
    return lost


def _lost(made: Request, reason: str) -> Lost:
    return Lost(made.booking_id or 0, made.booked_driver_id, made.start, made.end, reason)


def _not_as_asked(made: Request, fleet: frozenset[int]) -> str:
    asked_for, booked = made.driver_id, made.booked_driver_id
    if asked_for is not None and asked_for != booked:
        return f"It was acknowledged for driver {booked}, and driver {asked_for} was asked for."
    if asked_for is None and booked not in fleet:
        return f"It was acknowledged for driver {booked}, who is not of the fleet."
    return ""


def _whats_wrong(story: _Story, windows: list[Stay], row: Row | None) -> str:
    if row is None:
        return "It is not in the ledger."
    if row.rider_id != story.made.rider_id:
        return (
            f"It is there for rider {row.rider_id}, and rider {story.made.rider_id} asked for it."
        )
    cancelled = math.isfinite(story.cancelled_s)
    if cancelled and row.state.active:
        return "Its cancellation was acknowledged, and it still holds its time."
    if not row.state.active and not story.cancels:
        return f"Nobody cancelled it, and it is {row.state.value}."
    # Any window that no later move has surely taken the place of may be the last one.
    last = [stay for stay in windows if cancelled or math.isinf(stay.may_until_s)]
    if not any((stay.driver_id, stay.start, stay.end) == row[1:4] for stay in last):
        return (
            f"It is there for driver {row.driver_id}, {row.start:%Y-%m-%d %H:%M}"
            f" to {row.end:%H:%M}, which nobody was told."
        )
    return ""


def unjustified_refusals(
    history: Sequence[Request], rows: Iterable[Row], fleet: Sequence[int] = ()
) -> list[Unjustified]:
    """Refusals for which nothing can have been in the way.

    `fleet` are the drivers among whom a request for any driver chooses.
    O(R log R) for R requests that name a driver, and that times the fleet for
    those that do not.
    """
    held = _Held(stays(history, rows))
    found: list[Unjustified] = []
    for request in history:
        if not request.refused or request.start is None or request.end is None:
            continue
        reason = _whats_unjust(request, (request.start, request.end), held, fleet)
        if reason:
            found.append(
                Unjustified(
                    request.driver_id,
                    request.start,
                    request.end,
                    request.left_s,
                    _done_s(request),
                    reason,
                )
            )
    return found


def _whats_unjust(
    request: Request, window: tuple[datetime, datetime], held: "_Held", fleet: Sequence[int]
) -> str:
    under_way = (request.left_s, _done_s(request))
    if request.problem == CONFLICT:
        driver_id = request.driver_id
        if driver_id is None:
            return "A conflict was answered where no driver was named."
        itself = request.booking_id if request.action == "reschedule" else None
        if any(stay.booking_id != itself for stay in held.during(driver_id, window, under_way)):
            return ""
        return f"No booking of driver {driver_id} can have held any of that time."
    if request.driver_id is not None:
        return f"Nobody was said to be free, and driver {request.driver_id} was asked for."
    moments = [under_way]
    for driver_id in fleet:
        moments = held.moments(driver_id, window, moments)
        if not moments:
            return (
                "There is no moment at which every driver can have been held;"
                f" driver {driver_id} is the last who makes it so."
            )
    return ""


class _Held:
    """When which time of whom may have been held."""

    def __init__(self, found: Iterable[Stay]) -> None:
        by_driver: defaultdict[int, list[Stay]] = defaultdict(list)
        for stay in sorted(found, key=_start):
            by_driver[stay.driver_id].append(stay)
        self._by_driver: Mapping[int, list[Stay]] = by_driver
        self._over: dict[tuple[int, datetime, datetime], list[Stay]] = {}

    def during(
        self, driver_id: int, window: tuple[datetime, datetime], span: _Span
    ) -> Iterator[Stay]:
        """What may have held some of that time at some moment of the span."""
        from_s, until_s = span
        return (
            stay
            for stay in self._stays(driver_id, *window)
            if stay.may_from_s <= until_s and from_s <= stay.may_until_s
        )

    def moments(
        self, driver_id: int, window: tuple[datetime, datetime], among: list[_Span]
    ) -> list[_Span]:
        """The moments, among those given, at which some of that time may have been held."""
        return _joined(
            sorted(
                (max(stay.may_from_s, span[0]), min(stay.may_until_s, span[1]))
                for span in among
                for stay in self.during(driver_id, window, span)
            )
        )

    def _stays(self, driver_id: int, start: datetime, end: datetime) -> list[Stay]:
        """The stays over that time. Hot windows are asked for again and again: kept."""
        key = (driver_id, start, end)
        if key not in self._over:
            self._over[key] = _over(self._by_driver.get(driver_id, []), start, end)
        return self._over[key]


def _joined(spans: list[_Span]) -> list[_Span]:
    joined: list[_Span] = []
    for from_s, until_s in spans:
        if joined and from_s <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], until_s))
        else:
            joined.append((from_s, until_s))
    return joined


def unexpected_answers(history: Iterable[Request]) -> list[Request]:
    """Those answered by what is no answer to them, and bookings that nobody could look up."""
    return [
        request
        for request in history
        if (request.status and not _is_expected(request)) or _says_not_which(request)
    ]


def _is_expected(request: Request) -> bool:
    return request.acknowledged or request.refused or request.turned_away


def _says_not_which(request: Request) -> bool:
    booked = request.booking_id is not None and request.booked_driver_id is not None
    return request.acknowledged and request.action == "book" and not booked
