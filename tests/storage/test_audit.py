"""The sweep finds a double booking, and only a double booking."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import Booking, BookingRequest, BookingState
from booking.calendars import Held
from booking.postgres.audit import DoubleBooking
from booking.postgres.database import Database
from booking.postgres.writes import write_booking
from booking.prevention.check_then_insert import CheckThenInsert
from tests.world import Execute, NewDatabase, World, hours

pytestmark = pytest.mark.anyio


class NoCheck(CheckThenInsert):
    """Records whatever it is asked for."""

    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        return await write_booking(connection, request, moving)


@pytest.fixture
async def world(new_database: NewDatabase) -> AsyncIterator[World]:
    database = Database(new_database("check_then_insert"))
    yield World(database, NoCheck(database, AskThenOffer()))
    await database.close()


async def test_an_empty_ledger_is_clean(world: World) -> None:
    audit = await world.audit()
    assert (audit.bookings, audit.drivers, audit.clean) == (0, 0, True)


async def test_bookings_that_touch_and_other_drivers_are_no_double_bookings(world: World) -> None:
    for driver in (await world.driver(), await world.driver()):
        for hour in (9, 11, 10, 8):
            await world.book(hours(hour, hour + 1), driver)
    audit = await world.audit()
    assert (audit.bookings, audit.drivers, audit.clean) == (8, 2, True)


async def test_an_overlap_is_found_with_both_bookings_and_windows(world: World) -> None:
    await world.book(hours(9, 10), await world.driver())
    driver = await world.driver()
    later = await world.book(hours(9.5, 10.5), driver)
    earlier = await world.book(hours(9, 10), driver)
    audit = await world.audit()
    assert audit.double_bookings == (
        DoubleBooking(driver, Held(earlier.id, hours(9, 10)), Held(later.id, hours(9.5, 10.5))),
    )
    assert not audit.clean


async def test_an_overlap_is_found_behind_a_short_booking_between(world: World) -> None:
    driver = await world.driver()
    long = await world.book(hours(8, 12), driver)
    short = await world.book(hours(9, 10), driver)
    behind = await world.book(hours(11, 13), driver)
    found = (await world.audit()).double_bookings
    assert [(double.earlier.booking_id, double.later.booking_id) for double in found] == [
        (long.id, short.id),
        (long.id, behind.id),
    ]


async def test_of_many_over_one_moment_all_but_one_are_too_many(world: World) -> None:
    driver = await world.driver()
    for _ in range(5):
        await world.book(hours(9, 10), driver)
    assert len((await world.audit()).double_bookings) == 4


async def test_one_microsecond_is_an_overlap(world: World) -> None:
    driver = await world.driver()
    await world.book(hours(9, 10), driver)
    late = hours(10, 11)
    await world.book(late.moved_to(late.start - timedelta(microseconds=1)), driver)
    assert len((await world.audit()).double_bookings) == 1


@pytest.mark.parametrize(
    ("state", "counts"),
    [
        (BookingState.IN_PROGRESS, 1),
        (BookingState.CANCELLED, 0),
        (BookingState.NO_SHOW, 0),
    ],
)
async def test_only_active_bookings_hold_time(
    world: World, state: BookingState, counts: int
) -> None:
    driver = await world.driver()
    await world.book(hours(9, 10), driver)
    second = await world.book(hours(9, 10), driver)
    await world.ledger.change_state(second.id, state)
    audit = await world.audit()
    assert (audit.bookings, len(audit.double_bookings)) == (1 + counts, counts)


async def test_a_window_that_is_none_is_reported(world: World, execute: Execute) -> None:
    driver = await world.driver()
    first, second = await world.book(hours(9, 10), driver), await world.book(hours(9, 10), driver)
    url = world.database.engine.url.set(drivername="postgresql")
    await execute(
        url.render_as_string(hide_password=False),
        "ALTER TABLE bookings DROP CONSTRAINT bookings_during_not_empty,"
        " DROP CONSTRAINT bookings_during_half_open",
        f"UPDATE bookings SET during = 'empty' WHERE id = {second.id}",
    )
    audit = await world.audit()
    assert (audit.malformed, audit.double_bookings, audit.clean) == ((second.id,), (), False)
    assert audit.bookings == 2
    assert first.id != second.id


async def test_many_bookings_are_swept_in_more_than_one_helping(
    world: World, execute: Execute
) -> None:
    driver, rider = await world.driver(), await world.rider()
    url = world.database.engine.url.set(drivername="postgresql")
    await execute(
        url.render_as_string(hide_password=False),
        f"""
        INSERT INTO bookings (driver_id, rider_id, state, during)
        SELECT {driver}, {rider}, 'confirmed', tstzrange(at, at + interval '1 minute')
        FROM generate_series(timestamptz '2026-01-01Z', '2026-01-09Z', '1 minute') AS at
        """,
    )
    await world.book(hours(0, 1), driver)
    lonely = await world.audit()
    assert (lonely.bookings, lonely.clean) == (11_522, True)
    begins = "2026-01-07 12:00:30+00"
    await execute(
        url.render_as_string(hide_password=False),
        f"""
        INSERT INTO bookings (driver_id, rider_id, state, during)
        VALUES ({driver}, {rider}, 'confirmed', tstzrange('{begins}', '2026-01-07 12:01+00'))
        """,
    )
    assert len((await world.audit()).double_bookings) == 1
