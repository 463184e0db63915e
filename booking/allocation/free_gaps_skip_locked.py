"""Free gaps: a table of what is free, a gap that contains the window, locked, SKIP LOCKED, split.

Idea
----
Keep the free time instead of searching for it: one row for each gap in a driver's
calendar. To book is to find *any* gap that contains the window, lock its row, and
cut the window out of it. What is locked is the very row that says "free".

What happens
------------
1. `SELECT … WHERE fleet = … AND gap @> window LIMIT 1 FOR NO KEY UPDATE SKIP
   LOCKED`, by a GiST index over both. It locks the driver's row and the gap's. A
   gap that somebody else has cut meanwhile is looked at again as it is now, and
   skipped if the window no longer fits: the lock and the look are at one row.
2. The recipe records the booking, and a trigger cuts the gap in two.
3. Nothing found? Then look without the lock. No gap there: nobody was free, and
   the request is refused. Gaps, but all locked: wait for the drivers one by one
   and look again, up to `ROUNDS_MAX` times.

Triggers keep the gaps, so they see what every recipe writes: a new booking cuts,
one that is cancelled or moved gives back, and what is given back grows together
with the gaps it touches. A new driver begins with one gap from the beginning of
time to its end; one who retires has none.

Everybody who writes a booking holds the driver's row first: see `searches`.

Costs
-----
For G gaps: O(log G) to find one, whether two drivers of a hundred are free or
twenty; and for a booking, two look-ups of O(log G), one row deleted and up to two
inserted in two indexes. G is the number of active bookings and one more a driver.
Bookings of one driver go one after the other, whatever the recipe.

Breaks when
-----------
Somebody writes with the triggers disabled, or empties `bookings` by TRUNCATE,
which calls none: the gaps are then wrong until `DELETE FROM free_gaps` and
`taxi db migrate`, which writes what is missing. A recipe takes a lock of its own
before the driver's row, as `advisory_lock` does: bookings for named drivers and
searches then meet from two sides and may deadlock, which PostgreSQL ends and the
ledger runs again. Under a stricter isolation than READ COMMITTED a gap that was
cut meanwhile is a serialization failure and not a skip.
"""

from sqlalchemy import BigInteger, Select, Text, column, literal_column, select, table
from sqlalchemy.dialects.postgresql import TSTZRANGE
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from booking.bookings import Booking, BookingRequest
from booking.errors import Contended, NoDriverFree
from booking.ledgers import Claim
from booking.postgres import reads, searches
from booking.postgres.ledger import Record
from booking.postgres.tables import drivers
from booking.postgres.terms import works_in

_GAPS = (
    # Bounded by the infinite instants, so that every gap has a first and a last.
    """
    CREATE TABLE IF NOT EXISTS free_gaps (
        driver_id bigint NOT NULL,
        fleet     text NOT NULL,
        gap       tstzrange NOT NULL CONSTRAINT free_gaps_not_empty CHECK (NOT isempty(gap)),
        PRIMARY KEY (driver_id, gap)
    )
    """,
    "CREATE INDEX IF NOT EXISTS free_gaps_by_gap ON free_gaps USING gist (fleet, gap)",
)

# Ranges are ordered by their start. So the gaps that meet a window lie, in the primary key,
# between the last one that starts no later than the window and the first that starts after it.
_MEETING = """
    driver_id = {row}.driver_id AND gap {meets} {row}.during
    AND gap <= tstzrange(upper({row}.during), NULL)
    AND gap >= (SELECT gap FROM free_gaps
                WHERE driver_id = {row}.driver_id AND gap <= tstzrange(lower({row}.during), NULL)
                ORDER BY gap DESC LIMIT 1)
"""

_BY_BOOKINGS = f"""
    CREATE OR REPLACE FUNCTION bookings_keep_free_gaps() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        held  boolean := TG_OP <> 'INSERT' AND OLD.state IN ({searches.ACTIVE_LIST});
        holds boolean := TG_OP <> 'DELETE' AND NEW.state IN ({searches.ACTIVE_LIST});
    BEGIN
        IF held AND holds AND OLD.driver_id = NEW.driver_id AND OLD.during = NEW.during THEN
            RETURN NULL;
        END IF;
        IF held THEN
            WITH freed AS (
                SELECT tstzmultirange(OLD.during)
                       - coalesce(range_agg(during), tstzmultirange()) AS during
                FROM ({searches.OTHERS.format(window="OLD.during")}) AS others
            ), touching AS (
                DELETE FROM free_gaps WHERE {_MEETING.format(row="OLD", meets="-|-")}
                RETURNING gap
            )
            INSERT INTO free_gaps (driver_id, fleet, gap)
            SELECT drivers.id, drivers.fleet, whole
            FROM drivers, freed, unnest(
                freed.during
                + coalesce((SELECT range_agg(gap) FROM touching), tstzmultirange())
            ) AS whole
            WHERE drivers.id = OLD.driver_id AND drivers.retired_at IS NULL;
        END IF;
        IF holds THEN
            WITH cut AS (
                DELETE FROM free_gaps WHERE {_MEETING.format(row="NEW", meets="&&")}
                RETURNING fleet, gap
            )
            INSERT INTO free_gaps (driver_id, fleet, gap)
            SELECT NEW.driver_id, cut.fleet, rest
            FROM cut, unnest(tstzmultirange(cut.gap) - tstzmultirange(NEW.during)) AS rest;
        END IF;
        RETURN NULL;
    END $$
"""  # noqa: S608  # words of our own

# All the time there is, without what the driver's active bookings hold.
_ALL_FREE = f"""
    INSERT INTO free_gaps (driver_id, fleet, gap)
    SELECT driver.id, driver.fleet, gap
    FROM {{drivers}} AS driver,
         LATERAL (SELECT range_agg(during) AS held FROM bookings
                  WHERE driver_id = driver.id AND state IN ({searches.ACTIVE_LIST})) AS taken,
         unnest(tstzmultirange(tstzrange('-infinity', 'infinity'))
                - coalesce(taken.held, tstzmultirange())) AS gap
    WHERE driver.retired_at IS NULL
"""  # noqa: S608  # words of our own

_BY_DRIVERS = f"""
    CREATE OR REPLACE FUNCTION drivers_keep_free_gaps() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP <> 'INSERT' THEN
            DELETE FROM free_gaps WHERE driver_id = OLD.id;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            {_ALL_FREE.format(drivers="(SELECT NEW.*)")};
        END IF;
        RETURN NULL;
    END $$
"""  # noqa: S608  # words of our own

_free_gaps = table(
    "free_gaps", column("driver_id", BigInteger), column("fleet", Text), column("gap", TSTZRANGE)
)


class FreeGapsSkipLocked:
    """Locks a row that says "free", and so needs nobody behind it to decide."""

    claim = Claim.ACROSS_PROCESSES
    schema = (
        *_GAPS,
        *searches.DRIVER_FIRST,
        _BY_BOOKINGS,
        """
        CREATE OR REPLACE TRIGGER bookings_keep_free_gaps
            AFTER INSERT OR DELETE OR UPDATE OF driver_id, during, state ON bookings
            FOR EACH ROW EXECUTE FUNCTION bookings_keep_free_gaps()
        """,
        _BY_DRIVERS,
        """
        CREATE OR REPLACE TRIGGER drivers_keep_free_gaps
            AFTER INSERT OR DELETE OR UPDATE OF fleet, retired_at ON drivers
            FOR EACH ROW EXECUTE FUNCTION drivers_keep_free_gaps()
        """,
        # Without bookings nothing of it can be right but what is written next.
        "DELETE FROM free_gaps WHERE NOT EXISTS (SELECT FROM bookings)",
        # A driver who works has a gap at either end of time, if any was ever counted.
        _ALL_FREE.format(drivers="drivers")
        + " AND NOT EXISTS (SELECT FROM free_gaps WHERE driver_id = driver.id)",
    )

    async def allocate(
        self, connection: AsyncConnection, request: BookingRequest, record: Record
    ) -> Booking:
        """Book any free driver of the request's fleet, as `Allocator.allocate` says."""
        for _ in range(searches.ROUNDS_MAX):
            locked = (await connection.scalars(_lock_one(request))).all()
            booked = await searches.offer_each(connection, request, locked, record)
            if booked is not None:
                return booked
            listed = (await connection.scalars(_free(request))).all()
            if not listed:
                await reads.rider(connection, request.rider_id)
                raise NoDriverFree(field="start")
            booked = await searches.wait_for_each(
                connection, request, listed, lambda driver_id: _free(request, driver_id), record
            )
            if booked is not None:
                return booked
        raise Contended


def _fits(request: BookingRequest) -> ColumnElement[bool]:
    window = reads.range_of(request.window)
    contains: ColumnElement[bool] = _free_gaps.c.gap.contains(window)
    # Said twice: the planner thinks that so many gaps fit that it would come upon one soon
    # without the index. It takes the second for a further condition, and thinks better of it.
    overlaps: ColumnElement[bool] = _free_gaps.c.gap.overlaps(window)
    return (_free_gaps.c.fleet == request.fleet) & contains & overlaps


def _lock_one(request: BookingRequest) -> Select[int]:
    # The driver first, as everybody does; the gap as well, so that it is looked at again if
    # it was cut after this statement began.
    return (
        select(_free_gaps.c.driver_id)
        .join(drivers, drivers.c.id == _free_gaps.c.driver_id)
        .where(_fits(request), drivers.c.retired_at.is_(None), works_in(request.window))
        .limit(literal_column("1"))
        .with_for_update(key_share=True, skip_locked=True, of=[drivers, _free_gaps])
    )


def _free(request: BookingRequest, driver_id: int | None = None) -> Select[int]:
    """Up to `OFFERS` drivers with a gap for the window; only that one, if named."""
    statement = select(_free_gaps.c.driver_id).where(_fits(request))
    if driver_id is not None:
        return statement.where(_free_gaps.c.driver_id == driver_id)
    return statement.limit(literal_column(f"{searches.OFFERS}"))
