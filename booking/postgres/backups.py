"""Backup and restore, by PostgreSQL's own `pg_dump` and `pg_restore`.

A backup is one snapshot of the whole database, whoever writes meanwhile. A restore never
writes into what is there: it fills a new database beside it, looks at it, and then has
the two change names. So a backup that is broken costs nothing but time.
"""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from booking.errors import InvalidInput, TaxiError
from booking.postgres import schema
from booking.postgres.binaries import find_tool
from booking.postgres.database import dsn, parse_url
from booking.postgres.events import begin_anew

_FILLED = "restoring"
_MAJOR = 10_000  # server_version_num is 180006 for 18.6


class BackupFailed(TaxiError):
    """The backup could not be made."""


class RestoreFailed(TaxiError):
    """The backup could not be restored. The database is as it was."""


class InUse(TaxiError):
    """Somebody is using the database."""


class NotEmpty(TaxiError):
    """There is something in the database already."""


class Restored(NamedTuple):
    """What came of a restore: the schema's revision, and where the old database is, if any."""

    revision: str
    replaced: str | None


def back_up(url: str, file: Path) -> int:
    """Write a backup of the database at `url` to `file`; its size in bytes.

    The file is there whole or not at all, and its contents can be listed. Raises `BackupFailed`,
    `NoPostgres`, or `SchemaError` if the server does not answer.
    """
    with schema.plainly_told(url):
        major = asyncio.run(_major(url))
    new = file.with_name(f".{file.name}.new")
    try:
        new.touch(mode=0o600)  # people's names are in it
        dump = ["--format=custom", "--no-owner", "--no-privileges", f"--file={new}"]
        _run("pg_dump", major, url, dump, BackupFailed)
        _run("pg_restore", major, url, ["--list", new], BackupFailed, connect=False)
        new.replace(file)
    except OSError as error:
        raise BackupFailed(f"{file} cannot be written: {error.strerror}.") from error
    finally:
        new.unlink(missing_ok=True)
    return file.stat().st_size


def restore(url: str, file: Path, *, replace: bool = False) -> Restored:
    """Make the database at `url` what it was when `file` was written.

    A database that is there must be empty, unless it is to be replaced: then it stays,
    under another name. Nobody may be using it. Raises `InvalidInput` if there is no such
    file, `NotEmpty`, `InUse`, `RestoreFailed`, `NoPostgres` or `SchemaError`.
    """
    if not file.is_file():
        raise InvalidInput(f"There is no file {file}.", field="FILE")
    with schema.plainly_told(url):
        return asyncio.run(_restore(url, file, replace=replace))


async def _restore(url: str, file: Path, *, replace: bool) -> Restored:
    name = parse_url(url).database or ""
    filled = dsn(url, f"{name}_{_FILLED}")
    async with _maintenance(url) as server:
        await _check_unused(server, name)
        holds = await _exists(server, name) and await _holds_tables(url)
        if holds and not replace:
            raise NotEmpty(
                f"The database {name} is not empty. With --yes another takes its place, and"
                " it stays under another name."
            )
        await _do(server, f"DROP DATABASE IF EXISTS {_quoted(filled)}")  # of one interrupted
        await _do(server, f"CREATE DATABASE {_quoted(filled)} TEMPLATE template0")
        kept = f"{name}_until_{datetime.now(UTC):%Y%m%dt%H%M%S}" if holds else None
        try:
            await asyncio.to_thread(_fill, await _major(url), filled, file)
            revision = await _look_over(filled)
            fills = f"ALTER DATABASE {_quoted(filled)} RENAME TO {_quoted(url)}"
            if kept is not None:
                there = _quoted(dsn(url, kept))
                await _do(server, f"ALTER DATABASE {_quoted(url)} RENAME TO {there}", fills)
            else:
                await _do(server, f"DROP DATABASE IF EXISTS {_quoted(url)}")
                await _do(server, fills)
        finally:
            await _do(server, f"DROP DATABASE IF EXISTS {_quoted(filled)}")
        return Restored(revision, kept)


def _fill(major: int, url: str, file: Path) -> None:
    how = ["--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error"]
    database = f"--dbname={parse_url(url).database}"
    _run("pg_restore", major, url, [*how, database, file], RestoreFailed)


async def _look_over(url: str) -> str:
    """The revision of the schema, if it is one that this code can do with."""
    engine = create_async_engine(parse_url(url), poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            if await connection.scalar(_KEEPS_EVENTS) and await connection.scalar(_FROM_ELSEWHERE):
                await begin_anew(connection)
        async with engine.connect() as connection:
            revision = await schema.revision(connection)
    finally:
        await engine.dispose()
    if revision is None:
        raise RestoreFailed("It is no backup of this service: its schema has no revision.")
    if not schema.is_known(revision):
        raise RestoreFailed(f"Its schema is at revision {revision}, which is newer than this code.")
    return revision


_KEEPS_EVENTS = text("SELECT to_regclass('public.booking_events') IS NOT NULL")
_FROM_ELSEWHERE = text(
    "SELECT EXISTS (SELECT FROM booking_events"
    " WHERE written_in > pg_current_xact_id()::text::bigint)"
)


@asynccontextmanager
async def _maintenance(url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(
        parse_url(url).set(database="postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


async def _exists(server: AsyncConnection, name: str) -> bool:
    found = await server.scalar(
        text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name}
    )
    return found is not None


async def _check_unused(server: AsyncConnection, name: str) -> None:
    sessions = await server.scalar(
        text(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = :name AND backend_type = 'client backend'"
        ),
        {"name": name},
    )
    if sessions:
        raise InUse(
            f"{sessions} sessions are using the database {name}: stop the service first, as it"
            " would remember bookings that are not there any more."
        )


async def _holds_tables(url: str) -> bool:
    engine = create_async_engine(parse_url(url), poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            found = await connection.scalar(
                text("SELECT 1 FROM pg_tables WHERE schemaname = 'public' LIMIT 1")
            )
    finally:
        await engine.dispose()
    return found is not None


async def _do(server: AsyncConnection, *statements: str) -> None:
    """Run the statements, several in one transaction."""
    raw: Any = (await server.get_raw_connection()).driver_connection
    await raw.execute("; ".join(statements))


def _quoted(url: str) -> str:
    name = parse_url(url).database or ""
    return '"' + name.replace('"', '""') + '"'


async def _major(url: str) -> int:
    """The major version of the server at `url`, whichever databases it has."""
    async with _maintenance(url) as server:
        number = await server.scalar(text("SELECT current_setting('server_version_num')::int"))
    return (number or 0) // _MAJOR


def _run(
    name: str,
    major: int,
    url: str,
    arguments: Sequence[str | Path],
    failed: type[TaxiError],
    *,
    connect: bool = True,
) -> None:
    """Run a program of PostgreSQL's on the database; raise `failed` with its last words."""
    parsed = parse_url(url)
    # The password goes by the environment: everybody can read the arguments of a process.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    if connect:
        given = {
            "PGHOST": parsed.host,
            "PGPORT": parsed.port and str(parsed.port),
            "PGUSER": parsed.username,
            "PGPASSWORD": parsed.password and str(parsed.password),
            "PGSSLMODE": parsed.query.get("ssl"),
            "PGDATABASE": parsed.database,
        }
        environment |= {key: f"{value}" for key, value in given.items() if value}
    done = subprocess.run(
        [find_tool(name, major), *(["--no-password"] if connect else []), *arguments],
        env=environment | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        # They begin by their own name, and by "error: ", or say nothing of either.
        last = said[-1].removeprefix(f"{name}: ").removeprefix("error: ")
        raise failed(f"{failed.default_message()} {name}: {last}")
