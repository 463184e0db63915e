"""Time that is given back is offered in the same transaction, in order of joining.

Over the shipped recipe, and one that locks the driver.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, override

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import BookingConflict, IllegalTransition, InvalidInput, NoDriverFree
from booking.overrun import Policy
from booking.postgres import ledger, reads
from booking.postgres.database import Database
from booking.postgres.ledger import GivenBack
from booking.postgres.overruns import report_end
from booking.postgres.tables import bookings, drivers, waiting_list
from booking.postgres.waiting import EntryFilter, WaitingList, list_entries, read_entry
from booking.strategies import Act, find
from booking.time_window import TimeWindow
from booking.waiting import WaitingEntry, WaitingState
from tests.world import NewDatabase, World, until_someone_waits_for_a_lock

pytestmark = pytest.mark.anyio

KINDS = ("grouped_commit", "row_lock")
NOW = datetime.now(UTC)
NOON = NOW.replace(minute=0, second=0, microsecond=0) + timedelta(days=1)
WAITING, OFFERED, BOOKED, LAPSED, WITHDRAWN, PAST = WaitingState


def window(start_min: float, end_min: float, since: datetime = NOON) -> TimeWindow:
    """Between two minutes after some noon that is yet to come."""
    return TimeWindow(since + timedelta(minutes=start_min), since + timedelta(minutes=end_min))


HALF_AN_HOUR = window(0, 30)


class Waiters(World):
    """A ledger with a waiting list."""

    @property
    def queue(self) -> WaitingList:
        assert isinstance(self.ledger.queue, WaitingList)
        return self.ledger.queue

    async def wait(self, wanted: TimeWindow, driver_id: int | None = None) -> WaitingEntry:
        """Join; a new rider."""
        wish = BookingRequest(await self.rider(), wanted, driver_id)
        return await self.ledger.transact(lambda c: self.queue.join_in(c, wish))

    async def withdraw(self, entry: WaitingEntry) -> WaitingEntry:
        return await self.ledger.transact(lambda c: self.queue.withdraw_in(c, entry.id))

    async def now(self, *entries: WaitingEntry) -> list[WaitingEntry]:
        """The entries as they stand."""
        return [
            await self.database.transact(lambda c, e=each: read_entry(c, e.id), read_only=True)
            for each in entries
        ]

    async def states(self, *entries: WaitingEntry) -> list[WaitingState]:
        return [each.state for each in await self.now(*entries)]

    async def offered(self, entry: WaitingEntry) -> Booking:
        """The booking that holds the time for an entry."""
        (found,) = await self.now(entry)
        number = found.booking_id
        assert number is not None
        return await self.database.transact(lambda c: reads.booking(c, number), read_only=True)

    async def step(self, booking: Booking, state: BookingState) -> None:
        await self.ledger.change_state(booking.id, state)

    async def cancel(self, booking: Booking) -> None:
        await self.step(booking, BookingState.CANCELLED)

    async def let_holds_lapse(self) -> None:
        """Every hold is over, though nobody has come by to say so."""
        over = update(bookings).where(bookings.c.state == BookingState.HELD)
        past = over.values(held_until=func.now() - timedelta(seconds=1))
        await self.database.transact(lambda c: c.execute(past))


async def world_of(recipe: str, emptied_database: NewDatabase) -> AsyncIterator[Waiters]:
    database = Database(emptied_database(recipe))
    made = find(Act.PREVENTION, recipe).load()(database, AskThenOffer())
    made.queue = WaitingList(made)
    yield Waiters(database, made)
    await database.close()


@pytest.fixture(params=KINDS)
async def world(
    request: pytest.FixtureRequest, emptied_database: NewDatabase
) -> AsyncIterator[Waiters]:
    async for made in world_of(request.param, emptied_database):
        yield made


@pytest.fixture
async def shipped(emptied_database: NewDatabase) -> AsyncIterator[Waiters]:
    async for made in world_of(KINDS[0], emptied_database):
        yield made


async def test_the_first_is_asked_and_when_it_says_nothing_the_next(world: Waiters) -> None:
    driver = await world.driver()
    taken = await world.book(HALF_AN_HOUR, driver)
    first, second = [await world.wait(HALF_AN_HOUR, driver) for _ in range(2)]
    assert await world.states(first, second) == [WAITING, WAITING]
    await world.cancel(taken)
    assert await world.states(first, second) == [OFFERED, WAITING]
    held = await world.offered(first)
    assert (held.state, held.rider_id, held.window) == ("held", first.rider_id, HALF_AN_HOUR)
    assert [each.offer_expires_at for each in await world.now(first)] == [held.held_until]
    await world.let_holds_lapse()
    # A hold that is over keeps newcomers out no longer, unless somebody waits for its time.
    with pytest.raises(BookingConflict):
        await world.book(HALF_AN_HOUR, driver)
    assert [each.id for each in await world.ledger.sweep()] == [held.id]
    assert await world.states(first, second) == [LAPSED, OFFERED]
    await world.let_holds_lapse()
    assert await world.states(second) == [LAPSED]
    await world.book(HALF_AN_HOUR, driver)  # the control: nobody waits any more


async def test_who_confirms_has_booked_whatever_becomes_of_the_booking(world: Waiters) -> None:
    driver = await world.driver()
    taken = await world.book(HALF_AN_HOUR, driver)
    first, second = [await world.wait(HALF_AN_HOUR, driver) for _ in range(2)]
    await world.cancel(taken)
    held = await world.offered(first)
    await world.step(held, BookingState.CONFIRMED)
    assert await world.states(first, second) == [BOOKED, WAITING]
    await world.cancel(held)
    assert await world.states(first, second) == [BOOKED, OFFERED]


async def test_nobody_slips_in_between_the_release_and_the_offer(world: Waiters) -> None:
    newcomers: list[asyncio.Task[Booking]] = []

    class Watched(WaitingList):
        @override
        async def offer(
            self, connection: AsyncConnection, given_back: Sequence[GivenBack]
        ) -> list[Booking]:
            offered = await super().offer(connection, given_back)
            # The time is given back, and nobody has committed anything yet.
            newcomers.append(asyncio.create_task(world.book(HALF_AN_HOUR, driver)))
            await until_someone_waits_for_a_lock(world.database)
            return offered

    driver = await world.driver()
    taken = await world.book(HALF_AN_HOUR, driver)
    entry = await world.wait(HALF_AN_HOUR, driver)
    world.ledger.queue = Watched(world.ledger)
    await world.cancel(taken)
    with pytest.raises(BookingConflict):
        await newcomers[0]
    assert await world.states(entry) == [OFFERED]


async def test_the_control_who_offers_after_the_commit_comes_too_late(world: Waiters) -> None:
    driver = await world.driver()
    taken = await world.book(HALF_AN_HOUR, driver)
    entry = await world.wait(HALF_AN_HOUR, driver)
    queue, world.ledger.queue = world.ledger.queue, None
    await world.cancel(taken)
    await world.book(HALF_AN_HOUR, driver)  # between the commit and the offer
    world.ledger.queue = queue
    await world.queue.catch_up()
    assert await world.states(entry) == [WAITING]


async def test_two_cancellations_at_once_serve_two_of_ten(world: Waiters) -> None:
    fleet = [await world.driver(), await world.driver()]
    taken = [await world.book(HALF_AN_HOUR, driver) for driver in fleet]
    ten = [await world.wait(HALF_AN_HOUR) for _ in range(10)]
    await asyncio.gather(*map(world.cancel, taken))
    assert await world.states(*ten) == [OFFERED] * 2 + [WAITING] * 8
    held = [await world.offered(each) for each in ten[:2]]
    assert {each.driver_id for each in held} == set(fleet)
    assert (await world.audit()).clean


async def test_what_does_not_fit_is_passed_over_and_keeps_its_place(world: Waiters) -> None:
    driver = await world.driver()
    one, other = [await world.book(each, driver) for each in (HALF_AN_HOUR, window(30, 60))]
    hour, half = [await world.wait(each, driver) for each in (window(0, 60), HALF_AN_HOUR)]
    await world.cancel(one)
    assert await world.states(hour, half) == [WAITING, OFFERED]
    assert (await world.withdraw(half)).state is WITHDRAWN
    late = await world.wait(window(30, 60), driver)
    await world.cancel(other)
    assert await world.states(hour, half, late) == [OFFERED, WITHDRAWN, WAITING]


async def test_what_is_given_back_may_serve_several(world: Waiters) -> None:
    driver = await world.driver()
    taken = await world.book(window(0, 60), driver)
    wanted = [HALF_AN_HOUR, window(10, 40), window(30, 60)]
    entries = [await world.wait(each, driver) for each in wanted]
    await world.cancel(taken)
    assert await world.states(*entries) == [OFFERED, WAITING, OFFERED]


async def test_a_withdrawal_is_possible_until_something_has_become_of_it(world: Waiters) -> None:
    driver = await world.driver()
    taken = await world.book(HALF_AN_HOUR, driver)
    first, second, third = [await world.wait(HALF_AN_HOUR, driver) for _ in range(3)]
    assert (await world.withdraw(first)).state is WITHDRAWN
    await world.cancel(taken)
    assert await world.states(second, third) == [OFFERED, WAITING]
    await world.withdraw(second)
    assert await world.states(second, third) == [WITHDRAWN, OFFERED]
    await world.step(await world.offered(third), BookingState.CONFIRMED)
    for entry in (first, second, third):
        with pytest.raises(IllegalTransition):
            await world.withdraw(entry)
    assert await world.states(third) == [BOOKED]


async def test_nobody_waits_for_what_has_begun(world: Waiters) -> None:
    driver = await world.driver()
    taken = await world.book(HALF_AN_HOUR, driver)
    entry = await world.wait(HALF_AN_HOUR, driver)
    begun = reads.range_of(window(-10, 20, NOW))
    await world.database.transact(lambda c: c.execute(update(waiting_list).values(during=begun)))
    assert await world.states(entry) == [PAST]
    await world.cancel(taken)
    await world.queue.catch_up()
    assert await world.states(entry) == [PAST]
    with pytest.raises(InvalidInput) as refused:
        await world.wait(window(-10, 20, NOW), driver)
    assert refused.value.field == "start"


Way = Callable[[Waiters, Booking, int], Awaitable[object]]
UNDER_WAY = window(-10, 400, NOW)


async def no_show(world: Waiters, taken: Booking, _: int) -> None:
    await world.step(taken, BookingState.NO_SHOW)


async def complete(world: Waiters, taken: Booking, _: int) -> None:
    await world.step(taken, BookingState.IN_PROGRESS)
    await world.step(taken, BookingState.COMPLETED)


async def end_sooner(world: Waiters, taken: Booking, _: int) -> None:
    await world.step(taken, BookingState.IN_PROGRESS)
    await report_end(world.ledger, taken.id, window(0, 100, NOW).end, Policy())


async def reschedule(world: Waiters, taken: Booking, _: int) -> None:
    await world.ledger.reschedule(taken.id, HALF_AN_HOUR)


async def reassign(world: Waiters, taken: Booking, other: int) -> None:
    await world.ledger.reassign(taken.id, other)


@pytest.mark.parametrize("way", [no_show, complete, end_sooner, reschedule, reassign])
async def test_every_way_to_give_time_back_is_seen(shipped: Waiters, way: Way) -> None:
    driver, other = await shipped.driver(), await shipped.driver()
    taken = await shipped.book(UNDER_WAY, driver)
    entry = await shipped.wait(window(200, 300, NOW), driver)
    assert await shipped.states(entry) == [WAITING]
    await way(shipped, taken, other)
    assert await shipped.states(entry) == [OFFERED]


async def test_a_late_trip_takes_the_time_that_it_has_freed_and_the_rest_is_offered(
    world: Waiters,
) -> None:
    driver, other = await world.driver(), await world.driver()
    trip = await world.book(UNDER_WAY, driver)
    following = await world.book(window(400, 480, NOW), driver)
    entries = [await world.wait(window(*each, NOW), driver) for each in ((410, 440), (455, 475))]
    await world.step(trip, BookingState.IN_PROGRESS)
    await report_end(world.ledger, trip.id, window(0, 450, NOW).end, Policy(0, 0))
    moved = await world.database.transact(lambda c: reads.booking(c, following.id))
    assert moved.driver_id == other
    assert await world.states(*entries) == [WAITING, OFFERED]
    assert (await world.audit()).clean


async def test_a_driver_who_comes_is_offered_and_one_who_came_unseen_soon(world: Waiters) -> None:
    await world.book(HALF_AN_HOUR, await world.driver())
    first, second = await world.wait(HALF_AN_HOUR), await world.wait(HALF_AN_HOUR)
    await world.ledger.transact(lambda c: ledger.add_driver(c, "Grace", "main", "UTC"))
    assert await world.states(first, second) == [OFFERED, WAITING]
    await world.driver()  # by another way than the ledger's
    assert await world.states(first, second) == [OFFERED, WAITING]
    await world.queue.catch_up()
    assert await world.states(first, second) == [OFFERED, OFFERED]


async def test_what_is_free_is_offered_at_once_to_whoever_waits_for_it_longest(
    world: Waiters,
) -> None:
    await world.book(HALF_AN_HOUR, await world.driver())
    first = await world.wait(HALF_AN_HOUR)
    await world.driver()
    second = await world.wait(HALF_AN_HOUR)
    assert await world.states(first, second) == [OFFERED, WAITING]
    third = await world.wait(window(30, 60))
    assert third.state is OFFERED
    listed = await world.database.transact(
        lambda c: list_entries(c, EntryFilter(fleet="main", state=OFFERED), after=0, limit=10)
    )
    assert listed == await world.now(first, third)
    wish = BookingRequest(first.rider_id, HALF_AN_HOUR, fleet="nobody's")
    with pytest.raises(NoDriverFree):
        await world.ledger.transact(lambda c: world.queue.join_in(c, wish))


async def test_who_joins_while_somebody_leaves_does_not_miss_it(world: Waiters) -> None:
    driver = await world.driver()
    taken = await world.book(HALF_AN_HOUR, driver)
    async with world.database.engine.begin() as other:
        # It has looked for who waits, and not committed yet.
        await world.ledger.change_state_in(other, taken.id, BookingState.CANCELLED)
        joining = asyncio.create_task(world.wait(HALF_AN_HOUR, driver))
        await until_someone_waits_for_a_lock(world.database)
    assert (await joining).state is OFFERED


async def test_an_offer_that_fails_does_not_undo_the_cancellation(world: Waiters) -> None:
    class Failing(WaitingList):
        @override
        async def _offer_to(self, connection: AsyncConnection, wish: Any) -> Booking | None:
            await super()._offer_to(connection, wish)
            await connection.execute(text("SELECT 1 / 0"))
            return None

    driver = await world.driver()
    taken = await world.book(HALF_AN_HOUR, driver)
    entry = await world.wait(HALF_AN_HOUR, driver)
    queue, world.ledger.queue = world.queue, Failing(world.ledger)
    await world.cancel(taken)
    assert await world.states(entry) == [WAITING]
    assert await world.recorded() == 1
    await queue.catch_up()
    assert await world.states(entry) == [OFFERED]


async def test_of_an_offer_and_a_move_that_wait_for_each_other_one_has_the_time(
    shipped: Waiters,
) -> None:
    moving: list[asyncio.Task[Booking]] = []

    class Watched(WaitingList):
        @override
        async def offer(
            self, connection: AsyncConnection, given_back: Sequence[GivenBack]
        ) -> list[Booking]:
            if not moving:
                # It has written its row, and waits to see whether the cancellation stands.
                move = shipped.ledger.reschedule(other.id, HALF_AN_HOUR)
                moving.append(asyncio.create_task(move))
                await until_someone_waits_for_a_lock(shipped.database)
            return await super().offer(connection, given_back)

    driver = await shipped.driver()
    taken, other = [await shipped.book(each, driver) for each in (HALF_AN_HOUR, window(60, 90))]
    entry = await shipped.wait(HALF_AN_HOUR, driver)
    shipped.ledger.queue = Watched(shipped.ledger)
    await shipped.cancel(taken)
    # PostgreSQL may end either of the two; the move would be run again, and refused.
    with suppress(BookingConflict):
        await moving[0]
    moved = await shipped.database.transact(lambda c: reads.booking(c, other.id))
    has_moved = moved.window == HALF_AN_HOUR
    assert await shipped.states(entry) == [WAITING if has_moved else OFFERED]
    assert (await shipped.audit()).clean


async def test_a_cancellation_does_not_wait_for_whoever_has_the_driver(world: Waiters) -> None:
    driver = await world.driver()
    taken = await world.book(HALF_AN_HOUR, driver)
    entry = await world.wait(HALF_AN_HOUR, driver)
    async with world.database.engine.begin() as other:
        await other.execute(select(drivers.c.id).where(drivers.c.id == driver).with_for_update())
        await world.cancel(taken)
        assert await world.states(entry) == [WAITING]
    await world.queue.catch_up()
    assert await world.states(entry) == [OFFERED]
