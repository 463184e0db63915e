"""What can be read, and the small changes beside bookings."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import Booking, BookingState
from booking.errors import InvalidInput, NaiveInstant, UnknownDriver
from booking.postgres import ledger, reads
from booking.postgres.database import Database
from booking.postgres.reads import BookingFilter
from booking.postgres.tables import bookings
from booking.prevention.exclusion_upsert import ExclusionUpsert
from tests.world import MIDNIGHT, World, hours, until_someone_waits_for_a_lock

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(database: Database) -> World:
    return World(database, ExclusionUpsert(database, AskThenOffer()))


async def listed(
    world: World, after: tuple[datetime, int] | None = None, limit: int = 100, **wanted: Any
) -> list[Booking]:
    return await world.database.transact(
        lambda c: reads.list_bookings(c, BookingFilter(**wanted), after=after, limit=limit),
        read_only=True,
    )


async def test_bookings_are_listed_by_driver_rider_state_fleet_and_window(world: World) -> None:
    ada, eve = await world.driver(), await world.driver("other")
    bob, dan = await world.rider(), await world.rider()
    late = await world.book(hours(11, 12), ada, rider_id=bob)
    early = await world.book(hours(9, 10), ada, rider_id=dan)
    same = await world.book(hours(9, 10), eve, rider_id=bob)
    gone = await world.ledger.change_state(same.id, BookingState.CANCELLED)
    assert await listed(world) == [early, gone, late]
    assert await listed(world, driver_id=ada) == [early, late]
    assert await listed(world, rider_id=bob) == [gone, late]
    assert await listed(world, state=BookingState.CANCELLED) == [gone]
    assert await listed(world, fleet="other") == [gone]
    assert await listed(world, fleet="other", state=BookingState.CONFIRMED) == []


async def test_a_window_lists_what_overlaps_it(world: World) -> None:
    driver = await world.driver()
    whole_day = await world.book(hours(0, 24), driver)
    early = await world.book(hours(24, 25), driver)
    late = await world.book(hours(26, 27), driver)
    at = {hour: MIDNIGHT + timedelta(hours=hour) for hour in range(30)}
    assert await listed(world, start=at[23]) == [whole_day, early, late]
    assert await listed(world, start=at[24]) == [early, late]
    assert await listed(world, end=at[24]) == [whole_day]
    assert await listed(world, start=at[25], end=at[26]) == []
    assert await listed(world, start=at[24], end=at[27]) == [early, late]


@pytest.mark.parametrize("year", [2, 9998])
async def test_the_edges_of_the_calendar_are_no_error(world: World, year: int) -> None:
    await world.book(hours(9, 10), await world.driver())
    instant = datetime(year, 1, 1, tzinfo=UTC)
    counts = [len(await listed(world, **{name: instant})) for name in ("start", "end")]
    assert sorted(counts) == [0, 1]


async def test_naive_bounds_are_refused() -> None:
    for field in ("start", "end"):
        with pytest.raises(NaiveInstant) as refused:
            BookingFilter(**{field: MIDNIGHT.replace(tzinfo=None)})
        assert refused.value.field == field


async def test_page_by_page_everything_is_listed_once(world: World) -> None:
    rider = await world.rider()
    made = []
    for number in range(7):  # three start at one time, so the id must decide
        start = 9 + number // 3
        made.append(await world.book(hours(start, start + 1), await world.driver(), rider_id=rider))
    pages: list[Booking] = []
    after = None
    while page := await listed(world, after, limit=2):
        pages += page
        after = (page[-1].start, page[-1].id)
    assert pages == made


async def test_drivers_are_listed_page_by_page(world: World) -> None:
    ids = [await world.driver("odd" if number % 2 else "even") for number in range(6)]
    await world.retire(ids[0])

    async def of(after: int = 0, limit: int = 100, **wanted: Any) -> list[int]:
        default = {"fleet": None, "working": None}
        found = await world.database.transact(
            lambda c: reads.list_drivers(c, after=after, limit=limit, **default | wanted)
        )
        return [driver.id for driver in found]

    assert await of() == ids
    assert await of(after=ids[1], limit=2) == ids[2:4]
    assert await of(fleet="even") == ids[::2]
    assert await of(fleet="even", working=True) == ids[2::2]
    assert await of(working=False) == ids[:1]


async def test_a_driver_is_changed_as_told(world: World) -> None:
    driver = await world.driver()

    async def change(name: str | None = None, zone: str | None = None, id_: int = driver) -> Any:
        return await world.database.transact(
            lambda c: ledger.change_driver(c, id_, name=name, zone=zone)
        )

    assert (await change(name="Eve")).name == "Eve"
    changed = await change(zone="Europe/Berlin")
    assert (changed.name, changed.zone) == ("Eve", "Europe/Berlin")
    assert await change() == changed
    for wrong, field in (({"name": ""}, "name"), ({"zone": "Berlin"}, "zone")):
        with pytest.raises(InvalidInput) as refused:
            await change(**wrong)
        assert refused.value.field == field
    for nothing in ({}, {"name": "Eve"}):
        with pytest.raises(UnknownDriver):
            await change(id_=77, **nothing)


async def test_names_are_not_empty(world: World) -> None:
    for add, field in (
        (lambda c: ledger.add_driver(c, "", "main", "UTC"), "name"),
        (lambda c: ledger.add_driver(c, "Ada", "", "UTC"), "fleet"),
        (lambda c: ledger.add_driver(c, "Ada", "main", "Mars"), "zone"),
        (lambda c: ledger.add_rider(c, ""), "name"),
    ):
        with pytest.raises(InvalidInput) as refused:
            await world.database.transact(add)
        assert refused.value.field == field


async def test_who_has_retired_stays_as_they_are(world: World) -> None:
    driver = await world.driver()
    first = await world.database.transact(lambda c: ledger.retire_driver(c, driver))
    again = await world.database.transact(lambda c: ledger.retire_driver(c, driver))
    assert first == again
    assert first.retired_at is not None
    with pytest.raises(UnknownDriver):
        await world.retire(77)


async def test_an_agenda_holds_active_bookings_alone(world: World) -> None:
    driver = await world.driver()
    kept = await world.book(hours(9, 10), driver)
    gone = await world.book(hours(10, 11), driver)
    await world.ledger.change_state(gone.id, BookingState.CANCELLED)
    await world.book(hours(9, 10), await world.driver())
    agenda = await world.database.transact(lambda c: reads.agenda(c, driver, hours(9.5, 12)))
    assert agenda == [kept]
    assert await world.database.transact(lambda c: reads.agenda(c, driver, hours(10, 12))) == []


async def test_a_step_that_waited_is_not_taken_before_the_one_it_waited_for(
    world: World,
) -> None:
    booked = await world.book(hours(9, 10), await world.driver())
    async with world.database.engine.begin() as starter:
        this = bookings.c.id == booked.id
        await starter.execute(select(bookings.c.id).where(this).with_for_update())
        # It begins before the trip is started, and comes to it after.
        completing = asyncio.create_task(
            world.ledger.change_state(booked.id, BookingState.COMPLETED)
        )
        await until_someone_waits_for_a_lock(world.database)
        await world.ledger.change_state_in(starter, booked.id, BookingState.IN_PROGRESS)
    done = await completing
    assert done.state is BookingState.COMPLETED
    assert done.actual_start is not None
    assert done.actual_end is not None
    assert done.actual_start < done.actual_end


async def test_a_transaction_that_began_before_the_trip_can_still_end_it(world: World) -> None:
    booked = await world.book(hours(9, 10), await world.driver())

    async def begin_and_dawdle(connection: AsyncConnection) -> Booking:
        await reads.ping(connection)
        await world.ledger.change_state(booked.id, BookingState.IN_PROGRESS)
        return await world.ledger.change_state_in(connection, booked.id, BookingState.COMPLETED)

    done = await world.ledger.transact(begin_and_dawdle)
    assert done.actual_start is not None
    assert done.actual_end is not None
    assert done.actual_start < done.actual_end


async def test_a_recipe_that_has_lost_its_rule_refuses_everything(world: World) -> None:
    driver = await world.driver()

    async def drop(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(
            "ALTER TABLE bookings DROP CONSTRAINT bookings_no_double_booking"
        )

    await world.database.transact(drop)
    with pytest.raises(Exception, match="bookings_no_double_booking"):
        await world.book(hours(9, 10), driver)
    assert await world.recorded() == 0
