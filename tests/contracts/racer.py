"""One process of a race: many workers, released together, book the same windows.

Run by `test_ledgers.py` as `python racer.py URL RECIPE DRIVER FLEET RIDER ROUNDS`:
all ask for the driver, and then all for any driver of the fleet. Says `ready`,
waits for a line, and prints what became of the requests.
"""

import asyncio
import json
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

from sqlalchemy import ExceptionContext, event

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import BookingRequest
from booking.errors import TaxiError
from booking.postgres import reads
from booking.postgres.database import Database, sqlstate_of
from booking.strategies import Act, find
from booking.time_window import TimeWindow

WORKERS = 8
FIRST = datetime(2026, 3, 8, tzinfo=UTC)
AN_HOUR = timedelta(hours=1)


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


async def race(
    url: str, recipe: str, wishes: list[dict[str, object]], rounds: int
) -> list[Counter[str]]:
    """Every worker asks once a round and wish; for each wish, the outcomes by name."""
    database = Database(url, pool_size=WORKERS)
    ledger = find(Act.PREVENTION, recipe).load()(database, AskThenOffer())
    barrier = asyncio.Barrier(WORKERS)
    outcomes: list[Counter[str]] = [Counter() for _ in wishes]
    deadlocks = count_deadlocks(database)

    async def work() -> None:
        for wish, counts in zip(wishes, outcomes, strict=True):
            for number in range(rounds):
                start = FIRST + number * AN_HOUR
                request = BookingRequest(window=TimeWindow(start, start + AN_HOUR), **wish)
                await barrier.wait()
                try:
                    await ledger.book(request)
                    counts["booked"] += 1
                except TaxiError as error:
                    counts[type(error).__name__] += 1

    try:
        # Open every connection before the start, or the first to have one wins each round.
        await asyncio.gather(*[database.transact(reads.ping) for _ in range(WORKERS)])
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(work())
    finally:
        await database.close()
    outcomes[0]["deadlock"] = len(deadlocks)
    return [+counts for counts in outcomes]


if __name__ == "__main__":
    url, recipe, driver, fleet, rider, rounds = sys.argv[1:]
    wishes = [
        {"rider_id": int(rider), "driver_id": int(driver)},
        {"rider_id": int(rider), "fleet": fleet},
    ]
    json.dump(asyncio.run(race(url, recipe, wishes, int(rounds))), sys.stdout)
