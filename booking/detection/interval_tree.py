"""Interval tree: the textbook's structure for "which intervals overlap?", from a library.

Idea
----
A balanced tree whose nodes each hold the intervals that cross the node's
centre, so that a query can leave out whole halves of the calendar. It asks
nothing of its intervals: they may overlap as they please.

What happens
------------
The package `intervaltree` keeps the tree balanced; `overlap(begin, end)`
descends along both ends of the window and collects what it meets. Its neighbour
`overlaps(begin, end)`, with an s, reads like the better question, since it
answers yes or no. But when nothing holds `begin`, it goes through every boundary
of the *whole tree* to see which lie in the window, so a free window costs a
linear search. That is `interval_tree_overlaps`; `taxi bench detection` shows the
two side by side.

Costs
-----
O(log n + k) for a query of n windows that finds k; O(log n) for `hold` and
`release`. Each step is Python on objects, so the constant is large: compare it
with `bisect_neighbours`, which has the same exponent.

Breaks when
-----------
One asks of it what it does not check. An empty or inverted query "overlaps
nothing", without a word (here a `TimeWindow` cannot be either). Datetimes of one
local zone would be compared by the clock on the wall (here they are UTC). And
the hash of an interval ignores its data, so a whole fleet with the same working
hours, put into one tree, turns it quadratic.
"""

from collections.abc import Iterator, Sequence

import intervaltree

from booking.calendars import Held
from booking.errors import BookingConflict
from booking.time_window import TimeWindow


class IntervalTree:
    """The library's tree behind the port, asked by `overlap`, never by `overlaps`."""

    def __init__(self) -> None:
        self._tree = intervaltree.IntervalTree()
        self._interval_of: dict[int, intervaltree.Interval] = {}

    def hold(self, booking_id: int, window: TimeWindow) -> None:
        """As `Calendar.hold`. O(log n + k) for k conflicts."""
        if booking_id in self._interval_of:
            raise ValueError(f"Booking {booking_id} already holds a window.")
        conflicts = self.conflicts(window)
        if conflicts:
            raise BookingConflict(conflicts=conflicts)
        interval = intervaltree.Interval(window.start, window.end, booking_id)
        self._tree.add(interval)
        self._interval_of[booking_id] = interval

    def release(self, booking_id: int) -> None:
        """As `Calendar.release`. O(log n)."""
        self._tree.remove(self._interval_of.pop(booking_id))

    def is_free(self, window: TimeWindow) -> bool:
        """As `Calendar.is_free`. O(log n + k) for k conflicts."""
        return not self._tree.overlap(window.start, window.end)

    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        """As `Calendar.conflicts`. O(log n + k log k) for k conflicts."""
        return [_held(each) for each in sorted(self._tree.overlap(window.start, window.end))]

    def __iter__(self) -> Iterator[Held]:
        return (_held(each) for each in sorted(self._tree))

    def __len__(self) -> int:
        return len(self._tree)


def _held(interval: intervaltree.Interval) -> Held:
    return Held(interval.data, TimeWindow(interval.begin, interval.end))
