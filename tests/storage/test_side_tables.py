"""What a recipe keeps of time beside the bookings is what the bookings say, whatever happened.

Every such recipe takes over bookings from before it, by a statement of its
`schema`. So the table as the work left it is compared with the table as that
statement builds it anew.
"""

from contextlib import suppress
from random import Random
from typing import override

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import Booking, BookingState
from booking.errors import BookingConflict, Contended
from booking.postgres import schema
from booking.postgres.database import Database
from booking.postgres.ledger import PostgresLedger
from booking.prevention.free_gaps import FreeGaps
from booking.prevention.multirange_driver import MultirangeDriver
from booking.prevention.multirange_driver_day import MultirangeDriverDay
from booking.prevention.partitioned_exclusion import PartitionedExclusion
from booking.prevention.slot_rows import SlotRows
from booking.prevention.without_overlaps import WithoutOverlaps
from tests.world import NewDatabase, World, hours

SIDE_TABLES: dict[type[PostgresLedger], tuple[str, str]] = {
    # A driver whose last booking is gone may keep a row that says nothing.
    MultirangeDriver: ("multirange_driver", "driver_busy WHERE NOT isempty(busy)"),
    MultirangeDriverDay: ("multirange_driver_day", "driver_day_busy WHERE NOT isempty(busy)"),
    SlotRows: ("slot_rows", "booking_slots"),
    FreeGaps: ("free_gaps", "driver_gaps"),
    WithoutOverlaps: ("without_overlaps", "held_time"),
    PartitionedExclusion: ("partitioned_exclusion", "held_time"),
}


class Forgetful(MultirangeDriver):
    """Does not give time back."""

    @override
    async def release(self, connection: AsyncConnection, booking: Booking) -> None:
        pass


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [*SIDE_TABLES, Forgetful], ids=lambda kind: kind.__name__)
async def test_the_side_table_says_what_the_bookings_say(
    kind: type[PostgresLedger], new_database: NewDatabase
) -> None:
    name, rows = SIDE_TABLES[MultirangeDriver if kind is Forgetful else kind]
    database = Database(new_database(name))
    try:
        world = World(database, kind(database, AskThenOffer()))
        await work(world)
        kept = await database.transact(lambda c: read(c, rows))
        rebuilt = await database.transact(lambda c: rebuild(c, kind, rows))
        assert len(kept) > 1
        assert (kept == rebuilt) is (kind is not Forgetful)
    finally:
        await database.close()


async def work(world: World) -> None:
    """Book, move and cancel for two drivers, over three days and their midnights."""
    dice = Random(1)
    fleet, rider = [await world.driver(), await world.driver()], await world.rider()
    made: list[int] = []
    for _ in range(60):
        start = dice.randrange(72 * 2) / 2
        window = hours(start, start + dice.choice((0.5, 1, 3, 24)))
        step = dice.random()
        # Where the table forgot to give time back, nothing is found in the way.
        with suppress(BookingConflict, Contended):
            if step < 0.5 or not made:
                booked = await world.book(window, dice.choice(fleet), rider_id=rider)
                made.append(booked.id)
            elif step < 0.8:
                await world.ledger.reschedule(dice.choice(made), window)
            else:
                gone = made.pop(dice.randrange(len(made)))
                await world.ledger.change_state(gone, BookingState.CANCELLED)


async def read(connection: AsyncConnection, rows: str) -> list[str]:
    table = rows.partition(" ")[0]
    return sorted(await connection.scalars(text(f"SELECT {table}::text FROM {rows}")))


async def rebuild(connection: AsyncConnection, kind: type[PostgresLedger], rows: str) -> list[str]:
    await connection.execute(text(f"DELETE FROM {rows.partition(' ')[0]}"))
    await schema.fit(connection, list(kind.schema))
    return await read(connection, rows)


@pytest.mark.anyio
async def test_a_server_too_old_for_temporal_keys_is_told_plainly(database: Database) -> None:
    # As if the present server were too old: the tests bring no other.
    needs = [each.replace("180000", "990000") for each in WithoutOverlaps.schema]
    assert needs != list(WithoutOverlaps.schema)
    with (
        pytest.raises(schema.SchemaError, match="without_overlaps needs PostgreSQL 18 or newer"),
        schema.plainly_told("postgresql://host/taxi"),
    ):
        await database.transact(lambda connection: schema.fit(connection, needs))
