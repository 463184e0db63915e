"""Walk the fleet: ask one driver after the other whether they are free.

Idea
----
There is a calendar for each driver already, so go through the dictionary and
ask each until one says yes.

What happens
------------
It is what was said at the whiteboard: for each driver, look at each booking.
`any_free` walks in the order in which the drivers were enrolled and takes the
first who is free; `free` walks on until it has enough. Any `Calendar` will do:
the walk is as good as the calendar it asks, times the number of drivers. Here
it asks `linear_scan`; `walk_with_bisect` is the same walk with a better one.

Costs
-----
With D drivers of whom a share p is free, about 1/p calendars are asked, and all
D when nobody is free: O(D n) for n windows a driver. `hold` and `release` cost
what they cost in one calendar, O(n).

Breaks when
-----------
The fleet is large and busy. On a quiet night the first driver asked is free and
nothing could be faster; on New Year's Eve, when every request must hear no, each
request walks the whole fleet. And the drivers enrolled first get all the work.
It never breaks by being wrong: it is the oracle that the contract tests hold
every other roster to.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice

from booking.calendars import Calendar
from booking.detection.linear_scan import LinearScan
from booking.errors import BookingConflict, UnknownDriver
from booking.time_window import TimeWindow


class WalkTheFleet:
    """A dictionary from driver to calendar. `calendar` makes an empty one."""

    def __init__(self, calendar: Callable[[], Calendar] = LinearScan) -> None:
        self._new_calendar = calendar
        self._calendars: dict[int, Calendar] = {}
        self._numbers = count(1)

    def enrol(self, driver_id: int) -> None:
        """As `Roster.enrol`. O(1)."""
        if driver_id in self._calendars:
            raise ValueError(f"Driver {driver_id} is enrolled already.")
        self._calendars[driver_id] = self._new_calendar()

    def dismiss(self, driver_id: int) -> None:
        """As `Roster.dismiss`. O(1)."""
        self._calendar(driver_id)
        del self._calendars[driver_id]

    def hold(self, driver_id: int, window: TimeWindow) -> None:
        """As `Roster.hold`. The cost of `Calendar.hold`."""
        calendar = self._calendar(driver_id)
        if not calendar.is_free(window):
            raise BookingConflict
        # A roster knows windows, not bookings; the calendar wants a number, so it gets one.
        calendar.hold(next(self._numbers), window)

    def release(self, driver_id: int, window: TimeWindow) -> None:
        """As `Roster.release`. The cost of `Calendar.conflicts` and `Calendar.release`."""
        calendar = self._calendar(driver_id)
        for held in calendar.conflicts(window):
            if held.window == window:
                calendar.release(held.booking_id)
                return
        raise KeyError(window)

    def any_free(self, window: TimeWindow) -> int | None:
        """As `Roster.any_free`. O(D) calls of `Calendar.is_free`."""
        return next(self._free(window), None)

    def free(self, window: TimeWindow, limit: int) -> Sequence[int]:
        """As `Roster.free`. O(D) calls of `Calendar.is_free`."""
        return list(islice(self._free(window), limit))

    def drivers(self) -> Iterable[int]:
        """As `Roster.drivers`."""
        return self._calendars.keys()

    def _free(self, window: TimeWindow) -> Iterator[int]:
        for driver_id, calendar in self._calendars.items():
            if calendar.is_free(window):
                yield driver_id

    def _calendar(self, driver_id: int) -> Calendar:
        try:
            return self._calendars[driver_id]
        except KeyError:
            raise UnknownDriver(field="driver_id") from None
