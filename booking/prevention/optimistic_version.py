"""Optimistic version: nobody waits to look; whoever looked at an old state does not get to write.

Idea
----
Number the states of a driver's calendar. Read the number, look, and write only
if the number is still the same; if it is not, somebody else wrote meanwhile, so
look again.

What happens
------------
`driver_versions` has a row for each driver who was ever booked; no row is
version 0.

1. `SELECT` the version, *before* the look: what is seen then is at least as new
   as the version that stands for it.
2. `SELECT` the overlapping bookings. Any? Refuse.
3. Compare and set: count the version up `WHERE version = the one that was read`,
   as an upsert, so that the first booking needs no case of its own. A row came
   back: the calendar is as it was seen, and stays so, as the row is held until
   the COMMIT. None: somebody was quicker; begin again with 1.
4. `INSERT`.

The usual order is insert first, then compare and set. This way round the loser
has no booking to take back. But it has the row: PostgreSQL locks a row before it
judges the condition, and keeps the lock also where the condition fails. So step 3
stands in a savepoint that the loser goes back to; without it, losing once would
make this a row lock, and two searches for any driver could deadlock.

Time that is given back counts no version up: who looked before that sees too
little free, never too much.

Costs
-----
O(log N) for N bookings in the table, in eight round trips (driver, rider,
version, bookings, savepoint, compare and set, release, insert), of which five
again for each further try. One small row is written besides the booking. Of r
requests for one driver under way at once, the last to get in has tried up to r
times.

Breaks when
-----------
Many ask for one driver: after `TRIES_MAX` tries the answer is `Contended`, though
there may have been room. A loser waits as well, for the winner's COMMIT, to hear
that it lost. And a script that inserts without counting up is seen by nobody.
"""

from typing import override

from sqlalchemy import BigInteger, Column, ForeignKey, MetaData, Table, bindparam, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.errors import BookingConflict, Contended
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import INDEX_INSTEAD, drivers
from booking.postgres.writes import write_booking

TRIES_MAX = 5

_versions = Table(
    "driver_versions",
    MetaData(),
    Column("driver_id", BigInteger, ForeignKey(drivers.c.id), primary_key=True),
    Column("version", BigInteger, nullable=False),
)

_READ = select(_versions.c.version).where(_versions.c.driver_id == bindparam("driver"))
_COMPARE_AND_SET = (
    insert(_versions)
    .values(driver_id=bindparam("driver"), version=1)
    .on_conflict_do_update(
        index_elements=[_versions.c.driver_id],
        set_={"version": _versions.c.version + 1},
        where=_versions.c.version == bindparam("seen"),
    )
    .returning(_versions.c.version)
)


class OptimisticVersion(PostgresLedger):
    """Looks without a lock, and writes if nobody else did."""

    claim = Claim.ACROSS_PROCESSES
    schema = (
        *INDEX_INSTEAD,
        """
        CREATE TABLE IF NOT EXISTS driver_versions (
            driver_id bigint PRIMARY KEY REFERENCES drivers,
            version   bigint NOT NULL
        )
        """,
    )
    may_give_up = True

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        driver_id = await reads.named_driver(connection, request)
        for _ in range(TRIES_MAX):
            seen = await connection.scalar(_READ, {"driver": driver_id}) or 0
            if conflicts := await self.in_the_way(connection, request, moving, driver_id):
                raise BookingConflict(conflicts=conflicts)
            if await _count_up(connection, driver_id, seen):
                return await write_booking(connection, request, moving)
        raise Contended


async def _count_up(connection: AsyncConnection, driver_id: int, seen: int) -> bool:
    """Whether the version was still the one that was seen; if so, it is another now."""
    async with connection.begin_nested() as savepoint:
        if await connection.scalar(_COMPARE_AND_SET, {"driver": driver_id, "seen": seen}):
            return True
        await savepoint.rollback()  # it would hold the row, though it has no use for it
        return False
