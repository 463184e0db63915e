"""Lock and check in one statement: a round trip saved, and the lock is worth nothing. A trap.

Idea
----
Do all of `row_lock` in one statement: lock the driver's row, look, and insert,
without a round trip between them. It double-books, because the whole statement
reads a snapshot from before it waited for the lock.

What happens
------------
1. `WITH locked AS (SELECT … FOR NO KEY UPDATE) INSERT … SELECT … FROM locked
   WHERE NOT EXISTS (an overlapping booking)`. The lock is taken first, and the
   look comes after it: in that the statement reads as it runs.
2. But its snapshot was taken when it began. Whoever waited for the lock looks
   at what was there *before* the last holder's COMMIT, and finds the driver free.
3. No row came back: further statements find out why, as in
   `insert_where_not_exists`.

Under READ COMMITTED it is each *statement* that sees the present. `row_lock`
looks in a second one, and that second round trip is the price of the answer. (A
function does with one: each statement in it has a snapshot of its own.)

PostgreSQL does look at the *locked row* again after the wait, so a driver who
retired meanwhile is noticed. A version or a calendar kept in that row would
be as well; bookings that others inserted are not.

Costs
-----
O(log N) for N bookings in the table, in one round trip when it records and four
when it refuses. The driver's row is held until the COMMIT. When any driver
would do, each offer stands in a savepoint, which is two round trips more.

Breaks when
-----------
A request waits for the row of a driver while another books that driver: that
is, whenever the lock is needed.
"""

from typing import override

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    and_,
    bindparam,
    exists,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import TSTZRANGE
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import BookingConflict, Contended
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import (
    BOOKING_COLUMNS,
    INDEX_INSTEAD,
    active,
    booking_of,
    bookings,
    drivers,
    riders,
)

_TRIES_MAX = 3

_DRIVER = bindparam("the_driver", type_=BigInteger)
_RIDER = bindparam("the_rider", type_=BigInteger)
_WINDOW = bindparam("the_window", type_=TSTZRANGE)
_MOVING = bindparam("the_booking", type_=BigInteger)

_LOCKED = (
    select(drivers.c.id)
    .where(drivers.c.id == _DRIVER, drivers.c.retired_at.is_(None))
    .with_for_update(key_share=True)
    .cte("locked")
)
_IN_THE_WAY: ColumnElement[bool] = and_(
    bookings.c.driver_id == _DRIVER, active, bookings.c.during.overlaps(_WINDOW)
)

_INSERT = (
    insert(bookings)
    .from_select(
        ["driver_id", "rider_id", "state", "during"],
        select(_LOCKED.c.id, riders.c.id, literal_column(f"'{BookingState.CONFIRMED}'"), _WINDOW)
        .join_from(_LOCKED, riders, riders.c.id == _RIDER)
        .where(~exists().where(_IN_THE_WAY)),
    )
    .returning(*BOOKING_COLUMNS)
)
_MOVE = (
    update(bookings)
    .where(
        bookings.c.id == _MOVING,
        bookings.c.driver_id == _LOCKED.c.id,
        # Not correlated: the bookings in there are others than the one that is moved.
        ~exists().where(_IN_THE_WAY, bookings.c.id != _MOVING).correlate(None),
    )
    .values(during=_WINDOW)
    .returning(*BOOKING_COLUMNS)
)


class LockAndCheckInOneStatement(PostgresLedger):
    """Locks, looks and writes in one statement, whose picture is older than its lock."""

    claim = Claim.NOTHING
    schema = INDEX_INSTEAD

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        for _ in range(_TRIES_MAX):
            booked = await _write(connection, request, moving)
            if booked is not None:
                return booked
            driver_id = await reads.named_driver(connection, request)
            conflicts = await reads.conflicts_of(
                connection, driver_id, request.window, besides=moving
            )
            if conflicts:
                raise BookingConflict(conflicts=conflicts)
        raise Contended

    @override
    async def offer(self, connection: AsyncConnection, request: BookingRequest) -> Booking:
        # Back to the savepoint when refused, which lets go of the row: two allocations that
        # each hold a driver and wait for the other's would deadlock.
        async with connection.begin_nested():
            return await self.record(connection, request)


async def _write(
    connection: AsyncConnection, request: BookingRequest, moving: Booking | None
) -> Booking | None:
    """The booking; None if something was in its way, or driver or rider cannot book."""
    parameters = {
        _DRIVER.key: request.driver_id,
        _WINDOW.key: reads.range_of(request.window),
    }
    if moving is None:
        written = await connection.execute(_INSERT, parameters | {_RIDER.key: request.rider_id})
    else:
        written = await connection.execute(_MOVE, parameters | {_MOVING.key: moving.id})
    row = written.one_or_none()
    return None if row is None else booking_of(row)
