"""Free gaps: keep the free time instead of the taken time, and lock the gap that is cut.

Idea
----
Keep each driver's *free* time, one row a gap. The window is free if one gap
contains it, and that gap is a row: a thing to lock, where "no booking there" is
nothing to lock. Two who book different gaps of one driver do not meet.

What happens
------------
`book_gap(…)`, one function on the server and one round trip:

1. Driver and rider are looked up, and the driver's row is held `FOR KEY SHARE`.
   Then share the driver: an advisory lock that those who book hold together.
2. Look for the gap, with no lock: of those that start at or before the window,
   the last one. It ends too early? Refused.
3. Lock that gap, if it still contains the window. Somebody else cut it
   meanwhile? Look again, in a new snapshot.
4. Cut it: what lies before the window stays, what lies behind is a new row.
   `INSERT` the booking.

`give_back_gap(…)`, when a booking is cancelled or moves: have the driver *alone*
(the same lock, exclusive), and join the two gaps around the window.

A driver with n bookings has n + 1 gaps, always; between two that touch the gap is
empty and waits for one of them to be given back, as in memory
(`allocation/gap_index.py`). A trigger gives each new driver one gap: for ever.

Why alone: cutting takes one gap and then at most a later one, so no two who cut
wait for each other. A move joins here and cuts anywhere, and would.

Costs
-----
O(log G) for G gaps in the table, by a B-tree, and one round trip; a row changed
and a row added for each booking, besides the booking. A refusal waits only for a
gap that is being cut, and takes three more round trips (driver, rider, bookings)
to name what is in the way. When any driver would do, each offer stands in a
savepoint, which is two more: two searches that share each other's drivers, and
someone who wants one of them alone, would wait in a ring.

Breaks when
-----------
Anyone writes bookings past the function: the gaps do not notice, and no
constraint stands behind them. Those who want the *same* gap queue for it, and a
driver with an empty calendar has only one. And whoever gives time back waits
until nobody is booking that driver.
"""

from typing import override

from sqlalchemy import BigInteger, Boolean, bindparam, func, literal, select, text
from sqlalchemy.dialects.postgresql import JSONB, TSTZRANGE
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest, BookingState
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.attribution import changed_by
from booking.postgres.ledger import PostgresLedger, write_or_refuse
from booking.postgres.tables import BOOKING_COLUMNS, WITHOUT_CONSTRAINT, active, booking_of

_LOOKS_MAX = 100
"""How often a gap may be cut by others between look and lock."""


_BOOK = select(*BOOKING_COLUMNS).add_cte(
    # Named like the table, whose rows the function gives, so that its columns can be asked for.
    select(text("*"))
    .select_from(
        func.book_gap(
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


class FreeGaps(PostgresLedger):
    """Has the server find the gap that contains the window, and cut it."""

    claim = Claim.ACROSS_PROCESSES
    holds_the_refused = True
    schema = (
        *WITHOUT_CONSTRAINT,
        """
        CREATE TABLE IF NOT EXISTS driver_gaps (
            driver_id bigint NOT NULL REFERENCES drivers,
            starts_at timestamptz NOT NULL,
            ends_at timestamptz NOT NULL,
            PRIMARY KEY (driver_id, starts_at),
            CONSTRAINT driver_gaps_in_order CHECK (starts_at <= ends_at)
        )
        """,
        """
        CREATE OR REPLACE FUNCTION open_calendar() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO driver_gaps (driver_id, starts_at, ends_at)
            VALUES (NEW.id, '-infinity', 'infinity');
            RETURN NULL;
        END $$
        """,
        """
        CREATE OR REPLACE TRIGGER drivers_open_calendar AFTER INSERT ON drivers
        FOR EACH ROW EXECUTE FUNCTION open_calendar()
        """,
        # Drivers and bookings from before there were gaps: only while there are none.
        f"""
        INSERT INTO driver_gaps (driver_id, starts_at, ends_at)
        SELECT driver_id, until, lead(since, 1, 'infinity') OVER (
            PARTITION BY driver_id ORDER BY since
        )
        FROM (
            SELECT id, timestamptz '-infinity', timestamptz '-infinity' FROM drivers
            UNION ALL
            SELECT driver_id, lower(during), upper(during) FROM bookings WHERE {active}
        ) AS taken (driver_id, since, until)
        WHERE NOT EXISTS (SELECT FROM driver_gaps)
        """,  # noqa: S608  # words of our own
        f"""
        CREATE OR REPLACE FUNCTION book_gap(
            driver bigint, rider bigint, wanted tstzrange, moving bigint, terms_met boolean,
            who jsonb
        ) RETURNS SETOF bookings LANGUAGE plpgsql VOLATILE AS $$
        DECLARE
            gap driver_gaps;
        BEGIN
            PERFORM FROM drivers JOIN riders ON riders.id = rider
            WHERE drivers.id = driver AND retired_at IS NULL AND (terms_met OR NOT has_terms)
            FOR KEY SHARE OF drivers;
            IF NOT FOUND THEN
                RETURN;
            END IF;
            -- Not sooner: who has terms to meet yet waits for the row, and would share meanwhile.
            PERFORM pg_advisory_xact_lock_shared(hashtextextended('driver', driver));
            FOR look IN 1..{_LOOKS_MAX} LOOP
                SELECT * INTO gap FROM driver_gaps
                WHERE driver_id = driver AND starts_at <= lower(wanted)
                ORDER BY starts_at DESC LIMIT 1;
                IF gap.ends_at < upper(wanted) THEN
                    RETURN;
                END IF;
                SELECT * INTO gap FROM driver_gaps
                WHERE driver_id = driver AND starts_at = gap.starts_at
                  AND ends_at >= upper(wanted)
                FOR NO KEY UPDATE;
                CONTINUE WHEN NOT FOUND;
                UPDATE driver_gaps SET ends_at = lower(wanted)
                WHERE driver_id = driver AND starts_at = gap.starts_at;
                INSERT INTO driver_gaps (driver_id, starts_at, ends_at)
                VALUES (driver, upper(wanted), gap.ends_at);
                IF moving IS NULL THEN
                    RETURN QUERY INSERT INTO bookings
                        (driver_id, rider_id, state, during, changed_by)
                    VALUES (driver, rider, '{BookingState.CONFIRMED}', wanted, who) RETURNING *;
                ELSE
                    RETURN QUERY UPDATE bookings
                    SET during = wanted, driver_id = driver, changed_by = who
                    WHERE id = moving RETURNING *;
                END IF;
                RETURN;
            END LOOP;
        END $$
        """,  # noqa: S608  # words of our own
        """
        CREATE OR REPLACE FUNCTION give_back_gap(driver bigint, given_back tstzrange)
        RETURNS void LANGUAGE plpgsql VOLATILE AS $$
        DECLARE
            behind driver_gaps;
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtextextended('driver', driver));
            DELETE FROM driver_gaps WHERE driver_id = driver AND starts_at = upper(given_back)
            RETURNING * INTO STRICT behind;
            UPDATE driver_gaps SET ends_at = behind.ends_at
            WHERE driver_id = driver AND ends_at = lower(given_back) AND starts_at = (
                SELECT max(starts_at) FROM driver_gaps
                WHERE driver_id = driver AND starts_at <= lower(given_back)
            );
        END $$
        """,
    )

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
        """The booking, cut out of a gap; None if there was none, or the function was against it."""
        if moving is None:
            return await _book(connection, request)
        async with connection.begin_nested() as savepoint:
            await self.release(connection, moving)
            booked = await _book(connection, request, moving)
            if booked is None:
                await savepoint.rollback()
            return booked

    @override
    async def release(self, connection: AsyncConnection, booking: Booking) -> None:
        await connection.execute(
            select(
                func.give_back_gap(
                    literal(booking.driver_id, BigInteger),
                    literal(reads.range_of(booking.window), TSTZRANGE),
                )
            )
        )


async def _book(
    connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
) -> Booking | None:
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
