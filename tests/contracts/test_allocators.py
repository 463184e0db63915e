"""The contract of the port `Allocator`: any free driver, by SQL, behind a recipe that decides.

Allocators are the files of act III whose class has `allocate`; in memory the
same act is behind the port `Roster`. Each is held to its claim in both
directions, behind a ledger that inserts whatever it is told to. What an
allocator keeps beside the bookings is compared with them after a random history.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.allocation import free_gaps_skip_locked
from booking.allocation.ask_then_offer import AskThenOffer
from booking.allocation.bitmap_day import SLOT, SLOTS, BitmapDay
from booking.allocation.free_gaps_skip_locked import FreeGapsSkipLocked
from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import (
    BookingConflict,
    Contended,
    DriverRetired,
    DriverStillBooked,
    NoDriverFree,
    UnknownRider,
)
from booking.ledgers import Claim
from booking.postgres import catalogue, reads, schema
from booking.postgres.database import Database, sqlstate_of
from booking.postgres.ledger import Allocator, PostgresLedger, Record
from booking.postgres.tables import bookings, drivers
from booking.prevention.advisory_lock import AdvisoryLock
from booking.prevention.exclusion_upsert import ExclusionUpsert
from booking.prevention.row_lock import RowLock
from booking.strategies import Act, Strategy, strategies
from booking.time_window import TimeWindow
from loadtest.bench.ceilings import UncheckedInsert
from tests.contracts.racer import count_deadlocks
from tests.world import MIDNIGHT, Execute, NewDatabase, World, hours

pytestmark = pytest.mark.anyio

ALLOCATORS = [each for each in strategies(Act.ALLOCATION) if hasattr(each.load(), "allocate")]
SAFE = [each for each in strategies(Act.PREVENTION) if each.claim == Claim.ACROSS_PROCESSES]
# One that rests on the constraint, and one that locks the driver first.
RECIPES = {"exclusion_upsert": ExclusionUpsert, "row_lock": RowLock}
WITHOUT_CONSTRAINT = "check_then_insert"
"""The recipe whose database lets double bookings in."""

allocators = pytest.mark.parametrize("allocator", ALLOCATORS, ids=lambda each: each.name)
recipes = pytest.mark.parametrize("recipe", RECIPES)


def test_there_are_allocators_of_either_kind() -> None:
    claims = {each.name: each.claim for each in ALLOCATORS}
    assert claims["ask_then_offer"] == Claim.NOTHING
    assert claims["free_gaps_skip_locked"] == Claim.ACROSS_PROCESSES


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
    recipe: str, allocator: Strategy, emptied_database: NewDatabase
) -> AsyncIterator[World]:
    url = emptied_database(recipe, allocator.name)
    async with opened(url, RECIPES[recipe], allocator.load()()) as world:
        yield world


@pytest.fixture
async def alone(allocator: Strategy, emptied_database: NewDatabase) -> AsyncIterator[World]:
    """The allocator, and nobody behind it who decides."""
    url = emptied_database(WITHOUT_CONSTRAINT, allocator.name)
    async with opened(url, UncheckedInsert, allocator.load()()) as world:
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
    may_send_away = world.ledger.may_deadlock or world.ledger.may_give_up
    sent_away = kinds.pop(Contended, 0) if may_send_away else 0
    assert kinds.keys() <= {Booking, NoDriverFree}
    assert kinds.total() == requests - sent_away
    if NoDriverFree in kinds or not sent_away:
        assert kinds[Booking] == free
    booked = {outcome.driver_id for outcome in outcomes if isinstance(outcome, Booking)}
    assert len(booked) == kinds[Booking] > 0
    assert (await world.audit()).clean


@allocators
@recipes
async def test_an_unknown_rider_is_told_so_whether_or_not_someone_is_free(world: World) -> None:
    with pytest.raises(UnknownRider):
        await world.book(hours(9, 10), rider_id=7)
    await world.driver()
    with pytest.raises(UnknownRider):
        await world.book(hours(9, 10), rider_id=7)


@allocators
@recipes
async def test_windows_on_no_grid_are_told_apart_to_the_microsecond(world: World) -> None:
    driver = await world.driver()
    second = timedelta(seconds=1)
    first = TimeWindow(MIDNIGHT + 7 * second, MIDNIGHT + 607 * second)
    await world.book(first)
    too_early = TimeWindow(first.end - timedelta(microseconds=1), first.end + 500 * second)
    with pytest.raises(NoDriverFree):
        await world.book(too_early)
    touching = await world.book(TimeWindow(first.end, first.end + 500 * second))
    assert touching.driver_id == driver
    over_midnight = TimeWindow(MIDNIGHT - 500 * second, first.start)
    assert (await world.book(over_midnight)).driver_id == driver
    with pytest.raises(NoDriverFree):
        await world.book(over_midnight)


@allocators
@recipes
async def test_time_that_is_given_back_or_left_is_found_again(world: World) -> None:
    driver = await world.driver()
    booked = await world.book(hours(9, 10))
    await world.ledger.reschedule(booked.id, hours(9.5, 10.5))
    await world.book(hours(9, 9.5))
    with pytest.raises(NoDriverFree):
        await world.book(hours(10, 11))
    await world.ledger.change_state(booked.id, BookingState.IN_PROGRESS, at=MIDNIGHT)
    with pytest.raises(NoDriverFree):
        await world.book(hours(10, 11))
    await world.ledger.change_state(booked.id, BookingState.COMPLETED)
    assert (await world.book(hours(9.5, 11))).driver_id == driver


@allocators
@recipes
async def test_mixed_work_at_once_meets_no_deadlock_and_double_books_nobody(world: World) -> None:
    for _ in range(3):
        await world.driver()
    rider = await world.rider()
    answers: Counter[str] = Counter()
    deadlocks = count_deadlocks(world.database)

    async def work(seed: int) -> None:
        dice = Random(seed)
        for _ in range(12):
            try:
                await change_something(world, dice, rider)
                answers["done"] += 1
            except (BookingConflict, NoDriverFree) as refused:
                answers[type(refused).__name__] += 1

    async with asyncio.TaskGroup() as group:
        for seed in range(10):
            group.create_task(work(seed))
    # Of each there was some: otherwise nobody met anybody. And no deadlock.
    assert answers.keys() == {"done", "BookingConflict", "NoDriverFree"}
    assert deadlocks == []
    assert (await world.audit()).clean


async def change_something(world: World, dice: Random, rider: int) -> None:
    """Book any driver or one of the first three; then, perhaps, move and cancel."""
    driver = dice.choice([None, None, 1, 2, 3])
    booked = await world.book(some_window(dice), driver, rider_id=rider)
    try:
        if dice.random() < 0.4:
            await world.ledger.reschedule(booked.id, some_window(dice))
    finally:
        if dice.random() < 0.7:
            await world.ledger.change_state(booked.id, BookingState.CANCELLED)


def some_window(dice: Random) -> TimeWindow:
    """Some minutes to hours, of a day and a bit more; on a grid of five minutes or on none."""
    start_min = dice.randrange(-60, 300, dice.choice([1, 5]))
    return hours(start_min / 60, (start_min + dice.randint(1, 150)) / 60)


@pytest.mark.parametrize("recipe", SAFE, ids=lambda each: each.name)
async def test_any_driver_can_be_asked_of_every_recipe(
    recipe: Strategy, new_database: NewDatabase
) -> None:
    async with opened(new_database(recipe.name), recipe.load(), AskThenOffer()) as world:
        fleet = [await world.driver() for _ in range(3)]
        await world.book(hours(9, 10), fleet[0])
        found = [(await world.book(hours(9, 10))).driver_id for _ in fleet[1:]]
        assert sorted(found) == fleet[1:]
        with pytest.raises(NoDriverFree):
            await world.book(hours(9, 10))


# --- What an allocator keeps beside the bookings. ---------------------------------------------


@dataclass(frozen=True)
class Kept:
    """What an allocator keeps beside the bookings, how to read it, and what it should be."""

    kind: type[Allocator]
    table: str
    read: Callable[[AsyncConnection], Awaitable[dict[int, list[Any]]]]
    expect: Callable[[set[int], dict[int, list[TimeWindow]]], dict[int, list[Any]]]


async def free_gaps(connection: AsyncConnection) -> dict[int, list[Any]]:
    """What the table says: every driver's gaps, in order."""
    rows = await connection.execute(text("SELECT driver_id, gap FROM free_gaps ORDER BY 1, 2"))
    found: dict[int, list[Any]] = {}
    for driver_id, gap in rows:
        # The infinite instants arrive without a zone.
        ends = (gap.lower.replace(tzinfo=UTC), gap.upper.replace(tzinfo=UTC))
        found.setdefault(driver_id, []).append(ends)
    return found


def gaps_of(working: set[int], held: dict[int, list[TimeWindow]]) -> dict[int, list[Any]]:
    """What it should say: a sweep over each driver's bookings, which may overlap."""
    expected: dict[int, list[Any]] = {}
    for driver in working:
        free_from, gaps = datetime.min.replace(tzinfo=UTC), []
        for window in sorted(held.get(driver, []), key=lambda each: each.start):
            if free_from < window.start:
                gaps.append((free_from, window.start))
            free_from = max(free_from, window.end)
        expected[driver] = [*gaps, (free_from, datetime.max.replace(tzinfo=UTC))]
    return expected


async def day_maps(connection: AsyncConnection) -> dict[int, list[Any]]:
    """What the table says: every driver's slots that are touched, by number."""
    rows = await connection.execute(
        text("SELECT driver_id, day, CAST(taken AS text) FROM day_maps ORDER BY 1, 2")
    )
    found: dict[int, list[Any]] = {}
    for driver_id, day, taken in rows:
        first = (day - MIDNIGHT.date()).days * SLOTS
        slots = [first + number for number, bit in enumerate(taken) if bit == "1"]
        found[driver_id] = found.get(driver_id, []) + slots
    return {driver_id: slots for driver_id, slots in found.items() if slots}


def slots_of(_working: set[int], held: dict[int, list[TimeWindow]]) -> dict[int, list[Any]]:
    """What it should say."""
    return {
        driver: sorted(
            {
                slot
                for window in windows
                for slot in range(
                    (window.start - MIDNIGHT) // SLOT, -((MIDNIGHT - window.end) // SLOT)
                )
            }
        )
        for driver, windows in held.items()
    }


KEPT = {
    "free_gaps_skip_locked": Kept(FreeGapsSkipLocked, "free_gaps", free_gaps, gaps_of),
    "bitmap_day": Kept(BitmapDay, "day_maps", day_maps, slots_of),
}


def test_whatever_keeps_something_is_tested_for_it() -> None:
    assert {each.name for each in ALLOCATORS if each.load().schema} == set(KEPT)


# --- The claim: what the allocator is worth alone. --------------------------------------------

ROUNDS, WORKERS, FLEET = 4, 8, 3
REPEATS_MAX = 5  # of a race that must catch an allocator

# As in the race of the ledgers: the gap between look and write, made wide enough to be met.
DAWDLE = (
    """
    CREATE OR REPLACE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(0.02);
        RETURN NEW;
    END $$
    """,
    """
    CREATE OR REPLACE TRIGGER dawdle BEFORE INSERT ON bookings
        FOR EACH ROW EXECUTE FUNCTION dawdle()
    """,
)


async def race(world: World) -> int:
    """Eight ask at once for any of three drivers, an hour later each round; the double bookings."""
    for _ in range(FLEET):
        await world.driver()
    rider = await world.rider()
    for number in range(ROUNDS):
        answers = await asyncio.gather(
            *[world.book(hours(number, number + 1), rider_id=rider) for _ in range(WORKERS)],
            return_exceptions=True,
        )
        kinds = {type(answer) for answer in answers}
        assert kinds <= {Booking, NoDriverFree}
        assert sum(isinstance(answer, Booking) for answer in answers) >= FLEET
    return len((await world.audit()).double_bookings)


@allocators
async def test_an_allocator_is_held_to_its_claim_behind_a_ledger_that_looks_at_nothing(
    allocator: Strategy, new_database: NewDatabase, execute: Execute
) -> None:
    url = new_database(WITHOUT_CONSTRAINT, allocator.name)
    await execute(url, *DAWDLE)
    async with opened(url, UncheckedInsert, allocator.load()()) as alone:
        if allocator.claim == Claim.ACROSS_PROCESSES:
            assert await race(alone) == 0
            return
        for _ in range(REPEATS_MAX):
            if await race(alone):
                return
            await alone.database.transact(
                lambda c: c.execute(text("TRUNCATE bookings, drivers CASCADE"))
            )
    pytest.fail(f"It claims {allocator.claim}, and was not caught.")


@pytest.mark.parametrize("name", KEPT)
async def test_without_its_triggers_an_allocator_that_is_safe_alone_is_caught_as_well(
    name: str, new_database: NewDatabase, execute: Execute
) -> None:
    url = new_database(WITHOUT_CONSTRAINT, name)
    await execute(url, *DAWDLE, f"DROP TRIGGER bookings_keep_{KEPT[name].table} ON bookings")
    async with opened(url, UncheckedInsert, KEPT[name].kind()) as alone:
        assert await race(alone) > 0


async def picked(world: World, request: BookingRequest) -> list[int]:
    """Whom a search picks that began before somebody booked the only driver; no retries."""

    async def note(_connection: AsyncConnection, offered: BookingRequest) -> Booking:
        found.append(offered.driver_id)
        raise Picked

    found: list[int] = []
    async with world.database.engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        await connection.execute(select(bookings.c.id))  # so old is all that it will see
        await world.book(request.window)
        with pytest.raises((Picked, DBAPIError)) as ended:
            await world.ledger.allocator.allocate(connection, request, note)
        await connection.rollback()
    # Either it handed a driver to the recipe, or it was told that what it looked at has changed.
    assert bool(found) is isinstance(ended.value, Picked)
    assert found or sqlstate_of(ended.value) == "40001"
    return found


class Picked(Exception):
    pass


@allocators
async def test_safe_alone_is_who_locks_the_row_that_says_free(
    alone: World, allocator: Strategy
) -> None:
    driver = await alone.driver()
    request = BookingRequest(await alone.rider(), hours(9, 10))
    await alone.book(hours(12, 13))
    safe = allocator.claim == Claim.ACROSS_PROCESSES
    assert await picked(alone, request) == ([] if safe else [driver])


async def test_to_lock_the_driver_alone_would_not_do(
    emptied_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock_driver_alone(request: BookingRequest) -> Any:
        return lock_both(request).with_for_update(key_share=True, skip_locked=True, of=[drivers])

    lock_both = free_gaps_skip_locked._lock_one  # noqa: SLF001  # broken on purpose
    monkeypatch.setattr(free_gaps_skip_locked, "_lock_one", lock_driver_alone)
    url = emptied_database(WITHOUT_CONSTRAINT, "free_gaps_skip_locked")
    async with opened(url, UncheckedInsert, FreeGapsSkipLocked()) as alone:
        driver = await alone.driver()
        assert await picked(alone, BookingRequest(await alone.rider(), hours(9, 10))) == [driver]


# --- What is kept, after a random history. ----------------------------------------------------


async def what_is_held(connection: AsyncConnection) -> tuple[set[int], dict[int, list[TimeWindow]]]:
    """The working drivers, and the windows of every driver's active bookings."""
    everyone = await reads.list_drivers(connection, fleet=None, working=True, after=0, limit=99)
    nothing = reads.BookingFilter()
    held: dict[int, list[TimeWindow]] = {}
    for booking in await reads.list_bookings(connection, nothing, after=None, limit=9_999):
        if booking.state.active:
            held.setdefault(booking.driver_id, []).append(booking.window)
    return {each.id for each in everyone}, held


STEPS = ("driver", *["named"] * 3, *["any"] * 3, "move", "move", "end", "retire")


async def live(world: World, dice: Random, steps: int) -> None:
    """A random history of everything that can happen to bookings and drivers."""
    rider = await world.rider()
    made: list[int] = []
    for _ in range(steps):
        step = dice.choice(STEPS)
        everyone = await world.database.transact(what_is_held)
        named = dice.choice(sorted(everyone[0])) if everyone[0] else None
        try:
            if step == "driver" or named is None:
                await world.driver(dice.choice(["main", "other"]))
            elif step == "retire":
                await world.retire(named)
            elif step == "move" and made:
                await world.ledger.reschedule(dice.choice(made), some_window(dice))
            elif step == "end" and made:
                await end(world, made.pop(dice.randrange(len(made))), dice)
            else:
                driver = named if step == "named" else None
                booked = await world.book(some_window(dice), driver, rider_id=rider)
                made.append(booked.id)
        except (BookingConflict, NoDriverFree, DriverStillBooked, DriverRetired):
            continue


async def end(world: World, booking: int, dice: Random) -> None:
    """Cancel, or drive; a trip that is under way still holds its time."""
    if dice.random() < 0.5:
        await world.ledger.change_state(booking, BookingState.CANCELLED)
        return
    await world.ledger.change_state(booking, BookingState.IN_PROGRESS, at=MIDNIGHT)
    if dice.random() < 0.7:
        await world.ledger.change_state(booking, BookingState.COMPLETED)


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize(
    "recipe", [ExclusionUpsert, UncheckedInsert], ids=lambda each: each.__name__
)
async def test_what_is_kept_is_what_the_bookings_say(
    recipe: type[PostgresLedger], name: str, emptied_database: NewDatabase
) -> None:
    base = "exclusion_upsert" if recipe is ExclusionUpsert else WITHOUT_CONSTRAINT
    async with opened(emptied_database(base, name), recipe, KEPT[name].kind()) as world:
        dice = Random(1)
        for _ in range(6):
            await live(world, dice, steps=30)
            working, held = await world.database.transact(what_is_held)
            kept = await world.database.transact(KEPT[name].read)
            assert kept == KEPT[name].expect(working, held)
        assert sum(map(len, held.values())) > 9
        # A named driver is booked unseen by the second recipe, so what is kept is hard to tell.
        assert (await world.audit()).clean is (recipe is ExclusionUpsert)


@pytest.mark.parametrize("name", KEPT)
async def test_the_check_of_the_database_knows_what_belongs_to_the_allocator(
    name: str, new_database: NewDatabase, execute: Execute
) -> None:
    url = new_database("exclusion_upsert", name)
    fitting = schema.fitting("exclusion_upsert", name)
    async with opened(url, ExclusionUpsert, KEPT[name].kind()) as world:
        assert await catalogue.differences(world.database.engine, fitting) == []
        await execute(url, f"DROP TRIGGER bookings_keep_{KEPT[name].table} ON bookings")
        assert f"trigger bookings_keep_{KEPT[name].table} is missing" in (
            await catalogue.differences(world.database.engine, fitting)
        )


@pytest.mark.parametrize("name", KEPT)
async def test_a_database_that_has_bookings_already_can_take_up_the_allocator(
    name: str, new_database: NewDatabase
) -> None:
    url = new_database("exclusion_upsert")
    async with opened(url, ExclusionUpsert, AskThenOffer()) as world:
        await live(world, Random(2), steps=60)
        for _ in range(2):  # and again, which changes nothing
            await world.database.transact(lambda c: schema.fit(c, list(KEPT[name].kind.schema)))
            working, held = await world.database.transact(what_is_held)
            kept = await world.database.transact(KEPT[name].read)
            assert kept == KEPT[name].expect(working, held)
        assert sum(map(len, held.values())) > 9


# --- What the allocator does with a recipe that refuses. ------------------------------------


async def always_taken(_connection: AsyncConnection, _request: BookingRequest) -> Booking:
    raise BookingConflict


@allocators
async def test_when_whoever_looks_free_is_always_taken_the_search_ends(
    allocator: Strategy, emptied_database: NewDatabase
) -> None:
    url = emptied_database("row_lock", allocator.name)
    async with opened(url, RowLock, allocator.load()()) as world:
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

    holds_the_refused = False


@pytest.mark.parametrize(
    ("recipe", "deadlocks"), [(HoldsOn, True), (RowLock, False), (AdvisoryLock, False)]
)
async def test_locks_of_refused_drivers_are_let_go_or_two_searches_deadlock(
    recipe: type[PostgresLedger], emptied_database: NewDatabase, *, deadlocks: bool
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

    url = emptied_database("row_lock", "ask_then_offer")
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
