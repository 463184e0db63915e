"""Anti-join: the first driver without a booking in the window, locked, SKIP LOCKED. An exhibit.

Idea
----
Ask for one driver who has no booking in the window, and lock that driver's row in
the same statement, SKIP LOCKED. Two requests then never get the same driver, or so
it seems: it is the recipe by which everybody takes jobs from a queue.

What happens
------------
1. `SELECT … FROM drivers WHERE nothing is booked LIMIT 1 FOR UPDATE SKIP LOCKED`.
2. Nobody: everybody free may be locked by others just now, so the same without
   SKIP LOCKED, which waits. Still nobody: nobody was free, and the request is
   refused.
3. The driver is handed to the recipe. If it refuses, begin again, up to
   `ROUNDS_MAX` times.

The flaw is in the first line. A statement sees the bookings as they were when it
*began*, and takes the lock a moment later. In between another transaction may
book that driver and be gone. The lock is then free, and nothing is looked at
again: the driver's row has not changed, it is another table that has. (In a
queue the lock is on the row that says "free", and a row that has changed is
looked at again; so there it works.)

The anti-join is written `(SELECT true … LIMIT 1) IS NULL`: see `reads.is_free`.

Costs
-----
With D drivers of whom a share p is free, about 1/p index probes of O(log N) each
for N bookings, and one more for each driver that is locked; D probes when nobody
is free, twice. Always from the first driver on, so that all requests meet there.

Breaks when
-----------
Two ask at once and no recipe decides: it double-books. The busier the fleet the
surer it does, as those who wait in step 2 all hold an answer that is out of date.
"""

from sqlalchemy import Select, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from booking.bookings import Booking, BookingRequest
from booking.errors import Contended, NoDriverFree
from booking.ledgers import Claim
from booking.postgres import reads, searches
from booking.postgres.ledger import Record
from booking.postgres.tables import drivers


class AntiJoin:
    """Looks and locks in one statement, which is one snapshot too few."""

    claim = Claim.NOTHING
    schema = ()

    async def allocate(
        self, connection: AsyncConnection, request: BookingRequest, record: Record
    ) -> Booking:
        """Book any free driver of the request's fleet, as `Allocator.allocate` says."""
        for _ in range(searches.ROUNDS_MAX):
            # Back to the savepoint when refused, which lets go of the driver: two searches
            # that each hold a driver and wait for the other's would deadlock.
            async with connection.begin_nested() as savepoint:
                driver_id = await connection.scalar(
                    _first_free(request, skip_locked=True)
                ) or await connection.scalar(_first_free(request, skip_locked=False))
                if driver_id is None:
                    await reads.rider(connection, request.rider_id)
                    raise NoDriverFree(field="start")
                booked = await searches.offer_each(connection, request, [driver_id], record)
                if booked is not None:
                    return booked
                await savepoint.rollback()
        raise Contended


def _first_free(request: BookingRequest, *, skip_locked: bool) -> Select[int]:
    # Written out, not bound: a plan kept for any value must guess how few rows are wanted.
    one: ColumnElement[int] = literal_column("1")
    return (
        select(drivers.c.id)
        .where(searches.can_come(request))
        .order_by(drivers.c.id)
        .limit(one)
        .with_for_update(skip_locked=skip_locked)
    )
