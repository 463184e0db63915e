"""Bisect neighbours: in a calendar without overlaps, one neighbour decides. The default.

Idea
----
Windows that never overlap each other, kept in order, are in order of their
starts *and* of their ends. So one booking settles the question: the first that
ends after the wanted start. If it begins before the wanted end, it is in the
way; if not, neither is any later one.

What happens
------------
Two sorted lists stand side by side, one of starts and one of ends. `bisect`
finds, in the list of ends, the first that lies after `window.start`; one
comparison with its start decides. The list of starts ends with the end of all
time, so that the last gap needs no case of its own.

The lists hold the datetimes themselves. Integers would compare faster, but a
query brings datetimes, and turning two of them into integers costs more than
all the comparisons of the search.

Costs
-----
`is_free` is O(log n) for n windows of the driver; `conflicts` O(log n + k) for
k of them. `hold` and `release` are O(log n) to find the place and O(n) to shift
what lies behind it: one `memmove` a list, so fast that it is not noticed below a
thousand bookings, and all that counts above ten thousand.

Breaks when
-----------
Windows may overlap, as they do across a fleet: then the order of the starts is
no longer the order of the ends, and a long window hides behind a short one.
This structure answers for one driver only.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from booking.calendars import Held
from booking.errors import BookingConflict
from booking.time_window import TimeWindow

_END_OF_TIME = datetime.max.replace(tzinfo=UTC)


class BisectNeighbours:
    """Parallel lists of starts and ends, in order, searched by bisection."""

    def __init__(self) -> None:
        self._starts: list[datetime] = [_END_OF_TIME]
        self._ends: list[datetime] = []
        self._held: list[Held] = []
        self._start_of: dict[int, datetime] = {}

    def hold(self, booking_id: int, window: TimeWindow) -> None:
        """As `Calendar.hold`. O(log n), and one shift."""
        if booking_id in self._start_of:
            raise ValueError(f"Booking {booking_id} already holds a window.")
        place = bisect_right(self._ends, window.start)
        if self._starts[place] < window.end:
            raise BookingConflict(conflicts=self.conflicts(window))
        self._starts.insert(place, window.start)
        self._ends.insert(place, window.end)
        self._held.insert(place, Held(booking_id, window))
        self._start_of[booking_id] = window.start

    def release(self, booking_id: int) -> None:
        """As `Calendar.release`. O(log n), and one shift."""
        place = bisect_left(self._starts, self._start_of.pop(booking_id))
        del self._starts[place], self._ends[place], self._held[place]

    def is_free(self, window: TimeWindow) -> bool:
        """As `Calendar.is_free`. O(log n)."""
        return window.end <= self._starts[bisect_right(self._ends, window.start)]

    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        """As `Calendar.conflicts`. O(log n + k) for k conflicts."""
        first = bisect_right(self._ends, window.start)
        behind_last = bisect_left(self._starts, window.end)
        return self._held[first:behind_last]

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
