"""The contract of the port `Allocator`: any free driver, by SQL, behind a recipe that decides.

Allocators are the files of act III whose class has `allocate`; in memory the
same act is behind the port `Roster`.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import BookingConflict, Contended, NoDriverFree, UnknownRider
from booking.ledgers import Claim
from booking.postgres.database import Database
from booking.postgres.ledger import Allocator, PostgresLedger, Record
from booking.postgres.tables import drivers
from booking.prevention.row_lock import RowLock
from booking.strategies import Act, Strategy, strategies
from tests.world import NewDatabase, World, hours

pytestmark = pytest.mark.anyio

ALLOCATORS = [each for each in strategies(Act.ALLOCATION) if hasattr(each.load(), "allocate")]
SAFE = [each for each in strategies(Act.PREVENTION) if each.claim == Claim.ACROSS_PROCESSES]

allocators = pytest.mark.parametrize("allocator", ALLOCATORS, ids=lambda each: each.name)
recipes = pytest.mark.parametrize("recipe", SAFE, ids=lambda each: each.name)


def test_there_are_allocators() -> None:
    assert "ask_then_offer" in [each.name for each in ALLOCATORS]


@asynccontextmanager
async def opened(
    url: str, recipe: type[PostgresLedger], allocator: Allocator, pool_size: int = 10
) -> AsyncIterator[World]:
    database = Database(url, pool_size=pool_size)
    try:
        yield World(database, recipe(database, allocator))
    finally:
        await database.close()


@pytest.fixture
async def world(
    recipe: Strategy, allocator: Strategy, new_database: NewDatabase
) -> AsyncIterator[World]:
    url = new_database(recipe.name)
    async with opened(url, recipe.load(), allocator.load()()) as world:
        yield world


@allocators
@recipes
async def test_everyone_who_is_free_is_found_and_nobody_else(world: World) -> None:
    fleet = [await world.driver() for _ in range(30)]
    others = [await world.driver("other") for _ in range(3)]
    retired = [await world.driver() for _ in range(3)]
    for driver in retired:
        await world.retire(driver)
    touching, busy, cancelled = fleet[:5], fleet[5:20], fleet[20:25]
    for driver in touching:
        await world.book(hours(8, 9), driver)
        await world.book(hours(10, 11), driver)
    for driver in busy:
        await world.book(hours(9.5, 9.75), driver)
    for driver in cancelled:
        booked = await world.book(hours(9, 10), driver)
        await world.ledger.change_state(booked.id, BookingState.CANCELLED)
    free = {*touching, *cancelled, *fleet[25:]}
    found = [(await world.book(hours(9, 10))).driver_id for _ in free]
    assert sorted(found) == sorted(free)
    with pytest.raises(NoDriverFree):
        await world.book(hours(9, 10))
    assert (await world.book(hours(9, 10), fleet="other")).driver_id in others


@allocators
@recipes
async def test_the_last_free_driver_of_many_is_found_wherever_the_search_begins(
    world: World,
) -> None:
    fleet = [await world.driver() for _ in range(20)]
    for free in (fleet[0], fleet[10], fleet[-1]):
        made = [await world.book(hours(9, 10), driver) for driver in fleet if driver != free]
        made.append(await world.book(hours(9, 10)))
        assert made[-1].driver_id == free
        for booked in made:
            await world.ledger.change_state(booked.id, BookingState.CANCELLED)


@allocators
@recipes
async def test_a_fleet_whose_ids_lie_far_apart_is_searched_whole(world: World) -> None:
    near = [await world.driver() for _ in range(2)]
    await world.database.transact(
        lambda c: c.execute(text("ALTER TABLE drivers ALTER id RESTART 9000000000000000000"))
    )
    fleet = {*near, await world.driver(), await world.driver()}
    found = {(await world.book(hours(9, 10))).driver_id for _ in fleet}
    assert found == fleet


@allocators
@recipes
async def test_of_many_requests_at_once_as_many_succeed_as_there_are_drivers(
    world: World,
) -> None:
    free, requests = 12, 40
    for _ in range(free):
        await world.driver()
    for _ in range(6):
        await world.book(hours(9.5, 10), await world.driver())
    rider = await world.rider()
    outcomes = await asyncio.gather(
        *[world.book(hours(9, 10), rider_id=rider) for _ in range(requests)],
        return_exceptions=True,
    )
    kinds = Counter(type(outcome) for outcome in outcomes)
    assert kinds == {Booking: free, NoDriverFree: requests - free}
    booked = {outcome.driver_id for outcome in outcomes if isinstance(outcome, Booking)}
    assert len(booked) == free
    assert (await world.audit()).clean


@allocators
@recipes
async def test_an_unknown_rider_is_told_so_whether_or_not_someone_is_free(world: World) -> None:
    with pytest.raises(UnknownRider):
        await world.book(hours(9, 10), rider_id=7)
    await world.driver()
    with pytest.raises(UnknownRider):
        await world.book(hours(9, 10), rider_id=7)


# --- What the allocator does with a recipe that refuses. ------------------------------------


async def always_taken(_connection: AsyncConnection, _request: BookingRequest) -> Booking:
    raise BookingConflict


@allocators
async def test_when_whoever_looks_free_is_always_taken_the_search_ends(
    allocator: Strategy, new_database: NewDatabase
) -> None:
    async with opened(new_database("row_lock"), RowLock, allocator.load()()) as world:
        await world.driver()
        request = BookingRequest(await world.rider(), hours(9, 10))
        with pytest.raises(Contended):
            await world.database.transact(
                lambda c: allocator.load()().allocate(c, request, always_taken)
            )


class InOrder:
    """Offers every driver in one order, and lets a test in between two offers."""

    def __init__(self, *, backwards: bool, between: Callable[[], object]) -> None:
        self.backwards = backwards
        self.between = between

    async def allocate(
        self, connection: AsyncConnection, request: BookingRequest, record: Record
    ) -> Booking:
        order = drivers.c.id.desc() if self.backwards else drivers.c.id
        for driver_id in (await connection.scalars(select(drivers.c.id).order_by(order))).all():
            try:
                return await record(
                    connection, BookingRequest(request.rider_id, request.window, driver_id)
                )
            except BookingConflict:
                await self.between()
        raise NoDriverFree


class HoldsOn(RowLock):
    """Does not let go of a driver who was refused."""

    async def offer(self, connection: AsyncConnection, request: BookingRequest) -> Booking:
        return await self.record(connection, request)


@pytest.mark.parametrize(("recipe", "deadlocks"), [(HoldsOn, True), (RowLock, False)])
async def test_row_locks_of_refused_drivers_are_let_go_or_two_searches_deadlock(
    recipe: type[RowLock], new_database: NewDatabase, *, deadlocks: bool
) -> None:
    # Both are refused one driver, and then each asks for the other's.
    refused = asyncio.Barrier(2)
    first_time = [True, True]

    def once(number: int) -> Callable[[], object]:
        async def meet() -> None:
            if first_time[number]:
                first_time[number] = False
                await refused.wait()

        return meet

    url = new_database("row_lock")
    searches = [
        InOrder(backwards=backwards, between=once(number))
        for number, backwards in enumerate((False, True))
    ]
    seen: list[str] = []
    async with opened(url, recipe, searches[0]) as one, opened(url, recipe, searches[1]) as two:
        for _ in range(2):
            await one.book(hours(9, 10), await one.driver())
        rider = await one.rider()

        async def search(world: World) -> None:
            request = BookingRequest(rider, hours(9, 10))

            async def work(connection: AsyncConnection) -> Booking:
                try:
                    return await world.ledger.book_in(connection, request)
                except Exception as error:
                    seen.append(getattr(getattr(error, "orig", None), "sqlstate", ""))
                    raise

            with pytest.raises(NoDriverFree):
                await world.ledger.transact(work)

        await asyncio.gather(search(one), search(two))
    assert ("40P01" in seen) is deadlocks
