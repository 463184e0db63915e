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
import time
from collections import Counter
from contextlib import aclosing
from errno import ENOSPC
from itertools import count
from math import factorial
from pathlib import Path
from random import Random
from typing import Any, override

import asyncpg
import msgspec
import pytest
from click import BadParameter
from click.testing import CliRunner
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from api.cli import prove
from api.cli import taxi as taxi_command
from booking.bookings import Booking, BookingRequest
from booking.errors import BookingConflict, Contended, InvalidInput
from booking.ledgers import Claim
from booking.postgres.database import Isolation, dsn, parse_url
from booking.postgres.embedded import EmbeddedPostgres
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import drivers, riders
from booking.postgres.writes import write_booking
from booking.prevention.check_then_insert import CheckThenInsert
from booking.prevention.row_lock import RowLock
from booking.strategies import Act, strategies
from loadtest import figures
from loadtest.proof import exhaustion, tables
from loadtest.proof.exhaustion import Cell, Played, Proof, Subject
from loadtest.proof.footprints import Catalogue, Footprint, independent
from loadtest.proof.scenarios import OF_TWO, Scenario, Sign
from loadtest.proof.search import Search, Step, Taken, orders
from loadtest.proof.steps import NotAllowed, stage
from tests.commands import TAXI, run
from tests.world import NewDatabase

RECORDED = figures.ROOT / figures.RESULTS / "proof.json"
RECIPES = [each.name for each in strategies(Act.PREVENTION)]


def scenario(name: str) -> Scenario:
    return next(each for each in OF_TWO if each.name == name)


TRAPS = [scenario("books_that_overlap"), scenario("moves_into_one_window")]


def recorded() -> Proof:
    return tables.read(msgspec.json.decode(RECORDED.read_bytes()))


# --- The recipes. ------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_shows_in_every_order_what_is_recorded_of_it(
    name: str, new_database: NewDatabase
) -> None:
    (subject,) = exhaustion.recipes([name])
    url = new_database(name)
    cells = asyncio.run(exhaustion.prove(url, subject, [subject.isolation]))
    if subject.isolation != "REPEATABLE READ":
        # There, locks come too late. `taxi prove` runs all there is at every level.
        cells += asyncio.run(exhaustion.prove(url, subject, ["REPEATABLE READ"], scenarios=TRAPS))
    assert tables.differences(recorded(), cells) == []
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
    assert tables.differences(recorded(), cells) == []
    bad, good = (
        next(cell for cell in cells if cell.recipe == name and cell.own)
        for name in ("check_then_insert", "row_lock")
    )
    for cell, signs in ((bad, {}), (good, {"double booking": 1})):
        first, *rest = cell.outcomes
        other = msgspec.structs.replace(
            cell, outcomes=[msgspec.structs.replace(first, signs=signs), *rest]
        )
        assert len(tables.differences(recorded(), [other])) == 1


def test_every_recipe_is_recorded_at_every_level_as_what_it_claims_to_be() -> None:
    # If not: taxi prove --json docs/results/proof.json, and taxi figures.
    assert tables.unrecorded(recorded(), exhaustion.recipes()) == []


def test_what_is_missing_in_a_proof_is_noticed() -> None:
    whole, subjects = recorded(), exhaustion.recipes()
    (own,) = (cell for cell in whole.cells if cell.recipe == "row_lock" and cell.own)
    others = [cell for cell in whole.cells if cell is not own]
    short = msgspec.structs.replace(own, outcomes=own.outcomes[1:])

    def with_instead(*cells: Cell) -> Proof:
        return msgspec.structs.replace(whole, cells=[*others, *cells])

    for cells in ([], [short], [msgspec.structs.replace(own, claim=Claim.NOTHING)]):
        missing = tables.unrecorded(with_instead(*cells), subjects)
        assert missing == ["row_lock, read committed, 2 ledgers"]
    (difference,) = tables.differences(with_instead(short), [own])
    assert "books_that_overlap: recorded no such scenario, found nothing" in difference


def test_what_a_chapter_shows_names_every_recipe_and_marks_what_must_not_be() -> None:
    text = tables.render_proof(msgspec.json.decode(RECORDED.read_bytes()))
    for cell in recorded().cells:
        assert f"\n| {cell.recipe}" in text
    (bug,) = (each for each in recorded().cells if each.recipe == "check_then_insert" and each.own)
    double = sum(each.signs.get("double booking", 0) for each in bug.outcomes)
    of = sum(each.interleavings for each in bug.outcomes)
    assert f"| ▸ **{double:,} double-booked** (of {of:,}) |" in text


# --- The orders that are not run. --------------------------------------------------------


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("kind", [CheckThenInsert, RowLock])
def test_orders_that_are_only_counted_show_the_same_when_they_are_run(
    kind: type[PostgresLedger], level: Isolation, new_database: NewDatabase
) -> None:
    scenarios = [scenario("books_that_overlap"), scenario("book_and_move_away")]

    def shown(*, reduce: bool) -> list[tuple[int, int, dict[str, int]]]:
        url = new_database("row_lock")
        cells = exhaustion.prove(url, of(kind), [level], scenarios=scenarios, reduce=reduce)
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
    assert (write.writes, write.shares) == (
        {"bookings"},
        {"drivers", "riders", "booking_series"},
    )
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


class WaitsForNobody(RowLock):
    """Too busy, as soon as somebody else has the driver; and says nothing of it."""

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        mine = select(drivers.c.id).where(drivers.c.id == request.driver_id)
        await connection.execute(mine.with_for_update(key_share=True, nowait=True))
        return await super().record(connection, request, moving)


class SaysThatItGivesUp(WaitsForNobody):
    """The same, and says so."""

    may_give_up = True


class SaysThatItDeadlocks(LocksCrosswise):
    """Locks crosswise, and says so."""

    may_deadlock = True


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
    return Subject.of(kind.__name__, kind)


@pytest.mark.parametrize(
    ("kind", "signs", "excused"),
    [
        (CheckThenInsert, {Sign.DOUBLE_BOOKING}, set()),
        (RefusesAll, {Sign.WRONG_REFUSAL}, set()),
        (Forgets, {Sign.LOST}, set()),
        (WritesAndRefuses, {Sign.DOUBLE_BOOKING, Sign.GHOST, Sign.WRONG_REFUSAL}, set()),
        (LocksCrosswise, {Sign.DEADLOCK, Sign.RETRY}, {Sign.RETRY}),
        (SaysThatItDeadlocks, {Sign.DEADLOCK, Sign.RETRY}, {Sign.DEADLOCK, Sign.RETRY}),
        (Breaks, {Sign.FAILED}, set()),
        (GivesUp, {Sign.GAVE_UP, Sign.FAILED}, set()),
        (WaitsForNobody, {Sign.GAVE_UP}, set()),
        (SaysThatItGivesUp, {Sign.GAVE_UP}, {Sign.GAVE_UP}),
        (NeverLetsGo, {Sign.FAILED}, set()),
        (RowLock, set(), set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_ledger_shows_what_is_broken(
    kind: type[PostgresLedger], signs: set[Sign], excused: set[Sign], new_database: NewDatabase
) -> None:
    cell = first_cell(kind, new_database("row_lock"))
    assert {*cell.signs} == {str(sign) for sign in signs}
    assert {*cell.anomalies} == {str(sign) for sign in signs - excused}
    assert cell.interleavings == sum(each.interleavings for each in cell.outcomes) > 0
    assert any(each.failing for each in cell.outcomes) is bool(signs - excused)
    assert (tables.lines(cell)[0] == ("safe", False)) is not bool(signs - excused)


def test_a_recipe_that_always_gives_up_is_not_safe_though_it_says_so(
    new_database: NewDatabase,
) -> None:
    class Says(GivesUp):
        claim = Claim.ACROSS_PROCESSES
        may_give_up = True

    cell = first_cell(Says, new_database("row_lock"))
    # Where the two met, it may give up; but who was alone is owed an answer.
    assert 0 < cell.anomalies["failed"] < cell.signs["gave up"]
    assert not cell.keeps_its_claim


def test_what_a_recipe_says_nothing_of_it_must_not_do_at_its_own_level_alone(
    new_database: NewDatabase,
) -> None:
    cell = first_cell(WaitsForNobody, new_database("row_lock"))
    assert not cell.keeps_its_claim
    assert msgspec.structs.replace(cell, own=False).anomalies == Counter()


def first_cell(kind: type[PostgresLedger], url: str) -> Cell:
    level: Isolation = "READ COMMITTED"
    return asyncio.run(
        exhaustion.prove(url, of(kind), [level], scenarios=[scenario("books_that_overlap")])
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
    cells = exhaustion.prove(
        url, of(RemembersTheCancelled), [level], scenarios=[scenario("book_and_cancel")]
    )
    (outcome,) = asyncio.run(cells)[0].outcomes
    # Wrong is only who asks when the cancelling has been acknowledged: of all orders, one.
    assert outcome.signs == {"wrong refusal": 1}
    assert outcome.interleavings > 1


def test_to_cancel_meets_no_conflict(new_database: NewDatabase) -> None:
    class CannotCancel(RowLock):
        @override
        async def change_state_in(self, connection: AsyncConnection, *step: Any) -> Booking:
            await super().change_state_in(connection, *step)
            raise BookingConflict

    cells = exhaustion.prove(
        new_database("row_lock"),
        of(CannotCancel),
        ["READ COMMITTED"],
        scenarios=[scenario("move_and_cancel")],
    )
    (outcome,) = asyncio.run(cells)[0].outcomes
    assert outcome.signs == {"failed": outcome.interleavings}


# --- A schedule again. -------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_schedule_can_be_run_again_by_its_number_and_by_its_steps(
    new_database: NewDatabase,
) -> None:
    async def all_of(bench: exhaustion.Bench) -> list[Played]:
        async with aclosing(bench.schedules([scenario("books_that_overlap")])) as schedules:
            return [played async for played in schedules]

    level: Isolation = "READ COMMITTED"
    async with exhaustion.bench(
        new_database("row_lock"), of(LocksCrosswise), level, sessions=2, ledgers=2
    ) as bench:
        once, again = await all_of(bench), await all_of(bench)
        assert [each.run.choices for each in once] == [each.run.choices for each in again]
        assert [each.signs for each in once] == [each.signs for each in again]
        assert [each.number for each in once] == [*range(1, len(once) + 1)]
        ring = next(each for each in once if Sign.DEADLOCK in each.signs)
        followed = await bench.follow(ring.scenario, ring.run.choices)
    assert (followed.run.choices, followed.signs) == (ring.run.choices, ring.signs)
    text = "\n".join(tables.told(followed))
    assert "waits; after step" in text
    assert "ERROR 40P01 deadlock detected" in text


# --- The command. ------------------------------------------------------------------------


def taxi(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return run("prove", *options, DATABASE_URL=url, COLUMNS="100")


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
    by_steps = taxi(server.url, *only, "--schedule", "books_that_overlap:ABAB")
    by_number = taxi(server.url, *only, "--schedule", "3")
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
        server.url, "--recipes", "row_lock", "--isolation", "Read Committed", "--json", f"{file}"
    )
    assert said.returncode == 0, said.stderr
    assert "▸ safe" in said.stdout
    (cell,) = tables.read(json.loads(file.read_text())).cells
    assert (cell.recipe, cell.own, cell.anomalies) == ("row_lock", True, Counter())
    assert databases(server) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--recipes magic", "--recipes"),
        ("--recipes ,", "--recipes"),
        ("--isolation ,", "--isolation"),
        ("--isolation dirty", "--isolation"),
        ("--sessions 4", "sessions"),
        ("--schedule 3", "--schedule"),
        ("--one-process", "--one-process"),
        ("--json /nowhere/x.json", "--json"),
        ("--json /proc/x.json", "--json"),
        ("--json /dev/null", "--json"),
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


ONE = ("--recipe", "row_lock", "--isolation", "read committed", "--schedule", "3")


def test_the_server_may_be_named_in_every_way_that_the_service_takes(
    server: EmbeddedPostgres,
) -> None:
    for url in (
        server.url.replace("postgresql://", "postgresql+asyncpg://"),
        f"{server.url}?sslmode=disable",
    ):
        said = taxi(url, *ONE)
        assert (said.returncode, said.stderr) == (0, "")
        assert databases(server) == []


def test_a_word_about_tls_is_heeded(server: EmbeddedPostgres) -> None:
    # The embedded server offers none. "Prefer", which is what asyncpg does unless told, would do.
    with pytest.raises(ConnectionError, match="SSL"):
        asyncio.run(asyncpg.connect(dsn(f"{server.url}?sslmode=require")))
    named = dsn("postgres://me@host/taxi?sslmode=require", "other")
    assert named == "postgresql://me@host/other?sslmode=require"
    assert parse_url(named).query == {"ssl": "require"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"password": "secret"}, "password authentication failed"),
        ({"database": "nowhere"}, "The database nowhere is not set up"),
        ({"port": 1}, "does not answer"),
    ],
)
def test_a_server_that_does_not_let_us_in_is_told_plainly(
    wrong: dict[str, Any], told: str, server: EmbeddedPostgres
) -> None:
    url = parse_url(server.url).set(**wrong).render_as_string(hide_password=False)
    said = taxi(url, "--recipe", "row_lock")
    assert (said.returncode, said.stdout) == (3, "")
    assert told in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert "secret" not in said.stderr


def test_a_broken_claim_is_named_with_what_breaks_it(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own,) = (each for each in recorded().cells if each.recipe == "row_lock" and each.own)
    tired = msgspec.structs.replace(own.outcomes[0], signs={"gave up": 3})
    broken = msgspec.structs.replace(own, outcomes=[tired, *own.outcomes[1:]])
    monkeypatch.setenv("DATABASE_URL", server.url)
    for cell, status in ((own, 0), (broken, 1)):
        monkeypatch.setattr(prove, "_cells", lambda *_, cell=cell: [cell])
        said = CliRunner().invoke(taxi_command, ["prove"], standalone_mode=False)
        assert said.return_value == status
        told = "row_lock breaks its claim, safe across processes: 3 gave up."
        assert (told in said.stdout) is (status == 1)


def test_a_matrix_that_cannot_be_written_is_printed_all_the_same(
    server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path) -> None:
        raise OSError(ENOSPC, "No space left on device")

    cells = [each for each in recorded().cells if each.recipe == "row_lock"]
    monkeypatch.setattr(prove, "_cells", lambda *_: cells)
    monkeypatch.setattr(figures, "replacing", full)
    monkeypatch.setenv("DATABASE_URL", server.url)
    file = tmp_path / "proof.json"
    said = CliRunner().invoke(taxi_command, ["prove", "--json", f"{file}"])
    assert "row_lock" in said.stdout
    assert isinstance(said.exception, InvalidInput)
    assert said.exception.message == f"{file} cannot be written: No space left on device."
    assert not list(tmp_path.iterdir())


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
