"""What grouped commit does beyond the contract: who shares a write, and who pays for whom."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import ExceptionContext, event, text
from sqlalchemy.exc import DBAPIError

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import Booking, BookingRequest
from booking.errors import (
    BookingConflict,
    DriverRetired,
    LedgerBusy,
    LedgerLost,
    Unavailable,
    UnknownDriver,
    UnknownRider,
)
from booking.postgres.database import EXCLUSION_VIOLATION, Database, sqlstate_of
from booking.prevention.grouped_commit import GROUP_MAX, WRITES_MAX, GroupedCommit
from tests.world import Execute, World, hours

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(fresh_url: str) -> AsyncIterator[World]:
    database = Database(fresh_url)
    yield World(database, GroupedCommit(database, AskThenOffer()))
    await database.close()


@pytest.fixture
def inserts(world: World) -> list[str]:
    """Every statement that writes bookings, as it is sent."""
    sent: list[str] = []

    @event.listens_for(world.database.engine.sync_engine, "before_cursor_execute")
    @event.listens_for(world.database.lanes.sync_engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "INSERT INTO bookings" in statement:
            sent.append(statement)

    return sent


async def ask_all(world: World, *requests: BookingRequest) -> list[Any]:
    return await asyncio.gather(*map(world.ledger.book, requests), return_exceptions=True)


async def test_requests_that_arrive_together_are_written_together(
    world: World, inserts: list[str]
) -> None:
    driver, rider = await world.driver(), await world.rider()
    wanted = [BookingRequest(rider, hours(hour / 4, hour / 4 + 0.25), driver) for hour in range(96)]
    booked = await ask_all(world, *wanted)
    assert [each.window for each in booked] == [each.window for each in wanted]
    assert len(inserts) == 1
    assert await world.recorded() == 96


async def test_who_comes_while_writes_are_under_way_shares_the_next_one(
    world: World, inserts: list[str]
) -> None:
    driver, rider = await world.driver(), await world.rider()
    wanted = [BookingRequest(rider, hours(hour, hour + 1), driver) for hour in range(40)]
    tasks = []
    for request in wanted:
        tasks.append(asyncio.create_task(world.ledger.book(request)))
        for _ in range(5):  # turns of the loop: the first writes are sent, and not yet answered
            await asyncio.sleep(0)
    booked = await asyncio.gather(*tasks)
    assert [each.window for each in booked] == [each.window for each in wanted]
    assert WRITES_MAX < len(inserts) < len(wanted)


async def test_a_group_has_a_limit(world: World, inserts: list[str]) -> None:
    drivers, rider = [await world.driver() for _ in range(GROUP_MAX + 1)], await world.rider()
    await ask_all(world, *[BookingRequest(rider, hours(9, 10), driver) for driver in drivers])
    assert len(inserts) == 2
    assert await world.recorded() == GROUP_MAX + 1


async def test_each_of_a_group_has_an_answer_of_its_own(world: World, inserts: list[str]) -> None:
    driver, busy, retired = [await world.driver() for _ in range(3)]
    in_the_way = await world.book(hours(9, 10), busy)
    await world.retire(retired)
    rider, other = await world.rider(), await world.rider()
    inserts.clear()
    answers = await ask_all(
        world,
        BookingRequest(rider, hours(9, 10), 77),
        BookingRequest(78, hours(11, 12), driver),
        BookingRequest(78, hours(9, 10), busy),
        BookingRequest(rider, hours(9, 10), retired),
        BookingRequest(rider, hours(9.5, 10.5), busy),
        BookingRequest(rider, hours(9, 10), driver),
        BookingRequest(other, hours(9, 10), driver),
        BookingRequest(rider, hours(9, 10), driver),
        BookingRequest(rider, hours(9, 9.5), driver),
    )
    assert len(inserts) == 1
    assert [type(each) for each in answers[:5]] == [
        UnknownDriver,
        UnknownRider,
        UnknownRider,
        DriverRetired,
        BookingConflict,
    ]
    assert answers[4].conflicts == ((in_the_way.id, in_the_way.window),)
    # Of those who wanted one driver at nine one was booked, and the others are told so.
    booked = [each for each in answers[5:] if isinstance(each, Booking)]
    assert len(booked) == 1
    for refused in answers[5:]:
        if refused is not booked[0]:
            assert isinstance(refused, BookingConflict)
            assert refused.conflicts == ((booked[0].id, booked[0].window),)
    request = [rider, other, rider, rider][answers[5:].index(booked[0])]
    assert booked[0].rider_id == request


async def test_what_one_request_brought_about_is_not_the_others_fault(
    world: World, fresh_url: str, execute: Execute, inserts: list[str]
) -> None:
    driver, unlucky, rider = await world.driver(), await world.rider(), await world.rider()
    await execute(
        fresh_url,
        f"ALTER TABLE bookings ADD CONSTRAINT no_luck CHECK (rider_id <> {unlucky})",
    )
    answers = await ask_all(
        world,
        *[BookingRequest(rider, hours(hour, hour + 1), driver) for hour in range(3)],
        BookingRequest(unlucky, hours(3, 4), driver),
    )
    assert [type(each) for each in answers[:3]] == [Booking] * 3
    assert isinstance(answers[3], DBAPIError)
    assert len(inserts) == 1 + 4, "together, and then one by one"
    assert await world.recorded() == 3


async def test_a_caller_who_goes_away_takes_nobody_along(world: World) -> None:
    driver, rider = await world.driver(), await world.rider()
    staying = BookingRequest(rider, hours(9, 10), driver)
    leaving = asyncio.create_task(world.ledger.book(BookingRequest(rider, hours(10, 11), driver)))
    stayed = asyncio.create_task(world.ledger.book(staying))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await stayed).window == staying.window
    assert leaving.cancelled()


async def test_when_the_connection_breaks_nobody_is_told_that_nothing_was_done(
    world: World, fresh_url: str, execute: Execute
) -> None:
    driver, rider = await world.driver(), await world.rider()
    await execute(
        fresh_url,
        """
        CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$
        """,
        "CREATE TRIGGER die BEFORE INSERT ON bookings FOR EACH ROW EXECUTE FUNCTION die()",
    )
    answers = await ask_all(
        world, *[BookingRequest(rider, hours(hour, hour + 1), driver) for hour in range(3)]
    )
    assert [type(each) for each in answers] == [LedgerLost] * 3


async def test_a_connection_that_was_closed_while_it_lay_idle_is_replaced(
    world: World, fresh_url: str, execute: Execute
) -> None:
    driver, rider = await world.driver(), await world.rider()
    await world.book(hours(9, 10), driver, rider_id=rider)
    await execute(
        fresh_url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    booked = await world.book(hours(10, 11), driver, rider_id=rider)
    assert booked.window == hours(10, 11)


async def test_whoever_waits_too_long_is_turned_away(fresh_url: str) -> None:
    database = Database(fresh_url, wait_s_max=0.3, statement_s_max=2)
    try:
        world = World(database, GroupedCommit(database, AskThenOffer()))
        drivers, rider = [await world.driver() for _ in range(6)], await world.rider()
        async with database.engine.begin() as blocker:
            await blocker.exec_driver_sql("LOCK TABLE bookings")
            tasks = []
            for driver in drivers:
                request = BookingRequest(rider, hours(9, 10), driver)
                tasks.append(asyncio.create_task(world.ledger.book(request)))
                for _ in range(5):
                    await asyncio.sleep(0)
            gone: set[asyncio.Task[Booking]] = set()
            while len(gone) < 4:
                done, _ = await asyncio.wait(set(tasks) - gone, return_when=asyncio.FIRST_COMPLETED)
                gone |= done
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in outcomes] == [Booking] * 2 + [LedgerBusy] * 4
        assert await world.recorded() == 2
    finally:
        await database.close()


async def test_the_queue_is_bounded(fresh_url: str) -> None:
    database = Database(fresh_url, waiting_max=2)
    try:
        world = World(database, GroupedCommit(database, AskThenOffer()))
        driver, rider = await world.driver(), await world.rider()
        answers = await ask_all(
            world, *[BookingRequest(rider, hours(hour, hour + 1), driver) for hour in range(3)]
        )
        assert [type(each) for each in answers] == [Booking, Booking, LedgerBusy]
        assert issubclass(LedgerBusy, Unavailable)
        assert world.ledger.waiting == 0
    finally:
        await database.close()


async def test_a_group_and_a_move_do_not_wait_for_each_other(
    world: World, fresh_url: str, execute: Execute
) -> None:
    # The group dawdles between its two rows; the move wants a part of both of them.
    await execute(
        fresh_url,
        """
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$
        """,
        f"""
        CREATE TRIGGER dawdle BEFORE INSERT ON bookings FOR EACH ROW
        WHEN (lower(NEW.during) = '{hours(10, 11).start}') EXECUTE FUNCTION dawdle()
        """,
    )
    driver, rider = await world.driver(), await world.rider()
    moving = await world.book(hours(15, 16), driver)
    failed: list[str] = []

    @event.listens_for(world.database.engine.sync_engine, "handle_error")
    @event.listens_for(world.database.lanes.sync_engine, "handle_error")
    def note(context: ExceptionContext) -> None:
        failed.append(sqlstate_of(context.original_exception))

    group = asyncio.create_task(
        ask_all(
            world,
            BookingRequest(rider, hours(9, 10), driver),
            BookingRequest(rider, hours(10, 11), driver),
        )
    )
    asleep = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    # The server has no event to wait for.
    while not await world.database.transact(lambda c: c.scalar(asleep), read_only=True):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    with pytest.raises(BookingConflict):
        await world.ledger.reschedule(moving.id, hours(9.5, 10.5))
    assert [type(each) for each in await group] == [Booking, Booking]
    assert failed in ([], [EXCLUSION_VIOLATION])  # which is how a move is refused


async def test_who_has_gone_before_the_group_is_written_is_not_booked(world: World) -> None:
    driver, rider = await world.driver(), await world.rider()
    gone, stays = [
        asyncio.create_task(world.ledger.book(BookingRequest(rider, window, driver)))
        for window in (hours(9, 10), hours(11, 12))
    ]
    await asyncio.sleep(0)  # both wait for the end of this turn of the loop
    gone.cancel()
    assert (await stays).window == hours(11, 12)
    assert await world.recorded() == 1
