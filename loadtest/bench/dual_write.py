"""What is told of bookings, against what was booked, when processes die in between.

    .venv/bin/python -m loadtest.bench.dual_write

A process books, and whoever keeps a list of bookings elsewhere is told of each: over TCP,
with an acknowledgement. Again and again the process is killed (`SIGKILL`) just when a
message is under way, by turns before the message has arrived and after it, so that only
the acknowledgement is lost. Afterwards the two lists are compared.

Three ways are tried. Two write to two places, one after the other, in either order. The
third writes the booking and its event in one transaction, and a relay tells the events
later, from the last one on of which it knows that it was told. `docs/12-when-the-reply-is-lost.md`
shows the recorded result, `docs/results/dual_write.json`.
"""

import asyncio
import contextlib
import json
import math
import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click
from rich.console import Console
from rich.table import Table
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import BookingRequest
from booking.errors import TaxiError
from booking.events import BEGINNING, Cursor
from booking.postgres import schema
from booking.postgres.database import Database
from booking.postgres.events import parse_cursor, read_events
from booking.postgres.ledger import add_driver, add_rider
from booking.postgres.tables import bookings, starts
from booking.prevention.grouped_commit import GroupedCommit
from booking.time_window import TimeWindow
from loadtest import machine
from loadtest.bench.own_server import own_server

_FIRST = datetime(2030, 1, 1, tzinfo=UTC)
_TRIP = timedelta(minutes=30)
_TRIPS_A_ROUND_MAX = 100_000
_POLL_S = 0.01
_ROUND_S_MAX = 60.0
_TAKEN = b"taken\n"


class Way(StrEnum):
    """In which order the two places are written to."""

    WRITE_FIRST = "write, then tell"
    TELL_FIRST = "tell, then write"
    OUTBOX = "write both at once, tell later"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Each way is killed `rounds` times, each time after `messages` more or a few more."""

    is_quick: bool = False
    rounds: int = 20
    messages: int = 30
    clients: int = 8


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What was booked, what was told, and where the two differ."""

    way: Way
    booked: int
    told: int
    """Different bookings of which the other place has heard."""
    lost: int
    """Booked, and never told."""
    invented: int
    """Told, and never booked."""
    again: int
    """Messages that told what had been told before."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The same deaths, for each way."""

    plan: Plan
    machine: dict[str, Any]
    counted: list[Counted]


class _Elsewhere:
    """Whoever is told. It may let a message get lost, or the acknowledgement."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.until_death = 0
        self.keeps_the_last = False
        self.die: Callable[[], None] = lambda: None

    def expect(self, messages: int, die: Callable[[], None], *, keep: bool) -> None:
        """Call `die` at the message of that number, which is kept or lost, and not answered."""
        self.until_death, self.die, self.keeps_the_last = messages, die, keep

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.until_death -= 1
                if self.until_death != 0 or self.keeps_the_last:
                    self.told.append(line.decode().strip())
                if self.until_death == 0:
                    self.die()
                    break
                writer.write(_TAKEN)
        writer.close()


async def _say(wire: tuple[asyncio.StreamReader, asyncio.StreamWriter], start: datetime) -> None:
    """Tell of the booking that starts then, and wait until that was taken."""
    wire[1].write(f"{start.isoformat()}\n".encode())
    if await wire[0].readline() != _TAKEN:
        raise ConnectionError


async def _book(url: str, way: Way, port: int, first: int, clients: int) -> None:
    """Book one trip after another, each in a time of its own, until killed."""
    database = Database(url)
    ledger = GroupedCommit(database, AskThenOffer())
    trips = iter(range(first, first + _TRIPS_A_ROUND_MAX))

    async def client() -> None:
        wire = await asyncio.open_connection("127.0.0.1", port)
        for trip in trips:
            start = _FIRST + trip * _TRIP
            request = BookingRequest(1, TimeWindow(start, start + _TRIP), 1)
            if way is Way.TELL_FIRST:
                await _say(wire, start)
            await ledger.book(request)
            if way is Way.WRITE_FIRST:
                await _say(wire, start)

    await asyncio.gather(*(client() for _ in range(clients)))


class _Place:
    """How far the relay has come, kept in a file, as a process that dies forgets."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> Cursor:
        return parse_cursor(self._file.read_text(), "place") if self._file.exists() else BEGINNING

    def write(self, cursor: Cursor) -> None:
        self._file.write_text(str(cursor))


async def _relay(url: str, port: int, place: _Place, until: float = math.inf) -> None:
    """Tell what happened, from where `place` says on, up to the transaction `until`."""
    database = Database(url, pool_size=1)
    wire = await asyncio.open_connection("127.0.0.1", port)
    position = place.read()
    while position.written_in <= until:
        page = await database.transact(partial(read_events, after=position), read_only=True)
        for event in page.events:
            await _say(wire, datetime.fromisoformat(event.booking["start"]))
            place.write(event.cursor)
        if not page.events:
            await asyncio.sleep(_POLL_S)
        position = page.position
    wire[1].close()
    await wire[1].wait_closed()
    await database.close()


def _live(url: str, way: Way, port: int, first: int, clients: int, place: _Place) -> None:
    """What the process that will be killed does."""

    async def live() -> None:
        tasks = [_book(url, way, port, first, clients)]
        if way is Way.OUTBOX:
            tasks.append(_relay(url, port, place))
        await asyncio.gather(*tasks)

    asyncio.run(live())


class NotKilled(TaxiError):
    """The process that books told nothing, or ended by itself."""


async def count(url: str, way: Way, plan: Plan) -> Counted:
    """Let the way be killed, as planned, on a database of its own. Raises `NotKilled`."""
    database = Database(url, pool_size=1)
    try:
        await database.transact(lambda c: add_rider(c, "Bob"))
        await database.transact(lambda c: add_driver(c, "Ada", "main", "UTC"))
        elsewhere = _Elsewhere()
        server = await asyncio.start_server(elsewhere.hear, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        with tempfile.TemporaryDirectory() as folder:
            place = _Place(Path(folder) / "place")
            for number in range(plan.rounds):
                await _one_life(url, way, plan, elsewhere, (port, number, place))
            last = await database.transact(_once_alone)
            if way is Way.OUTBOX:
                elsewhere.expect(-1, lambda: None, keep=True)
                await _relay(url, port, place, last)
        server.close()
        found = await database.transact(lambda c: c.scalars(select(starts).select_from(bookings)))
        return _compare(way, {each.isoformat() for each in found}, elsewhere.told)
    finally:
        await database.close()


async def _once_alone(connection: AsyncConnection) -> int:
    """The number of a transaction after all those that were killed, once they have ended."""
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    while await connection.scalar(others):
        # What a transaction sees of it is kept until it is let go of.
        await connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        await asyncio.sleep(_POLL_S)
    now = await connection.execute(text("SELECT pg_current_xact_id()::text::bigint"))
    return int(now.scalar_one())


async def _one_life(
    url: str, way: Way, plan: Plan, elsewhere: _Elsewhere, place: tuple[int, int, _Place]
) -> None:
    port, number, file = place
    process = multiprocessing.get_context("spawn").Process(
        target=_live,
        args=(url, way, port, number * _TRIPS_A_ROUND_MAX, plan.clients, file),
    )
    # By turns the message gets lost, and its acknowledgement.
    elsewhere.expect(plan.messages + number, process.kill, keep=number % 2 == 1)
    process.start()
    await asyncio.to_thread(process.join, _ROUND_S_MAX)
    if elsewhere.until_death > 0:
        process.kill()
        raise NotKilled


def _compare(way: Way, booked: set[str], messages: list[str]) -> Counted:
    told = set(messages)
    return Counted(
        way=way,
        booked=len(booked),
        told=len(told),
        lost=len(booked - told),
        invented=len(told - booked),
        again=len(messages) - len(told),
    )


def measure(plan: Plan, progress: Callable[[str], None] = lambda _: None) -> Result:
    """Kill each way as often as planned, on a server of our own."""
    described = machine.describe(["sqlalchemy", "asyncpg"])
    counted = []
    with own_server() as url:
        for number, way in enumerate(Way):
            progress(way)
            own_url = schema.prepare(f"{url}_{number}")
            counted.append(asyncio.run(count(own_url, way, plan)))
    return Result(plan=plan, machine=described, counted=counted)


_HEADINGS = ("booked", "told", "lost", "invented", "told again")


def cells(counted: Counted) -> list[str]:
    """A way's row."""
    numbers = (counted.booked, counted.told, counted.lost, counted.invented, counted.again)
    return [counted.way, *(f"{each:,}" for each in numbers)]


def markdown(recorded: dict[str, Any]) -> str:
    """A recorded result as a table, and what must be known to read it."""
    result = msgspec.convert(recorded, Result)
    plan = result.plan
    head = (f"| way | {' | '.join(_HEADINGS)} |", "|---|" + "--:|" * len(_HEADINGS))
    rows = (f"| {' | '.join(cells(each))} |" for each in result.counted)
    conditions = (
        f"{plan.clients} clients book at once; the process is killed {plan.rounds} times, by turns"
        " with the message lost and with its acknowledgement lost."
        f" {machine.measured_on(result.machine)}"
    )
    return "\n".join((*head, *rows, "", conditions))


@click.command()
@click.option("--quick", is_flag=True, help="A few deaths only.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every figure to this file.",
)
def main(*, quick: bool, json_file: Path | None) -> None:
    """Count what is lost and what is invented when processes die between two writes."""
    plan = Plan(is_quick=True, rounds=4) if quick else Plan()
    console = Console(highlight=False)
    try:
        with console.status("") as status:
            result = measure(plan, status.update)
        table = Table(box=None)
        table.add_column("way", style="bold")
        for heading in _HEADINGS:
            table.add_column(heading, justify="right")
        for each in result.counted:
            table.add_row(*cells(each))
        console.print(table)
        if json_file:
            json_file.write_text(json.dumps(msgspec.to_builtins(result), indent=2) + "\n")
    except TaxiError as error:
        raise click.ClickException(error.message) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}.") from None


if __name__ == "__main__":
    main()
