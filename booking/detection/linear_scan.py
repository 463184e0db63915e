"""Linear scan: look at every booking of the driver, one after the other.

Idea
----
Ask each booking in turn whether it overlaps. It is the answer said aloud at the
whiteboard, and the definition of a conflict written down as code.

What happens
------------
Two windows overlap if each starts before the other ends. `is_free` walks
through the driver's windows and stops at the first that does. Nothing is kept
in order, so nothing has to be put in order: a booking is one entry in a
dictionary.

Costs
-----
`is_free` and `hold` are O(n) for n windows of the driver, and a free window is
the dearest question, as only the last booking can confirm it. `release` is
O(1). `conflicts` and iteration sort, O(n log n).

Breaks when
-----------
The calendar grows: a hundred bookings cost a hundred comparisons, for each
request. It never breaks by being wrong, and it is short enough to be checked by
eye, which makes it the oracle that the contract tests hold every other calendar
to.
"""

from collections.abc import Iterator, Sequence

from booking.calendars import Held
from booking.errors import BookingConflict
from booking.time_window import TimeWindow


class LinearScan:
    """A dictionary from booking to window, searched from end to end."""

    def __init__(self) -> None:
        self._windows: dict[int, TimeWindow] = {}

    def hold(self, booking_id: int, window: TimeWindow) -> None:
        """As `Calendar.hold`. O(n)."""
        if booking_id in self._windows:
            raise ValueError(f"Booking {booking_id} already holds a window.")
        conflicts = self.conflicts(window)
        if conflicts:
            raise BookingConflict(conflicts=conflicts)
        self._windows[booking_id] = window

    def release(self, booking_id: int) -> None:
        """As `Calendar.release`. O(1)."""
        del self._windows[booking_id]

    def is_free(self, window: TimeWindow) -> bool:
        """As `Calendar.is_free`. O(n)."""
        return not any(held.overlaps(window) for held in self._windows.values())

    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        """As `Calendar.conflicts`. O(n + k log k) for k conflicts."""
        return _in_order_of_start(
            Held(booking_id, held)
            for booking_id, held in self._windows.items()
            if held.overlaps(window)
        )

    def __iter__(self) -> Iterator[Held]:
        return iter(_in_order_of_start(Held(*item) for item in self._windows.items()))

    def __len__(self) -> int:
        return len(self._windows)


def _in_order_of_start(windows: Iterator[Held]) -> list[Held]:
    return sorted(windows, key=lambda held: held.window.start)
