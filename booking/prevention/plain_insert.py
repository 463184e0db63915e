"""Plain insert: insert, and catch the error of the exclusion constraint. Safe, until it is hot.

Idea
----
Let the constraint decide, and take its error for the answer. It never
double-books; but where `exclusion_upsert` makes one wait for the other, plain
inserts that conflict wait for *each other*.

What happens
------------
1. The driver's row is held `FOR KEY SHARE`, and the rider looked up.
2. `INSERT`, in a savepoint: an error ends whatever it stands in, and without the
   savepoint that would be the transaction.
3. The constraint was against it (23P01): back to the savepoint, and a further
   statement names the bookings in the way. If those are gone by now, it tries
   once more.

A plain insert writes its row first and looks for conflicts after that. Two at
once have both written when they look; each finds the other's, and waits to see
how that ends. After `deadlock_timeout` (a second, unless set) PostgreSQL fails
one of them with 40P01, and `Database.transact` runs that one again. `ON CONFLICT
DO NOTHING` looks before it writes and takes its row back when it meets another,
so there one of the two goes on.

Costs
-----
O(log N) for N bookings in the table, in five round trips (driver, rider,
savepoint, insert, release). A refusal leaves a dead row behind in table and
indexes, and an error in the server's log. A deadlock costs `deadlock_timeout`
for everybody who waits in the circle.

Breaks when
-----------
Many ask for the same time at once: the answers stay right and come a second
late, or several, and whoever loses every time is told `Contended`.
"""

from typing import override

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.database import EXCLUSION_VIOLATION, sqlstate_of
from booking.postgres.ledger import PostgresLedger, write_or_refuse
from booking.postgres.writes import write_booking


async def write_unless_refused(
    connection: AsyncConnection, request: BookingRequest, moving: Booking | None
) -> Booking | None:
    """Write with no look at anything else; None if the exclusion constraint was against it."""
    try:
        async with connection.begin_nested():  # an error ends whatever it stands in
            return await write_booking(connection, request, moving)
    except DBAPIError as error:
        if sqlstate_of(error) != EXCLUSION_VIOLATION:
            raise
        return None


class PlainInsert(PostgresLedger):
    """Writes, and takes the constraint's error for a no."""

    claim = Claim.ACROSS_PROCESSES
    may_deadlock = True

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        driver_id = await reads.named_driver(connection, request)
        return await write_or_refuse(
            lambda: write_unless_refused(connection, request, moving),
            lambda: self.in_the_way(connection, request, moving, driver_id),
        )
