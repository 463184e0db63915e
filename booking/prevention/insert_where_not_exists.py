"""Insert where not exists: the look and the write in one statement, and still the bug.

Idea
----
Put the look into the insert, so that nothing can come between them. It seems
atomic because it is one statement; it is not, because a statement sees only
what was committed before it began.

What happens
------------
1. `INSERT … SELECT … WHERE NOT EXISTS (an overlapping booking)`. A row came
   back: recorded.
2. None: further statements find out why, and name the bookings in the way. If
   those are gone by now, it tries once more.

A move is an `UPDATE` with the same condition. The driver's row is held `FOR KEY
SHARE`, against whoever retires the driver; those who book share it.

PostgreSQL takes a statement's snapshot when the statement begins. Two that
run at once have each a snapshot without the other's row, however little time
passes inside each of them. The gap of `check_then_insert` has become narrower,
by the round trips in between, and is there all the same.

Costs
-----
O(log N) for N bookings in the table. One round trip when it records, four when
it refuses (driver, rider, bookings).

Breaks when
-----------
Two requests for overlapping windows of one driver are under way at once, as in
`check_then_insert`: rarer, and so found later.
"""

from typing import Any, ClassVar, NamedTuple, override

from sqlalchemy import (
    BigInteger,
    Boolean,
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
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from booking.bookings import Booking, BookingRequest, BookingState
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.ledger import PostgresLedger, write_or_refuse
from booking.postgres.tables import (
    BOOKING_COLUMNS,
    INDEX_INSTEAD,
    active,
    booking_of,
    bookings,
    drivers,
    riders,
    takes_bookings,
)

_DRIVER = bindparam("the_driver", type_=BigInteger)
_RIDER = bindparam("the_rider", type_=BigInteger)
_WINDOW = bindparam("the_window", type_=TSTZRANGE)
_MOVING = bindparam("the_booking", type_=BigInteger)
_TERMS_MET = bindparam("terms_met", type_=Boolean)

_IN_THE_WAY: ColumnElement[bool] = and_(
    bookings.c.driver_id == _DRIVER, active, bookings.c.during.overlaps(_WINDOW)
)


class Statements(NamedTuple):
    """Each looks and writes at once."""

    book: ReturningInsert[Any]
    move: ReturningUpdate[Any]


def statements(*, alone: bool) -> Statements:
    """The two statements; `alone` has the driver's row as one transaction can at a time."""
    driver = (
        select(drivers.c.id)
        .where(drivers.c.id == _DRIVER, takes_bookings(_TERMS_MET))
        .with_for_update(read=not alone, key_share=True)
        .cte("driver")
    )
    confirmed: ColumnElement[str] = literal_column(f"'{BookingState.CONFIRMED}'")
    return Statements(
        insert(bookings)
        .from_select(
            ["driver_id", "rider_id", "state", "during"],
            select(driver.c.id, riders.c.id, confirmed, _WINDOW)
            .join_from(driver, riders, riders.c.id == _RIDER)
            .where(~exists().where(_IN_THE_WAY)),
        )
        .returning(*BOOKING_COLUMNS),
        update(bookings)
        .where(
            bookings.c.id == _MOVING,
            exists().select_from(driver),
            # Not correlated: the bookings in there are others than the one that is moved.
            ~exists().where(_IN_THE_WAY, bookings.c.id != _MOVING).correlate(None),
        )
        .values(during=_WINDOW, driver_id=select(driver.c.id).scalar_subquery())
        .returning(*BOOKING_COLUMNS),
    )


class InsertWhereNotExists(PostgresLedger):
    """Looks and writes in one statement, which sees the past."""

    claim = Claim.NOTHING
    schema = INDEX_INSTEAD
    statements: ClassVar = statements(alone=False)

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        return await write_or_refuse(
            lambda: self._write(connection, request, moving),
            lambda: self.in_the_way(connection, request, moving),
        )

    async def _write(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None
    ) -> Booking | None:
        """The booking; None if something was in its way, or driver or rider cannot book."""
        parameters = {
            _DRIVER.key: request.driver_id,
            _WINDOW.key: reads.range_of(request.window),
            _TERMS_MET.key: request.terms_met,
        }
        if moving is None:
            parameters[_RIDER.key] = request.rider_id
            written = await connection.execute(self.statements.book, parameters)
        else:
            parameters[_MOVING.key] = moving.id
            written = await connection.execute(self.statements.move, parameters)
        row = written.one_or_none()
        return None if row is None else booking_of(row)
