"""Port `Calendar`: one driver's bookings in memory. It answers; a `Ledger` decides.

The whiteboard's question, "does this window overlap?", is a query, and a query
is out of date as soon as it is answered. So nothing here records a booking: see
`booking.ledgers` for that.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from booking.time_window import TimeWindow


class Held(NamedTuple):
    """Time of a driver that a booking holds."""

    booking_id: int
    window: TimeWindow


class Calendar(Protocol):
    """The time of one driver that is held. Synchronous and pure.

    The windows in a calendar never overlap each other, as nobody can drive two
    trips at once; implementations may rest on that. n is the number of windows.
    """

    def hold(self, booking_id: int, window: TimeWindow) -> None:
        """Add a window.

        Raises `BookingConflict`, naming what is in the way, if it overlaps a
        window that is held, and `ValueError` if the booking already holds one;
        either way nothing is changed.
        """
        ...

    def release(self, booking_id: int) -> None:
        """Give back the booking's window. Raises `KeyError` if it holds none."""
        ...

    def is_free(self, window: TimeWindow) -> bool:
        """Whether no held window overlaps `window`."""
        ...

    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        """Every held window that overlaps `window`, in order of start."""
        ...

    def __iter__(self) -> Iterator[Held]:
        """Every held window, in order of start."""
        ...

    def __len__(self) -> int:
        """How many windows are held."""
        ...


def free_gaps(
    calendar: Calendar, within: TimeWindow, at_least: timedelta = timedelta(0)
) -> list[TimeWindow]:
    """The parts of `within` in which nothing is held, in order, each no shorter than `at_least`."""
    gaps: list[TimeWindow] = []
    free_from = within.start

    def close_gap(until: datetime) -> None:
        if free_from < until and until - free_from >= at_least:
            gaps.append(TimeWindow(free_from, until))

    for held in calendar.conflicts(within):
        close_gap(held.window.start)
        free_from = held.window.end
    close_gap(within.end)
    return gaps
