"""A follower's index beside the database it follows: equal, or honest about being behind."""

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import Connection, delete, event, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.allocation.ask_then_offer import AskThenOffer
from booking.allocation.gap_index import GapIndex
from booking.bookings import Booking, BookingRequest, BookingState
from booking.detection.bisect_neighbours import BisectNeighbours
from booking.detection.interval_tree import IntervalTree
from booking.errors import BookingConflict, IllegalTransition, NoDriverFree, Unavailable
from booking.fleet_index import Claim, FleetIndex
from booking.postgres import schema
from booking.postgres.advice import Advice
from booking.postgres.audit import double_bookings
from booking.postgres.database import Database
from booking.postgres.embedded import EmbeddedPostgres
from booking.postgres.follower import KEEP, Follower
from booking.postgres.ledger import add_driver, add_rider, retire_driver
from booking.postgres.tables import active, bookings, predicted_ends, starts
from booking.prevention.check_then_insert import CheckThenInsert
from booking.prevention.exclusion_upsert import ExclusionUpsert
from booking.time_window import LATEST, TimeWindow

pytestmark = pytest.mark.anyio

TOMORROW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=1)
A_LONG_TIME_S = 60.0
"""Only a hang lasts this long; no test depends on being quick."""
ROOT = Path(schema.__file__).parents[2]
FOREVER_S = 1e9
"""For an index that shall be asked however old it is."""

Execute = Callable[..., Awaitable[None]]


def at(start: int, end: int) -> TimeWindow:
    """A window of tomorrow's quarters of an hour."""
    quarter = timedelta(minutes=15)
    return TimeWindow(TOMORROW + start * quarter, TOMORROW + end * quarter)


def new_index() -> FleetIndex:
    return FleetIndex(BisectNeighbours, GapIndex)


def ledger_of(database: Database) -> ExclusionUpsert:
    return ExclusionUpsert(database, AskThenOffer())


async def add_drivers(database: Database, count: int = 1) -> list[int]:
    """Add a rider, and drivers to whom they may book; answers the drivers' ids."""

    async def work(connection: AsyncConnection) -> list[int]:
        await add_rider(connection, "Rosa")
        added = [await add_driver(connection, f"D{n}", "main", "UTC") for n in range(count)]
        return [driver.id for driver in added]

    return await database.transact(work)


def wants(window: TimeWindow, driver_id: int | None = 1) -> BookingRequest:
    return BookingRequest(rider_id=1, driver_id=driver_id, window=window)


async def recorded(database: Database) -> set[Claim]:
    """What the database says is held."""

    async def read(connection: AsyncConnection) -> set[Claim]:
        rows = await connection.execute(
            select(bookings.c.id, bookings.c.driver_id, starts, predicted_ends).where(active)
        )
        return {Claim(id_, driver, TimeWindow(start, end)) for id_, driver, start, end in rows}

    return await database.transact(read)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(A_LONG_TIME_S):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in a database
            await anyio.sleep(0.01)


@pytest.fixture(name="follower")
async def _follower(fresh_url: str) -> AsyncIterator[Follower]:
    own = Database(fresh_url, pool_size=1)
    yield Follower(own, new_index(), fresh_s=FOREVER_S)
    await own.close()


@pytest.fixture(name="ledger")
async def _ledger(database: Database) -> ExclusionUpsert:
    await add_drivers(database, 3)
    return ledger_of(database)


# It learns what others do -----------------------------------------------------

OTHER_PROCESS = """
import asyncio, json, sys
from datetime import datetime
from booking.allocation.ask_then_offer import AskThenOffer
from booking.allocation.gap_index import GapIndex
from booking.bookings import BookingRequest
from booking.detection.bisect_neighbours import BisectNeighbours
from booking.fleet_index import FleetIndex
from booking.postgres.database import Database
from booking.postgres.follower import Follower
from booking.prevention.exclusion_upsert import ExclusionUpsert
from booking.time_window import TimeWindow

url, start, end, theirs = sys.argv[1:]

async def main():
    database, own = Database(url), Database(url, pool_size=1)
    follower = Follower(own, FleetIndex(BisectNeighbours, GapIndex))
    async with follower.running():
        window = TimeWindow(datetime.fromisoformat(start), datetime.fromisoformat(end))
        request = BookingRequest(rider_id=1, driver_id=2, window=window)
        mine = await ExclusionUpsert(database, AskThenOffer()).book(request)
        print(json.dumps(mine.id), flush=True)
        while not {mine.id, int(theirs)} <= {claim.booking_id for claim in follower.index}:
            await asyncio.sleep(0.01)
        print(json.dumps(sorted(claim.booking_id for claim in follower.index)), flush=True)
    await own.close()
    await database.close()

asyncio.run(main())
"""


async def test_two_processes_see_each_others_bookings(
    fresh_url: str, ledger: ExclusionUpsert, follower: Follower
) -> None:
    async with follower.running():
        mine = await ledger.book(wants(at(0, 4)))
        window = at(0, 4)
        arguments = (fresh_url, window.start.isoformat(), window.end.isoformat(), str(mine.id))
        with anyio.fail_after(A_LONG_TIME_S):
            other = await anyio.run_process(
                [sys.executable, "-c", OTHER_PROCESS, *arguments], cwd=ROOT
            )
        theirs, seen_there = map(json.loads, other.stdout.splitlines())
        await until(lambda: len(follower.index) == 2)
    assert seen_there == sorted([mine.id, theirs])
    assert {claim.booking_id for claim in follower.index} == {mine.id, theirs}


async def test_after_a_storm_the_index_equals_the_database(
    fresh_url: str, database: Database, follower: Follower
) -> None:
    driver_ids = await add_drivers(database, 5)
    other = Database(fresh_url)
    tree = Follower(other, FleetIndex(IntervalTree, GapIndex))
    counts = {"booked": 0, "refused": 0, "changed": 0}

    async def client(seed: int, pool: Database, mine: Follower) -> None:
        dice, ledger, booked = random.Random(seed), ledger_of(pool), list[Booking]()
        for _ in range(40):
            try:
                if booked and dice.random() < 0.45:
                    old = dice.choice(booked)
                    wanted = dice.choice([BookingState.CANCELLED, BookingState.IN_PROGRESS])
                    mine.note(await ledger.change_state(old.id, wanted))
                    counts["changed"] += 1
                else:
                    start = dice.randrange(40)
                    window = at(start, start + dice.randint(1, 4))
                    driver_id = dice.choice([*driver_ids, None])
                    booked.append(await ledger.book(wants(window, driver_id)))
                    mine.note(booked[-1])
                    counts["booked"] += 1
            except (BookingConflict, NoDriverFree, IllegalTransition):
                counts["refused"] += 1

    async with follower.running(), tree.running(), anyio.create_task_group() as clients:
        for seed in range(8):
            clients.start_soon(client, seed, *((database, follower), (other, tree))[seed % 2])
    for each in (follower, tree):
        await each.catch_up()
    truth = await recorded(database)
    assert min(counts.values()) > 10
    assert set(follower.index) == truth
    assert set(tree.index) == truth
    await other.close()


async def test_a_transaction_that_commits_late_is_not_missed(
    database: Database, ledger: ExclusionUpsert, follower: Follower
) -> None:
    careless = HighestNumberSoFar(database)
    await follower.catch_up()
    async with database.engine.connect() as late:
        await late.begin()
        booked_late = await ledger.record(late, wants(at(0, 4)))
        booked_early = await ledger.book(wants(at(0, 4), driver_id=2))
        await follower.catch_up()
        await careless.catch_up()
        assert {claim.booking_id for claim in follower.index} == {booked_early.id}
        await late.commit()
    await follower.catch_up()
    await careless.catch_up()
    assert {claim.booking_id for claim in follower.index} == {booked_early.id, booked_late.id}
    # The control: the obvious horizon has passed the late transaction by.
    assert careless.seen == {booked_early.id}


class HighestNumberSoFar:
    """The follower as one writes it first: it asks for numbers above the highest it saw."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._highest = 0
        self.seen: set[int] = set()

    async def catch_up(self) -> None:
        async def read(connection: AsyncConnection) -> None:
            rows = await connection.execute(
                select(bookings.c.id, bookings.c.changed_in).where(
                    bookings.c.changed_in > self._highest
                )
            )
            for id_, changed_in in rows:
                self.seen.add(id_)
                self._highest = max(self._highest, changed_in)

        await self._database.transact(read)


async def test_of_two_changes_to_a_row_the_later_counts_though_its_number_is_lower(
    database: Database, ledger: ExclusionUpsert, follower: Follower
) -> None:
    booked = await ledger.book(wants(at(0, 4)))
    await follower.catch_up()
    async with database.engine.connect() as late:
        await late.begin()
        # As the service does with an idempotency key, it writes elsewhere first.
        await add_rider(late, "Ada")
        await ledger.change_state(booked.id, BookingState.IN_PROGRESS)
        await follower.catch_up()
        started_in = await changed_in(database, booked.id)
        await late.execute(
            update(bookings).where(bookings.c.id == booked.id).values(state="cancelled")
        )
        await late.commit()
    assert await changed_in(database, booked.id) < started_in  # so the number decides nothing
    await follower.catch_up()
    assert len(follower.index) == 0


async def changed_in(database: Database, booking_id: int) -> int:
    async def read(connection: AsyncConnection) -> int:
        statement = select(bookings.c.changed_in).where(bookings.c.id == booking_id)
        return (await connection.execute(statement)).scalar_one()

    return await database.transact(read)


async def test_drivers_who_come_and_go(database: Database, follower: Follower) -> None:
    first, second = await add_drivers(database, 2)
    await follower.catch_up()
    assert sorted(follower.index.free_drivers(at(0, 4), "main", 9)) == [first, second]
    await database.transact(lambda connection: retire_driver(connection, first))
    (third,) = await add_drivers(database)
    await follower.catch_up()
    assert sorted(follower.index.free_drivers(at(0, 4), "main", 9)) == [second, third]


async def test_rows_of_another_server_are_loaded_and_their_changes_found(
    fresh_url: str, ledger: ExclusionUpsert, follower: Follower, execute: Execute
) -> None:
    """A dump carries the numbers of the server it was made on, which may be far ahead."""
    await execute(
        fresh_url,
        "ALTER TABLE bookings DISABLE TRIGGER USER",
        "INSERT INTO bookings (driver_id, rider_id, state, during, changed_in) VALUES (1, 1,"
        " 'confirmed', tstzrange(now() + '1 hour', now() + '2 hours'), 4000000000000)",
        "ALTER TABLE bookings ENABLE TRIGGER USER",
    )
    await follower.catch_up()
    (claim,) = follower.index
    await ledger.change_state(claim.booking_id, BookingState.CANCELLED)
    await follower.catch_up()
    assert len(follower.index) == 0


async def test_double_bookings_do_not_break_the_index(new_database: Callable[[str], str]) -> None:
    database = Database(await anyio.to_thread.run_sync(new_database, "check_then_insert"))
    follower = Follower(database, new_index())
    bug = CheckThenInsert(database, AskThenOffer())
    await add_drivers(database)
    async with database.engine.connect() as one, database.engine.connect() as two:
        await one.begin()
        await two.begin()
        first = await bug.record(one, wants(at(0, 4)))
        second = await bug.record(two, wants(at(2, 6)))
        await one.commit()
        await two.commit()
    await follower.catch_up()
    audit = await database.transact(double_bookings)
    assert len(audit.double_bookings) == 1
    assert [held.booking_id for held in follower.index.conflicts(1, at(0, 6))] == [
        first.id,
        second.id,
    ]
    await bug.change_state(first.id, BookingState.CANCELLED)
    await follower.catch_up()
    assert follower.index.conflicts(1, at(0, 2)) == []
    assert follower.index.free_drivers(at(4, 5), "main", 1) == []
    await database.close()


async def test_what_ended_long_ago_is_not_loaded_and_is_dropped_in_time(
    fresh_url: str, ledger: ExclusionUpsert, follower: Follower, execute: Execute
) -> None:
    await execute(
        fresh_url,
        "INSERT INTO bookings (driver_id, rider_id, state, during) VALUES (1, 1, 'confirmed',"
        " tstzrange(now() - '30 hours'::interval, now() - '25 hours'::interval))",
    )
    booked = await ledger.book(wants(at(0, 4)))
    await follower.catch_up()
    assert [claim.booking_id for claim in follower.index] == [booked.id]
    later = booked.predicted_end + KEEP + timedelta(minutes=1)
    database = Database(fresh_url)
    clock = Clock(datetime.now(UTC))
    ageing = Follower(database, new_index(), now=clock)
    await ageing.catch_up()
    assert len(ageing.index) == 1
    clock.instant = later
    await ageing.catch_up()
    assert len(ageing.index) == 0
    await database.close()


async def test_what_has_begun_before_the_horizon_and_ends_after_it_is_loaded(
    fresh_url: str, follower: Follower, database: Database, execute: Execute
) -> None:
    await add_drivers(database)
    await execute(
        fresh_url,
        "INSERT INTO bookings (driver_id, rider_id, state, during) VALUES (1, 1, 'confirmed',"
        " tstzrange(now() - '46 hours'::interval, now() - '23 hours'::interval))",
    )
    await follower.catch_up()
    (claim,) = follower.index
    assert claim.window.start < follower.index.horizon < claim.window.end


async def test_all_that_was_committed_by_the_time_it_names_is_known(
    fresh_url: str, ledger: ExclusionUpsert
) -> None:
    database, clock = Database(fresh_url), Clock(TOMORROW)
    overtaken = Overtaken(database, ledger, clock)
    await overtaken.catch_up()
    assert len(overtaken.index) == 0  # so whoever reads `as_of` and `lag_s` must not think it is
    assert overtaken.as_of < clock.instant
    assert time.monotonic() - overtaken.lag_s < overtaken.booked_s
    await overtaken.catch_up()
    assert len(overtaken.index) == 1
    assert overtaken.as_of >= clock.instant
    await database.close()


class Overtaken(Follower):
    """Another process books while the first read is under way, behind its snapshot."""

    def __init__(self, database: Database, ledger: ExclusionUpsert, clock: "Clock") -> None:
        super().__init__(database, new_index(), now=clock)
        self.ledger = ledger
        self.clock = clock
        self.booked_s = math.nan

    async def _take(self, *arguments: Any) -> None:
        if math.isnan(self.booked_s):
            self.clock.instant += timedelta(seconds=1)
            self.booked_s = time.monotonic()
            await self.ledger.book(wants(at(0, 4)))
        await super()._take(*arguments)


class Clock:
    """Says what it is told."""

    def __init__(self, instant: datetime) -> None:
        self.instant = instant

    def __call__(self) -> datetime:
        return self.instant


# What this process did itself is known at once --------------------------------


async def test_what_a_process_did_itself_it_knows_at_once(
    database: Database, ledger: ExclusionUpsert, follower: Follower
) -> None:
    advice = Advice(database, follower)
    await follower.catch_up()
    booked = await ledger.book(wants(at(0, 4)))
    advice.note(booked)
    assert 1 not in (await advice.free_drivers(at(0, 4), "main", 9)).ids
    advice.note(await ledger.change_state(booked.id, BookingState.CANCELLED))
    advice.note_driver(await database.transact(lambda c: retire_driver(c, 2)))
    ids, _, source = await advice.free_drivers(at(0, 4), "main", 9)
    assert (sorted(ids), source) == ([1, 3], "memory")


async def test_a_note_that_comes_late_is_corrected_by_the_next_read(
    ledger: ExclusionUpsert, follower: Follower
) -> None:
    booked = await ledger.book(wants(at(0, 4)))
    await ledger.change_state(booked.id, BookingState.CANCELLED)  # by another process
    await follower.catch_up()
    follower.note(booked)
    assert len(follower.index) == 1
    await follower.catch_up()  # although nothing has changed since the last
    assert len(follower.index) == 0


async def test_a_row_read_before_a_note_does_not_undo_it(
    fresh_url: str, ledger: ExclusionUpsert
) -> None:
    database = Database(fresh_url)
    interrupted = Interrupted(database, new_index(), ledger)
    booked = await ledger.book(wants(at(0, 4)))
    interrupted.cancels = booked.id
    await interrupted.catch_up()  # reads the booking as it was, after it was cancelled
    assert len(interrupted.index) == 0
    await interrupted.catch_up()
    assert len(interrupted.index) == 0
    await database.close()


class Interrupted(Follower):
    """This process cancels a booking while a read is under way, behind its snapshot."""

    def __init__(self, database: Database, index: FleetIndex, ledger: ExclusionUpsert) -> None:
        super().__init__(database, index)
        self.ledger = ledger
        self.cancels: int | None = None

    async def _take(self, *arguments: Any) -> None:
        if self.cancels is not None:
            cancelled = await self.ledger.change_state(self.cancels, BookingState.CANCELLED)
            self.cancels = None
            self.note(cancelled)
        await super()._take(*arguments)


# Memory advises, the database decides -----------------------------------------


async def test_memory_that_says_free_causes_no_double_booking(
    database: Database, ledger: ExclusionUpsert, follower: Follower
) -> None:
    advice = Advice(database, follower)
    await follower.catch_up()
    await ledger.book(wants(at(0, 4)))  # of which the index does not hear
    believed = await advice.free_drivers(at(0, 4), "main", 9)
    assert believed.source == "memory"
    assert 1 in believed.ids
    with pytest.raises(BookingConflict):
        await ledger.book(wants(at(0, 4)))


async def test_many_who_follow_the_same_stale_advice_do_not_double_book(
    fresh_url: str, ledger: ExclusionUpsert, follower: Follower
) -> None:
    database = Database(fresh_url)
    advice = Advice(database, follower)
    await follower.catch_up()
    outcomes: list[str] = []

    async def follow_the_advice() -> None:
        (driver_id,) = (await advice.free_drivers(at(0, 4), "main", 1)).ids
        try:
            await ledger.book(wants(at(0, 4), driver_id))
        except BookingConflict:
            outcomes.append("refused")
        else:
            outcomes.append("booked")

    async with anyio.create_task_group() as clients:
        for _ in range(12):
            clients.start_soon(follow_the_advice)
    assert sorted(outcomes) == ["booked"] + ["refused"] * 11
    assert (await database.transact(double_bookings)).clean
    await database.close()


async def test_memory_that_says_taken_refuses_nothing(
    database: Database, ledger: ExclusionUpsert, follower: Follower
) -> None:
    advice = Advice(database, follower)
    await follower.catch_up()
    for driver_id in (1, 2, 3):
        follower.index.apply_booking(1_000 + driver_id, driver_id, at(0, 4))  # never recorded
    assert (await advice.free_drivers(at(0, 4), "main", 9)).ids == []
    named = await ledger.book(wants(at(0, 4), driver_id=1))
    anyone = await ledger.book(wants(at(0, 4), driver_id=None))
    assert (named.driver_id, anyone.driver_id in {2, 3}) == (1, True)


MODULES_THAT_DECIDE = (
    "booking.postgres.ledger",
    "booking.prevention.exclusion_upsert",
    "booking.prevention.row_lock",
    "booking.prevention.check_then_insert",
    "booking.prevention.grouped_commit",
    "booking.allocation.ask_then_offer",
)


@pytest.mark.parametrize(
    ("modules", "loads_memory"),
    [(MODULES_THAT_DECIDE, False), (("booking.postgres.advice",), True)],
    ids=["what decides", "the control"],
)
def test_what_decides_does_not_even_load_what_advises(
    modules: tuple[str, ...], *, loads_memory: bool
) -> None:
    script = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print('booking.fleet_index' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert ran.stdout.strip() == str(loads_memory)


# Memory and database give the same answers ------------------------------------


async def test_memory_and_database_answer_alike(
    database: Database, ledger: ExclusionUpsert, follower: Follower
) -> None:
    await database.transact(lambda connection: add_driver(connection, "Nox", "night", "UTC"))
    (retired,) = await add_drivers(database)
    await database.transact(lambda connection: retire_driver(connection, retired))
    dice = random.Random(2)
    for _ in range(60):
        start = dice.randrange(60)
        try:
            await ledger.book(wants(at(start, start + dice.randint(1, 6)), dice.randint(1, 3)))
        except BookingConflict:
            continue
    await follower.catch_up()
    memory, truth = Advice(database, follower), Advice(database)
    everyone = (1, 2, 3, retired)
    assert [await memory.fleet_of(driver_id) for driver_id in everyone] == [
        await truth.fleet_of(driver_id) for driver_id in everyone
    ]
    for start in range(0, 64, 3):
        window = at(start, start + 1 + start % 5)
        for without in ((), (2,)):
            remembered = await memory.free_drivers(window, "main", 9, without)
            read = await truth.free_drivers(window, "main", 9, without)
            assert (remembered.source, read.source) == ("memory", "database")
            assert sorted(remembered.ids) == read.ids
        for driver_id in (1, 2, 3):
            assert await memory.conflicts(driver_id, window) == await truth.conflicts(
                driver_id, window
            )
            assert await memory.next_free(driver_id, window) == await truth.next_free(
                driver_id, window
            )
            assert await memory.gaps(driver_id, window) == await truth.gaps(driver_id, window)


@pytest.mark.usefixtures("ledger")
async def test_what_memory_cannot_answer_the_database_does(
    database: Database, follower: Follower
) -> None:
    advice = Advice(database, follower)
    before = await advice.free_drivers(at(0, 4), "main", 9)
    await follower.catch_up()
    after = await advice.free_drivers(at(0, 4), "main", 9)
    last_week = at(0, 4).moved_to(TOMORROW - timedelta(days=7))
    of_last_week = await advice.free_drivers(last_week, "main", 9)
    assert [each.source for each in (before, after, of_last_week)] == [
        "database",
        "memory",
        "database",
    ]
    assert sorted(before.ids) == sorted(after.ids) == sorted(of_last_week.ids) == [1, 2, 3]
    assert await advice.gaps(1, last_week) == [last_week]


async def test_the_search_for_a_fleet_ends_with_the_calendar(
    database: Database, ledger: ExclusionUpsert, follower: Follower
) -> None:
    advice = Advice(database, follower)
    last_day = TimeWindow(LATEST - timedelta(hours=3), LATEST - timedelta(hours=1))
    for driver_id in (1, 2, 3):
        await ledger.book(wants(last_day, driver_id))
    await follower.catch_up()
    assert advice.next_free_of_fleet(last_day, "main") is None
    short = TimeWindow(last_day.start, last_day.start + timedelta(minutes=10))
    assert advice.next_free_of_fleet(short, "main") == short.moved_to(last_day.end)


@pytest.mark.usefixtures("ledger")
async def test_memory_that_is_not_refreshed_is_not_asked(
    fresh_url: str, database: Database
) -> None:
    own = Database(fresh_url, pool_size=1)
    follower = Follower(own, new_index(), fresh_s=0.0)
    await follower.catch_up()
    assert not follower.fresh
    assert (await Advice(database, follower).free_drivers(at(0, 4), "main", 9)).source == "database"
    await own.close()


# A fault of memory stays in memory ---------------------------------------------


async def test_an_index_that_fails_is_loaded_anew(
    fresh_url: str, ledger: ExclusionUpsert, caplog: pytest.LogCaptureFixture
) -> None:
    own = Database(fresh_url, pool_size=1)
    faulty = Faulty(BisectNeighbours, GapIndex)
    booked = [await ledger.book(wants(at(0, 4)))]
    follower = Follower(own, faulty, poll_interval_s=0.01)
    async with follower.running():
        await until(lambda: len(faulty) == 1)
        faulty.fails = True
        booked.append(await ledger.book(wants(at(4, 8))))
        await until(lambda: len(faulty) == 2)
    assert "a fault on purpose" in caplog.text
    faulty.fails = True
    booked.append(await ledger.book(wants(at(8, 9))))
    follower.note(booked[-1])  # which must not fail: the booking is recorded
    assert not follower.fresh
    await follower.catch_up()
    assert {claim.booking_id for claim in faulty} == {each.id for each in booked}
    await own.close()


class Faulty(FleetIndex):
    """An index that can fail once, and then has lost everything."""

    fails = False

    def apply_booking(self, *word: Any) -> None:
        if self.fails:
            self.fails = False
            self.clear()
            raise RuntimeError("a fault on purpose")
        super().apply_booking(*word)


# It costs little --------------------------------------------------------------


async def test_while_nothing_changes_a_poll_is_one_statement(
    fresh_url: str, ledger: ExclusionUpsert
) -> None:
    own = Database(fresh_url, pool_size=1)
    follower = Follower(own, new_index())
    statements: list[str] = []

    def listen(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(own.engine.sync_engine, "before_cursor_execute", listen)
    await follower.catch_up()
    # The server's own housekeeping may commit something now and then.
    with anyio.fail_after(A_LONG_TIME_S):
        while len(statements) != 1:
            statements.clear()
            await follower.catch_up()
    assert "pg_current_snapshot" in statements[0]
    await ledger.book(wants(at(0, 4)))
    statements.clear()
    await follower.catch_up()
    assert len(statements) == 3  # the snapshot, the drivers, the bookings
    await own.close()


FIFTY_CANCELLED = (
    "INSERT INTO bookings (driver_id, rider_id, state, during) SELECT 1, 1, 'cancelled',"
    " tstzrange(now(), now() + '1 hour') FROM generate_series(1, 50)"
)


async def test_every_change_is_read_once_however_long_a_transaction_stays_open(
    fresh_url: str, database: Database, ledger: ExclusionUpsert, execute: Execute
) -> None:
    await execute(
        fresh_url,
        # From a dump of another server: its number is always "higher".
        "INSERT INTO bookings (driver_id, rider_id, state, during, changed_in) VALUES (3, 1,"
        " 'confirmed', tstzrange(now() + '1 hour', now() + '2 hours'), 4000000000000)",
    )
    own = Database(fresh_url, pool_size=1)
    counting = Counting(BisectNeighbours, GapIndex)
    follower = Follower(own, counting)
    await follower.catch_up()
    async with database.engine.connect() as late:
        await late.begin()
        of_late = await ledger.record(late, wants(at(0, 4), driver_id=2))
        for start in range(5):
            await ledger.book(wants(at(start, start + 1)))
            await follower.catch_up()
        await late.commit()
    await follower.catch_up()
    assert of_late.id in counting.words
    assert len(counting.words) == len(set(counting.words)) == 7
    await own.close()


class Counting(FleetIndex):
    """Counts what it is told."""

    def __init__(self, *makers: Any) -> None:
        super().__init__(*makers)
        self.words: list[int] = []

    def apply_booking(self, booking_id: int, *rest: Any) -> None:
        self.words.append(booking_id)
        super().apply_booking(booking_id, *rest)


async def test_what_changed_is_found_by_the_index(
    fresh_url: str, ledger: ExclusionUpsert, execute: Execute
) -> None:
    await execute(
        fresh_url,
        # Many transactions, as the index shall tell a few of them from the rest.
        *[FIFTY_CANCELLED] * 100,
        "ANALYZE bookings",
    )
    own = Database(fresh_url, pool_size=1)
    follower = Follower(own, new_index())
    await follower.catch_up()
    await ledger.book(wants(at(0, 4)))
    plans: list[str] = []

    def explain(
        connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> None:
        if "FROM bookings" in statement and not statement.startswith("EXPLAIN"):
            plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(plan.scalars()))

    event.listen(own.engine.sync_engine, "before_cursor_execute", explain)
    await follower.catch_up()
    assert len(plans) == 1
    assert "bookings_changed_in" in plans[0]
    assert "Seq Scan" not in plans[0]
    await own.close()


# When the database goes away --------------------------------------------------


@asynccontextmanager
async def following(url: str) -> AsyncIterator[tuple[Follower, Database]]:
    own, database = Database(url, pool_size=1, wait_s_max=1.0), Database(url, wait_s_max=1.0)
    follower = Follower(own, new_index(), poll_interval_s=0.02)
    try:
        async with follower.running():
            yield follower, database
    finally:
        await own.close()
        await database.close()


async def test_the_database_goes_away_and_comes_back_with_another_past(
    server_directory: Path,
) -> None:
    with EmbeddedPostgres(server_directory, settings={"fsync": "off"}) as server:
        url = await anyio.to_thread.run_sync(schema.prepare, server.url)
        async with following(url) as (follower, database):
            await add_drivers(database)
            kept = await ledger_of(database).book(wants(at(0, 4)))
            lost = await ledger_of(database).book(wants(at(8, 12)))
            await until(lambda: len(follower.index) == 2)
            await anyio.to_thread.run_sync(server._stop)  # noqa: SLF001  # as if it had crashed
            await until(lambda: not follower.fresh)
            with pytest.raises(Unavailable):
                await Advice(database, follower).free_drivers(at(0, 4), "main", 9)
            await anyio.to_thread.run_sync(server._start)  # noqa: SLF001  # and was healed
            # What a failover has lost leaves no trace behind, and neither does this.
            await database.transact(
                lambda connection: connection.execute(
                    delete(bookings).where(bookings.c.id == lost.id)
                )
            )
            await until(lambda: follower.fresh and len(follower.index) == 1)
    assert [claim.booking_id for claim in follower.index] == [kept.id]
