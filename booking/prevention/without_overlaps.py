"""Without overlaps: the rule as SQL:2011 has it, a key of which one column is time.

Idea
----
Say the rule as a *temporal key*, `UNIQUE (driver_id, during WITHOUT OVERLAPS)`:
standard SQL since 2011, in PostgreSQL since 18. It reads as what it is, a key, and
foreign keys can refer to it.

What happens
------------
A temporal key covers every row: it knows no `WHERE`, so on `bookings` a cancelled
trip would keep its time for ever. So the time that is held has a table of its own,
`held_time`, from which a row goes when its booking ceases to be active.

1. One statement finds driver and rider (the driver's row held `FOR KEY SHARE`),
   inserts the window into `held_time` with `ON CONFLICT DO NOTHING`, and inserts
   the booking from what that returned. If another transaction is about to hold
   an overlapping window, it waits to see how that ends.
2. A row came back: recorded. None: three more statements (driver, rider,
   bookings) find out why, and name what is in the way. If that is gone by now, it
   tries once more.

A move deletes its old window and inserts the new one, in a savepoint. Two moves
that want each other's time would wait for each other, so moves of one driver's
bookings go one after the other, under the lock of the driver's row.

Costs
-----
As `exclusion_upsert`: the key *is* an exclusion constraint on a GiST index, O(log
H) for H windows held. It stays small, as it holds only what is active; but each
booking is two rows in two tables. One round trip when it records.

Breaks when
-----------
The server is older than 18 (`taxi db migrate` says so). `NOT isempty` needs no
CHECK here: a temporal key refuses empty ranges by itself. But nothing ties the
two tables together save this file: a script that cancels a booking and leaves its
time held blocks the driver, and one that books past `held_time` is not seen.
"""

from typing import ClassVar, override

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    MetaData,
    Table,
    Text,
    bindparam,
    delete,
    insert,
    literal,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB, TSTZRANGE
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest, BookingState
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.attribution import changed_by
from booking.postgres.ledger import PostgresLedger, write_or_refuse
from booking.postgres.tables import (
    BOOKING_COLUMNS,
    WITHOUT_CONSTRAINT,
    active,
    booking_of,
    bookings,
    drivers,
    riders,
    takes_bookings,
)
from booking.postgres.writes import write_booking

held_time = Table(
    "held_time",
    MetaData(),
    Column("driver_id", BigInteger, nullable=False),
    Column("during", TSTZRANGE, nullable=False),
)

HOLD_WHAT_IS_BOOKED = f"""
    INSERT INTO held_time (driver_id, during)
    SELECT driver_id, during FROM bookings
    WHERE {active} AND NOT EXISTS (SELECT FROM held_time)
"""  # noqa: S608  # words of our own
"""Takes over bookings from before there was `held_time`: only while that is empty."""


# The two statements, built once: the window held, if driver and rider are there and it is
# free; and the same with the booking.

_HOLD = (
    postgresql.insert(held_time)
    .from_select(
        ["driver_id", "during"],
        select(drivers.c.id, bindparam("during", type_=TSTZRANGE))
        .join_from(drivers, riders, riders.c.id == bindparam("rider_id", type_=BigInteger))
        .where(
            drivers.c.id == bindparam("driver_id", type_=BigInteger),
            takes_bookings(bindparam("terms_met", type_=Boolean)),
        )
        .with_for_update(read=True, key_share=True, of=drivers),
    )
    .on_conflict_do_nothing()
    .returning(held_time.c.driver_id, held_time.c.during)
)
_HELD = _HOLD.cte("held")
_HOLD_AND_BOOK = (
    insert(bookings)
    .from_select(
        ["driver_id", "rider_id", "state", "during", "changed_by"],
        select(
            _HELD.c.driver_id,
            bindparam("rider_id", type_=BigInteger),
            literal(BookingState.CONFIRMED.value, Text),
            _HELD.c.during,
            # By hand: the library fills it in no statement that inserts twice.
            bindparam("who", type_=JSONB),
        ),
    )
    .returning(*BOOKING_COLUMNS)
)


class WithoutOverlaps(PostgresLedger):
    """Holds the window in a table of its own, and that table's key decides."""

    claim = Claim.ACROSS_PROCESSES
    schema: ClassVar[tuple[str, ...]] = (
        *WITHOUT_CONSTRAINT,
        """
        DO $$ BEGIN
            IF current_setting('server_version_num')::int < 180000 THEN
                RAISE feature_not_supported USING MESSAGE = format(
                    'without_overlaps needs PostgreSQL 18 or newer, and this is %s.',
                    current_setting('server_version'));
            END IF;
        END $$
        """,
        """
        CREATE TABLE IF NOT EXISTS held_time (
            driver_id bigint NOT NULL REFERENCES drivers,
            during tstzrange NOT NULL,
            CONSTRAINT held_time_once UNIQUE (driver_id, during WITHOUT OVERLAPS)
        )
        """,
        HOLD_WHAT_IS_BOOKED,
    )

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        if moving is not None:
            await reads.named_driver(connection, request, alone=True)
        return await write_or_refuse(
            lambda: self._write(connection, request, moving),
            lambda: self.in_the_way(connection, request, moving),
        )

    async def _write(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None
    ) -> Booking | None:
        """The booking and its window held; None if either could not be."""
        if moving is None:
            asked = _parameters(request) | {"who": changed_by()}
            row = (await connection.execute(_HOLD_AND_BOOK, asked)).one_or_none()
            return None if row is None else booking_of(row)
        async with connection.begin_nested() as savepoint:
            await self.release(connection, moving)
            if (await connection.execute(_HOLD, _parameters(request))).one_or_none():
                return await write_booking(connection, request, moving)
            await savepoint.rollback()
            return None

    @override
    async def release(self, connection: AsyncConnection, booking: Booking) -> None:
        await connection.execute(
            delete(held_time).where(
                held_time.c.driver_id == booking.driver_id,
                held_time.c.during == reads.range_of(booking.window),
            )
        )


def _parameters(request: BookingRequest) -> dict[str, object]:
    return {
        "driver_id": request.driver_id,
        "rider_id": request.rider_id,
        "during": reads.range_of(request.window),
        "terms_met": request.terms_met,
    }
