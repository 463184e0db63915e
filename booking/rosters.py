"""Port `Roster`: who is free in a window, across the fleet, in memory."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from booking.time_window import TimeWindow


class Roster(Protocol):
    """The held time of every driver, asked the other way round: who is free?

    Synchronous and pure. Like a `Calendar` it answers and does not decide.
    D is the number of drivers, n the number of windows held by one driver, and
    N by all.
    """

    def enrol(self, driver_id: int) -> None:
        """Add a driver whose time is all free. Raises `ValueError` if already enrolled."""
        ...

    def dismiss(self, driver_id: int) -> None:
        """Remove a driver and all they hold. Raises `UnknownDriver` if not enrolled."""
        ...

    def hold(self, driver_id: int, window: TimeWindow) -> None:
        """Take a window of the driver's time.

        Raises `UnknownDriver` if not enrolled, and `BookingConflict` if part of
        the window is taken already; either way nothing is changed.
        """
        ...

    def release(self, driver_id: int, window: TimeWindow) -> None:
        """Give back a window that was taken by `hold`, and exactly that window.

        Raises `UnknownDriver` if the driver is not enrolled and `KeyError` if
        that window is not held.
        """
        ...

    def any_free(self, window: TimeWindow) -> int | None:
        """Some driver who is free for the whole window, or None if there is none."""
        ...

    def free(self, window: TimeWindow, limit: int) -> Sequence[int]:
        """Up to `limit` drivers who are free for the whole window, each once.

        Fewer than `limit` only if there are no more.
        """
        ...

    def drivers(self) -> Iterable[int]:
        """Every enrolled driver."""
        ...
