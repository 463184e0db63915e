"""Sorted dictionary: the same neighbour, in a list that is cut into short lists.

Idea
----
Look for the neighbour in a structure that never has to move much: a dictionary
whose keys stay in order. Of the bookings that start before the window ends,
only the last can be in the way, since all the others are over before it begins.

What happens
------------
`sortedcontainers.SortedDict` maps each start to the booking that begins there.
Its keys lie in a list of lists of about a thousand, so that a new key shifts its
own short list and nothing else. `bisect_left(window.end)` says how many bookings
start before the window ends; the one before that place is the neighbour, and
one comparison with its end decides.

`bisect_neighbours` finds its neighbour from the other side: the first that ends
after the window starts. Either will do, as there is no overlap in the calendar.

Costs
-----
`is_free` is O(log n) for n windows of the driver; `conflicts` O(log n + k) for k
of them. `hold` and `release` are O(log n), plus the shift of one short list:
what bends upwards in `bisect_neighbours` stays flat here. The price is paid in
small coin: a list of lists needs two searches instead of one, and a position in
it is a sum, all of it in Python. Below some ten thousand bookings the price is
higher than what it buys.

Breaks when
-----------
Windows may overlap: then the last to start need not be the last to end. And when
two bookings start together, as they may across a fleet: a key has one value.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime

import sortedcontainers

from booking.calendars import Held
from booking.errors import BookingConflict
from booking.time_window import TimeWindow


class SortedDict:
    """The library's sorted dictionary, from a window's start to what holds it."""

    def __init__(self) -> None:
        self._by_start = sortedcontainers.SortedDict()
        self._start_of: dict[int, datetime] = {}

    def hold(self, booking_id: int, window: TimeWindow) -> None:
        """As `Calendar.hold`. O(log n)."""
        if booking_id in self._start_of:
            raise ValueError(f"Booking {booking_id} already holds a window.")
        if not self.is_free(window):
            raise BookingConflict(conflicts=self.conflicts(window))
        self._by_start[window.start] = Held(booking_id, window)
        self._start_of[booking_id] = window.start

    def release(self, booking_id: int) -> None:
        """As `Calendar.release`. O(log n)."""
        del self._by_start[self._start_of.pop(booking_id)]

    def is_free(self, window: TimeWindow) -> bool:
        """As `Calendar.is_free`. O(log n)."""
        starting_before_the_end = self._by_start.bisect_left(window.end)
        if not starting_before_the_end:
            return True
        _, neighbour = self._by_start.peekitem(starting_before_the_end - 1)
        return bool(neighbour.window.end <= window.start)

    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        """As `Calendar.conflicts`. O(log n + k) for k conflicts."""
        # The first to look at begins before the window does, and may be over by then.
        first = max(0, self._by_start.bisect_left(window.start) - 1)
        behind_last = self._by_start.bisect_left(window.end)
        near = self._by_start.values()[first:behind_last]
        return [held for held in near if held.window.overlaps(window)]

    def __iter__(self) -> Iterator[Held]:
        return iter(self._by_start.values())

    def __len__(self) -> int:
        return len(self._by_start)
