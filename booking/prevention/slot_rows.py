"""Slot rows: cut time into slots of five minutes, and let a unique key give each out once.

Idea
----
Cut time into slots of five minutes and keep one row for each slot of a driver
that is taken, under a primary key of driver and slot. "No two bookings overlap"
becomes "no two rows have one key", which any database can hold, also one that
has never heard of ranges or exclusion constraints.

What happens
------------
1. `SELECT` driver and rider, with the driver's row held `FOR KEY SHARE`.
2. In a savepoint: `INSERT` the booking, then one row for each of its slots, in
   order of time, `ON CONFLICT DO NOTHING`. The insert meets the primary key. If
   another transaction has a slot but has not committed, it waits to see how that
   ends.
3. As many rows as slots: recorded. Fewer: back to the savepoint, and a `SELECT`
   names the bookings that hold the slots. If they are gone by now, once more.

A window is rounded outward: `[9:58, 10:01)` takes the slots of 9:55 and 10:00.

In order of time, because whoever has a slot then only waits for a later one, and
no two can wait for each other. A move takes the slots that it lacks *before* it
gives back those it leaves: given back first, they would be slots that others
wait for while it waits for theirs.

Costs
-----
With s slots in a window and R rows in the table, O(s log R): an hour is 12
rows, a day 288, each with its entry in the index and in the log. Four statements
(driver, rider, booking, slots), a fifth when it refuses, and two for the
savepoint, each a round trip.

Breaks when
-----------
Trips are not on the grid. Two that touch at 10:02 both need the slot of 10:00,
and the second is refused for nothing: the refusal names a booking that does not
overlap, and a calendar that has two such trips cannot be taken over. Finer slots
make that rarer and the rows more. When any driver would do, a driver who is free
by the clock but not by the slots is offered the booking again and again, until
the request is told to come back later.
"""

from collections.abc import Sequence
from typing import override

from sqlalchemy import BigInteger, Column, MetaData, Table, any_, delete, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.calendars import Held
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.ledger import PostgresLedger, write_or_refuse
from booking.postgres.tables import (
    WITHOUT_CONSTRAINT,
    active,
    begins,
    bookings,
    lapsed,
    predicted_ends,
)
from booking.postgres.writes import write_booking
from booking.time_window import TimeWindow, microseconds

SLOT_S = 300
"""The length of a slot, in seconds."""
_SLOT_US = SLOT_S * 1_000_000

booking_slots = Table(
    "booking_slots",
    MetaData(),
    Column("driver_id", BigInteger, primary_key=True),
    Column("slot", BigInteger, primary_key=True),  # the how manyth since 1970 began
    Column("booking_id", BigInteger, nullable=False),
)

_SLOTS_OF_A_BOOKING = f"""
    generate_series(
        floor(extract(epoch FROM lower(during)) / {SLOT_S})::bigint,
        ceil(extract(epoch FROM upper(during)) / {SLOT_S})::bigint - 1
    )
"""


class SlotRows(PostgresLedger):
    """Takes every slot of the window, or none."""

    claim = Claim.ACROSS_PROCESSES
    schema = (
        *WITHOUT_CONSTRAINT,
        """
        CREATE TABLE IF NOT EXISTS booking_slots (
            driver_id bigint NOT NULL,
            slot bigint NOT NULL,
            booking_id bigint NOT NULL REFERENCES bookings,
            PRIMARY KEY (driver_id, slot)
        )
        """,
        # Bookings from before there were slots: only while there are none.
        f"""
        INSERT INTO booking_slots (driver_id, slot, booking_id)
        SELECT driver_id, slot, id FROM bookings, {_SLOTS_OF_A_BOOKING} AS slot
        WHERE {active} AND NOT EXISTS (SELECT FROM booking_slots)
        """,  # noqa: S608  # words of our own
    )

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        driver_id = await reads.named_driver(connection, request)
        wanted = _slots(request.window)
        return await write_or_refuse(
            lambda: _write(connection, request, moving),
            lambda: self._holders(connection, driver_id, wanted, moving),
        )

    async def _holders(
        self, connection: AsyncConnection, driver_id: int, wanted: range, moving: Booking | None
    ) -> list[Held]:
        """The bookings that have any of the wanted slots, in order of start; not `moving`."""
        statement = (
            select(bookings.c.id, begins, predicted_ends, lapsed)
            .join_from(booking_slots, bookings, bookings.c.id == booking_slots.c.booking_id)
            .where(
                booking_slots.c.driver_id == driver_id,
                booking_slots.c.slot.between(wanted[0], wanted[-1]),
            )
            .distinct()
            .order_by(begins)
        )
        if moving is not None:
            statement = statement.where(bookings.c.id != moving.id)
        rows = (await connection.execute(statement)).all()
        return await self.unless_lapsed(connection, *reads.sorted_out(rows), moving)

    @override
    async def release(self, connection: AsyncConnection, booking: Booking) -> None:
        await _give_back(connection, booking.driver_id, _slots(booking.window))


async def _write(
    connection: AsyncConnection, request: BookingRequest, moving: Booking | None
) -> Booking | None:
    """The booking with all its slots; None if one of them was taken."""
    async with connection.begin_nested() as savepoint:
        booked = await write_booking(connection, request, moving)
        if await _take(connection, booked, _slots(request.window), moving):
            return booked
        await savepoint.rollback()
        return None


def _slots(window: TimeWindow) -> range:
    """The slots that `window` needs, in order of time: all that it so much as touches."""
    first = microseconds(window.start) // _SLOT_US
    behind_the_last = -(-microseconds(window.end) // _SLOT_US)
    return range(first, behind_the_last)


async def _take(
    connection: AsyncConnection, booking: Booking, wanted: range, moving: Booking | None
) -> bool:
    """Whether every wanted slot is the booking's now; some may be even if not."""
    here = moving is not None and moving.driver_id == booking.driver_id
    held = _slots(moving.window) if moving is not None and here else range(0)
    lacking = [slot for slot in wanted if slot not in held]
    taken = await connection.execute(
        insert(booking_slots)
        .from_select(
            ["driver_id", "slot", "booking_id"],
            select(
                literal(booking.driver_id, BigInteger),
                func.unnest(literal(lacking, ARRAY(BigInteger))),
                literal(booking.id, BigInteger),
            ),
        )
        .on_conflict_do_nothing()
    )
    if taken.rowcount < len(lacking):
        return False
    await _give_back(connection, booking.driver_id, [slot for slot in held if slot not in wanted])
    if moving is not None and not here:
        await _give_back(connection, moving.driver_id, _slots(moving.window))
    return True


async def _give_back(connection: AsyncConnection, driver_id: int, slots: Sequence[int]) -> None:
    if slots:
        await connection.execute(
            delete(booking_slots).where(
                booking_slots.c.driver_id == driver_id,
                booking_slots.c.slot == any_(literal(slots, ARRAY(BigInteger))),
            )
        )
