"""Brings a database to the schema: created if missing, migrated, fitted to a recipe.

A recipe is studied on a database that has *its* constraints and no others: with
the exclusion constraint left in place, even the bug looks safe.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

import migrations
from booking.errors import TaxiError, Unavailable
from booking.postgres.database import UNIQUE_VIOLATION, dsn, parse_url, sqlstate_of
from booking.strategies import Act, find

SHIPPED = "grouped_commit"
"""The prevention recipe that the service runs on unless told otherwise."""
SHIPPED_ALLOCATOR = "ask_then_offer"
"""How the service finds any free driver unless told otherwise."""

_DRIVERS_OWN = (asyncpg.PostgresError, asyncpg.InterfaceError)
_ONE_AT_A_TIME = 0x7A78_1001  # the advisory lock of whoever changes the schema


class SchemaError(TaxiError):
    """The database could not be brought to the schema."""


def url_for(url: str, prevention: str, allocator: str = SHIPPED_ALLOCATOR) -> str:
    """The address of the database that belongs to a recipe and an allocator.

    The shipped ones have the named one. Any other gets one of its own beside
    it, so that an unsafe recipe never touches real bookings.
    """
    name = parse_url(url).database or ""
    if prevention != SHIPPED:
        name += f"_{prevention}"
    if allocator != SHIPPED_ALLOCATOR:
        name += f"_{allocator}"
    return dsn(url, name)


def prepare(url: str, prevention: str = SHIPPED, allocator: str = SHIPPED_ALLOCATOR) -> str:
    """Create, migrate and fit the database of these strategies; return its address.

    Safe to run from several processes at once, and again. Raises `SchemaError`
    when the server cannot be reached or does not allow it.
    """
    own_url = url_for(url, prevention, allocator)
    with plainly_told(own_url):
        asyncio.run(_prepare(own_url, fitting(prevention, allocator)))
    return own_url


def fitting(prevention: str, allocator: str = SHIPPED_ALLOCATOR) -> list[str]:
    """The statements that fit a migrated database to these strategies, in order.

    Each may be run again. Raises `InvalidInput` for a strategy that there is none of.
    """
    return [
        *find(Act.PREVENTION, prevention).load().schema,
        *find(Act.ALLOCATION, allocator).load().schema,
    ]


@contextmanager
def plainly_told(url: str) -> Iterator[None]:
    """Raise `SchemaError`, in words for whoever runs the server, for what goes wrong at `url`.

    It may go wrong through SQLAlchemy, or on a connection of the driver's own.
    """
    try:
        yield
    except Unavailable as error:
        raise SchemaError(_told(url, error.__cause__ or error)) from error
    except (OSError, TimeoutError, DBAPIError, CommandError, *_DRIVERS_OWN) as error:
        raise SchemaError(_told(url, error)) from error


def _told(url: str, error: BaseException) -> str:
    if isinstance(error, CommandError):
        return f"The database cannot be migrated: {error}."
    if sqlstate_of(error) in {"3D000", "42P01"}:  # no such database, no such table
        return (
            f"The database {parse_url(url).database} is not set up;"
            " `taxi serve` or `taxi db migrate` does that."
        )
    if isinstance(error, DBAPIError | asyncpg.PostgresError):
        return f"PostgreSQL refused: {getattr(error, 'orig', error)}"
    parsed = parse_url(url)
    return f"PostgreSQL at {parsed.host}:{parsed.port or 5432} does not answer ({error})."


async def _prepare(url: str, statements: list[str]) -> None:
    await _create_if_missing(url)
    engine = create_async_engine(parse_url(url), poolclass=NullPool)
    try:
        await migrate(engine)
        if statements:
            async with engine.begin() as connection:
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ONE_AT_A_TIME}
                )
                await fit(connection, statements)
    finally:
        await engine.dispose()


async def migrate(engine: AsyncEngine, revision: str = "head", *, down: bool = False) -> None:
    """Bring the database up to `revision`, or `down` to it ("base" is before the first)."""
    config = _config()

    def run(connection: Connection) -> None:
        # A session's lock, as every migration has a transaction of its own.
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ONE_AT_A_TIME})
        connection.commit()
        try:
            config.attributes["connection"] = connection
            (command.downgrade if down else command.upgrade)(config, revision)
            connection.commit()
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ONE_AT_A_TIME})
            connection.commit()

    async with engine.connect() as connection:
        await connection.run_sync(run)


async def _create_if_missing(url: str) -> None:
    parsed = parse_url(url)
    probe = create_async_engine(parsed, poolclass=NullPool)
    try:
        async with probe.connect():
            return
    except DBAPIError as error:
        if sqlstate_of(error) != "3D000":  # invalid_catalog_name: there is no such database
            raise
    finally:
        await probe.dispose()
    maintenance = create_async_engine(
        parsed.set(database="postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    name = maintenance.dialect.identifier_preparer.quote_identifier(parsed.database or "")
    try:
        async with maintenance.connect() as connection:
            await connection.execute(text(f"CREATE DATABASE {name}"))
    except DBAPIError as error:
        # Somebody else was quicker: duplicate_database, or unique_violation inside it.
        if sqlstate_of(error) not in {"42P04", UNIQUE_VIOLATION}:
            raise
    finally:
        await maintenance.dispose()


async def fit(connection: AsyncConnection, statements: list[str]) -> None:
    """Run what strategies declare as their `schema`."""
    for statement in statements:
        # As it stands: to text() a colon in it would be a parameter.
        await connection.exec_driver_sql(statement)


def head() -> str:
    """The newest revision there is."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


async def revision(connection: AsyncConnection) -> str | None:
    """The revision that the database is at; None if it was never migrated."""
    if await connection.scalar(text("SELECT to_regclass('alembic_version') IS NULL")):
        return None
    found: str | None = await connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def is_known(number: str) -> bool:
    """Whether this code has a migration of that number."""
    return number in {
        each.revision for each in ScriptDirectory.from_config(_config()).walk_revisions()
    }


def _config() -> Config:
    config = Config()
    folder = str(Path(migrations.__file__).parent)
    config.set_main_option("script_location", folder.replace("%", "%%"))  # % interpolates
    return config
