"""Neighbour function: one lock, one look-up and the insert, in a function inside the database.

Idea
----
What is recorded never overlaps, so one neighbour decides: of the bookings that
start before the window's end, the last one. Look at it under a lock of the
driver, inside a PL/pgSQL function, and the whole decision is one round trip and
needs no index but an ordinary B-tree.

What happens
------------
`book_beside_neighbour(…)` runs four statements on the server:

1. `pg_advisory_xact_lock(…)`: wait until nobody else is booking this driver.
2. Driver and rider: are they there, and does the driver still work? The driver's
   row is held `FOR KEY SHARE`, so that nobody retires the driver meanwhile.
3. The neighbour: the driver's last active booking that starts before the
   window's end. If it ends after the window's start, it is in the way, and the
   function answers with nothing. If it does not, nothing else is: whatever
   starts earlier has ended before this one began.
4. `INSERT` (or `UPDATE`, for a move), and the row is the answer.

Each of them is a new statement with a new snapshot, as the function is VOLATILE
and the isolation READ COMMITTED: the third sees all that the last holder of the
lock has committed. No row came back: three more statements (driver, rider,
bookings) find out why, and if nothing is in the way any more, it tries again.

Costs
-----
O(log N) for N bookings in the table, and one round trip when it records. There
is no GiST index to keep, whose inserts get dearer as the table grows. The lock
is held through the COMMIT, so those who ask for one driver queue for it. When
any driver would do, each offer stands in a savepoint, which is two more.

Breaks when
-----------
An overlap gets in by another way: the last neighbour may then have ended while
an earlier one has not, and one double booking hides the next. Like every lock it
binds only those who take it, and under REPEATABLE READ the look is older than
the lock. The server runs what `taxi db migrate` last put there: a new version of
this file needs that command before it needs a restart.
"""

from datetime import timedelta
from typing import override

from sqlalchemy import BigInteger, Boolean, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import JSONB, TSTZRANGE
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import LONGEST, Booking, BookingRequest, BookingState
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.attribution import changed_by
from booking.postgres.ledger import PostgresLedger, write_or_refuse
from booking.postgres.tables import BOOKING_COLUMNS, WITHOUT_CONSTRAINT, active, booking_of

_BOOK = select(*BOOKING_COLUMNS).add_cte(
    # Named like the table, whose rows the function gives, so that its columns can be asked for.
    select(text("*"))
    .select_from(
        func.book_beside_neighbour(
            bindparam("driver_id", type_=BigInteger),
            bindparam("rider_id", type_=BigInteger),
            bindparam("during", type_=TSTZRANGE),
            bindparam("moving", type_=BigInteger),
            bindparam("terms_met", type_=Boolean),
            bindparam("changed_by", type_=JSONB),
        )
    )
    .cte("bookings")
)


class NeighbourFunction(PostgresLedger):
    """Has the server lock, look at one neighbour, and write."""

    claim = Claim.ACROSS_PROCESSES
    holds_the_refused = True
    schema = (
        *WITHOUT_CONSTRAINT,
        # The bound on how far the look goes back spares it the cancelled bookings of years.
        f"""
        CREATE OR REPLACE FUNCTION book_beside_neighbour(
            driver bigint, rider bigint, wanted tstzrange, moving bigint, terms_met boolean,
            who jsonb
        ) RETURNS SETOF bookings LANGUAGE plpgsql VOLATILE AS $$
        DECLARE
            ends timestamptz;
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtextextended('driver', driver));
            PERFORM FROM drivers JOIN riders ON riders.id = rider
            WHERE drivers.id = driver AND retired_at IS NULL AND (terms_met OR NOT has_terms)
            FOR KEY SHARE OF drivers;
            IF NOT FOUND THEN
                RETURN;
            END IF;
            SELECT upper(during) INTO ends FROM bookings
            WHERE driver_id = driver AND {active} AND id IS DISTINCT FROM moving
              AND lower(during) < upper(wanted)
              AND lower(during) > lower(wanted) - interval '{LONGEST // timedelta(hours=1)} hours'
            ORDER BY lower(during) DESC LIMIT 1;
            IF ends > lower(wanted) THEN
                RETURN;
            END IF;
            IF moving IS NULL THEN
                RETURN QUERY INSERT INTO bookings
                    (driver_id, rider_id, state, during, changed_by)
                VALUES (driver, rider, '{BookingState.CONFIRMED}', wanted, who) RETURNING *;
            ELSE
                RETURN QUERY UPDATE bookings
                    SET during = wanted, driver_id = driver, changed_by = who
                WHERE id = moving RETURNING *;
            END IF;
        END $$
        """,  # noqa: S608  # words of our own
    )

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        return await write_or_refuse(
            lambda: _book(connection, request, moving),
            lambda: self.in_the_way(connection, request, moving),
        )


async def _book(
    connection: AsyncConnection, request: BookingRequest, moving: Booking | None
) -> Booking | None:
    """The booking; None if the function was against it."""
    asked = {
        "driver_id": request.driver_id,
        "rider_id": request.rider_id,
        "during": reads.range_of(request.window),
        "moving": None if moving is None else moving.id,
        "terms_met": request.terms_met,
        "changed_by": changed_by(),
    }
    row = (await connection.execute(_BOOK, asked)).one_or_none()
    return None if row is None else booking_of(row)
