"""Sweeps the ledger for double bookings, with nothing but `<`.

Whether the rule against double booking was kept is judged here by other means
than it was enforced by: no range operator, no index, no constraint. Starts and
ends are read, and compared.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.calendars import Held
from booking.postgres.tables import active, begins, bookings, predicted_ends
from booking.time_window import TimeWindow

_ROWS_AT_A_TIME = 5_000


@dataclass(frozen=True, slots=True)
class DoubleBooking:
    """A booking that begins in time which an earlier one of the same driver holds."""

    driver_id: int
    earlier: Held
    later: Held


@dataclass(frozen=True, slots=True)
class Audit:
    """What a sweep saw: how many active bookings of how many drivers, and what is wrong.

    `malformed` are bookings whose window is no `[start, end)`, so that nobody
    can say what they overlap. The tables' CHECKs let none in.
    """

    bookings: int
    drivers: int
    double_bookings: tuple[DoubleBooking, ...]
    malformed: tuple[int, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.double_bookings and not self.malformed


async def double_bookings(connection: AsyncConnection) -> Audit:
    """Sweep every active booking, in one statement and so in one snapshot.

    Active bookings alone: one that was cancelled or completed gave its time
    back, and another may rightly hold it since. Of k bookings over one moment,
    k - 1 are reported, each with the earlier one that lasts longest.

    O(N log N) for N active bookings, with memory for what is wrong only. Use a
    `Database` whose statements may take long enough to sort them.
    """
    rows = await connection.stream(
        select(bookings.c.driver_id, bookings.c.id, begins, predicted_ends)
        .where(active)
        .order_by(bookings.c.driver_id, begins, bookings.c.id)
        .execution_options(yield_per=_ROWS_AT_A_TIME)
    )
    swept = drivers = 0
    found: list[DoubleBooking] = []
    malformed: list[int] = []
    driver_now: int | None = None
    latest: tuple[int, datetime, datetime] | None = None
    async for partition in rows.partitions():
        for driver_id, booking_id, start, end in partition:
            swept += 1
            if driver_id != driver_now:
                driver_now, latest = driver_id, None
                drivers += 1
            if not _is_window(start, end):
                malformed.append(booking_id)
                continue
            this = (booking_id, start, end)
            if latest is not None and start < latest[2]:
                found.append(DoubleBooking(driver_id, _held(*latest), _held(*this)))
            if latest is None or latest[2] < end:
                latest = this
    return Audit(swept, drivers, tuple(found), tuple(malformed))


def _is_window(start: datetime | None, end: datetime | None) -> bool:
    # An empty range has neither bound, an endless one lacks one or the other.
    return start is not None and end is not None and start < end


def _held(booking_id: int, start: datetime, end: datetime) -> Held:
    return Held(booking_id, TimeWindow(start, end))
