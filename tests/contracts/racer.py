"""A race: many workers in several processes, released together, book the same windows.

All ask for one driver, and then all for any driver of a fleet.
"""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

from sqlalchemy import ExceptionContext, event

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import BookingRequest
from booking.errors import TaxiError
from booking.postgres import reads
from booking.postgres.database import Database, sqlstate_of
from booking.strategies import Act, find
from booking.time_window import TimeWindow
from tests.commands import LOADED

WORKERS = 8  # of each process
FIRST = datetime(2026, 3, 8, tzinfo=UTC)
AN_HOUR = timedelta(hours=1)
_PATIENCE_S = 120

type Wish = dict[str, object]
type Outcomes = list[Counter[str]]
"""For each wish, how often what became of it, by name."""


def count_deadlocks(database: Database) -> list[BaseException]:
    """The deadlocks from now on: they are run again, and nobody hears of them.

    But each costs a wait. Heard is every connection, also those for a statement that is
    a transaction of its own.
    """
    seen: list[BaseException] = []

    def note(context: ExceptionContext) -> None:
        if sqlstate_of(context.original_exception) == "40P01":
            seen.append(context.original_exception)

    for engine in (database.engine, database.lanes):
        event.listen(engine.sync_engine, "handle_error", note)
    return seen


def race(url: str, recipe: str, wishes: list[Wish], rounds: int, processes: int) -> Outcomes:
    """Every worker of every process asks once a round and wish; for each wish, the outcomes."""
    start, told = LOADED.Barrier(processes), LOADED.Queue()
    racers = [
        LOADED.Process(target=_process, args=(told, start, url, recipe, wishes, rounds))
        for _ in range(processes)
    ]
    for racer in racers:
        racer.start()
    each = [told.get(timeout=_PATIENCE_S) for _ in racers]
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * processes
    return [sum(counts, Counter()) for counts in zip(*each, strict=True)]


def _process(told: Queue[Outcomes], start: Barrier, *arguments: Any) -> None:
    told.put(asyncio.run(_race(start, *arguments)))


async def _race(start: Barrier, url: str, recipe: str, wishes: list[Wish], rounds: int) -> Outcomes:
    database = Database(url, pool_size=WORKERS)
    ledger = find(Act.PREVENTION, recipe).load()(database, AskThenOffer())
    barrier = asyncio.Barrier(WORKERS)
    outcomes: Outcomes = [Counter() for _ in wishes]
    deadlocks = count_deadlocks(database)

    async def work() -> None:
        for wish, counts in zip(wishes, outcomes, strict=True):
            for number in range(rounds):
                begin = FIRST + number * AN_HOUR
                request = BookingRequest(window=TimeWindow(begin, begin + AN_HOUR), **wish)
                await barrier.wait()
                try:
                    await ledger.book(request)
                    counts["booked"] += 1
                except TaxiError as error:
                    counts[type(error).__name__] += 1

    try:
        # Open every connection before the start, or the first to have one wins each round.
        await asyncio.gather(*[database.transact(reads.ping) for _ in range(WORKERS)])
        await asyncio.to_thread(start.wait, _PATIENCE_S)
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(work())
    finally:
        await database.close()
    outcomes[0]["deadlock"] = len(deadlocks)
    return [+counts for counts in outcomes]
