"""`taxi db`: the database behind the service."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC
from pathlib import Path

import rich_click as click
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from api.cli.home import server_url, strategy_options
from api.cli.remote import json_option, print_json, span
from booking.bookings import Booking
from booking.errors import InvalidInput
from booking.postgres import backups, catalogue, guard, schema
from booking.postgres.audit import double_bookings
from booking.postgres.database import Database, parse_url
from booking.postgres.ledger import PostgresLedger
from booking.strategies import Act, find

console = Console(highlight=False, soft_wrap=True)

_STATEMENT_S_MAX = 3_600.0
_SHOWN_MAX = 20
_CONNECTIONS = 4


@click.group("db")
def command() -> None:
    """Look after the database: its schema, its backups, and the rule against double booking.

    Each command exits with 0 if all is well, with 1 if it found something wrong, and with
    2 or 3 if it could not do its work.
    """


@command.command("migrate")
@strategy_options
def migrate(prevention: str, allocator: str) -> None:
    """Create the database if it is missing, and bring it up to the newest revision."""
    with server_url() as url:
        schema.prepare(url, prevention, allocator)
    console.print(f"The database is at revision {schema.head()}.")


@command.command("down")
@click.argument("revision")
@strategy_options
@click.option("--yes", is_flag=True, help="Yes, lose it.")
def down(revision: str, prevention: str, allocator: str, yes: bool) -> None:
    """Go back to REVISION, such as 0001, or to "base", which drops all there is.

    What the newer revisions added is lost, with what was written there.
    """
    if not yes:
        raise InvalidInput(
            f"What was added since revision {revision} would be lost; go back with --yes.",
            field="--yes",
        )
    with server_url() as url:
        own_url = schema.url_for(url, prevention, allocator)
        with schema.plainly_told(own_url):
            asyncio.run(_go_down(own_url, revision))
    console.print(f"The database is back at revision {revision}.")


@command.command("check")
@strategy_options
def check(prevention: str, allocator: str) -> int:
    """Check that the database is sound: its revision, its catalogue, and what it holds.

    The catalogue is compared with the code's tables, whether every constraint is there
    and was checked, and the ledger is swept for double bookings.
    """
    with server_url() as url:
        own_url = schema.url_for(url, prevention, allocator)
        wrong = _revision(own_url)
        wrong += [f"differs: {each}" for each in catalogue.check(url, prevention, allocator)]
        wrong += _run(own_url, _swept)
    for each in wrong:
        console.print(f"[red]{each}[/]")
    if not wrong:
        console.print("[green]The database is as the code believes it to be.[/]")
    return 1 if wrong else 0


@command.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@strategy_options
@click.option("--force", is_flag=True, help="Write over FILE if it is there.")
def backup(file: Path, prevention: str, allocator: str, force: bool) -> None:
    """Write all that the database holds to FILE, as it is at one moment.

    The service may go on meanwhile. FILE is of PostgreSQL's custom format; whoever may
    read it can read every name in it.
    """
    if file.exists() and not force:
        raise InvalidInput(f"{file} is there already; --force writes over it.", field="FILE")
    with server_url() as url:
        size = backups.back_up(schema.url_for(url, prevention, allocator), file)
    console.print(
        f"{file}: {size:,} bytes. Its contents could be listed; only a restore tries the rest."
    )


@command.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@strategy_options
@click.option(
    "--yes", is_flag=True, help="Take the place of what is there, which stays under another name."
)
def restore(file: Path, prevention: str, allocator: str, yes: bool) -> None:
    """Make the database what it was when FILE was written by `taxi db backup`.

    The service must not be running: it would remember bookings that are not there any
    more. If anything goes wrong, the database is as it was.
    """
    with server_url() as url:
        own_url = schema.url_for(url, prevention, allocator)
        done = backups.restore(own_url, file, replace=yes)
    console.print(f"Restored, at revision {done.revision}.")
    if done.replaced is not None:
        console.print(f"What was there before is in the database {done.replaced}.")
    if done.revision != schema.head():
        console.print(f"`taxi db migrate` brings it up to {schema.head()}.")


@command.command("conflicts")
@strategy_options
@json_option
def conflicts(prevention: str, allocator: str, as_json: bool) -> int:
    """List the double bookings, and which of each two would have to go. Changes nothing.

    A trip that is under way stays; else the one that was booked first.
    """
    with server_url() as url:
        found = _run(schema.url_for(url, prevention, allocator), guard.conflicts)
    if as_json:
        print_json([{"stays": _as_json(each.stays), "goes": _as_json(each.goes)} for each in found])
    else:
        _print_conflicts(found)
    return 1 if found else 0


@command.command("constrain")
@strategy_options
@click.option("--resolve", is_flag=True, help="Give one of each two to another driver, if any.")
@click.option("--guard-only", is_flag=True, help="Stop double booking, and leave it at that.")
def constrain(prevention: str, allocator: str, resolve: bool, guard_only: bool) -> int:
    """Put the rule against double booking on a table that lacks it, while it is in use.

    1. A guard is put up: nobody is double-booked from then on.
    2. The bookings that are there are gone through. Those that do not fit are listed.
    3. With --resolve, one of each two goes to another driver of its fleet who is free.
    4. If all fit, the constraint takes the guard's place. Everybody waits for that.

    Where bookings are left that do not fit, the guard stays, and the command exits with 1:
    cancel or move them, and run it again.
    """
    with server_url() as url:
        own_url = schema.url_for(url, prevention, allocator)
        with schema.plainly_told(own_url):
            return asyncio.run(_constrain(own_url, resolve=resolve, guard_only=guard_only))


@command.command("url")
@strategy_options
def url(prevention: str, allocator: str) -> None:
    """Print the database's address, with its password, for psql and the like.

    The embedded server answers there while something uses it, as `taxi serve` does.
    """
    with server_url() as address:
        click.echo(schema.url_for(address, prevention, allocator))


async def _go_down(own_url: str, revision: str) -> None:
    engine = create_async_engine(parse_url(own_url), poolclass=NullPool)
    try:
        await schema.migrate(engine, revision, down=True)
    finally:
        await engine.dispose()


def _run[T](own_url: str, look: Callable[..., Awaitable[T]]) -> T:
    """What `look` sees in the database, in a transaction that may only read."""

    async def work() -> T:
        database = Database(own_url, pool_size=1, statement_s_max=_STATEMENT_S_MAX)
        try:
            return await database.transact(look, read_only=True)
        finally:
            await database.close()

    with schema.plainly_told(own_url):
        return asyncio.run(work())


def _revision(own_url: str) -> list[str]:
    there = _run(own_url, schema.revision)
    if there == schema.head():
        return []
    return [f"The schema is at revision {there or 'none'}; the code wants {schema.head()}."]


async def _swept(connection: AsyncConnection) -> list[str]:
    audit = await double_bookings(connection)
    wrong = []
    if audit.double_bookings:
        wrong.append(
            f"Double bookings: {len(audit.double_bookings):,}. `taxi db conflicts` lists them."
        )
    if audit.malformed:
        wrong.append(f"Bookings whose time is no window: {len(audit.malformed):,}.")
    return wrong


async def _constrain(own_url: str, *, resolve: bool, guard_only: bool) -> int:
    database = Database(own_url, pool_size=_CONNECTIONS, statement_s_max=_STATEMENT_S_MAX)
    try:
        try:
            await guard.stand(database)
        except guard.AlreadyConstrained as error:
            console.print(f"[green]{error.message}[/]")
            return 0
        console.print("1. The guard stands: nobody is double-booked from now on.")
        if guard_only:
            return 0
        claimed = [count async for count in guard.backfill(database)]
        console.print(f"2. {sum(claimed):,} bookings fit, in {len(claimed):,} transactions.")
        if resolve:
            await _resolve(database)
        left = await database.transact(guard.conflicts, read_only=True)
        if left:
            _print_conflicts(left)
            console.print("The guard stays. Cancel or move what has to go, and run this again.")
            return 1
        done = await guard.constrain(database)
    finally:
        await database.close()
    console.print(
        f"4. The constraint stands over {done.bookings:,} bookings. Everybody waited for"
        f" {done.took_s * 1_000:,.0f} ms; the lock was had at try {done.lock_tries}."
    )
    return 0


async def _resolve(database: Database) -> None:
    allocator = find(Act.ALLOCATION, schema.SHIPPED_ALLOCATOR).load()()
    ledger: PostgresLedger = find(Act.PREVENTION, schema.SHIPPED).load()(database, allocator)
    fates = [fate async for _, fate in guard.resolve(ledger)]
    told = ", ".join(
        f"{fates.count(fate):,} {fate.replace('_', ' ')}" for fate in guard.Fate if fate in fates
    )
    console.print(f"3. Of those that do not fit: {told or 'none'}.")


def _as_json(booking: Booking) -> dict[str, object]:
    return {name: getattr(booking, name) for name in _TOLD}


_TOLD = ("id", "driver_id", "rider_id", "state", "start", "predicted_end", "created_at")


def _print_conflicts(found: list[guard.Conflict]) -> None:
    if not found:
        console.print("[green]No double booking.[/]")
        return
    console.print(f"[bold red]Bookings that do not fit: {len(found):,}.[/]")
    table = Table("driver", "has to go", "when (UTC)", "state", "in the time of", "when", box=None)
    for stays, goes in found[:_SHOWN_MAX]:
        table.add_row(
            str(goes.driver_id),
            str(goes.id),
            span(goes.start, goes.predicted_end, UTC),
            str(goes.state),
            str(stays.id),
            span(stays.start, stays.predicted_end, UTC),
        )
    console.print(table)
    if len(found) > _SHOWN_MAX:
        console.print(
            f"… and {len(found) - _SHOWN_MAX:,} more; `taxi db conflicts --json` has all."
        )
