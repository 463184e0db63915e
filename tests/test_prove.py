"""The proof by exhaustion: every recipe is as safe as it was recorded, and as unsafe.

And the proof itself is put to the test: ledgers broken on purpose are caught, each by
the sign that is about what it does; and the orders that are not run, as they differ
from others only by swaps that nobody notices, are run once to see that nobody does.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import aclosing
from itertools import count
from math import factorial
from pathlib import Path
from random import Random
from typing import override

import asyncpg
import msgspec
import pytest
from click import BadParameter
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from api.cli import taxi as taxi_command
from booking.bookings import Booking, BookingRequest
from booking.errors import BookingConflict, Contended, InvalidInput
from booking.ledgers import Claim
from booking.postgres.database import Isolation, parse_url
from booking.postgres.embedded import EmbeddedPostgres
from booking.postgres.ledger import PostgresLedger, write_booking
from booking.postgres.tables import drivers, riders
from booking.prevention.check_then_insert import CheckThenInsert
from booking.prevention.row_lock import RowLock
from booking.strategies import Act, strategies
from loadtest import prove, prove_docs
from loadtest.prove import Cell, Played, Proof, Subject
from loadtest.prove_footprints import Catalogue, Footprint, independent
from loadtest.prove_scenarios import OF_TWO, Scenario, Sign
from loadtest.prove_search import Search, Step, Taken, orders
from loadtest.prove_steps import NotAllowed, stage
from tests.world import NewDatabase

RECORDED = Path(prove.__file__).parent.parent / "docs" / "results" / "proof.json"
RECIPES = [each.name for each in strategies(Act.PREVENTION)]
TAXI = str(Path(sys.executable).parent / "taxi")


def scenario(name: str) -> Scenario:
    return next(each for each in OF_TWO if each.name == name)


TRAPS = [scenario("books_that_overlap"), scenario("moves_into_one_window")]


def recorded() -> Proof:
    return prove_docs.read(msgspec.json.decode(RECORDED.read_bytes()))


# --- The recipes. ------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_shows_in_every_order_what_is_recorded_of_it(
    name: str, new_database: NewDatabase
) -> None:
    (subject,) = prove.recipes([name])
    url = new_database(name)
    cells = asyncio.run(prove.prove(url, subject, [subject.isolation]))
    if subject.isolation != "REPEATABLE READ":
        # There, locks come too late. `taxi prove` runs all there is at every level.
        cells += asyncio.run(prove.prove(url, subject, ["REPEATABLE READ"], scenarios=TRAPS))
    assert prove_docs.differences(recorded(), cells) == []
    assert [cell for cell in cells if not cell.keeps_its_claim] == []
    for cell in cells:
        if cell.ledgers == 1:  # what happens in memory is in no footprint: each order is run
            assert all(each.schedules == each.interleavings for each in cell.outcomes)
        unsafe = subject.claim == Claim.NOTHING
        unsafe |= subject.claim == Claim.ONE_PROCESS and cell.ledgers > 1
        if cell.own and unsafe:
            assert cell.anomalies["double booking"], "it claims nothing, and was not caught"


def test_a_bad_cell_that_turned_good_is_noticed_and_the_other_way_round() -> None:
    cells = recorded().cells
    assert prove_docs.differences(recorded(), cells) == []
    bad, good = (
        next(cell for cell in cells if cell.recipe == name and cell.own)
        for name in ("check_then_insert", "row_lock")
    )
    for cell, signs in ((bad, {}), (good, {"double booking": 1})):
        first, *rest = cell.outcomes
        other = msgspec.structs.replace(
            cell, outcomes=[msgspec.structs.replace(first, signs=signs), *rest]
        )
        assert len(prove_docs.differences(recorded(), [other])) == 1


def test_what_a_chapter_shows_names_every_recipe_and_marks_what_must_not_be() -> None:
    text = prove_docs.render_proof(msgspec.json.decode(RECORDED.read_bytes()))
    for cell in recorded().cells:
        assert f"\n| {cell.recipe}" in text
    assert "| ▸ **375 double-booked** (of 682) |" in text


# --- The orders that are not run. --------------------------------------------------------


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("kind", [CheckThenInsert, RowLock])
def test_orders_that_are_only_counted_show_the_same_when_they_are_run(
    kind: type[PostgresLedger], level: Isolation, new_database: NewDatabase
) -> None:
    scenarios = [scenario("books_that_overlap"), scenario("book_and_move_away")]

    def shown(*, reduce: bool) -> list[tuple[int, int, dict[str, int]]]:
        url = new_database("row_lock")
        cells = prove.prove(url, of(kind), [level], scenarios=scenarios, reduce=reduce)
        return [
            (each.schedules, each.interleavings, each.signs)
            for each in asyncio.run(cells)[0].outcomes
        ]

    few, all_ = shown(reduce=True), shown(reduce=False)
    assert [each[1:] for each in few] == [each[1:] for each in all_]
    assert [each[0] for each in all_] == [each[1] for each in all_]  # none was left out
    assert sum(each[0] for each in few) < sum(each[0] for each in all_)


def test_each_order_of_steps_is_run_or_counted_once() -> None:
    for seed in range(50):
        lanes = some_lanes(Random(seed))
        whole = factorial(sum(map(len, lanes)))
        for lane in lanes:
            whole //= factorial(len(lane))
        naive = list(all_orders(lanes, Search()))
        assert len(naive) == len({str(each) for each in naive}) == whole

        def swaps(one: Footprint, other: Footprint) -> bool:
            return independent(one, other, "READ COMMITTED")

        few = list(all_orders(lanes, Search(swaps)))
        assert sum(orders(each, swaps) for each in few) == whole


def some_lanes(dice: Random) -> list[list[Step]]:
    names = count()

    def some() -> frozenset[str]:
        return frozenset(table for table in ("x", "y") if dice.random() < 0.4)

    return [
        [
            Step(f"{next(names)}", Footprint(some(), some(), some(), ends=dice.random() < 0.3))
            for _ in range(dice.randint(1, 3))
        ]
        for _ in range(3)
    ]


def all_orders(lanes: list[list[Step]], search: Search) -> list[list[Taken]]:
    found = []
    while True:
        taken: list[Taken] = []
        done = [0] * len(lanes)
        while True:
            options = {n: lane[done[n]] for n, lane in enumerate(lanes) if done[n] < len(lane)}
            chosen = search.choose(options) if options else None
            if chosen is None:
                break
            taken.append(Taken(chosen, options[chosen]))
            done[chosen] += 1
        if not search.pruned:
            found.append(taken)
        if not search.advance():
            return found


@pytest.mark.anyio
async def test_what_cannot_be_read_touches_everything(fresh_url: str) -> None:
    connection = await asyncpg.connect(fresh_url)
    try:
        await connection.execute("CREATE VIEW busy AS SELECT * FROM bookings")
        catalogue = await Catalogue.read(connection)
    finally:
        await connection.close()
    everything = Footprint(catalogue.tables, catalogue.tables, catalogue.tables)
    for statement in ("SELECT pg_advisory_xact_lock(1)", "SELECT id FROM busy", "LOCK drivers"):
        assert catalogue.footprint(statement) == everything
    look = catalogue.footprint("SELECT lower(during) FROM bookings WHERE state IN ('x')")
    assert look == Footprint(frozenset({"bookings"}))
    lock = catalogue.footprint("SELECT id FROM drivers WHERE id = $1 FOR NO KEY UPDATE")
    assert lock == Footprint(frozenset({"drivers"}), writes=frozenset({"drivers"}))
    write = catalogue.footprint("INSERT INTO bookings (id) VALUES ($1)")
    assert (write.writes, write.shares) == ({"bookings"}, {"drivers", "riders"})
    rows = [catalogue.footprint(BY_ID, [each], [7, 8]).writes for each in (7, 8, 9)]
    assert rows[:2] == [{"bookings#0"}, {"bookings#1"}]
    assert rows[2] == {"bookings", "bookings#0", "bookings#1"}


BY_ID = "SELECT bookings.id FROM bookings WHERE bookings.id = $1 FOR NO KEY UPDATE"


# --- Ledgers broken on purpose. ----------------------------------------------------------


class RefusesAll(CheckThenInsert):
    """Says no, whatever is asked."""

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        await connection.execute(select(drivers.c.id).where(drivers.c.id == request.driver_id))
        raise BookingConflict


class Forgets(CheckThenInsert):
    """Acknowledges what it does not write."""

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        async with connection.begin_nested() as savepoint:
            booked = await write_booking(connection, request, moving)
            await savepoint.rollback()
        return booked


class WritesAndRefuses(CheckThenInsert):
    """Says no, when it is done."""

    @override
    async def book(self, request: BookingRequest) -> Booking:
        await super().book(request)
        raise BookingConflict


class LocksCrosswise(RowLock):
    """Two locks, and who books late takes them the other way round."""

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        locks = [
            select(table.c.id).where(table.c.id == wanted).with_for_update(key_share=True)
            for table, wanted in ((drivers, request.driver_id), (riders, request.rider_id))
        ]
        late = request.window.start.minute > 0
        for lock in reversed(locks) if late else locks:
            await connection.execute(lock)
        return await super().record(connection, request, moving)


class Breaks(CheckThenInsert):
    """Answers what nobody can make anything of."""

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        await super().record(connection, request, moving)
        raise ZeroDivisionError


class GivesUp(CheckThenInsert):
    """Always too busy."""

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        await super().record(connection, request, moving)
        raise Contended


class NeverLetsGo(CheckThenInsert):
    """A lock in the process that the first one keeps."""

    claim = Claim.ONE_PROCESS
    lock = None

    @override
    async def book(self, request: BookingRequest) -> Booking:
        self.lock = self.lock or asyncio.Lock()
        await self.lock.acquire()
        return await super().book(request)


def of(kind: type[PostgresLedger]) -> Subject:
    return Subject(kind.__name__, kind, kind.claim, kind.isolation)


@pytest.mark.parametrize(
    ("kind", "signs"),
    [
        (CheckThenInsert, {Sign.DOUBLE_BOOKING}),
        (RefusesAll, {Sign.WRONG_REFUSAL}),
        (Forgets, {Sign.LOST}),
        (WritesAndRefuses, {Sign.DOUBLE_BOOKING, Sign.GHOST, Sign.WRONG_REFUSAL}),
        (LocksCrosswise, {Sign.DEADLOCK, Sign.RETRY}),
        (Breaks, {Sign.FAILED}),
        (GivesUp, {Sign.GAVE_UP}),
        (NeverLetsGo, {Sign.FAILED}),
        (RowLock, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_ledger_shows_what_is_broken(
    kind: type[PostgresLedger], signs: set[Sign], new_database: NewDatabase
) -> None:
    cell = first_cell(kind, new_database("row_lock"))
    assert {*cell.signs} == {str(sign) for sign in signs}
    assert cell.interleavings == sum(each.interleavings for each in cell.outcomes) > 0


def first_cell(kind: type[PostgresLedger], url: str) -> Cell:
    level: Isolation = "READ COMMITTED"
    return asyncio.run(
        prove.prove(url, of(kind), [level], scenarios=[scenario("books_that_overlap")])
    )[0]


def test_a_cancel_that_gives_nothing_back_is_a_wrong_refusal(new_database: NewDatabase) -> None:
    class RemembersTheCancelled(CheckThenInsert):
        @override
        async def record(
            self,
            connection: AsyncConnection,
            request: BookingRequest,
            moving: Booking | None = None,
        ) -> Booking:
            found = await connection.exec_driver_sql(
                f"SELECT id FROM bookings WHERE driver_id = {request.driver_id}"
            )
            if found.all():
                raise BookingConflict
            return await super().record(connection, request, moving)

    url = new_database("row_lock")
    level: Isolation = "READ COMMITTED"
    cells = prove.prove(
        url, of(RemembersTheCancelled), [level], scenarios=[scenario("book_and_cancel")]
    )
    (outcome,) = asyncio.run(cells)[0].outcomes
    # Wrong is only who asks when the cancelling has been acknowledged: of all orders, one.
    assert outcome.signs == {"wrong refusal": 1}
    assert outcome.interleavings > 1


# --- A schedule again. -------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_schedule_can_be_run_again_by_its_number_and_by_its_steps(
    new_database: NewDatabase,
) -> None:
    async def all_of(bench: prove.Bench) -> list[Played]:
        async with aclosing(bench.schedules([scenario("books_that_overlap")])) as schedules:
            return [played async for played in schedules]

    level: Isolation = "READ COMMITTED"
    async with prove.bench(
        new_database("row_lock"), of(LocksCrosswise), level, sessions=2, ledgers=2
    ) as bench:
        once, again = await all_of(bench), await all_of(bench)
        assert [each.run.choices for each in once] == [each.run.choices for each in again]
        assert [each.signs for each in once] == [each.signs for each in again]
        assert [each.number for each in once] == [*range(1, len(once) + 1)]
        ring = next(each for each in once if Sign.DEADLOCK in each.signs)
        followed = await bench.follow(ring.scenario, ring.run.choices)
    assert (followed.run.choices, followed.signs) == (ring.run.choices, ring.signs)
    text = "\n".join(prove_docs.told(followed))
    assert "waits; after step" in text
    assert "ERROR 40P01 deadlock detected" in text


# --- The command. ------------------------------------------------------------------------


def taxi(server: EmbeddedPostgres, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TAXI, "prove", *options],
        env=os.environ | {"DATABASE_URL": server.url, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


def databases(server: EmbeddedPostgres) -> list[str]:
    async def ask() -> list[str]:
        connection = await asyncpg.connect(server.url)
        try:
            rows = await connection.fetch(
                "SELECT datname FROM pg_database WHERE datname LIKE '%\\_prove\\_%'"
            )
            return [row[0] for row in rows]
        finally:
            await connection.close()

    return asyncio.run(ask())


def test_the_command_prints_a_schedule_line_by_line(server: EmbeddedPostgres) -> None:
    only = ["--recipe", "check_then_insert", "--isolation", "read committed"]
    by_steps = taxi(server, *only, "--schedule", "books_that_overlap:ABAB")
    by_number = taxi(server, *only, "--schedule", "3")
    for said in (by_steps, by_number):
        assert (said.returncode, said.stderr) == (0, "")
        assert "nothing is booked; A: book [09:00, 10:00); B: book [09:30, 10:30)" in said.stdout
        assert "      B: COMMIT" in said.stdout
        assert said.stdout.endswith("this shows: double booking\n")
    assert "schedule 3: books_that_overlap:" in by_number.stdout
    assert databases(server) == []


def test_the_command_writes_the_matrix(server: EmbeddedPostgres, tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    said = taxi(
        server, "--recipes", "row_lock", "--isolation", "Read Committed", "--json", f"{file}"
    )
    assert said.returncode == 0, said.stderr
    assert "▸ safe" in said.stdout
    (cell,) = prove_docs.read(json.loads(file.read_text())).cells
    assert (cell.recipe, cell.own, cell.anomalies) == ("row_lock", True, Counter())
    assert databases(server) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--recipes magic", "--recipes"),
        ("--isolation dirty", "--isolation"),
        ("--sessions 4", "sessions"),
        ("--schedule 3", "--schedule"),
        ("--one-process", "--one-process"),
        ("--json /nowhere/x.json", "--json"),
        ("--recipe row_lock --isolation serializable --schedule 0", "--schedule"),
        ("--recipe row_lock --isolation serializable --schedule moves_that_swap:AX", "--schedule"),
        ("--recipe row_lock --isolation serializable --schedule 1 --one-process", "--one-process"),
    ],
)
def test_the_command_names_the_option_that_is_wrong(options: str, named: str) -> None:
    # What becomes of these errors, and the 2 that the command exits with, is shown elsewhere.
    with pytest.raises((InvalidInput, BadParameter)) as wrong:
        taxi_command(["prove", *options.split()], standalone_mode=False)
    error = wrong.value
    field = error.field if isinstance(error, InvalidInput) else error.param.name
    assert field == named


def test_ctrl_c_leaves_nothing_behind(server: EmbeddedPostgres) -> None:
    running = subprocess.Popen(
        [TAXI, "prove", "--recipes", "check_then_insert", "--sessions", "3"],
        env=os.environ | {"DATABASE_URL": server.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not databases(server):
            assert running.poll() is None
            assert time.monotonic() < deadline
        time.sleep(1)  # wherever it is by now
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "Traceback" not in said
    assert databases(server) == []


def test_without_the_rights_it_takes_the_proof_says_so(new_database: NewDatabase) -> None:
    url = new_database("row_lock")
    make = "CREATE ROLE guest LOGIN PASSWORD 'guest'; GRANT ALL ON SCHEMA public TO guest;"

    async def as_guest() -> None:
        owner = await asyncpg.connect(url)
        try:
            await owner.execute(make)
            guest = parse_url(url).set(drivername="postgresql", username="guest")
            guest = guest.set(password="guest")  # noqa: S106  # of a role that lives for a test
            other = guest.render_as_string(hide_password=False)
            with pytest.raises(NotAllowed):
                async with stage(
                    other, "READ COMMITTED", of(RowLock).ledger, sessions=2, ledgers=2
                ):
                    pass
        finally:
            await owner.execute("DROP OWNED BY guest; DROP ROLE guest")
            await owner.close()

    asyncio.run(as_guest())
