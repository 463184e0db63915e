"""Act IV on PostgreSQL: all have moved, or nobody has.

Over one recipe of each kind: a constraint, groups, a lock, side tables, a retry.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import (
    BookingConflict,
    Contended,
    IllegalTransition,
    Unavailable,
    VersionMismatch,
)
from booking.overrun import AlreadyPast, Policy, Remedy
from booking.postgres import reads
from booking.postgres.database import Database
from booking.postgres.overruns import Moved, Overrun, overdue, report_end
from booking.strategies import Act, find
from booking.time_window import TimeWindow
from tests.world import NewDatabase, World

pytestmark = pytest.mark.anyio

KINDS = (
    "exclusion_upsert",
    "grouped_commit",
    "row_lock",
    "free_gaps",
    "slot_rows",
    "serializable_retry",
)
POLICY = Policy(tolerance_s=300, may_push_back_s=900)
# More than a day ahead, so that a trip cannot hold all the time from now on.
NOON = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=2)


def window(start_min: float, end_min: float) -> TimeWindow:
    """Between two minutes after some noon that is yet to come."""
    return TimeWindow(NOON + timedelta(minutes=start_min), NOON + timedelta(minutes=end_min))


@pytest.fixture(params=KINDS)
async def world(
    request: pytest.FixtureRequest, emptied_database: NewDatabase
) -> AsyncIterator[World]:
    recipe = find(Act.PREVENTION, request.param)
    database = Database(emptied_database(recipe.name))
    yield World(database, recipe.load()(database, AskThenOffer()))
    await database.close()


async def under_way(world: World, driver: int, end_min: float = 60) -> Booking:
    """A trip of that driver, from noon on, that has started."""
    booked = await world.book(window(0, end_min), driver)
    return await world.ledger.change_state(booked.id, BookingState.IN_PROGRESS)


async def late(world: World, trip: Booking, end_min: float, **wanted: Any) -> Overrun:
    return await report_end(world.ledger, trip.id, window(0, end_min).end, POLICY, **wanted)


async def read(world: World, booking: Booking) -> Booking:
    return await world.database.transact(lambda c: reads.booking(c, booking.id), read_only=True)


async def test_a_little_late_is_waited_for_and_slack_swallows_it(world: World) -> None:
    driver = await world.driver()
    trip = await under_way(world, driver)
    behind = [await world.book(each, driver) for each in (window(60, 90), window(90, 120))]
    far = await world.book(window(130, 150), driver)
    overrun = await late(world, trip, 65)
    assert overrun.trip.window == window(0, 65)
    assert [(each.booking.window, each.remedy, each.late_s) for each in overrun.moved] == [
        (window(65, 95), Remedy.WAIT, 300),
        (window(95, 125), Remedy.WAIT, 300),
    ]
    assert [each.booking.promised_start for each in overrun.moved] == [b.start for b in behind]
    assert await read(world, far) == far
    assert (await world.audit()).clean


async def test_who_would_wait_too_long_goes_to_another_driver(world: World) -> None:
    await world.driver("other")
    ada, busy, grace = await world.driver(), await world.driver(), await world.driver()
    trip = await under_way(world, ada)
    behind = await world.book(window(60, 90), ada)
    await world.book(window(80, 100), busy)
    overrun = await late(world, trip, 120)
    (moved,) = overrun.moved
    assert (moved.booking.id, moved.remedy) == (behind.id, Remedy.GIVE_AWAY)
    assert moved.booking.driver_id == grace
    assert (moved.booking.window, moved.late_s) == (window(60, 90), 0)
    assert moved.booking.promised_start is None
    # What the trip holds now is really held, and what it left is really free.
    for driver in (ada, grace):
        with pytest.raises(BookingConflict):
            await world.book(window(60, 90), driver)
    await world.book(window(120, 150), ada)
    assert (await world.audit()).clean


async def test_with_nobody_free_a_booking_stays_at_risk_and_the_promise_is_kept_in_mind(
    world: World,
) -> None:
    driver = await world.driver()
    trip = await under_way(world, driver)
    behind = await world.book(window(60, 90), driver)
    for end_min in (80, 100):
        (moved,) = (await late(world, trip, end_min)).moved
        assert moved.remedy is Remedy.CALL_DISPATCHER
        assert moved.booking.window == window(end_min, end_min + 30)
        assert moved.late_s == moved.booking.late_s == 60 * (end_min - 60)
        assert moved.booking.promised_start == behind.start
    wanted = reads.BookingFilter(at_risk=True)
    at_risk = await world.database.transact(
        lambda c: reads.list_bookings(c, wanted, after=None, limit=10), read_only=True
    )
    assert [each.id for each in at_risk] == [behind.id]
    # Another time by agreement is another promise.
    agreed = await world.ledger.reschedule(behind.id, window(200, 230))
    assert (agreed.promised_start, agreed.late_s) == (None, 0)


async def test_an_earlier_end_gives_time_back_and_moves_nobody(world: World) -> None:
    driver = await world.driver()
    trip = await under_way(world, driver)
    await world.book(window(60, 90), driver)
    overrun = await late(world, trip, 40)
    assert (overrun.trip.window, overrun.moved) == (window(0, 40), ())
    await world.book(window(40, 60), driver)


async def test_what_cannot_be_said_is_refused_and_changes_nothing(world: World) -> None:
    driver = await world.driver()
    trip = await under_way(world, driver)
    behind = await world.book(window(60, 90), driver)
    with pytest.raises(VersionMismatch):
        await late(world, trip, 90, version=trip.version - 1)
    with pytest.raises(IllegalTransition):
        await late(world, behind, 120)
    now = datetime.now(UTC)
    past = await world.book(
        TimeWindow(now - timedelta(hours=2), now - timedelta(hours=1)), await world.driver()
    )
    past = await world.ledger.change_state(past.id, BookingState.IN_PROGRESS)
    with pytest.raises(AlreadyPast):
        await report_end(world.ledger, past.id, now - timedelta(minutes=30), POLICY)
    assert [await read(world, each) for each in (trip, behind, past)] == [trip, behind, past]
    ((found, end),) = await world.database.transact(overdue)
    assert (found.id, end > now) == (past.id, True)


async def test_when_a_step_fails_nobody_has_moved(world: World) -> None:
    driver = await world.driver()
    trip = await under_way(world, driver)
    behind = [await world.book(window(60 + 30 * n, 90 + 30 * n), driver) for n in range(3)]
    record, steps = world.ledger.record, 0

    async def fails_at_the_third(
        connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise Unavailable
        return await record(connection, request, moving)

    # Assigned, as no recipe fails by itself.
    world.ledger.record = fails_at_the_third  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await late(world, trip, 65)
    assert steps == 3
    assert [await read(world, each) for each in (trip, *behind)] == [trip, *behind]
    # The control: without the failure all of them move.
    world.ledger.record = record  # type: ignore[method-assign]
    assert len((await late(world, trip, 65)).moved) == 3


async def test_late_trips_bookings_and_cancellations_at_once_lose_nothing(world: World) -> None:
    fleet = [await world.driver() for _ in range(4)]
    trips = [await under_way(world, driver) for driver in fleet]
    behind = [
        await world.book(window(60 + 30 * n, 80 + 30 * n), driver)
        for driver in fleet[:3]
        for n in range(3)
    ]
    rider = await world.rider()

    async def run_late(trip: Booking) -> list[Moved]:
        dice = Random(trip.id)
        moved: list[Moved] = []
        for end_min in sorted(5 * dice.randrange(13, 23) for _ in range(4)):
            try:
                moved += (await late(world, trip, end_min)).moved
            except Contended:
                continue  # and nothing has changed
        return moved

    async def book() -> None:
        dice = Random(1)
        for _ in range(12):
            start = 5 * dice.randrange(12, 30)
            try:
                await world.book(window(start, start + 15), dice.choice(fleet), rider_id=rider)
            except (BookingConflict, Contended):
                continue

    cancelled: list[Booking] = []

    async def cancel(booking: Booking) -> None:
        with suppress(Contended):
            cancelled.append(await world.ledger.change_state(booking.id, BookingState.CANCELLED))

    late_trips = asyncio.gather(*map(run_late, trips))
    await asyncio.gather(book(), *map(cancel, behind[::4]))
    assert any(await late_trips) or world.ledger.may_give_up
    for booking in behind:
        now = await read(world, booking)
        assert now.state is (
            BookingState.CANCELLED
            if booking.id in {each.id for each in cancelled}
            else BookingState.CONFIRMED
        )
        assert now.window.duration == booking.window.duration
    assert (await world.audit()).clean


async def test_a_chain_of_more_than_a_day_moves_to_its_end(world: World) -> None:
    driver = await world.driver()
    trip = await under_way(world, driver, 30)
    behind = [
        await world.book(window(30 + 60 * hour, 90 + 60 * hour), driver) for hour in range(27)
    ]
    moved = (await late(world, trip, 35)).moved
    assert [each.booking.id for each in moved] == [each.id for each in behind]
    assert {each.late_s for each in moved} == {300}
    assert (await world.audit()).clean


async def test_a_trip_that_is_under_way_is_not_moved_but_named(world: World) -> None:
    driver = await world.driver()
    await world.driver()  # who would be free
    trip = await under_way(world, driver)
    both = await world.book(window(60, 90), driver)
    both = await world.ledger.change_state(both.id, BookingState.IN_PROGRESS)
    with pytest.raises(BookingConflict) as refused:
        await late(world, trip, 70)
    assert [held.booking_id for held in refused.value.conflicts] == [both.id]
    assert [await read(world, each) for each in (trip, both)] == [trip, both]


async def test_a_trip_that_begins_early_holds_its_time_from_then_on(world: World) -> None:
    driver, now = await world.driver(), datetime.now(UTC)
    grid = now.replace(minute=0, second=0, microsecond=0)
    later = TimeWindow(grid + timedelta(hours=3), grid + timedelta(hours=4))
    trip = await world.book(later, driver)
    began = grid - timedelta(hours=1)
    started = await world.ledger.change_state(trip.id, BookingState.IN_PROGRESS, at=began)
    assert started.window == TimeWindow(began, later.end)
    with pytest.raises(BookingConflict):
        await world.book(TimeWindow(grid, grid + timedelta(hours=1)), driver)
    end = grid + timedelta(hours=2)
    assert (await report_end(world.ledger, trip.id, end, POLICY)).trip.predicted_end == end
    # Where another booking has that time, the start is told all the same.
    other = await world.driver()
    held = await world.book(TimeWindow(grid, grid + timedelta(hours=1)), other)
    trip = await world.book(later, other)
    started = await world.ledger.change_state(trip.id, BookingState.IN_PROGRESS, at=began)
    assert (started.window, started.actual_start) == (later, began)
    assert await read(world, held) == held
