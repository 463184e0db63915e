"""What every test stands on: one real PostgreSQL a session, one empty database a test.

The server is always the embedded one, whatever `DATABASE_URL` says: the tests
stop backends and drop databases, and do not do that to somebody's own.

Asynchronous tests are marked `pytest.mark.anyio`; their fixtures share their loop.
"""

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

import asyncpg
import pytest

from api.tokens import mint
from booking.postgres import schema
from booking.postgres.database import Database, parse_url
from booking.postgres.embedded import EmbeddedPostgres

_numbers = itertools.count(1)

ADMINISTRATOR_ID = 1_000_000_000
_LET_IN = f"""
    INSERT INTO accounts (id, email, role) OVERRIDING SYSTEM VALUE
    VALUES ({ADMINISTRATOR_ID}, 'administrator@tests.example', 'administrator')
    ON CONFLICT DO NOTHING
"""
# Servers and clients of the tests find both where a user's would: in the environment.
os.environ["TAXI_TOKEN_SECRET"] = "what the tests sign with, and nobody else"  # noqa: S105
os.environ["TAXI_TOKEN"] = mint(
    os.environ["TAXI_TOKEN_SECRET"], ADMINISTRATOR_ID, timedelta(days=1)
)
# Nobody but this machine is told anything by a test.
os.environ["TAXI_WEBHOOK_PRIVATE"] = "true"
AUTHORIZATION = {"Authorization": f"Bearer {os.environ['TAXI_TOKEN']}"}
"""What an administrator sends, who is in every database that the fixtures here serve."""

# Not TRUNCATE, which makes new files for every table and index, and takes seven times as long.
_EMPTY_ALL_TABLES = """
    DO $$
    DECLARE
        name text;
    BEGIN
        SET LOCAL session_replication_role = replica;  -- no trigger, no foreign key
        FOR name IN
            SELECT oid::regclass::text FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
              AND relname <> 'alembic_version'
        LOOP
            EXECUTE 'DELETE FROM ' || name;
        END LOOP;
        PERFORM setval(oid::regclass, 1, false) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'S';
    END $$
"""

# Started in the background by a shell, we ignore Ctrl-C, and so would all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def open_directory() -> Iterator[Path]:
    """A temporary directory that every user can enter."""
    # Not pytest's own: it is private, so for root a server's data would lie elsewhere, and stay.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def server_directory() -> Iterator[Path]:
    """Where a test may keep a server of its own."""
    with open_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """A server in a directory of its own; it goes with the session.

    It is not safe against a power cut, for speed, and sees a deadlock sooner.
    """
    settings = {
        "fsync": "off",
        "full_page_writes": "off",
        "max_connections": "200",
        "deadlock_timeout": "50ms",
    }
    with open_directory() as directory, EmbeddedPostgres(directory, settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def template_of(server: EmbeddedPostgres) -> Callable[..., str]:
    """The name of a migrated database, fitted to a recipe and an allocator, to make copies of."""
    base = _beside(server.url, "template")

    @cache
    def fitted(prevention: str, allocator: str) -> str:
        name = parse_url(schema.url_for(base, prevention, allocator)).database or ""
        if name != parse_url(base).database:  # migrated once, and only fitted each time
            template = fitted(schema.SHIPPED, schema.SHIPPED_ALLOCATOR)
            copied = f"CREATE DATABASE {name} TEMPLATE {template}"
            asyncio.run(_execute(server.url, copied))
        let_in(schema.prepare(base, prevention, allocator))
        return name

    def prepare(prevention: str, allocator: str = schema.SHIPPED_ALLOCATOR) -> str:
        return fitted(prevention, allocator)

    return prepare


@pytest.fixture
def fresh_url(new_database: Callable[..., str]) -> str:
    """The address of an empty, migrated database, as the shipped recipe wants it."""
    return new_database(schema.SHIPPED)


@pytest.fixture
def new_database(
    server: EmbeddedPostgres, template_of: Callable[..., str]
) -> Iterator[Callable[..., str]]:
    """Makes an empty, migrated database fitted to a recipe, and an allocator; its address."""
    with _copies(server, template_of) as make:
        yield make


@pytest.fixture(scope="module")
def emptied_database(
    server: EmbeddedPostgres, template_of: Callable[..., str]
) -> Iterator[Callable[..., str]]:
    """As `new_database`, but one a recipe and file, emptied whenever it is asked for.

    Quicker to come by; for tests that leave the schema as it is.
    """
    with _copies(server, template_of) as make, ThreadPoolExecutor(1) as thread:
        made = cache(make)

        def emptied(prevention: str, *allocator: str) -> str:
            url = made(prevention, *allocator)
            thread.submit(asyncio.run, _execute(url, _EMPTY_ALL_TABLES)).result()
            return url

        yield emptied


@pytest.fixture
async def database(fresh_url: str) -> AsyncIterator[Database]:
    """A pool of connections to a database as the shipped recipe wants it."""
    opened = Database(fresh_url)
    yield opened
    await opened.close()


@pytest.fixture
def execute() -> Callable[..., Awaitable[None]]:
    """`await execute(url, statement, …)`: what no part of the product would do to a database."""
    return _execute


@dataclass(frozen=True, slots=True)
class RunningService:
    """`taxi serve` in a process of its own."""

    address: str
    database_url: str
    process: subprocess.Popen[str]


@pytest.fixture
def serve() -> Iterator[Callable[..., RunningService]]:
    """`serve(url, *options)` runs `taxi serve` on that database and waits until it answers."""
    with _services() as start:
        yield start


@pytest.fixture(scope="module")
def service(server: EmbeddedPostgres, template_of: Callable[..., str]) -> Iterator[RunningService]:
    """A running service on a database that the tests of one file share."""
    with _copies(server, template_of) as make, _services() as start:
        yield start(make(schema.SHIPPED))


@contextmanager
def _services() -> Iterator[Callable[..., RunningService]]:
    taxi = str(Path(sys.executable).parent / "taxi")
    with ExitStack() as stack:

        def start(url: str, *options: str, port: int | None = 0) -> RunningService:
            chosen = () if port is None else ("--port", str(port))
            process = stack.enter_context(
                subprocess.Popen(
                    [taxi, "serve", *chosen, *options],
                    env=os.environ | {"DATABASE_URL": url},
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )
            stack.callback(process.terminate)
            assert process.stdout is not None
            announced = process.stdout.readline().strip() or process.stdout.readline()
            found = re.match(r"Serving on (http://\S+)", announced)
            assert found, f"taxi serve said {announced!r}"
            let_in(_served(url, options))
            return RunningService(found.group(1), url, process)

        yield start


def let_in(url: str) -> None:
    """Have the tests' administrator in a database that was set up in another way."""
    with ThreadPoolExecutor(1) as thread:  # as the test that asks may be running in a loop
        thread.submit(asyncio.run, _execute(url, _LET_IN)).result()


def _served(url: str, options: tuple[str, ...]) -> str:
    """The database that `taxi serve` works on, which depends on the recipe."""
    if "--prevention" not in options:
        return url
    return schema.url_for(url, options[options.index("--prevention") + 1])


async def _execute(url: str, *statements: str) -> None:
    """Run statements one by one on a connection of their own."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@contextmanager
def _copies(
    server: EmbeddedPostgres, template_of: Callable[..., str]
) -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def copy(prevention: str, *allocator: str) -> str:
        name = f"test_{next(_numbers)}"
        template = template_of(prevention, *allocator)
        asyncio.run(_execute(server.url, f"CREATE DATABASE {name} TEMPLATE {template}"))
        made.append(name)
        return _beside(server.url, name)

    def make(prevention: str, *allocator: str) -> str:
        # In a thread, as the test that asks may be running in an event loop.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(copy, prevention, *allocator).result()

    try:
        yield make
    finally:
        drops = [f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in made]
        asyncio.run(_execute(server.url, *drops))


def _beside(url: str, name: str) -> str:
    own = parse_url(url).set(drivername="postgresql", database=name)
    return own.render_as_string(hide_password=False)
