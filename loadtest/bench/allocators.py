"""Any free driver in SQL: what it costs when one in ten is free, and when one in fifty is.

Doubts first
------------
- Both busy times lie in the *same* table: at the full hour one share of the fleet
  is taken, at the half hour another. So the tables, the indexes and the caches are
  the same, and only the share of free drivers differs. The ratio is taken within
  each repeat, the two right behind each other.
- Everything shares the machine: the clients, which are Python, and the server. The
  client's own work is in every figure, so it makes slow statements look less slow.
- What is booked during a repeat is deleted after it, so that the fleet is as busy
  at the next; within a repeat it becomes a little busier. The dead rows stay until
  autovacuum takes them.
- Windows lie on the grid of five minutes, which is the best case of `bitmap_day`,
  and every request is for one of a few times, which is the worst case of those
  that begin at the same driver each time.
- Commits are durable: `fsync` and `synchronous_commit` are on.

Each allocator works on a copy of one filled database, and takes turns with the
others, in an order that rotates. It is measured behind a recipe that decides,
`exclusion_upsert`, and *alone*, behind a ledger that inserts whatever it is told
to, with a plain index in the place of the constraint. The audit sweeps all
bookings after each repeat. An allocator that claims nothing must be expected to
double-book when it is alone; its speed there is that of a wrong answer.
"""

import asyncio
import multiprocessing
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

import asyncpg
import msgspec

from booking.bookings import BookingRequest
from booking.errors import Contended, NoDriverFree, TaxiError
from booking.ledgers import Claim
from booking.postgres import reads, schema
from booking.postgres.database import Database, parse_url
from booking.postgres.ledger import PostgresLedger
from booking.prevention.exclusion_upsert import ExclusionUpsert
from booking.strategies import Act, find, strategies
from booking.time_window import TimeWindow
from loadtest import machine
from loadtest.bars import Bar
from loadtest.bench import databases, method
from loadtest.bench.ceilings import UncheckedInsert
from loadtest.bench.sweep import double_booked

BEHIND, ALONE = "exclusion_upsert", "alone"
# The database of the second has a plain index where the first has the constraint.
_RECIPES: dict[str, tuple[type[PostgresLedger], str]] = {
    BEHIND: (ExclusionUpsert, "exclusion_upsert"),
    ALONE: (UncheckedInsert, "check_then_insert"),
}
_FIRST = datetime(2030, 1, 1, tzinfo=UTC)
_SLOT, _TRIP = timedelta(minutes=30), timedelta(minutes=25)
_BARRIER_S_MAX = 120.0
_RATIO_MIN = 0.85
_PACKAGES = ("taxi-booking", "sqlalchemy", "asyncpg")


_given: dict[str, Any] = {}
"""What a process of clients was given when it began."""


class ClientsDied(TaxiError):
    """A process of clients came to its end before its turn did; it may have lacked memory."""


class Plan(msgspec.Struct, frozen=True):
    """How much to measure: `slots` half hours of `drivers`, asked for by `clients` in `processes`.

    `busy` are two shares of the fleet: at full hours, and at half hours.
    """

    drivers: int = 2_000
    slots: int = 200
    busy: tuple[float, float] = (0.90, 0.98)
    clients: int = 8
    processes: int = 2
    repeats: int = 5
    repeat_s: float = 2.0
    is_quick: bool = False
    """Whether it only shows the shape; what was measured so is not to quote."""


def quick() -> Plan:
    """A small fleet and short turns, to see the shape; not to quote."""
    return Plan(drivers=500, slots=40, repeats=2, repeat_s=0.5, is_quick=True)


class Turn(msgspec.Struct, frozen=True):
    """One turn: bookings a second, what else was answered, and what the audit found."""

    bookings_per_s: float
    booked: int
    no_driver_free: int
    contended: int
    double_bookings: int


class Cell(msgspec.Struct, frozen=True):
    """An allocator behind a recipe, or alone, at one busy share; its turns."""

    allocator: str
    behind: str
    claim: str
    busy: float
    turns: list[Turn]

    def rates(self) -> list[float]:
        """Bookings a second, turn by turn."""
        return [turn.bookings_per_s for turn in self.turns]

    def double_bookings(self) -> int:
        """Of all turns."""
        return sum(turn.double_bookings for turn in self.turns)

    def safe(self) -> bool:
        """Whether nobody is to be double-booked here."""
        return self.behind == BEHIND or self.claim == Claim.ACROSS_PROCESSES


class Result(msgspec.Struct, frozen=True):
    """What was measured, and on what."""

    machine: dict[str, Any]
    server: dict[str, str]
    plan: Plan
    cells: list[Cell]
    bars: list[Bar]

    def pairs(self) -> list[tuple[Cell, Cell]]:
        """The cells of each combination, the less busy one first."""
        by_key = {(cell.allocator, cell.behind, cell.busy): cell for cell in self.cells}
        less, more = self.plan.busy
        return [
            (cell, by_key[cell.allocator, cell.behind, more])
            for cell in self.cells
            if cell.busy == less
        ]


class Task(NamedTuple):
    """What a process is to do in a turn."""

    url: str
    allocator: str
    behind: str
    half_hours: bool
    plan: Plan
    seed: int


def contestants() -> list[str]:
    """The names of the allocators."""
    return [each.name for each in strategies(Act.ALLOCATION) if hasattr(each.load(), "allocate")]


def measure(
    server_url: str, plan: Plan, tell: method.Tell, names: Sequence[str] | None = None
) -> Result:
    """Measure all allocators, or those named, on databases of the server's that it makes."""
    about = machine.describe(_PACKAGES)
    combinations = [(name, behind) for name in names or contestants() for behind in _RECIPES]
    turns: dict[tuple[str, str, float], list[Turn]] = {}
    urls: dict[tuple[str, str], str] = {}
    steps = len(combinations) * (plan.repeats + 1)
    done = 0
    try:
        for allocator, behind in combinations:
            tell(done / steps, f"{allocator}, {behind}: filling")
            urls[allocator, behind] = _prepare(server_url, plan, allocator, behind)
            done += 1
        with processes(plan) as pool:
            for repeat in range(plan.repeats):
                first = repeat % len(combinations)
                for allocator, behind in combinations[first:] + combinations[:first]:
                    tell(done / steps, f"{allocator}, {behind}: {repeat + 1} of {plan.repeats}")
                    for half_hours in (False, True) if repeat % 2 else (True, False):
                        url = urls[allocator, behind]
                        task = Task(url, allocator, behind, half_hours, plan, repeat)
                        key = (allocator, behind, plan.busy[half_hours])
                        turns.setdefault(key, []).append(_turn(pool, task))
                    done += 1
        described = asyncio.run(databases.describe(server_url))
    finally:
        asyncio.run(databases.drop(server_url, list(urls.values())))
    cells = [
        Cell(allocator, behind, find(Act.ALLOCATION, allocator).claim or "", busy, each)
        for (allocator, behind, busy), each in sorted(turns.items())
    ]
    result = Result(about, described, plan, cells, [])
    return msgspec.structs.replace(result, bars=bars_of(result))


def ratios(less: Cell, more: Cell) -> list[float]:
    """Of the busier throughput to the other's, turn by turn."""
    return [a / b for a, b in zip(more.rates(), less.rates(), strict=True)]


def bars_of(result: Result) -> list[Bar]:
    """The figures to reach: of the fastest of those that are safe, and of all of those."""
    safe = [(less, more) for less, more in result.pairs() if less.safe()]
    less, more = max(safe, key=lambda pair: statistics.median(pair[1].rates()))
    best = ratios(less, more)
    double = sum(cell.double_bookings() for pair in safe for cell in pair)
    median = statistics.median(best)
    return [
        Bar(
            f"any driver at {more.busy:.0%} busy against {less.busy:.0%},"
            f" the fastest: `{less.allocator}`, {less.behind}",
            f"≥ {_RATIO_MIN}",
            f"{median:.2f} ({min(best):.2f} to {max(best):.2f})",
            median >= _RATIO_MIN,
        ),
        Bar("double bookings of what is safe", "0", f"{double}", double == 0),
    ]


# A turn -------------------------------------------------------------------------------------


def _turn(pool: ProcessPoolExecutor, task: Task) -> Turn:
    before = asyncio.run(_last_booking(task.url))
    answers = answers_of(pool, task)
    found = asyncio.run(_audit_and_restore(task.url, before))
    return Turn(
        round(answers["booked"] / answers["ms"] * 1_000 * task.plan.processes, 1),
        answers["booked"],
        answers["NoDriverFree"],
        answers["Contended"],
        found,
    )


@contextmanager
def processes(plan: Plan) -> Iterator[ProcessPoolExecutor]:
    """The clients' processes, which leave Ctrl-C to this one and end with the block."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(plan.processes)
    # Not `multiprocessing.Pool`, which waits for ever for what a killed process was to answer.
    with ProcessPoolExecutor(plan.processes, spawn, _begin_process, (barrier,)) as pool:
        # The executor sees a process die only if it has heard from any since that one began.
        for _ in pool.map(_meet, range(plan.processes)):
            pass
        yield pool


def answers_of(pool: ProcessPoolExecutor, task: Task) -> Counter[str]:
    """What all clients were answered in a turn; see `_clients`. Raises `ClientsDied`."""
    tasks = [task._replace(seed=1_000 * task.seed + each) for each in range(task.plan.processes)]
    answers: Counter[str] = Counter()
    try:
        for answer in pool.map(work, tasks):
            answers += answer
    except BrokenProcessPool:
        raise ClientsDied from None
    return answers


def _begin_process(barrier: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _given["barrier"] = barrier


def _meet(_number: int) -> None:
    _given["barrier"].wait(_BARRIER_S_MAX)


def work(task: Task) -> Counter[str]:
    """What a process of clients does in a turn."""
    return asyncio.run(_clients(task))


async def _clients(task: Task) -> Counter[str]:
    """One process's clients; how often which answer came, and in how many milliseconds."""
    clients = task.plan.clients // task.plan.processes
    database = Database(task.url, pool_size=clients)
    recipe, _ = _RECIPES[task.behind]
    ledger = recipe(database, find(Act.ALLOCATION, task.allocator).load()())
    answers: Counter[str] = Counter()
    try:
        # Every connection is open, and the statements are known to it, before the start.
        await asyncio.gather(*[database.transact(reads.ping) for _ in range(clients)])
        dice = [Random(f"{task.seed} {number}") for number in range(clients)]
        await asyncio.gather(*[_book(ledger, task, each, Counter()) for each in dice])
        await asyncio.to_thread(_given["barrier"].wait, _BARRIER_S_MAX)
        began_s = time.perf_counter()

        async def client(own_dice: Random) -> None:
            while time.perf_counter() < began_s + task.plan.repeat_s:
                await _book(ledger, task, own_dice, answers)

        async with asyncio.TaskGroup() as group:
            for each in dice:
                group.create_task(client(each))
        answers["ms"] = round((time.perf_counter() - began_s) * 1_000)
    finally:
        await database.close()
    return answers


async def _book(ledger: PostgresLedger, task: Task, dice: Random, answers: Counter[str]) -> None:
    slot = 2 * dice.randrange(task.plan.slots // 2) + task.half_hours
    start = _FIRST + slot * _SLOT
    try:
        await ledger.book(BookingRequest(1, TimeWindow(start, start + _TRIP)))
        answers["booked"] += 1
    except (NoDriverFree, Contended) as refused:
        answers[type(refused).__name__] += 1


async def _last_booking(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT max(id) FROM bookings"))
    finally:
        await connection.close()


async def _audit_and_restore(url: str, last: int) -> int:
    """How many double bookings there are; and what came behind the booking `last` is gone."""
    found = await double_booked(url)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("DELETE FROM bookings WHERE id > $1", last)
    finally:
        await connection.close()
    return found


# Databases ----------------------------------------------------------------------------------


def _prepare(server_url: str, plan: Plan, allocator: str, behind: str) -> str:
    """A database of the allocator's own, filled; the filled one it is copied from is kept."""
    _, recipe = _RECIPES[behind]
    filled = schema.prepare(databases.beside(server_url, "allocators"), recipe)
    return asyncio.run(_copy(server_url, filled, plan, allocator, behind))


async def _copy(server_url: str, filled: str, plan: Plan, allocator: str, behind: str) -> str:
    await _fill(filled, plan)
    copy = f"allocators_{allocator}_{behind}"
    admin = await asyncpg.connect(server_url)
    try:
        await admin.execute(f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)")
        await admin.execute(f"CREATE DATABASE {copy} TEMPLATE {parse_url(filled).database}")
    finally:
        await admin.close()
    connection = await asyncpg.connect(databases.beside(server_url, copy))
    try:
        for statement in find(Act.ALLOCATION, allocator).load().schema:
            await connection.execute(statement)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
    return databases.beside(server_url, copy)


async def _fill(url: str, plan: Plan) -> None:
    """Fill the database, unless it is filled already."""
    connection = await asyncpg.connect(url)
    try:
        if await connection.fetchval("SELECT count(*) FROM drivers"):
            return
        await connection.execute("INSERT INTO riders (name) VALUES ('Rosa')")
        await connection.execute(
            "INSERT INTO drivers (name, fleet, zone)"
            " SELECT 'D' || n, 'main', 'UTC' FROM generate_series(1, $1::int) n",
            plan.drivers,
        )
        # In order of time, not of driver, as bookings come. Who is free is another lot of
        # drivers in each slot, and exactly so many.
        await connection.execute(
            """
            INSERT INTO bookings (driver_id, rider_id, state, during)
            SELECT id, 1, 'confirmed', tstzrange(begin, begin + $3::interval)
            FROM generate_series(0, $1::int - 1) slot,
                 LATERAL (SELECT $2::timestamptz + slot * $4::interval AS begin) AS times,
                 LATERAL (SELECT id, row_number() OVER (ORDER BY hashint8(id * 1000003 + slot)) AS n
                          FROM drivers) AS ranked
            WHERE n <= $5::int * CASE WHEN slot % 2 = 0 THEN $6::float ELSE $7::float END
            ORDER BY slot
            """,
            plan.slots,
            _FIRST,
            _TRIP,
            _SLOT,
            plan.drivers,
            *plan.busy,
        )
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


# What is shown ------------------------------------------------------------------------------

HEADINGS = ("behind", "claim", "less busy", "busier", "ratio", "double bookings")


def cells_of(less: Cell, more: Cell) -> list[str]:
    """What stands below `HEADINGS`."""
    return [
        less.behind,
        less.claim,
        _spread(less.rates(), ",.0f"),
        _spread(more.rates(), ",.0f"),
        _spread(ratios(less, more), ".2f"),
        f"{less.double_bookings() + more.double_bookings():,}",
    ]


def markdown(recorded: dict[str, Any]) -> str:
    """Everything that `taxi bench allocators` found."""
    result = msgspec.convert(recorded, Result)
    plan = result.plan
    headings = [
        *HEADINGS[:2],
        *(f"bookings/s at {busy:.0%} busy" for busy in plan.busy),
        *HEADINGS[4:],
    ]
    lines = [f"| | {' | '.join(headings)} |", "|---|---|---|--:|--:|--:|--:|"]
    lines += [
        f"| `{less.allocator}` | {' | '.join(cells_of(less, more))} |"
        for less, more in result.pairs()
    ]
    return "\n".join(lines) + (
        f"\n\nMedian of {plan.repeats} turns of {plan.repeat_s:g} s, in brackets the least and the"
        f" greatest; {plan.clients} clients in {plan.processes} processes, {plan.drivers:,} drivers"
        f" and {plan.slots} half hours. {machine.measured_on(result.machine, result.server)}\n"
    )


def _spread(values: Sequence[float], form: str) -> str:
    """The median, and in brackets the least and the greatest."""
    median = statistics.median(values)
    return f"{median:{form}} ({min(values):{form}} to {max(values):{form}})"
