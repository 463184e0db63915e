"""`FleetIndex`: the bookings of every driver in memory, to answer and never to decide.

One `Calendar` for each driver and one `Roster` for each fleet, fed with what
somebody read of the system of record. It is therefore always a little behind,
and may even be wrong; whoever wants to *record* something asks a `Ledger`.

A calendar refuses windows that overlap, and rightly. Yet overlapping windows do
reach the index: a new booking is heard of before the cancellation that made room
for it, and an unsafe recipe really leaves double bookings behind. Such a window
waits beside the calendar, counts in every answer, and moves in when there is room.

Only what ends after `horizon` is held, so memory does not grow for ever. A
question about earlier times, or about a driver nobody told of, is not answered
but raises `NotInMemory`.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from booking.calendars import Calendar, Held, gaps_between
from booking.errors import BookingConflict, TaxiError
from booking.rosters import Roster
from booking.time_window import LATEST, TimeWindow

LOOK_AHEAD = timedelta(days=7)
"""How far ahead the next free window is looked for."""

_BEGINNING = datetime.min.replace(tzinfo=UTC)
_MINUTE_S = 60


class NotInMemory(TaxiError):
    """Memory does not reach that far; ask the system of record."""


class Claim(NamedTuple):
    """Time of a driver that a booking holds."""

    booking_id: int
    driver_id: int
    window: TimeWindow


@dataclass(slots=True)
class _Driver:
    """A driver's held time; without a fleet the driver has retired, or is not heard of yet."""

    calendar: Calendar
    fleet: str | None = None
    waiting: dict[int, TimeWindow] = field(default_factory=dict)
    """Windows that overlap one in the calendar, by booking."""

    def is_free(self, window: TimeWindow) -> bool:
        return self.calendar.is_free(window) and not any(
            window.overlaps(other) for other in self.waiting.values()
        )

    def conflicts(self, window: TimeWindow) -> list[Held]:
        held = list(self.calendar.conflicts(window))
        if self.waiting:
            held += [Held(*each) for each in self.waiting.items() if window.overlaps(each[1])]
            held.sort(key=_by_start)
        return held


class FleetIndex:
    """Who is free, and when, as far as this process has heard.

    `new_calendar` and `new_roster` make an empty calendar and an empty roster.
    Synchronous and pure, for one thread. n is the number of windows of a driver;
    the cost of an answer is that of the calendar or roster that gives it.
    """

    def __init__(
        self, new_calendar: Callable[[], Calendar], new_roster: Callable[[], Roster]
    ) -> None:
        self._new_calendar = new_calendar
        self._new_roster = new_roster
        self.horizon = _BEGINNING
        """Only what ends after this instant is held."""
        self.clear()

    def clear(self) -> None:
        """Forget every driver and every booking."""
        self._drivers: dict[int, _Driver] = {}
        self._rosters: dict[str, Roster] = {}
        self._claims: dict[int, Claim] = {}
        self._ending: defaultdict[int, set[int]] = defaultdict(set)  # minute: bookings
        self._crowded: set[int] = set()  # drivers with a window that waits

    # What somebody read -------------------------------------------------------

    def apply_driver(self, driver_id: int, fleet: str | None) -> None:
        """Say which fleet the driver works in; None when the driver has retired.

        Saying it again changes nothing. The last word counts.
        """
        driver = self._drivers.get(driver_id)
        if driver is None:
            if fleet is None:
                return
            driver = self._drivers[driver_id] = _Driver(self._new_calendar())
        if driver.fleet == fleet:
            return
        if driver.fleet is not None:
            self._rosters[driver.fleet].dismiss(driver_id)
        driver.fleet = fleet
        if fleet is None:
            self._forget_if_idle(driver_id, driver)
            return
        roster = self._rosters.get(fleet)
        if roster is None:
            roster = self._rosters[fleet] = self._new_roster()
        roster.enrol(driver_id)
        for held in driver.calendar:
            roster.hold(driver_id, held.window)

    def apply_booking(self, booking_id: int, driver_id: int, window: TimeWindow | None) -> None:
        """Say which time of the driver the booking holds; None when it holds none.

        Saying it again changes nothing. The last word counts; the order in which
        *different* bookings come does not matter.
        """
        if window is not None and window.end <= self.horizon:
            window = None
        claim = self._claims.get(booking_id)
        if claim is not None:
            if claim.window == window and claim.driver_id == driver_id:
                return
            self._release(claim)
        if window is not None:
            self._hold(Claim(booking_id, driver_id, window))

    def forget_before(self, horizon: datetime) -> int:
        """Move `horizon` forward and drop what ended before it. Returns how many were dropped.

        Windows are dropped by the whole minute, so a few stay a little longer.
        """
        before, self.horizon = self.horizon, max(self.horizon, horizon)
        if _minute(before) == _minute(self.horizon):
            return 0
        past = [minute for minute in self._ending if minute < _minute(self.horizon)]
        gone = [booking_id for minute in past for booking_id in self._ending[minute]]
        for booking_id in gone:
            self._release(self._claims[booking_id])
        return len(gone)

    # What it answers ----------------------------------------------------------

    def free_drivers(
        self, window: TimeWindow, fleet: str, limit: int, without: Collection[int] = ()
    ) -> list[int]:
        """Up to `limit` drivers of the fleet who are free for the whole window.

        Fewer only if there are no more. Drivers in `without` are left out.
        Raises `NotInMemory` for a window before the horizon.
        """
        self._check(window)
        roster = self._rosters.get(fleet)
        if roster is None:
            return []
        # The roster does not know of the windows that wait, so it may offer a driver too many.
        doubtful = len(self._crowded) + len(without)
        offered = roster.free(window, limit + doubtful)
        if not doubtful:
            return list(offered)
        free = (
            driver_id
            for driver_id in offered
            if driver_id not in without
            and (driver_id not in self._crowded or self._drivers[driver_id].is_free(window))
        )
        return [driver_id for driver_id, _ in zip(free, range(limit), strict=False)]

    def fleet_of(self, driver_id: int) -> str:
        """The fleet for which the driver works. Raises `NotInMemory` if not known to work."""
        driver = self._drivers.get(driver_id)
        if driver is None or driver.fleet is None:
            raise NotInMemory
        return driver.fleet

    def conflicts(self, driver_id: int, window: TimeWindow) -> list[Held]:
        """The driver's bookings that overlap the window, in order of start.

        Raises `NotInMemory`.
        """
        self._check(window)
        driver = self._drivers.get(driver_id)
        if driver is None:
            raise NotInMemory
        return driver.conflicts(window)

    def __iter__(self) -> Iterator[Claim]:
        """Everything that is held, in no particular order."""
        return iter(self._claims.values())

    def __len__(self) -> int:
        """How many bookings are held."""
        return len(self._claims)

    # How it keeps itself ------------------------------------------------------

    def _check(self, window: TimeWindow) -> None:
        if window.start < self.horizon:
            raise NotInMemory

    def _hold(self, claim: Claim) -> None:
        driver = self._drivers.get(claim.driver_id)
        if driver is None:
            driver = self._drivers[claim.driver_id] = _Driver(self._new_calendar())
        self._claims[claim.booking_id] = claim
        self._ending[_minute(claim.window.end)].add(claim.booking_id)
        if not self._move_in(driver, claim):
            driver.waiting[claim.booking_id] = claim.window
            self._crowded.add(claim.driver_id)

    def _move_in(self, driver: _Driver, claim: Claim) -> bool:
        try:
            driver.calendar.hold(claim.booking_id, claim.window)
        except BookingConflict:
            return False
        if driver.fleet is not None:
            self._rosters[driver.fleet].hold(claim.driver_id, claim.window)
        return True

    def _release(self, claim: Claim) -> None:
        driver = self._drivers[claim.driver_id]
        del self._claims[claim.booking_id]
        minute = _minute(claim.window.end)
        self._ending[minute].discard(claim.booking_id)
        if not self._ending[minute]:
            del self._ending[minute]
        if driver.waiting.pop(claim.booking_id, None) is None:
            driver.calendar.release(claim.booking_id)
            if driver.fleet is not None:
                self._rosters[driver.fleet].release(claim.driver_id, claim.window)
            self._let_in(driver)
        if not driver.waiting:
            self._crowded.discard(claim.driver_id)
        self._forget_if_idle(claim.driver_id, driver)

    def _let_in(self, driver: _Driver) -> None:
        """Move in every waiting window for which there is room now."""
        for booking_id in list(driver.waiting):
            if self._move_in(driver, self._claims[booking_id]):
                del driver.waiting[booking_id]

    def _forget_if_idle(self, driver_id: int, driver: _Driver) -> None:
        if driver.fleet is None and not driver.waiting and not len(driver.calendar):
            del self._drivers[driver_id]


def search_window(window: TimeWindow) -> TimeWindow:
    """All the time in which the next free window like this one is looked for."""
    return TimeWindow(window.start, window.end + min(LOOK_AHEAD, LATEST - window.end))


def next_free_among(
    taken: Sequence[Held], window: TimeWindow, besides: Sequence[Held] = ()
) -> TimeWindow | None:
    """The earliest window as long as this one that overlaps nothing in `taken` or `besides`.

    It begins at or after `window.start` and at most `LOOK_AHEAD` later; None if
    there is none. `taken` is what is held in `search_window(window)`, in order
    of start. `besides` are bookings that the caller knows of, so that whoever
    was just refused is not offered the same time again by a memory that has not
    heard of the reason yet.
    """
    if besides:
        taken = sorted((*taken, *besides), key=_by_start)
    for gap in gaps_between(taken, search_window(window), window.duration):
        return window.moved_to(gap.start)
    return None


def _by_start(held: Held) -> datetime:
    return held.window.start


def _minute(instant: datetime) -> int:
    return int(instant.timestamp()) // _MINUTE_S
