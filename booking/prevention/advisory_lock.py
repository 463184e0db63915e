"""Advisory lock: whoever books a driver holds a lock that stands for that driver.

Idea
----
Take a lock that the database keeps for us and gives no meaning to: one number a
driver. Bookings of one driver then happen one after the other, and nobody queues
for a row.

What happens
------------
1. `SELECT pg_advisory_xact_lock(…)`: wait until nobody else is booking this
   driver. The number is a hash of the driver's id, salted, as everybody in the
   database draws on the same numbers; two drivers with one number would merely
   wait for each other.
2. `SELECT` the overlapping bookings, in a *new statement*: under READ COMMITTED
   it sees everything committed before it began, and so all that the last holder
   of the lock did.
3. None? `INSERT`. The COMMIT gives the lock back; one held for the session
   would have to be given back by hand, before the COMMIT or after it, and either
   is a bug.

Costs
-----
O(log N) for N bookings in the table, in five round trips (lock, driver, rider,
bookings, insert) and a COMMIT, during which others who want the driver queue.
The lock lives in shared memory; the driver's row is only shared, as the foreign
key has it, where `row_lock` has it alone. When any driver would do, each offer
stands in a savepoint, which is two round trips more.

Breaks when
-----------
The isolation level is raised: see `advisory_lock_repeatable_read`. It binds only
those who take the lock, and only on one server: in a cluster with two entries
each node has advisory locks of its own.
"""

from typing import override

from sqlalchemy import BigInteger, bindparam, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.errors import BookingConflict
from booking.ledgers import Claim
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import INDEX_INSTEAD
from booking.postgres.writes import write_booking

_SALT = 0x7461_7869
_LOCK = select(
    func.pg_advisory_xact_lock(
        func.hashint8extended(bindparam("driver_id", type_=BigInteger), literal_column(f"{_SALT}"))
    )
)


class AdvisoryLock(PostgresLedger):
    """Looks and writes while it holds the driver's number."""

    claim = Claim.ACROSS_PROCESSES
    holds_the_refused = True
    schema = INDEX_INSTEAD

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        await connection.execute(_LOCK, {"driver_id": request.driver_id})
        if conflicts := await self.in_the_way(connection, request, moving):
            raise BookingConflict(conflicts=conflicts)
        return await write_booking(connection, request, moving)
