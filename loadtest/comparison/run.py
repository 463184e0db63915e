"""Runs a comparison: each contender under each scenario, on a fresh database, and audits it.

For each cell: a new database, fitted to the contender; a new server process on
it; Locust in processes of its own, with a warm-up; then the server is stopped,
the ledger swept and the history judged (`loadtest.comparison.audit`), and the database
dropped. All cells share one PostgreSQL server, which writes a checkpoint before
each, so that nobody pays for what the one before left unwritten.

Three contenders are there to be compared with. `no_op` is the same service with
a booking that does nothing; `bare_insert` is `pgbench`, inserting the same rows
into a table without the constraint; `orm_session` is the same endpoint as most
of the world writes it.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import BookingState
from booking.calendars import Held
from booking.errors import InvalidInput, TaxiError
from booking.ledgers import Claim
from booking.postgres import audit as sweep
from booking.postgres.database import Database, dsn
from booking.postgres.schema import SHIPPED, SHIPPED_ALLOCATOR, plainly_told, url_for
from booking.postgres.tables import begins, bookings, predicted_ends
from booking.strategies import Act, find, strategies
from loadtest.bench import databases
from loadtest.comparison import cpu
from loadtest.comparison.audit import (
    Row,
    lost_bookings,
    passing_double_bookings,
    unexpected_answers,
    unjustified_refusals,
)
from loadtest.comparison.processes import CONSTRAINED, SCENARIOS, bare_insert, load, serving
from loadtest.comparison.results import (
    ANY,
    BARE_INSERT,
    CALM,
    EXAMPLES_MAX,
    HOT,
    MIXED,
    NO_OP,
    ORM_RIVAL,
    OVERLOAD,
    RACE,
    Audited,
    Cell,
    CellFailed,
    Contender,
    Example,
    Key,
    Kind,
    Plan,
    measure,
    outcome,
)
from loadtest.history import Request, Setup, read_history, read_setup
from loadtest.machine import describe

_PACKAGES = ("asyncpg", "litestar", "locust", "sqlalchemy", "uvicorn", "uvloop")
_SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "max_connections",
    "deadlock_timeout",
)
_UNCONSTRAINED = "check_then_insert"
"""Whose database the rival gets: without the constraint, and with an index to look by."""

_SWEEP_S_MAX = 600.0
_BESIDES_S = 6.0
"""About how long a cell takes besides its load, for a bar that says how long is left."""


def scenario_names() -> list[str]:
    """The scenarios there are: the files of `loadtest/scenarios`, none of which is imported."""
    return sorted(path.stem for path in SCENARIOS.glob("[!_]*.py"))


def recipe_names() -> list[str]:
    """The prevention recipes."""
    return [each.name for each in strategies(Act.PREVENTION)]


def allocator_names() -> list[str]:
    """The allocators in SQL, but for the shipped one, which the recipes run with anyway."""
    return [
        each.name
        for each in strategies(Act.ALLOCATION)
        if hasattr(each.load(), "allocate") and each.name != SHIPPED_ALLOCATOR
    ]


def contenders_of(names: Sequence[str]) -> list[Contender]:
    """The ceilings and the rival, then what is named, each with what it claims."""
    recipes = recipe_names()
    those = [_recipe(name) if name in recipes else _allocator(name) for name in names]
    return [
        _fixed(NO_OP, Kind.CEILING, "The same service, with a booking that does nothing"),
        _fixed(BARE_INSERT, Kind.CEILING, "pgbench inserts the same rows, with no constraint"),
        _fixed(ORM_RIVAL, Kind.RIVAL, "The same endpoint as usually written: an ORM session each"),
        *those,
    ]


def _fixed(name: str, kind: Kind, idea: str) -> Contender:
    prevention = _UNCONSTRAINED if kind is Kind.RIVAL else SHIPPED
    return Contender(
        name, kind, prevention, SHIPPED_ALLOCATOR, Claim.NOTHING, "READ COMMITTED", idea
    )


def _recipe(name: str) -> Contender:
    strategy = find(Act.PREVENTION, name)
    recipe = strategy.load()
    return Contender(
        name,
        Kind.RECIPE,
        name,
        SHIPPED_ALLOCATOR,
        recipe.claim,
        recipe.isolation,
        strategy.idea,
    )


def _allocator(name: str) -> Contender:
    """It runs on the shipped recipe, whose claim stands whatever an allocator is worth alone."""
    shipped = find(Act.PREVENTION, SHIPPED).load()
    idea = find(Act.ALLOCATION, name).idea
    return Contender(name, Kind.ALLOCATOR, SHIPPED, name, shipped.claim, shipped.isolation, idea)


def plan_of(
    *,
    full: bool = False,
    quick: bool = False,
    names: Sequence[str] | None = None,
    scenarios: Sequence[str] | None = None,
) -> Plan:
    """One of the three plans, for what is named or else for everything.

    The quick one sees every strategy once, in the race of `hot_window`, where
    what is unsafe is caught in seconds; its figures are not to quote. The full
    one takes every scenario three times, and puts every recipe on the ramp.
    Raises `InvalidInput` for an allocator where nobody asks for any driver.
    """
    usual = (RACE, OVERLOAD) if quick else (CALM, HOT, RACE, MIXED, ANY, OVERLOAD)
    scenarios = scenarios or (scenario_names() if full else usual)
    names = names or [*recipe_names(), *(allocator_names() if ANY in scenarios else ())]
    known = recipe_names()
    idle = [name for name in names if name not in known and ANY not in scenarios]
    if idle:
        raise InvalidInput(
            f"{idle[0]} is an allocator, at work in {ANY} alone: add that to --scenarios.",
            field="--strategies",
        )
    # The shipped one first, if it is among them: what the first answers sets the rates of the ramp.
    recipes = sorted((name for name in names if name in known), key=lambda name: name != SHIPPED)
    return Plan(
        strategies=tuple(names),
        scenarios=tuple(scenarios),
        repeats=1 if quick else 3 if full else 2,
        duration_s=2 if quick else 5,
        warmup_s=1 if quick else 2,
        clients=32,
        ramped=tuple(recipes if full else recipes[:1]),
        shares=(0.5, 1.0, 1.5, 2.0) if quick else (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
        load_processes=1 if quick else 2,
    )


def seconds_of(plan: Plan, key: Key) -> float:
    """About how long a cell takes."""
    warmup_s = 0 if key.contender == BARE_INSERT else plan.warmup_s
    return warmup_s + plan.duration_s + _BESIDES_S


_NOT_RECORDED = {"TAXI_HOME", "TAXI_TOKEN_SECRET", "TAXI_TOKEN", "TAXI_PASSWORD"}
"""Of our environment: a place, and what is secret."""


def about(url: str) -> dict[str, Any]:
    """What the comparison runs on: the machine, PostgreSQL and its settings, our own settings."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("TAXI_") and name not in _NOT_RECORDED
    }
    with plainly_told(url):
        settings = asyncio.run(_settings(url))
    return {"machine": describe(_PACKAGES), "postgres": settings, "environment": ours}


async def _settings(url: str) -> dict[str, str]:
    connection = await asyncpg.connect(dsn(url))
    try:
        return {name: await connection.fetchval(f"SHOW {name}") for name in _SETTINGS}
    finally:
        await connection.close()


@dataclass(slots=True)
class Comparer:
    """Measures the cells of a plan on the server that `url` names.

    `evidence` is where the histories are kept of those who broke their claim.
    """

    plan: Plan
    contenders: Sequence[Contender]
    url: str
    evidence: Path
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def measure(self, key: Key, before: Sequence[Cell]) -> Cell:
        """One cell. What goes wrong is in it, so that the others can be measured all the same.

        `before` are the cells there are: the rates of a ramp are shares of what
        its first cell answered.
        """
        contender = next(each for each in self.contenders if each.name == key.contender)
        try:
            rate = None if key.share is None else key.share * _full_rate(before)
            with plainly_told(self.url), self._database_for(contender) as url:
                asyncio.run(_checkpoint(self.url))
                if contender.name == BARE_INSERT:
                    return Cell(key, bare_insert(url, self.plan))
                with tempfile.TemporaryDirectory(prefix="taxi-compare-") as folder:
                    return self._run(key, contender, url, Path(folder), rate)
        except TaxiError as error:
            return Cell(key, error=error.message)
        except asyncpg.PostgresError as error:
            return Cell(key, error=f"PostgreSQL refused: {error}")

    def _run(
        self, key: Key, contender: Contender, url: str, folder: Path, rate: float | None
    ) -> Cell:
        history_in = folder / "history"
        own_url = url_for(url, contender.prevention, contender.allocator)
        postmaster = asyncio.run(cpu.postmaster(self.url))
        watched = {} if postmaster is None else {"database": postmaster}
        with serving(contender, url, folder) as (address, server):
            watched |= {"service": server}
            used = load(self.plan, key, address, history_in, rate, own_url, watched)
        history, setup = read_history(history_in), read_setup(history_in)
        measured = measure(history, self.plan.duration_s, used)
        if contender.kind is Kind.CEILING:
            if unexpected := unexpected_answers(history):
                raise CellFailed(f"{len(unexpected):,} unexpected answers: {_told(unexpected[0])}")
            return Cell(key, measured)
        audited = asyncio.run(audit(own_url, history, setup))
        if audited.faults and contender.claims_safety:
            name = f"{key.contender}-{key.scenario}-{key.repeat}-{key.share or 'closed'}"
            shutil.rmtree(self.evidence / name, ignore_errors=True)  # of a run that was interrupted
            shutil.copytree(history_in, self.evidence / name)
        return Cell(key, measured, audited, rate)

    @contextmanager
    def _database_for(self, contender: Contender) -> Iterator[str]:
        """The address of a database that is not there yet; it, and what is made beside it, go."""
        url = databases.beside(self.url, f"compare_{os.getpid()}_{next(self._numbers)}")
        prevention = CONSTRAINED if contender.name == BARE_INSERT else contender.prevention
        try:
            yield url
        finally:
            made = (url, url_for(url, prevention, contender.allocator))
            asyncio.run(databases.drop(self.url, made))


def _full_rate(before: Sequence[Cell]) -> float:
    """What the first of the ramp answers under its demand, its clients waiting for it."""
    for cell in before:
        if cell.key.scenario == OVERLOAD and cell.key.share is None and cell.measured:
            return cell.measured.answered_per_s
    raise CellFailed("There is no rate to start from: the closed run of the ramp failed.")


# The database ----------------------------------------------------------------------------------


async def _checkpoint(url: str) -> None:
    connection = await asyncpg.connect(dsn(url))
    try:
        # A server of somebody else's may not allow it, and need not.
        with suppress(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def audit(url: str, history: Sequence[Request], setup: Setup) -> Audited:
    """The four checks, on the database that the history was made on."""
    database = Database(url, pool_size=1, statement_s_max=_SWEEP_S_MAX)
    try:
        swept, rows = await database.transact(_read_ledger, read_only=True)
    finally:
        await database.close()
    passing = passing_double_bookings(history, rows)
    lost = lost_bookings(history, rows, setup.driver_ids)
    unjustified = unjustified_refusals(history, rows, setup.driver_ids)
    unexpected = unexpected_answers(history)
    examples = [
        *(_two("double booking", f.driver_id, f.earlier, f.later) for f in swept.double_bookings),
        *(
            Example(
                "double booking, since given back",
                first.driver_id,
                (first.booking_id, second.booking_id),
                ((first.start, first.end), (second.start, second.end)),
            )
            for first, second in passing
        ),
        *(
            Example("lost booking", f.driver_id, (f.booking_id,), _window(f.start, f.end), f.reason)
            for f in lost
        ),
        *(
            Example("unjustified refusal", f.driver_id, (), _window(f.start, f.end), f.reason)
            for f in unjustified
        ),
        *(
            Example("unexpected answer", f.driver_id, (), _window(f.start, f.end), _told(f))
            for f in unexpected
        ),
    ]
    return Audited(
        bookings=swept.bookings,
        acknowledged=sum(each.acknowledged and each.action == "book" for each in history),
        refusals=sum(each.refused for each in history),
        double_bookings=len(swept.double_bookings) + len(swept.malformed),
        passing=len(passing),
        lost=len(lost),
        unjustified=len(unjustified),
        unexpected=len(unexpected),
        examples=tuple(_first_of_each_kind(examples)),
    )


async def _read_ledger(connection: AsyncConnection) -> tuple[sweep.Audit, list[Row]]:
    swept = await sweep.double_bookings(connection)
    found = await connection.execute(
        select(
            bookings.c.id,
            bookings.c.driver_id,
            begins,
            predicted_ends,
            bookings.c.state,
            bookings.c.rider_id,
        )
    )
    return swept, [Row(*row[:4], BookingState(row[4]), row[5]) for row in found]


def _told(request: Request) -> str:
    return f"A request to {request.action} was answered by {outcome(request)}."


def _two(kind: str, driver_id: int, first: Held, second: Held) -> Example:
    windows = tuple((each.window.start, each.window.end) for each in (first, second))
    return Example(kind, driver_id, (first.booking_id, second.booking_id), windows)


def _window(start: Any, end: Any) -> tuple[tuple[Any, Any], ...]:
    return () if start is None else ((start, end),)


def _first_of_each_kind(examples: Sequence[Example]) -> Iterator[Example]:
    for kind in dict.fromkeys(each.kind for each in examples):
        yield from [each for each in examples if each.kind == kind][:EXAMPLES_MAX]
