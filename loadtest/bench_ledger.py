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
- Each contender works on a copy of one filled table, made by PostgreSQL from the
  same template, and takes turns with the others, in an order that rotates. Each
  copy grows by what is booked while it is measured.
- Commits are durable: `fsync` and `synchronous_commit` are on.

The filled table has bookings of half an hour at every full hour, written in the
order of time, as they would have come. A request asks for half an hour of one
driver: for time that is taken with the workload's share, else for a slot of the
years after.
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any, NamedTuple

import asyncpg
import msgspec

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import BookingRequest
from booking.errors import BookingConflict, Contended
from booking.postgres import schema
from booking.postgres.audit import double_bookings
from booking.postgres.database import Database, parse_url
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import WITHOUT_CONSTRAINT
from booking.strategies import Act, find
from booking.time_window import TimeWindow
from loadtest import bench, bench_databases, machine
from loadtest.ceilings import UncheckedInsert

CLIENTS = 32
CEILING = "unconstrained, grouped"
_RIDERS = 1_000
_FIRST = datetime(2030, 1, 1, tzinfo=UTC)
_HOUR, _TRIP = timedelta(hours=1), timedelta(minutes=30)
_FREE_SLOTS = 200_000
_SWEEP_S_MAX = 600.0
_PACKAGES = ("taxi-booking", "sqlalchemy", "asyncpg", "uvloop")


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
    return Plan(sizes, measure_s=1.0, warm_up_s=0.5, repeats=2)


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
    bars: list[bench.Bar]

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


def measure(server_url: str, plan: Plan, tell: bench.Tell) -> Result:
    """Measure every contender under every workload, on databases of the server's that it makes."""
    cells: list[Cell] = []
    workloads = plan.workloads()
    for number, workload in enumerate(workloads):
        say = partial(tell, number / len(workloads))
        say(f"filling {workload.size.bookings:,} bookings")
        cells += asyncio.run(_measure(server_url, plan, workload, say))
    described = asyncio.run(bench_databases.describe(server_url))
    bars = _bars(plan, cells)
    return Result(machine.describe(_PACKAGES), described, CLIENTS, plan, cells, bars)


async def _measure(
    server_url: str, plan: Plan, workload: Workload, say: Callable[[str], None]
) -> list[Cell]:
    everybody = contenders()
    cells = {each.name: Cell(workload.name, each.name, []) for each in everybody}
    copies = {}
    try:
        for each in everybody:
            copies[each.name] = await _copy(server_url, workload.size, each)
        for repeat in range(plan.repeats):
            turn = repeat % len(everybody)
            for each in everybody[turn:] + everybody[:turn]:
                say(f"{workload.name}: {each.name}, {repeat + 1} of {plan.repeats}")
                run = await _run(copies[each.name], each, workload, plan, seed=repeat)
                cells[each.name].runs.append(run)
        for each in everybody:
            cells[each.name].double_bookings = await _audit(copies[each.name])
    finally:
        await bench_databases.drop(server_url, list(copies.values()))
    return list(cells.values())


async def _run(url: str, contender: _Contender, workload: Workload, plan: Plan, seed: int) -> Run:
    database = Database(url, pool_size=contender.pool_size)
    ledger = contender.build(database)
    try:
        await _load(ledger, workload, plan.warm_up_s, seed)
        return await _load(ledger, workload, plan.measure_s, seed + 1_000)
    finally:
        await database.close()


async def _load(ledger: PostgresLedger, workload: Workload, seconds: float, seed: int) -> Run:
    begin = time.perf_counter()
    latencies_s: list[float] = []
    booked = refused = 0

    async def client(number: int) -> None:
        nonlocal booked, refused
        dice = Random(f"{seed} {number}")
        while (sent := time.perf_counter()) < begin + seconds:
            try:
                await ledger.book(_some_request(dice, workload))
                booked += 1
            except BookingConflict:
                refused += 1
            except Contended:
                pass  # no answer, so it does not count as one
            else:
                latencies_s.append(time.perf_counter() - sent)
                continue
            latencies_s.append(time.perf_counter() - sent)

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
    took_s = time.perf_counter() - begin
    percentiles = statistics.quantiles(latencies_s, n=100)
    return Run(
        round((booked + refused) / took_s, 1),
        round(percentiles[49] * 1_000, 2),
        round(percentiles[98] * 1_000, 2),
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


def _bars(plan: Plan, cells: list[Cell]) -> list[bench.Bar]:
    def rates(workload: str, contender: str) -> list[float]:
        return next(
            [run.requests_per_s for run in cell.runs]
            for cell in cells
            if (cell.workload, cell.contender) == (workload, contender)
        )

    def bar(figure: str, least: float, one: list[float], other: list[float]) -> bench.Bar:
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        median = statistics.median(ratios)
        measured = f"{median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        return bench.Bar(figure, f"≥ {least}", measured, median >= least)

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
    return "\n".join(lines) + f"\n\n{_told(result)}\n"


def _told(result: Result) -> str:
    on, server = result.machine, result.server
    return (
        f"{result.clients} clients in one process, {result.plan.repeats} turns of"
        f" {result.plan.measure_s:g} s each; {on['cores']} cores ({on['cpu']}), {on['python']},"
        f" PostgreSQL {server['server_version']}, shared_buffers {server['shared_buffers']},"
        f" fsync {server['fsync']}; {on['at'][:10]}."
    )


# Databases ----------------------------------------------------------------------------------


async def _copy(server_url: str, size: Size, contender: _Contender) -> str:
    """A database with a filled table, as the contender wants it; the template is kept."""
    name = parse_url(server_url).database
    kind = "constrained" if contender.constrained else "unconstrained"
    template = f"{name}_{size.bookings}_{kind}"
    admin = await asyncpg.connect(server_url)
    try:
        if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", template):
            await _fill(server_url, template, size, constrained=contender.constrained)
        copy = f"{template}_{contender.name.replace(', ', '_').replace(' ', '_')}"
        await admin.execute(f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)")
        # By copying files: page by page through the log it would take as long as filling it.
        await admin.execute(f"CREATE DATABASE {copy} TEMPLATE {template} STRATEGY file_copy")
        return bench_databases.beside(server_url, copy)
    finally:
        await admin.close()


async def _fill(server_url: str, name: str, size: Size, *, constrained: bool) -> None:
    filling = f"{name}_unfinished"
    url = await asyncio.to_thread(schema.prepare, bench_databases.beside(server_url, filling))
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
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
    admin = await asyncpg.connect(server_url)
    try:
        await admin.execute(f"ALTER DATABASE {filling} RENAME TO {name}")
    finally:
        await admin.close()


async def _audit(url: str) -> int:
    database = Database(url, pool_size=1, statement_s_max=_SWEEP_S_MAX)
    try:
        audit = await database.transact(double_bookings, read_only=True)
        return len(audit.double_bookings)
    finally:
        await database.close()
