"""Fleet tree: one interval tree for all drivers, and whoever is not in the answer is free.

Idea
----
Put the windows of the whole fleet into one interval tree, ask it for all that
overlap the wanted window, and take a driver who is not among them. One driver's
windows never overlap each other, but a fleet's do, and for that the textbook has
this tree.

What happens
------------
The tree answers the question it is good at, "which windows are in the way?", and
it answers in full: on a busy evening that is nearly one window a driver. The
question was another one, "who is *not* in the way?", and that the tree cannot
answer; so every answer is collected only to be struck off a list of drivers.
Each window is in the tree as an interval whose data is the driver.

Costs
-----
With D drivers, N windows held by all, and k of them overlapping the wanted one:
`any_free`, `free`, `hold` and `release` take O(log N + k), and k is nearly D when
nearly everybody is busy. `dismiss` the same for each of the driver's windows.

Breaks when
-----------
Many drivers hold the same window: the same shift, the same lunch, one concert's
end. k is then D for `hold` as well. And below that lies a second trap: the
library keeps intervals in sets and answers with a set, and the hash of an
interval is that of its two ends and ignores its data. The equal windows of k
drivers all fall on one place of the set, each look-up walks past the others, and
one answer of k intervals costs k² steps. Recording the same window for D drivers
then costs D³: a second for the first hundred, and hours for a thousand. A
structure that is right for one question was given another, whose answer is its
complement.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import intervaltree

from booking.errors import BookingConflict, UnknownDriver
from booking.time_window import TimeWindow


class FleetTree:
    """The windows of all drivers in one `intervaltree`, each with its driver for data."""

    def __init__(self) -> None:
        self._tree = intervaltree.IntervalTree()
        self._windows_of: dict[int, set[TimeWindow]] = {}

    def enrol(self, driver_id: int) -> None:
        """As `Roster.enrol`. O(1)."""
        if driver_id in self._windows_of:
            raise ValueError(f"Driver {driver_id} is enrolled already.")
        self._windows_of[driver_id] = set()

    def dismiss(self, driver_id: int) -> None:
        """As `Roster.dismiss`. O(n (log N + k))."""
        for window in self._windows(driver_id):
            self._tree.remove(_interval(driver_id, window))
        del self._windows_of[driver_id]

    def hold(self, driver_id: int, window: TimeWindow) -> None:
        """As `Roster.hold`. O(log N + k)."""
        windows = self._windows(driver_id)
        if driver_id in self._busy(window):
            raise BookingConflict
        self._tree.add(_interval(driver_id, window))
        windows.add(window)

    def release(self, driver_id: int, window: TimeWindow) -> None:
        """As `Roster.release`. O(log N + k)."""
        self._windows(driver_id).remove(window)
        self._tree.remove(_interval(driver_id, window))

    def any_free(self, window: TimeWindow) -> int | None:
        """As `Roster.any_free`. O(log N + k), and as many drivers again at worst."""
        return next(self._free(window), None)

    def free(self, window: TimeWindow, limit: int) -> Sequence[int]:
        """As `Roster.free`. O(log N + k + D)."""
        return list(islice(self._free(window), limit))

    def drivers(self) -> Iterable[int]:
        """As `Roster.drivers`."""
        return self._windows_of.keys()

    def _free(self, window: TimeWindow) -> Iterator[int]:
        busy = self._busy(window)
        return (driver_id for driver_id in self._windows_of if driver_id not in busy)

    def _busy(self, window: TimeWindow) -> set[int]:
        return {each.data for each in self._tree.overlap(window.start, window.end)}

    def _windows(self, driver_id: int) -> set[TimeWindow]:
        try:
            return self._windows_of[driver_id]
        except KeyError:
            raise UnknownDriver(field="driver_id") from None


def _interval(driver_id: int, window: TimeWindow) -> intervaltree.Interval:
    return intervaltree.Interval(window.start, window.end, driver_id)
