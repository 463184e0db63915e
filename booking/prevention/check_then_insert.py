"""Check, then insert: the bug, kept on purpose.

Idea
----
Look whether the window is free, and if it is, insert the booking. It is the
whiteboard's answer, word for word, and most booking code in the world.

What happens
------------
1. `SELECT` the driver's active bookings that overlap the window.
2. None? `INSERT` the booking. Otherwise refuse.

Both statements stand in one transaction, which helps nobody: under READ
COMMITTED a transaction sees what others have committed, not what they are
about to. Two requests that look at the same moment both see a free driver,
and both insert.

Costs
-----
Index look-ups and one insert, O(log N) for N bookings in the table, in four
round trips (driver, rider, bookings, insert).

Breaks when
-----------
Two requests for overlapping windows of one driver are under way at once. With
demand spread thin that is rare enough to pass every test that does not look
for it, which is why it ships so often.
"""

from typing import override

from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.errors import BookingConflict
from booking.ledgers import Claim
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import INDEX_INSTEAD
from booking.postgres.writes import write_booking


class CheckThenInsert(PostgresLedger):
    """Looks, then writes, with nothing to hold the two together."""

    claim = Claim.NOTHING
    schema = INDEX_INSTEAD

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        if conflicts := await self.in_the_way(connection, request, moving):
            raise BookingConflict(conflicts=conflicts)
        return await write_booking(connection, request, moving)
