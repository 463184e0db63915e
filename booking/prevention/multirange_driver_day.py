"""Multirange a driver and day: the taken time of one day in one value.

Idea
----
Keep each driver's taken time as one `tstzmultirange` for each *day*, and add the
window to it on condition that they do not overlap. The value stays small however
long the calendar grows, and two who book different days do not meet.

What happens
------------
1. `SELECT` driver and rider, with the driver's row held `FOR KEY SHARE`.
2. The window is cut at midnight (UTC). In a savepoint, one statement adds each
   piece to its day, in order of days:

       INSERT INTO driver_day_busy … ON CONFLICT (driver_id, day)
       DO UPDATE SET busy = busy + piece WHERE NOT busy && piece

   If another transaction is changing the row of a day, it waits, and judges by
   what that one left (see `multirange_driver`).
3. As many rows as pieces: `INSERT` the booking. Fewer: back to the savepoint, which
   gives back the other day if only one of the two was free, and name the bookings in
   the way. If those are gone by now, it tries once more.

A move is the same statement over the days of both windows: out of each goes the
old window, and into it what the new one has of that day.

In order of days, because whoever has a day then only waits for a later one, and
no two can wait for each other.

Costs
-----
With n bookings of the driver on that day, O(n), and one look-up in a B-tree: the
value is read, copied and written whole, but a day holds few bookings. Four
statements (driver, rider, time, insert) and two more for the savepoint, each a
round trip.

Breaks when
-----------
Bookings are allowed to last for weeks: each is then as many rows as days. Those
who ask for one driver's day still wait for each other, until the COMMIT. And as
with one value a driver, it does not say whose time it is.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import override

from sqlalchemy import BigInteger, Column, Date, MetaData, Table, not_
from sqlalchemy.dialects.postgresql import TSTZMULTIRANGE, insert
from sqlalchemy.dialects.postgresql.ranges import MultiRange, Range
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.ledger import PostgresLedger, write_or_refuse
from booking.postgres.tables import WITHOUT_CONSTRAINT, active
from booking.postgres.writes import write_booking
from booking.time_window import TimeWindow

_A_DAY = timedelta(days=1)

driver_day_busy = Table(
    "driver_day_busy",
    MetaData(),
    Column("driver_id", BigInteger, primary_key=True),
    Column("day", Date, primary_key=True),  # in UTC
    Column("busy", TSTZMULTIRANGE, nullable=False),
)


class MultirangeDriverDay(PostgresLedger):
    """Adds the window to the taken time of its days, on condition that it is free on each."""

    claim = Claim.ACROSS_PROCESSES
    schema = (
        *WITHOUT_CONSTRAINT,
        """
        CREATE TABLE IF NOT EXISTS driver_day_busy (
            driver_id bigint NOT NULL REFERENCES drivers,
            day date NOT NULL,
            busy tstzmultirange NOT NULL,
            PRIMARY KEY (driver_id, day)
        )
        """,
        # Bookings from before there was this table: only while it is empty.
        f"""
        INSERT INTO driver_day_busy (driver_id, day, busy)
        SELECT driver_id, (day AT TIME ZONE 'UTC')::date, range_agg(during * piece)
        FROM bookings,
             generate_series(date_trunc('day', lower(during), 'UTC'), upper(during),
                             interval '24 hours') AS day,
             tstzrange(day, day + interval '24 hours') AS piece
        WHERE {active} AND during && piece AND NOT EXISTS (SELECT FROM driver_day_busy)
        GROUP BY driver_id, day
        """,  # noqa: S608  # words of our own
    )

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        driver_id = await reads.named_driver(connection, request)
        return await write_or_refuse(
            lambda: self._write(connection, driver_id, request, moving),
            lambda: self.in_the_way(connection, request, moving, driver_id),
        )

    async def _write(
        self,
        connection: AsyncConnection,
        driver_id: int,
        request: BookingRequest,
        moving: Booking | None,
    ) -> Booking | None:
        """The booking, its time taken on each of its days; None if one had no room for it."""
        new, old = _by_day(request.window), {}
        async with connection.begin_nested() as savepoint:
            if moving is not None and moving.driver_id == driver_id:
                old = _by_day(moving.window)
            elif moving is not None:
                await self.release(connection, moving)
            if await _take(connection, driver_id, new, old):
                return await write_booking(connection, request, moving)
            await savepoint.rollback()
            return None

    @override
    async def release(self, connection: AsyncConnection, booking: Booking) -> None:
        await _take(connection, booking.driver_id, {}, _by_day(booking.window))


Pieces = dict[date, Range[datetime]]
"""What a window has of each of its days, in UTC."""


def _by_day(window: TimeWindow) -> Pieces:
    midnight = datetime.combine(window.start.date(), time(tzinfo=UTC))
    pieces = {}
    while midnight < window.end:
        start, end = max(window.start, midnight), min(window.end, midnight + _A_DAY)
        pieces[midnight.date()] = Range(start, end, bounds="[)")
        midnight += _A_DAY
    return pieces


async def _take(connection: AsyncConnection, driver_id: int, new: Pieces, old: Pieces) -> bool:
    """Take `old` out of the driver's days and put `new` in; whether each day had room for it."""
    days = sorted(new.keys() | old.keys())
    rows = [
        {"driver_id": driver_id, "day": day, "busy": MultiRange(filter(None, [new.get(day)]))}
        for day in days
    ]
    given_back = MultiRange(old.values())
    wanted = insert(driver_day_busy).values(rows)
    left = driver_day_busy.c.busy - given_back
    taken = await connection.execute(
        wanted.on_conflict_do_update(
            index_elements=[driver_day_busy.c.driver_id, driver_day_busy.c.day],
            set_={"busy": left + wanted.excluded.busy},
            where=not_(left.overlaps(wanted.excluded.busy)),
        )
    )
    return taken.rowcount == len(days)
