"""Holds that lapse while somebody else has their row: nobody waits in a ring, nobody is late."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import BookingState
from booking.errors import BookingConflict, HoldLapsed
from booking.postgres.database import Database
from booking.postgres.series import cancel_series_in, read_series
from booking.postgres.tables import booking_series, bookings
from booking.prevention.grouped_commit import GroupedCommit
from tests.world import World, hours, until_someone_waits_for_a_lock

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(fresh_url: str) -> AsyncIterator[World]:
    database = Database(fresh_url, statement_s_max=2)
    yield World(database, GroupedCommit(database, AskThenOffer()))
    await database.close()


async def test_a_lapsed_hold_that_somebody_is_changing_is_in_the_way_and_not_waited_for(
    world: World,
) -> None:
    driver = await world.driver()
    held = await world.book(hours(9, 10), driver, hold_s=60)
    over = update(bookings).values(held_until=func.now() - timedelta(seconds=1))
    await world.database.transact(lambda c: c.execute(over))
    async with world.database.engine.begin() as other:
        await other.execute(select(bookings.c.id).with_for_update(key_share=True))
        # Who waited for the row would be told, after two seconds, that it took too long.
        with pytest.raises(BookingConflict) as refused:
            await world.book(hours(9, 10), driver)
        assert refused.value.conflicts == ((held.id, held.window),)
    await world.book(hours(9, 10), driver)


async def test_a_hold_that_lapses_while_its_row_is_waited_for_cannot_be_confirmed(
    world: World,
) -> None:
    held = await world.book(hours(9, 10), await world.driver(), hold_s=1)
    async with world.database.engine.begin() as other:
        await other.execute(select(bookings.c.id).with_for_update(key_share=True))
        confirming = asyncio.create_task(world.ledger.change_state(held.id, BookingState.CONFIRMED))
        await until_someone_waits_for_a_lock(world.database)
        await other.execute(select(func.pg_sleep(1.1)))
    with pytest.raises(HoldLapsed):
        await confirming


async def test_a_trip_of_a_series_that_begins_meanwhile_is_not_cancelled(world: World) -> None:
    driver, rider = await world.driver(), await world.rider()
    begins, waits = [
        await world.book(hours(hour, hour + 1), driver, rider_id=rider) for hour in (9, 11)
    ]
    wish = {
        "rider_id": rider,
        "zone": "UTC",
        "wall_clock": hours(9, 10).start.time(),
        "duration_s": 3600,
        "weekdays": [6],
        "first_date": hours(9, 10).start.date(),
        "occurrences": 1,
        "interval_weeks": 1,
    }
    number = await world.database.transact(
        lambda c: c.scalar(booking_series.insert().values(wish).returning(booking_series.c.id))
    )
    assert number is not None
    joined = update(bookings).values(series_id=number)
    await world.database.transact(lambda c: c.execute(joined))
    async with world.database.engine.begin() as other:
        await world.ledger.change_state_in(other, begins.id, BookingState.IN_PROGRESS)
        cancelling = asyncio.create_task(
            world.ledger.transact(lambda c: cancel_series_in(world.ledger, c, number, None))
        )
        await until_someone_waits_for_a_lock(world.database)
    await cancelling
    series = await world.database.transact(lambda c: read_series(c, number), read_only=True)
    assert [(each.id, each.state) for each in series.bookings] == [
        (begins.id, BookingState.IN_PROGRESS),
        (waits.id, BookingState.CANCELLED),
    ]
