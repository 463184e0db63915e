"""`Database.transact`: what is run again, what is never called a success, and who waits.

Every failure here is a real one of a real server: deadlocks, lost connections
and answers, stopped and frozen servers.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.errors import Contended, InvalidInput, LedgerBusy, LedgerLost, Unavailable
from booking.postgres import reads
from booking.postgres.database import ATTEMPTS_MAX, Database, parse_url, sqlstate_of
from booking.postgres.embedded import EmbeddedPostgres
from booking.postgres.tables import riders
from tests.world import Execute

pytestmark = pytest.mark.anyio


async def add(connection: AsyncConnection, name: str = "Ada") -> int:
    added = insert(riders).values(name=name).returning(riders.c.id)
    return (await connection.execute(added)).scalar_one()


async def count(connection: AsyncConnection) -> int:
    return (await connection.execute(select(func.count()).select_from(riders))).scalar_one()


async def rename(connection: AsyncConnection, rider_id: int, name: str) -> None:
    await connection.execute(update(riders).where(riders.c.id == rider_id).values(name=name))


async def exactly(error: type[Exception], work: Awaitable[object]) -> None:
    """`error` itself, and none of those that derive from it."""
    with pytest.raises(error) as caught:
        await work
    assert type(caught.value) is error


# --- Run again. ----------------------------------------------------------------------------


async def test_a_serialization_failure_is_run_again(database: Database) -> None:
    rider = await database.transact(add)
    seen = []

    async def rename_after_someone_else(connection: AsyncConnection) -> None:
        name = await connection.scalar(select(riders.c.name).where(riders.c.id == rider))
        seen.append(name)
        if len(seen) == 1:
            await database.transact(lambda c: rename(c, rider, "Grace"))
        await rename(connection, rider, f"{name} the Second")

    await database.transact(rename_after_someone_else, isolation="REPEATABLE READ")
    assert seen == ["Ada", "Grace"]
    name = await database.transact(lambda c: c.scalar(select(riders.c.name)))
    assert name == "Grace the Second"


async def test_one_that_never_comes_through_gives_up(database: Database) -> None:
    rider = await database.transact(add)
    attempts = 0

    async def always_late(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await connection.scalar(select(riders.c.name))
        await database.transact(lambda c: rename(c, rider, f"{attempts}"))
        await rename(connection, rider, "never")

    with pytest.raises(Contended) as gave_up:
        await database.transact(always_late, isolation="REPEATABLE READ")
    assert attempts == ATTEMPTS_MAX
    assert gave_up.value.__cause__ is not None
    assert sqlstate_of(gave_up.value.__cause__) == "40001"


async def test_a_serialization_failure_at_the_commit_is_run_again(database: Database) -> None:
    await database.transact(add)
    attempts = 0

    async def add_as_many_as_there_are(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        for _ in range(await count(connection)):
            await add(connection)
        if attempts == 1:
            await database.transact(add_one_for_each, isolation="SERIALIZABLE")

    async def add_one_for_each(connection: AsyncConnection) -> None:
        for _ in range(await count(connection)):
            await add(connection)

    await database.transact(add_as_many_as_there_are, isolation="SERIALIZABLE")
    assert attempts == 2
    assert await database.transact(count) == 4  # 1, doubled, doubled


async def test_a_deadlock_is_run_again(database: Database) -> None:
    pair = [await database.transact(add), await database.transact(add)]
    both_hold_one = asyncio.Barrier(2)
    attempts = 0

    async def rename_both(connection: AsyncConnection, order: list[int]) -> None:
        nonlocal attempts
        attempts += 1
        await rename(connection, order[0], f"{order}")
        if attempts <= 2:
            await both_hold_one.wait()
        await rename(connection, order[1], f"{order}")

    await asyncio.gather(
        database.transact(lambda c: rename_both(c, pair)),
        database.transact(lambda c: rename_both(c, pair[::-1])),
    )
    assert attempts == 3
    names = await database.transact(lambda c: c.scalars(select(riders.c.name)))
    assert len(set(names)) == 1


async def test_nothing_is_run_again_for_another_error(database: Database) -> None:
    attempts = 0

    async def divide(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await connection.execute(text("SELECT 1 / 0"))

    with pytest.raises(DBAPIError) as failed:
        await database.transact(divide)
    assert (sqlstate_of(failed.value), attempts) == ("22012", 1)
    assert failed.value.__cause__ is failed.value.orig


async def test_work_that_raises_leaves_nothing(database: Database) -> None:
    async def add_and_raise(connection: AsyncConnection) -> None:
        await add(connection)
        raise LookupError

    with pytest.raises(LookupError):
        await database.transact(add_and_raise)
    assert await database.transact(count) == 0


# --- A COMMIT that failed. ------------------------------------------------------------------


def at_commit(does: str) -> tuple[str, ...]:
    """Statements that make every COMMIT of a new rider do something first."""
    return (
        f"""
        CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            {does};
            RETURN NULL;
        END $$
        """,
        """
        CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON riders
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit()
        """,
    )


async def test_a_rule_that_speaks_at_the_commit_is_no_success(
    database: Database, fresh_url: str, execute: Execute
) -> None:
    rule = "RAISE EXCEPTION 'no more riders' USING ERRCODE = 'check_violation'"
    await execute(fresh_url, *at_commit(rule))
    with pytest.raises(IntegrityError, match="no more riders"):
        await database.transact(add)
    assert await database.transact(count) == 0


async def fail_and_say_nothing(connection: AsyncConnection) -> str:
    await add(connection)
    with contextlib.suppress(DBAPIError):
        await connection.execute(text("SELECT 1 / 0"))
    return "done"


async def test_a_failure_that_was_swallowed_is_no_success(database: Database) -> None:
    with pytest.raises(DBAPIError, match="division by zero"):
        await database.transact(fail_and_say_nothing)
    assert await database.transact(count) == 0


async def test_the_engine_alone_would_call_it_a_success(database: Database) -> None:
    async with database.engine.begin() as connection:
        assert await fail_and_say_nothing(connection) == "done"
    assert await database.transact(count) == 0, "PostgreSQL answered COMMIT with ROLLBACK"


async def test_a_failure_in_a_savepoint_may_be_caught(database: Database) -> None:
    async def fail_within(connection: AsyncConnection) -> None:
        await add(connection)
        with contextlib.suppress(DBAPIError):
            async with connection.begin_nested():
                await connection.execute(text("SELECT 1 / 0"))
        await add(connection)

    await database.transact(fail_within)
    assert await database.transact(count) == 2


async def test_a_failure_before_a_savepoint_is_not_forgotten(database: Database) -> None:
    async def fail_before(connection: AsyncConnection) -> None:
        await fail_and_say_nothing(connection)
        with contextlib.suppress(DBAPIError):
            async with connection.begin_nested():
                await add(connection)

    with pytest.raises(DBAPIError, match="division by zero"):
        await database.transact(fail_before)
    assert await database.transact(count) == 0


async def test_a_serialization_failure_that_was_swallowed_is_run_again(
    database: Database,
) -> None:
    rider = await database.transact(add)
    attempts = 0

    async def swallow(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await count(connection)
        if attempts == 1:
            await database.transact(lambda c: rename(c, rider, "Grace"))
        with contextlib.suppress(DBAPIError):
            await rename(connection, rider, "Bob")

    await database.transact(swallow, isolation="REPEATABLE READ")
    assert attempts == 2
    assert await database.transact(lambda c: c.scalar(select(riders.c.name))) == "Bob"


# --- A connection that was lost. --------------------------------------------------------------

SUICIDE = "pg_terminate_backend(pg_backend_pid())"


async def test_a_connection_lost_before_the_commit_was_for_nothing(database: Database) -> None:
    async def add_and_die(connection: AsyncConnection) -> None:
        await add(connection)
        await connection.execute(text(f"SELECT {SUICIDE}"))

    await exactly(Unavailable, database.transact(add_and_die))
    assert await database.transact(count) == 0


async def test_a_lost_connection_that_was_swallowed_is_no_success(database: Database) -> None:
    async def die_and_go_on(connection: AsyncConnection) -> None:
        with contextlib.suppress(DBAPIError):
            await connection.execute(text(f"SELECT {SUICIDE}"))
        await add(connection)

    await exactly(Unavailable, database.transact(die_and_go_on))
    assert await database.transact(count) == 0


async def test_a_connection_lost_at_the_commit_leaves_everyone_in_doubt(
    database: Database, fresh_url: str, execute: Execute
) -> None:
    await execute(fresh_url, *at_commit(f"PERFORM {SUICIDE}"))
    await exactly(LedgerLost, database.transact(add))
    assert await database.transact(count) == 0


async def test_an_answer_lost_after_the_commit_leaves_everyone_in_doubt(fresh_url: str) -> None:
    async with losing_proxy(fresh_url) as (url, lose_the_next):
        database = Database(url)
        try:
            await database.transact(reads.ping)
            lose_the_next.set()
            await exactly(LedgerLost, database.transact(add))
            assert await database.transact(count, read_only=True) == 1, "it was recorded"
        finally:
            await database.close()


@contextlib.asynccontextmanager
async def losing_proxy(url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The address of a proxy that, when told to, loses the server's answer to a COMMIT."""
    server = parse_url(url)
    lose_the_next = asyncio.Event()

    async def serve(from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(server.host, server.port)
        lost = asyncio.Event()

        async def ask() -> None:
            while chunk := await from_client.read(65_536):
                if lose_the_next.is_set() and b"COMMIT;" in chunk:  # not READ COMMITTED
                    lose_the_next.clear()
                    lost.set()
                to_server.write(chunk)

        async def answer() -> None:
            while (chunk := await from_server.read(65_536)) and not lost.is_set():
                to_client.write(chunk)

        both = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        _, pending = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for end in (to_server, to_client):
            end.close()
            with contextlib.suppress(ConnectionError):
                await end.wait_closed()

    proxy = await asyncio.start_server(serve, "127.0.0.1")
    async with proxy:
        own = server.set(drivername="postgresql", port=proxy.sockets[0].getsockname()[1])
        yield own.render_as_string(hide_password=False), lose_the_next


async def test_idle_connections_that_died_are_replaced_unnoticed(database: Database) -> None:
    await asyncio.gather(*[database.transact(reads.ping) for _ in range(5)])
    killed = await database.transact(
        lambda c: c.scalar(
            text(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    )
    assert killed > 0
    await asyncio.sleep(0.2)  # let the news arrive; a later one would only cost a 503
    await asyncio.gather(*[database.transact(reads.ping) for _ in range(10)])


# --- A server that is away. -------------------------------------------------------------------


SETTINGS = {"fsync": "off"}


@pytest.mark.parametrize(
    "ended_by", [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT], ids=["killed", "hasty", "in_order"]
)
async def test_a_server_that_ended_is_unavailable_and_the_pool_heals_by_itself(
    ended_by: signal.Signals, server_directory: Path
) -> None:
    answers: list[Exception | None] = []
    over = asyncio.Event()

    async def hammer() -> None:
        while not over.is_set():
            try:
                await database.transact(lambda c: c.execute(text("SELECT pg_sleep(0.01)")))
                answers.append(None)
            except Exception as error:  # noqa: BLE001  # every kind is looked at below
                answers.append(error)
                await asyncio.sleep(0.01)

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  # what is waited for is a row of answers
            await asyncio.sleep(0.01)

    with EmbeddedPostgres(server_directory, settings=SETTINGS) as server:
        database = Database(server.url, pool_size=4)
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(hammer())
            await until(lambda: None in answers)
            assert server.pid is not None
            os.kill(server.pid, ended_by)
            await until(lambda: answers[-1] is not None)
            assert await asyncio.to_thread(started_again, server_directory) == server.url
            back = len(answers)
            await until(lambda: len(answers) > back + 20 and answers[-20:] == [None] * 20)
            over.set()
        await database.close()
    kinds = {type(answer) for answer in answers}
    assert kinds - {LedgerLost} == {type(None), Unavailable}


def started_again(directory: Path) -> str:
    with EmbeddedPostgres(directory, settings=SETTINGS) as again:
        return again.url


async def test_a_frozen_server_is_unavailable(fresh_url: str) -> None:
    database = Database(fresh_url, pool_size=1, statement_s_max=0.2)
    pid = await database.transact(lambda c: c.scalar(text("SELECT pg_backend_pid()")))
    os.kill(pid, signal.SIGSTOP)
    try:
        await exactly(Unavailable, database.transact(reads.ping))
        await database.transact(reads.ping)  # on a new connection
    finally:
        os.kill(pid, signal.SIGCONT)
        await database.close()


@pytest.mark.parametrize(
    "wrong",
    [{"database": "nowhere"}, {"username": "nobody"}, {"password": "no"}, {"port": 1}],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_a_server_that_does_not_let_us_in_is_unavailable(
    fresh_url: str, wrong: dict[str, object]
) -> None:
    address = parse_url(fresh_url).set(**wrong).render_as_string(hide_password=False)
    database = Database(address)
    await exactly(Unavailable, database.transact(reads.ping))
    await database.close()


@pytest.mark.parametrize(
    ("sqlstate", "becomes"),
    [
        ("08006", Unavailable),  # connection_failure
        ("25006", Unavailable),  # read_only_sql_transaction: a standby, or a full disk
        ("53100", Unavailable),  # disk_full
        ("53200", Unavailable),  # out_of_memory
        ("57P01", Unavailable),  # admin_shutdown
        ("58030", Unavailable),  # io_error
        ("55P03", Contended),  # lock_not_available
        ("40P01", Contended),  # deadlock_detected, each time
        ("23514", IntegrityError),  # check_violation: a bug, and no excuse for one
    ],
)
async def test_errors_are_told_in_the_domains_words(
    database: Database, sqlstate: str, becomes: type[Exception]
) -> None:
    raising = text(f"DO $$ BEGIN RAISE EXCEPTION 'it' USING ERRCODE = '{sqlstate}'; END $$")
    await exactly(becomes, database.transact(lambda c: c.execute(raising)))


async def test_a_server_that_ran_out_of_connections_is_unavailable(
    fresh_url: str, execute: Execute
) -> None:
    name = parse_url(fresh_url).database
    await execute(fresh_url, "CREATE ROLE guest LOGIN PASSWORD 'guest'")
    try:
        await execute(fresh_url, f"ALTER DATABASE {name} CONNECTION LIMIT 0")
        guest = parse_url(fresh_url).set(username="guest", password="guest")  # noqa: S106  # a test's
        database = Database(guest.render_as_string(hide_password=False))
        await exactly(Unavailable, database.transact(reads.ping))
        await execute(fresh_url, f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        await database.transact(reads.ping)
        await database.close()
    finally:
        await execute(fresh_url, "DROP ROLE guest")


async def test_a_statement_that_takes_too_long_is_ended(fresh_url: str) -> None:
    database = Database(fresh_url, statement_s_max=0.1)
    await exactly(Contended, database.transact(lambda c: c.execute(text("SELECT pg_sleep(60)"))))
    await database.close()


async def test_text_with_the_character_nul_is_refused(database: Database) -> None:
    await exactly(InvalidInput, database.transact(lambda c: add(c, "A\0da")))


async def test_the_session_speaks_utc_and_read_committed(database: Database) -> None:
    async def settings(connection: AsyncConnection) -> list[str]:
        names = ("TimeZone", "transaction_isolation", "transaction_read_only")
        return [await connection.scalar(text(f"SHOW {name}")) for name in names]

    assert await database.transact(settings) == ["UTC", "read committed", "off"]
    assert await database.transact(settings, read_only=True) == ["UTC", "read committed", "on"]
    strict = await database.transact(settings, isolation="SERIALIZABLE")
    assert strict == ["UTC", "serializable", "off"]
    assert await database.transact(settings) == ["UTC", "read committed", "off"]


async def test_libpqs_word_for_encryption_is_understood(fresh_url: str) -> None:
    refusing = Database(f"{fresh_url}?sslmode=require")  # the embedded server offers none
    await exactly(Unavailable, refusing.transact(reads.ping))
    await refusing.close()
    plain = Database(f"{fresh_url}?sslmode=disable")
    await plain.transact(reads.ping)
    await plain.close()


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("", "not a database address"),
        ("mysql://host/taxi", "must begin with postgresql://"),
        ("postgresql://me:secret@host", "must name a database"),
        ("postgresql://me:secret@host:port/taxi", "not a database address"),
        ("postgresql://me:secret@host/taxi?channel_binding=require", "channel_binding is not"),
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(address: str, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule) as refused:
        parse_url(address)
    assert refused.value.field == "DATABASE_URL"
    assert "secret" not in str(refused.value)


# --- Who waits, and in what order. ------------------------------------------------------------


async def test_when_every_connection_is_taken_the_wait_is_bounded(fresh_url: str) -> None:
    database = Database(fresh_url, pool_size=1, wait_s_max=0.1)
    async with held(database):
        await exactly(LedgerBusy, database.transact(reads.ping))
    await database.transact(reads.ping)
    await database.close()


async def test_when_too_many_wait_the_next_is_sent_away_at_once(fresh_url: str) -> None:
    database = Database(fresh_url, pool_size=1, waiting_max=2, wait_s_max=60)
    async with held(database):
        queue = [asyncio.create_task(database.transact(reads.ping)) for _ in range(2)]
        await asyncio.sleep(0)
        await exactly(LedgerBusy, database.transact(reads.ping))
    await asyncio.gather(*queue)
    await database.close()


async def test_whoever_came_first_is_served_first(fresh_url: str) -> None:
    database = Database(fresh_url, pool_size=1, wait_s_max=60)
    served = []

    async def serve(number: int) -> None:
        async def note(connection: AsyncConnection) -> None:
            await reads.ping(connection)
            served.append(number)

        await database.transact(note)
        if number < 5:
            await serve(number + 100)  # a newcomer while others wait

    async with held(database):
        queue = []
        for number in range(20):
            queue.append(asyncio.create_task(serve(number)))
            await asyncio.sleep(0)
    await asyncio.gather(*queue)
    assert served == [*range(20), *range(100, 105)]
    await database.close()


async def test_a_cancelled_caller_gives_the_connection_back(fresh_url: str) -> None:
    database = Database(fresh_url, pool_size=2, wait_s_max=5)
    asleep = asyncio.Event()

    async def sleep(connection: AsyncConnection) -> None:
        await add(connection)
        asleep.set()
        await connection.execute(text("SELECT pg_sleep(60)"))

    callers = [asyncio.create_task(database.transact(sleep)) for _ in range(6)]
    await asleep.wait()
    for caller in callers:
        caller.cancel()
    ends = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    await asyncio.gather(*[database.transact(reads.ping) for _ in range(6)])
    assert await database.transact(count) == 0
    await database.close()


@contextlib.asynccontextmanager
async def held(database: Database) -> AsyncIterator[None]:
    """The only connection of a pool is in use."""
    taken, over = asyncio.Event(), asyncio.Event()

    async def hold(_: AsyncConnection) -> None:
        taken.set()
        await over.wait()

    holder = asyncio.create_task(database.transact(hold))
    await taken.wait()
    yield
    over.set()
    await holder
