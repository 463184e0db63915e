"""The ledger alone, without HTTP: what the rule against double booking costs, and what size does.

Doubts first
------------
- The ceiling is the *same* ledger on a table without the constraint: the same
  clients, the same groups, the same statement, with nothing to refuse by. What is
  left of its throughput is what safety leaves. It double-books under contention,
  which the audit must find.
- Everything shares the machine: the clients, this process's event loop and the
  server. The client's own work is in every figure, so a ratio here is kinder to a
  slow statement than one between statements would be. `requests/s` counts every
  answer, booked or refused.
- Each contender works on a copy of a filled table of its own for each workload, made
  by PostgreSQL from the same template. All contenders take turns under all workloads,
  so that also a ratio between two sizes is taken within a repeat, in an order that
  rotates. Each copy grows by what is booked while it is measured.
- Commits are durable: `fsync` and `synchronous_commit` are on.

The filled table has bookings of half an hour at every full hour, written in the
order of time, as they would have come. A request asks for half an hour of one
driver: for time that is taken with the workload's share, else for a slot of the
years after.
"""

import asyncio
import shutil
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import asyncpg
import msgspec

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import BookingRequest
from booking.errors import BookingConflict, Contended, TaxiError
from booking.ledgers import Ledger
from booking.postgres import schema
from booking.postgres.database import Database, parse_url
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import WITHOUT_CONSTRAINT
from booking.strategies import Act, find
from booking.time_window import TimeWindow
from loadtest import machine
from loadtest.bars import Bar
from loadtest.bench import databases, method
from loadtest.bench.ceilings import UncheckedInsert
from loadtest.bench.sweep import double_booked
from loadtest.history import percentiles_ms

CLIENTS = 32
CEILING = "unconstrained, grouped"
_RIDERS = 1_000
_FIRST = datetime(2030, 1, 1, tzinfo=UTC)
_HOUR, _TRIP = timedelta(hours=1), timedelta(minutes=30)
_FREE_SLOTS = 200_000
_BYTES_A_GB = 10**9
_TEMPLATES = 2  # with the constraint, and without it
_BYTES_A_BOOKING = 600
"""With its indexes, and some to spare for what is booked while it is measured."""
_PACKAGES = ("taxi-booking", "sqlalchemy", "asyncpg", "uvloop")


class NoRoom(TaxiError):
    """There is too little room on the disk for every table of the benchmark."""


class NothingAnswered(TaxiError):
    """A ledger answered nothing, so there is nothing to tell of it."""


class Size(NamedTuple):
    """A filled table: so many drivers, each with so many bookings."""

    drivers: int
    bookings_each: int

    @property
    def bookings(self) -> int:
        """Of all drivers together."""
        return self.drivers * self.bookings_each


class Workload(msgspec.Struct, frozen=True):
    """What is asked of which table: the first `hot` drivers alone, `taken` of it in taken time."""

    name: str
    size: Size
    hot: int
    taken: float


class Plan(msgspec.Struct, frozen=True):
    """How much to measure."""

    sizes: dict[str, Size]
    measure_s: float = 4.0
    warm_up_s: float = 1.0
    repeats: int = 5
    is_quick: bool = False
    """Whether it only shows the shape; what was measured so is not to quote."""

    def workloads(self) -> list[Workload]:
        """At the middling size little and much contention; at the others only little."""
        middling = self.sizes["middling"]
        return [
            Workload("low contention", middling, middling.drivers, 0.05),
            Workload("high contention", middling, 10, 0.5),
            *(
                Workload(f"{size.bookings:,} bookings", size, size.drivers, 0.05)
                for name, size in self.sizes.items()
                if name != "middling"
            ),
        ]


def quick() -> Plan:
    """Small tables, short runs: to see the shape."""
    sizes = {"small": Size(100, 100), "middling": Size(1_000, 100), "large": Size(5_000, 100)}
    return Plan(sizes, measure_s=1.0, warm_up_s=0.5, repeats=2, is_quick=True)


def full() -> Plan:
    """A hundred thousand, a million and five million bookings."""
    sizes = {"small": Size(1_000, 100), "middling": Size(10_000, 100), "large": Size(50_000, 100)}
    return Plan(sizes)


class Run(msgspec.Struct):
    """One contender in one turn: answers a second, the latency's percentiles, and what came."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    booked: int
    refused: int


class Cell(msgspec.Struct):
    """A contender under a workload; the audit's double bookings at the end."""

    workload: str
    contender: str
    runs: list[Run]
    double_bookings: int = 0

    def median(self) -> float:
        """Answers a second."""
        return statistics.median(run.requests_per_s for run in self.runs)


class Result(msgspec.Struct):
    """What was measured, and on what."""

    machine: dict[str, Any]
    server: dict[str, str]
    clients: int
    plan: Plan
    cells: list[Cell]
    bars: list[Bar]

    def cell(self, workload: str, contender: str) -> Cell:
        """The cell of that name."""
        return next(
            each for each in self.cells if (each.workload, each.contender) == (workload, contender)
        )


class _Contender(NamedTuple):
    name: str
    build: Callable[[Database], PostgresLedger]
    constrained: bool
    pool_size: int = 10


def contenders() -> list[_Contender]:
    """The shipped ledger, the recipe it rests on, and the same without anything to check."""
    shipped = find(Act.PREVENTION, schema.SHIPPED).load()
    upsert = find(Act.PREVENTION, "exclusion_upsert").load()
    return [
        _Contender(CEILING, lambda database: _ledger(shipped, database), constrained=False),
        _Contender(schema.SHIPPED, lambda database: _ledger(shipped, database), constrained=True),
        _Contender(
            "unconstrained, alone",
            lambda database: _ledger(UncheckedInsert, database),
            constrained=False,
            pool_size=CLIENTS,
        ),
        _Contender(
            "exclusion_upsert",
            lambda database: _ledger(upsert, database),
            constrained=True,
            pool_size=CLIENTS,
        ),
    ]


def _ledger(kind: type[PostgresLedger], database: Database) -> PostgresLedger:
    return kind(database, AskThenOffer())  # every driver is named, so nobody is looked for


def check_room(plan: Plan, folder: Path) -> None:
    """Raise `NoRoom` unless the disk of `folder` has room for everything that is made."""
    bookings = sum(workload.size.bookings for workload in plan.workloads()) * len(contenders())
    bookings += sum(size.bookings for size in plan.sizes.values()) * _TEMPLATES
    wanted_gb, free_gb = (
        round(each / _BYTES_A_GB, 1)
        for each in (bookings * _BYTES_A_BOOKING, shutil.disk_usage(folder).free)
    )
    if free_gb < wanted_gb:
        raise NoRoom(
            f"The tables of the ledger's benchmark take about {wanted_gb:g} GB in {folder},"
            f" where {free_gb:g} GB are free."
        )


def measure(server_url: str, plan: Plan, tell: method.Tell) -> Result:
    """Measure every contender under every workload, on databases of the server's that it makes.

    Raises `NothingAnswered`.
    """
    about = machine.describe(_PACKAGES)
    cells = asyncio.run(_measure(server_url, plan, tell))
    described = asyncio.run(databases.describe(server_url))
    return Result(about, described, CLIENTS, plan, cells, _bars(plan, cells))


class _Place(NamedTuple):
    """Who is measured under what; where; and what came of it."""

    contender: _Contender
    workload: Workload
    url: str
    cell: Cell


async def _measure(server_url: str, plan: Plan, tell: method.Tell) -> list[Cell]:
    pairs = [(each, workload) for workload in plan.workloads() for each in contenders()]
    steps = len(pairs) * (plan.repeats + 1)
    places: list[_Place] = []
    try:
        for number, (each, workload) in enumerate(pairs):
            tell(number / steps, f"filling {workload.size.bookings:,} bookings")
            url = await _copy(server_url, workload.size, each, number)
            places.append(_Place(each, workload, url, Cell(workload.name, each.name, [])))
        for repeat in range(plan.repeats):
            turn = repeat % len(places)
            for number, place in enumerate(places[turn:] + places[:turn]):
                tell(
                    ((repeat + 1) * len(places) + number) / steps,
                    f"{place.cell.workload}: {place.cell.contender},"
                    f" {repeat + 1} of {plan.repeats}",
                )
                place.cell.runs.append(await _run(place, plan, seed=repeat))
        for place in places:
            place.cell.double_bookings = await double_booked(place.url)
    finally:
        await databases.drop(server_url, [place.url for place in places])
    return [place.cell for place in places]


async def _run(place: _Place, plan: Plan, seed: int) -> Run:
    database = Database(place.url, pool_size=place.contender.pool_size)
    ledger = place.contender.build(database)
    try:
        await load(ledger, place.workload, plan.warm_up_s, seed)
        return await load(ledger, place.workload, plan.measure_s, seed + 1_000)
    finally:
        await database.close()


async def load(ledger: Ledger, workload: Workload, seconds: float, seed: int) -> Run:
    """What so many clients are answered in that time. Raises `NothingAnswered`."""
    begin = time.perf_counter()
    latencies_s: list[float] = []
    booked = refused = 0

    async def client(number: int) -> None:
        nonlocal booked, refused
        dice, answered = Random(f"{seed} {number}"), begin
        while answered < begin + seconds:  # so everybody asks once, however short the time
            sent = time.perf_counter()
            try:
                await ledger.book(_some_request(dice, workload))
                booked += 1
            except BookingConflict:
                refused += 1
            except Contended:  # no answer, so it does not count as one
                answered = time.perf_counter()
                continue
            answered = time.perf_counter()
            latencies_s.append(answered - sent)

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
    took_s = time.perf_counter() - begin
    if not latencies_s:
        raise NothingAnswered(f"{type(ledger).__name__} answered nothing within {took_s:.1f} s.")
    latency_ms = percentiles_ms(latencies_s)
    return Run(
        round((booked + refused) / took_s, 1),
        latency_ms["p50"],
        latency_ms["p99"],
        booked,
        refused,
    )


def _some_request(dice: Random, workload: Workload) -> BookingRequest:
    if dice.random() < workload.taken:
        start = _FIRST + dice.randrange(workload.size.bookings_each) * _HOUR
    else:
        start = _FIRST + workload.size.bookings_each * _HOUR + dice.randrange(_FREE_SLOTS) * _TRIP
    driver_id = dice.randint(1, workload.hot)
    return BookingRequest(dice.randint(1, _RIDERS), TimeWindow(start, start + _TRIP), driver_id)


def _bars(plan: Plan, cells: list[Cell]) -> list[Bar]:
    def rates(workload: str, contender: str) -> list[float]:
        return next(
            [run.requests_per_s for run in cell.runs]
            for cell in cells
            if (cell.workload, cell.contender) == (workload, contender)
        )

    def bar(figure: str, least: float, one: list[float], other: list[float]) -> Bar:
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        median = statistics.median(ratios)
        measured = f"{median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        return Bar(figure, f"≥ {least}", measured, median >= least)

    shipped = schema.SHIPPED
    small, large = plan.sizes["small"], plan.sizes["large"]
    return [
        *(
            bar(
                f"`{shipped}`, {CLIENTS} clients, {workload}, against the same unconstrained",
                0.6,
                rates(workload, shipped),
                rates(workload, CEILING),
            )
            for workload in ("low contention", "high contention")
        ),
        bar(
            f"`{shipped}` with {large.bookings:,} bookings against {small.bookings:,}",
            0.85,
            rates(f"{large.bookings:,} bookings", shipped),
            rates(f"{small.bookings:,} bookings", shipped),
        ),
    ]


# Markdown -----------------------------------------------------------------------------------

HEADINGS = (
    "workload",
    "ledger",
    "answers/s",
    "lowest to highest",
    "p50 ms",
    "p99 ms",
    "double bookings",
)


def row(cell: Cell) -> list[str]:
    """What stands below `HEADINGS`."""
    rates = [run.requests_per_s for run in cell.runs]
    return [
        cell.workload,
        cell.contender,
        f"{cell.median():,.0f}",
        f"{min(rates):,.0f} to {max(rates):,.0f}",
        f"{statistics.median(run.p50_ms for run in cell.runs):.1f}",
        f"{statistics.median(run.p99_ms for run in cell.runs):.1f}",
        f"{cell.double_bookings:,}",
    ]


def markdown(recorded: dict[str, Any]) -> str:
    """Every cell, and what it was measured on."""
    result = msgspec.convert(recorded, Result)
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---|--:|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join(row(cell))} |" for cell in result.cells]
    return "\n".join(lines) + (
        f"\n\n{result.clients} clients in one process, {result.plan.repeats} turns of"
        f" {result.plan.measure_s:g} s each."
        f" {machine.measured_on(result.machine, result.server)}\n"
    )


# Databases ----------------------------------------------------------------------------------


async def _copy(server_url: str, size: Size, contender: _Contender, number: int) -> str:
    """A database with a filled table, as the contender wants it; what it copies is kept."""
    name = parse_url(server_url).database
    kind = "constrained" if contender.constrained else "unconstrained"
    template = f"{name}_{size.bookings}_{kind}"
    admin = await asyncpg.connect(server_url)
    try:
        if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", template):
            await _fill(server_url, template, size, constrained=contender.constrained)
        copy = f"{template}_{number}"
        await admin.execute(f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)")
        # By copying files: page by page through the log it would take as long as filling it.
        await admin.execute(f"CREATE DATABASE {copy} TEMPLATE {template} STRATEGY file_copy")
        return databases.beside(server_url, copy)
    finally:
        await admin.close()


async def _fill(server_url: str, name: str, size: Size, *, constrained: bool) -> None:
    filling = f"{name}_unfinished"
    url = await asyncio.to_thread(schema.prepare, databases.beside(server_url, filling))
    connection = await asyncpg.connect(url)
    try:
        if not constrained:
            for statement in WITHOUT_CONSTRAINT:
                await connection.execute(statement)
        await connection.execute(
            "INSERT INTO riders (name) SELECT 'Bob' FROM generate_series(1, $1)", _RIDERS
        )
        await connection.execute(
            "INSERT INTO drivers (name, fleet, zone)"
            " SELECT 'Ada', 'main', 'UTC' FROM generate_series(1, $1)",
            size.drivers,
        )
        # A trail of what was only put there would take more room than all the rest.
        await connection.execute("ALTER TABLE bookings DISABLE TRIGGER bookings_note_booked")
        for number in range(size.bookings_each):
            start = _FIRST + number * _HOUR
            await connection.execute(
                "INSERT INTO bookings (driver_id, rider_id, state, during)"
                " SELECT id, 1 + id % $3, 'confirmed', tstzrange($1, $2) FROM drivers"
                " ORDER BY random()",
                start,
                start + _TRIP,
                _RIDERS,
            )
        await connection.execute("ALTER TABLE bookings ENABLE TRIGGER bookings_note_booked")
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
    admin = await asyncpg.connect(server_url)
    try:
        await admin.execute(f"ALTER DATABASE {filling} RENAME TO {name}")
    finally:
        await admin.close()
