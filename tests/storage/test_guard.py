"""The way to the constraint, for a table that holds double bookings and is written to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import BookingConflict
from booking.postgres import catalogue, guard
from booking.postgres.database import EXCLUSION_VIOLATION, Database, sqlstate_of
from booking.postgres.guard import Conflict, Fate
from booking.postgres.tables import BOOKING_COLUMNS, booking_of, bookings
from booking.prevention.check_then_insert import CheckThenInsert
from booking.prevention.grouped_commit import GroupedCommit
from booking.time_window import TimeWindow
from tests.storage.test_audit import NoCheck
from tests.world import MIDNIGHT, NewDatabase, World, hours, until_someone_waits_for_a_lock

pytestmark = pytest.mark.anyio

ROUNDS = 15


@pytest.fixture
async def database(new_database: NewDatabase) -> AsyncIterator[Database]:
    """One whose table lacks the constraint, as that of many a service that has grown."""
    opened = Database(new_database("check_then_insert"), pool_size=8)
    yield opened
    await opened.close()


@pytest.fixture
def careless(database: Database) -> World:
    """Books whatever it is asked for: how the double bookings came to be there."""
    return World(database, NoCheck(database, AskThenOffer()))


class Fleet:
    """Three drivers. The first two are double-booked, the third is free."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.drivers: list[int] = []
        self.rider = 0

    async def plant(self) -> None:
        self.drivers = [await self.world.driver() for _ in range(3)]
        self.rider = await self.world.rider()
        first, second, _ = self.drivers
        self.early = await self.book(first, 8, 9)
        self.long = await self.book(first, 9, 11)
        self.between = await self.book(first, 10, 12)  # has to go
        self.late = await self.book(first, 11, 13)  # was in the way of that one alone
        self.three = [await self.book(second, 9, 10) for _ in range(3)]  # two have to go

    async def book(self, driver: int, start: float, end: float) -> Booking:
        return await self.world.book(hours(start, end), driver, rider_id=self.rider)

    @property
    def planted(self) -> list[Booking]:
        return [self.early, self.long, self.between, self.late, *self.three]


@pytest.fixture
async def fleet(careless: World) -> Fleet:
    made = Fleet(careless)
    await made.plant()
    return made


@dataclass
class Rush:
    """Two people at once want the same driver and time, by a look and a write; again and again."""

    ledger: CheckThenInsert
    fleet: Fleet
    made: dict[int, Booking] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    both_booked: int = 0
    rounds: int = 0
    failed: list[BaseException] = field(default_factory=list)
    over: bool = False

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._go_on())
        try:
            yield
        finally:
            self.over = True
            await task

    async def some_rounds(self) -> None:
        until = self.rounds + ROUNDS
        while self.rounds < until:  # noqa: ASYNC110  # there are many rounds to hear of
            await asyncio.sleep(0.005)

    async def _go_on(self) -> None:
        while not self.over:
            await self.round()

    async def round(self) -> None:
        start = MIDNIGHT + timedelta(days=1, hours=self.rounds)
        driver = self.fleet.drivers[self.rounds % 2]
        window = TimeWindow(start, start + timedelta(minutes=50))
        request = BookingRequest(self.fleet.rider, window, driver)
        answers = await asyncio.gather(
            self.ledger.book(request), self.ledger.book(request), return_exceptions=True
        )
        booked = [each for each in answers if isinstance(each, Booking)]
        self.made |= {each.id: each for each in booked}
        self.both_booked += len(booked) == 2
        self.failed += [
            each for each in answers if isinstance(each, BaseException) and not is_refusal(each)
        ]
        if self.rounds % 5 == 0 and booked:
            await self.ledger.change_state(booked[0].id, BookingState.CANCELLED)
            self.cancelled.add(booked[0].id)
        self.rounds += 1


def is_refusal(error: BaseException) -> bool:
    return isinstance(error, BookingConflict) or sqlstate_of(error) == EXCLUSION_VIOLATION


@pytest.fixture
def rush(database: Database, fleet: Fleet) -> Rush:
    return Rush(CheckThenInsert(database, AskThenOffer()), fleet)


async def pairs(world: World) -> set[tuple[int, int]]:
    found = (await world.audit()).double_bookings
    return {(each.earlier.booking_id, each.later.booking_id) for each in found}


async def in_the_table(database: Database) -> dict[int, Booking]:
    rows = await database.transact(lambda c: c.execute(select(*BOOKING_COLUMNS)), read_only=True)
    return {booking.id: booking for booking in map(booking_of, rows)}


async def claim_all(database: Database) -> int:
    return sum([claimed async for claimed in guard.backfill(database, batch=2)])


async def conflicts(database: Database) -> list[Conflict]:
    return await database.transact(guard.conflicts, read_only=True)


async def test_the_constraint_is_reached_with_writes_going_on_and_nothing_is_lost(
    database: Database, careless: World, fleet: Fleet, rush: Rush
) -> None:
    ledger = GroupedCommit(database, AskThenOffer())
    async with rush.going_on():
        await rush.some_rounds()
        await guard.stand(database)
        there = await pairs(careless)
        rush.both_booked = 0
        await rush.some_rounds()
        await claim_all(database)
        await rush.some_rounds()
        assert await pairs(careless) <= there, "no new one since the guard stands"

        fates = dict([seen async for seen in guard.resolve(ledger)])
        first, second, third = fleet.three
        assert fates[fleet.between.id] is Fate.GIVEN_AWAY
        assert {fates[second.id], fates[third.id]} == {Fate.GIVEN_AWAY, Fate.LEFT}
        left = [each.id for each in (second, third) if fates[each.id] is Fate.LEFT]
        assert [(c.stays.id, c.goes.id) for c in await conflicts(database)] == [(first.id, *left)]
        with pytest.raises(guard.StillDoubleBooked):
            await guard.constrain(database)

        await ledger.change_state(left[0], BookingState.CANCELLED)  # a person has decided
        done = await guard.constrain(database)
        await rush.some_rounds()
    assert rush.failed == []
    assert rush.both_booked <= 1, "at most the round that was under way when the guard came"
    assert (await careless.audit()).clean
    await check_that_nothing_is_lost(database, rush, left)
    assert done.bookings >= len(fleet.planted) - 1
    differences = await catalogue.differences(database.engine)
    # All is as it should be, but for the index that stood in for the constraint.
    assert [each for each in differences if "bookings_by_during" not in each] == []


async def check_that_nothing_is_lost(database: Database, rush: Rush, left: list[int]) -> None:
    table = await in_the_table(database)
    expected = {each.id: each for each in rush.fleet.planted} | rush.made
    assert table.keys() >= expected.keys()
    for booking_id, booking in expected.items():
        stands = booking_id not in {*rush.cancelled, *left}
        now = table[booking_id]
        assert now.window == booking.window
        assert now.state is (BookingState.CONFIRMED if stands else BookingState.CANCELLED)


async def test_the_control_without_the_guard_there_are_new_double_bookings_meanwhile(
    careless: World, rush: Rush
) -> None:
    there = await pairs(careless)
    for _ in range(10 * ROUNDS):
        await rush.round()
        if await pairs(careless) > there:
            return
    pytest.fail("the work of the test makes no double booking, so it proves nothing")


async def test_the_guard_knows_the_bookings_that_were_there_before_they_have_claims(
    database: Database, careless: World, fleet: Fleet
) -> None:
    await guard.stand(database)
    await guard.stand(database)  # again, as after an interruption
    first, _, third = fleet.drivers
    for refused in (
        fleet.book(first, 9.5, 10.5),
        careless.ledger.reschedule(fleet.early.id, hours(8.5, 9.5)),
        careless.ledger.reassign(fleet.three[0].id, first),
    ):
        with pytest.raises(DBAPIError) as error:
            await refused
        assert sqlstate_of(error.value) == EXCLUSION_VIOLATION
    await fleet.book(third, 9.5, 10.5)
    await fleet.book(first, 13, 14)
    await careless.ledger.change_state(fleet.early.id, BookingState.CANCELLED)
    await fleet.book(first, 8, 9)
    # A double booking that nobody has seen to yet can live on, and end.
    started = await careless.ledger.change_state(fleet.between.id, BookingState.IN_PROGRESS)
    await careless.ledger.change_state(started.id, BookingState.COMPLETED)
    await claim_all(database)
    assert len(await conflicts(database)) == 2


async def test_time_that_is_given_back_while_claims_are_handed_out_is_not_claimed(
    database: Database, fleet: Fleet
) -> None:
    await guard.stand(database)
    async with database.engine.begin() as cancelling:
        await cancelling.execute(
            bookings.update().where(bookings.c.id == fleet.late.id).values(state="cancelled")
        )
        handing_out = asyncio.create_task(claim_all(database))
        await until_someone_waits_for_a_lock(database)
    assert await handing_out == 3, "early, long, and one of the three"
    claimed = await database.transact(
        lambda c: c.scalars(text(f"SELECT booking_id FROM {guard.CLAIMS}")), read_only=True
    )
    assert fleet.late.id not in claimed.all()


@pytest.mark.parametrize(
    ("under_way", "goes"), [(None, "second"), ("second", "first"), ("first", "second")]
)
async def test_who_is_under_way_stays_and_else_who_was_made_first(
    database: Database, careless: World, under_way: str | None, goes: str
) -> None:
    driver = await careless.driver()
    made = {name: await careless.book(hours(9, 10), driver) for name in ("first", "second")}
    if under_way:
        await careless.ledger.change_state(made[under_way].id, BookingState.IN_PROGRESS)
    [(stays, has_to_go)] = await conflicts(database)
    assert (has_to_go.id, stays.id != has_to_go.id) == (made[goes].id, True)
    await guard.stand(database)
    await claim_all(database)
    assert dict(
        [seen async for seen in guard.resolve(GroupedCommit(database, AskThenOffer()))]
    ) == {made[goes].id: Fate.LEFT}, "the same one, and nobody else is there to take it"


async def test_the_constraint_is_not_put_up_twice_nor_without_the_guard(
    database: Database, fresh_url: str
) -> None:
    with pytest.raises(guard.NoGuard):
        await guard.constrain(database)
    constrained = Database(fresh_url, pool_size=1)
    try:
        for step in (guard.stand, guard.constrain):
            with pytest.raises(guard.AlreadyConstrained):
                await step(constrained)  # type: ignore[operator]
    finally:
        await constrained.close()


async def test_who_goes_is_worked_out_from_those_who_stay() -> None:
    def made(number: int, start: float, end: float, **changes: Any) -> tuple[TimeWindow, Booking]:
        window = hours(start, end)
        state = changes.get("state", BookingState.CONFIRMED)
        return window, Booking(number, 1, 1, state, window.start, window.end, MIDNIGHT)

    chain = [made(1, 9, 11), made(2, 10, 12), made(3, 11, 13), made(4, 12.5, 14)]
    assert [(c.stays.id, c.goes.id) for c in guard.judge(reversed(chain))] == [(1, 2), (3, 4)]
    late = made(5, 12, 14, state=BookingState.IN_PROGRESS)
    assert [(c.stays.id, c.goes.id) for c in guard.judge([*chain, late])] == [
        (1, 2),
        (5, 3),
        (5, 4),
    ]
    assert guard.judge([]) == []
