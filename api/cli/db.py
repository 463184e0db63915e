"""`taxi db`: the database behind the service."""

import asyncio

import rich_click as click
from rich.console import Console
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from api.cli.home import server_url, strategy_options
from booking.postgres import catalogue, schema
from booking.postgres.database import parse_url

console = Console(highlight=False, soft_wrap=True)


@click.group("db")
def command() -> None:
    """Migrate the database, and check that it is what the code believes it to be."""


@command.command("migrate")
@strategy_options
@click.option("--down-to", metavar="REVISION", help='Go back to a revision; "base" drops all.')
def migrate(prevention: str, allocator: str, down_to: str | None) -> None:
    """Create the database if it is missing, and bring it up to the newest revision."""
    with server_url() as url:
        if down_to is None:
            schema.prepare(url, prevention, allocator)
            console.print(f"The database is at revision {schema.head()}.")
            return
        own_url = schema.url_for(url, prevention, allocator)
        with schema.plainly_told(own_url):
            asyncio.run(_go_down(own_url, down_to))
    console.print(f"The database is back at revision {down_to}.")


@command.command("check")
@strategy_options
def check(prevention: str, allocator: str) -> int:
    """Compare the database's catalogue with the code's tables. Exits with 1 if they differ."""
    with server_url() as url:
        differences = catalogue.check(url, prevention, allocator)
    for difference in differences:
        console.print(f"[red]differs:[/] {difference}")
    if not differences:
        console.print("[green]The database is as the code believes it to be.[/]")
    return 1 if differences else 0


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
