"""Multirange a driver: all of a driver's taken time in one value, swapped if the window is free.

Idea
----
Keep each driver's taken time as *one* value, a `tstzmultirange`, and add the
window to it on condition that they do not overlap. One row, one conditional
`UPDATE`: the row's lock makes look and write one step.

What happens
------------
1. `SELECT` driver and rider, with the driver's row held `FOR KEY SHARE`.
2. One statement does the look and the write:

       INSERT INTO driver_busy … ON CONFLICT (driver_id)
       DO UPDATE SET busy = busy + window WHERE NOT busy && window

   If another transaction is changing the row, it waits, and then judges by what
   that one *left*: under READ COMMITTED an `UPDATE` looks at the newest version
   of the row it waited for, not at the one it found.
3. A row changed: `INSERT` the booking. None: refuse, and name the bookings in
   the way. They are there to be named, as whoever would give their time back
   needs the row, which is ours until the transaction ends.

A move takes the old window out and puts the new one in, in the same statement.

Costs
-----
With n bookings of the driver ahead, O(n): the value is read, copied and written
whole for each booking, to the table and to the log. Past some 150 bookings it
lies in pieces outside its row. Four round trips (driver,
rider, time, insert); when any driver would do, each offer stands in a savepoint,
which is two more.

Breaks when
-----------
A driver has many bookings, or many ask for one driver: everybody waits for the
one row, which is held until the COMMIT, and each leaves a dead copy of the whole
value behind. And the value cannot say *whose* time it is: what a lost booking
took is only found by comparing it with the bookings.
"""

from typing import override

from sqlalchemy import BigInteger, Column, MetaData, Table, not_, update
from sqlalchemy.dialects.postgresql import TSTZMULTIRANGE, insert
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.ledger import PostgresLedger, write_or_refuse
from booking.postgres.tables import WITHOUT_CONSTRAINT, active
from booking.postgres.writes import write_booking

driver_busy = Table(
    "driver_busy",
    MetaData(),
    Column("driver_id", BigInteger, primary_key=True),
    Column("busy", TSTZMULTIRANGE, nullable=False),
)


class MultirangeDriver(PostgresLedger):
    """Adds the window to the driver's taken time, on condition that it is free."""

    claim = Claim.ACROSS_PROCESSES
    holds_the_refused = True
    schema = (
        *WITHOUT_CONSTRAINT,
        """
        CREATE TABLE IF NOT EXISTS driver_busy (
            driver_id bigint PRIMARY KEY REFERENCES drivers,
            busy tstzmultirange NOT NULL
        )
        """,
        # Bookings from before there was this table: only while it is empty.
        f"""
        INSERT INTO driver_busy (driver_id, busy)
        SELECT driver_id, range_agg(during) FROM bookings
        WHERE {active} AND NOT EXISTS (SELECT FROM driver_busy)
        GROUP BY driver_id
        """,  # noqa: S608  # words of our own
    )

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        driver_id = await reads.named_driver(connection, request)
        return await write_or_refuse(
            lambda: self._write(connection, request, moving),
            lambda: self.in_the_way(connection, request, moving, driver_id),
        )

    async def _write(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None
    ) -> Booking | None:
        """The booking, its window taken; None if that was not free."""
        elsewhere = moving is not None and moving.driver_id != request.driver_id
        if not await _take(connection, request, None if elsewhere else moving):
            return None
        if moving is not None and elsewhere:
            await self.release(connection, moving)
        return await write_booking(connection, request, moving)

    @override
    async def release(self, connection: AsyncConnection, booking: Booking) -> None:
        await connection.execute(
            update(driver_busy)
            .where(driver_busy.c.driver_id == booking.driver_id)
            .values(busy=driver_busy.c.busy - MultiRange([reads.range_of(booking.window)]))
        )


async def _take(
    connection: AsyncConnection, request: BookingRequest, moving: Booking | None
) -> bool:
    """Whether the window was free, and is the driver's now."""
    new = insert(driver_busy).values(
        driver_id=request.driver_id, busy=MultiRange([reads.range_of(request.window)])
    )
    given_back = MultiRange([] if moving is None else [reads.range_of(moving.window)])
    left = driver_busy.c.busy - given_back
    taken = await connection.execute(
        new.on_conflict_do_update(
            index_elements=[driver_busy.c.driver_id],
            set_={"busy": left + new.excluded.busy},
            where=not_(left.overlaps(new.excluded.busy)),
        )
    )
    return taken.rowcount == 1
