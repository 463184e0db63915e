"""Row lock: whoever books a driver holds that driver's row until they are done.

Idea
----
Lock the driver's row before looking at the driver's bookings. Bookings of one
driver then happen one after the other, while other drivers are not touched.

What happens
------------
1. `SELECT … FROM drivers … FOR NO KEY UPDATE`: wait until nobody else is
   booking this driver.
2. `SELECT` the overlapping bookings, in a *new statement*: under READ COMMITTED
   it sees everything committed before it began, and so all that the last holder
   of the lock did.
3. None? `INSERT`. The COMMIT lets the next one in.

It is the driver's row that is locked, not the bookings': where nothing is
booked yet there is no row to lock, and locking nothing protects nothing. `NO
KEY`, because the plain `FOR UPDATE` would also collide with the foreign keys
of every other insert that mentions the driver.

Costs
-----
O(log N) for N bookings in the table, in four round trips (driver, rider,
bookings, insert) and a COMMIT, during which the driver's row is held: the more
requests ask for one driver, the longer they queue. When any driver would do,
each offer stands in a savepoint, which is two round trips more.

Breaks when
-----------
The isolation level is raised. Under REPEATABLE READ the second statement reads
the snapshot taken by the first, which is older than the lock, and it
double-books again. And it binds only those who take the lock: a script that
inserts on its own walks past it.
"""

from typing import override

from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.errors import BookingConflict
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import INDEX_INSTEAD
from booking.postgres.writes import write_booking


class RowLock(PostgresLedger):
    """Looks and writes while it holds the driver's row."""

    claim = Claim.ACROSS_PROCESSES
    holds_the_refused = True
    schema = INDEX_INSTEAD

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        driver_id = await reads.named_driver(connection, request, alone=True)
        if conflicts := await self.in_the_way(connection, request, moving, driver_id):
            raise BookingConflict(conflicts=conflicts)
        return await write_booking(connection, request, moving)
