"""Port `Calendar`: one driver's bookings in memory. It answers; a `Ledger` decides.

The whiteboard's question, "does this window overlap?", is a query, and a query
is out of date as soon as it is answered. So nothing here records a booking: see
`booking.ledgers` for that.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
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


def gaps_between(
    taken: Iterable[Held], within: TimeWindow, at_least: timedelta = timedelta(0)
) -> Iterator[TimeWindow]:
    """The parts of `within` that lie between the windows of `taken`, in order.

    `taken` comes in order of start; its windows may overlap each other. Gaps
    shorter than `at_least` are left out.
    """
    free_from = within.start
    for held in taken:
        if free_from < held.window.start and held.window.start - free_from >= at_least:
            yield TimeWindow(free_from, held.window.start)
        free_from = max(free_from, held.window.end)
    if free_from < within.end and within.end - free_from >= at_least:
        yield TimeWindow(free_from, within.end)
