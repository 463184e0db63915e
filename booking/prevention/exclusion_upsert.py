"""Exclusion upsert: insert, and let the database's constraint say no.

Idea
----
Say the rule to the database once, as an exclusion constraint, and insert with
ON CONFLICT DO NOTHING. There is no look before the write, so there is no gap
between them.

What happens
------------
The table carries

    EXCLUDE USING gist (driver_id WITH =, during WITH &&) WHERE (state is active)

and one `INSERT … SELECT … ON CONFLICT DO NOTHING RETURNING` does everything:

1. The `SELECT` finds the rider and the driver, if the driver still works, and
   holds the driver's row `FOR KEY SHARE` (which the foreign key takes anyway),
   so that nobody retires the driver meanwhile.
2. The insert meets the constraint. If another transaction is about to record an
   overlapping booking, it waits to see how that ends.
3. A row came back: recorded. None: further statements find out why, and name
   the bookings in the way. If those are gone by now, it tries once more, so
   that every refusal has a booking to show for it.

`DO NOTHING`, not a plain insert whose error is caught: plain inserts that
conflict wait for *each other* and deadlock, and the caught error has ended the
transaction. An UPDATE, which moves a booking, knows no such clause; so moves of
one driver's bookings go one after the other, under the lock of the driver's row.

Costs
-----
O(log N) for N bookings in the table: two B-tree look-ups and one in the GiST
index, which also makes each insert dearer as the table grows. One round trip
when it records, four when it refuses (driver, rider, bookings).

Breaks when
-----------
Somebody drops the constraint (`taxi db check` looks), the range is written with
closed bounds (touching trips are refused then), or an empty range is let in (it
overlaps nothing; a CHECK keeps it out).
"""

from typing import Any, override

from sqlalchemy import BigInteger, Boolean, Text, literal, select
from sqlalchemy.dialects.postgresql import TSTZRANGE, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningInsert

from booking.bookings import Booking, BookingRequest, BookingState
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.ledger import PostgresLedger, write_or_refuse
from booking.postgres.tables import (
    BOOKING_COLUMNS,
    NO_DOUBLE_BOOKING,
    booking_of,
    bookings,
    drivers,
    riders,
    takes_bookings,
)
from booking.prevention.plain_insert import write_unless_refused


class ExclusionUpsert(PostgresLedger):
    """Writes, and the exclusion constraint decides."""

    claim = Claim.ACROSS_PROCESSES

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        if moving is not None:
            # Two moves that conflict would wait for each other, as plain inserts do.
            await reads.named_driver(connection, request, alone=True)
        return await write_or_refuse(
            lambda: _write(connection, request, moving),
            lambda: self.in_the_way(connection, request, moving),
        )


async def _write(
    connection: AsyncConnection, request: BookingRequest, moving: Booking | None
) -> Booking | None:
    """The booking; None if the constraint was against it."""
    if moving is None:
        row = (await connection.execute(_insert(request))).one_or_none()
        return None if row is None else booking_of(row)
    # An UPDATE knows no ON CONFLICT, and its error ends whatever it stands in.
    return await write_unless_refused(connection, request, moving)


def _insert(request: BookingRequest) -> ReturningInsert[Any]:
    source = (
        select(
            drivers.c.id,
            riders.c.id,
            literal(BookingState.CONFIRMED.value, Text),
            literal(reads.range_of(request.window), TSTZRANGE),
        )
        .join_from(drivers, riders, riders.c.id == literal(request.rider_id, BigInteger))
        .where(
            drivers.c.id == literal(request.driver_id, BigInteger),
            takes_bookings(literal(request.terms_met, Boolean)),
        )
        .with_for_update(read=True, key_share=True, of=drivers)
    )
    return (
        insert(bookings)
        .from_select(["driver_id", "rider_id", "state", "during"], source)
        .on_conflict_do_nothing(constraint=NO_DOUBLE_BOOKING)
        .returning(*BOOKING_COLUMNS)
    )
